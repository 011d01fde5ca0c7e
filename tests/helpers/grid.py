"""A made-up grid of three tasks, in the columns of the real tables."""

import pandas

DEPTHS = {"summarization": (2, 4), "eli5": (2, 4), "translation": (3, 4)}
HEADLINES = {"summarization": ("rougeL", 26.0), "eli5": ("rougeL", 31.0), "translation": ("bleu", 91.0)}
HEADLINES |= {"matching": ("accuracy", 80.0), "topics": ("accuracy", 75.0), "language": ("perplexity", 30.0)}
RETENTION = {("8-8-8", "full"): 1.0, ("2-2-8", "full"): 0.96, ("2-2-8", "half"): 0.95, ("2-2-8", "one"): 0.8}


def row(task, config, role="student", preset="dqlib", part=1.0):
    headline, best = HEADLINES[task]
    encoder, decoder = map(int, config.split()[1].split("-"))
    score = best / part if headline == "perplexity" else best * part
    return {
        "task": task, "corpus": task, "role": role, "config": config, "preset": preset, "a_bits": 8,
        "w_bits": int(config.split("-")[0]), "encoder_layers": encoder, "decoder_layers": decoder,
        "headline": headline, "score": score, "score_low": score - 0.7, "score_high": score + 0.7,
        "retention": part, "compression": 1 / part + 3, "n_test": 9, "size_bytes": 1e6, "train_steps": 500,
    }  # fmt: skip


def metrics(**by_task):
    """``metrics.csv`` of three tasks; ``translation={("2-2-8", "full"): 0.5}`` changes its retention."""
    rows = []
    for task, (encoder, decoder) in DEPTHS.items():
        layers = {"full": f"{encoder}-{decoder}", "half": f"{encoder}-{decoder // 2}", "one": "1-1"}
        rows.append(row(task, f"32-32-32 {layers['full']}", "teacher", "fine-tuning"))
        for (bits, shape), part in (RETENTION | by_task.get(task, {})).items():
            rows.append(row(task, f"{bits} {layers[shape]}", part=part))
        rows.append(row(task, f"2-2-8 {layers['full']}", preset="quantization-only", part=0.7))
    return pandas.DataFrame(rows)


def of_readers(**by_task):
    """``metrics.csv`` of the tasks whose models write no texts, of teachers of six layers.

    ``matching={"1-1-8 2-0": 0.9}`` is a student and what it keeps.
    """
    students = {"matching": {"1-1-8 6-0": 0.97}, "topics": {"1-1-8 6-0": 0.97}, "language": {"2-2-8 0-6": 0.9}}
    rows = []
    for task, config in (("matching", "6-0"), ("topics", "6-0"), ("language", "0-6")):
        rows.append(row(task, f"32-32-32 {config}", "teacher", "fine-tuning"))
        rows += [row(task, text, part=part) for text, part in (students[task] | by_task.get(task, {})).items()]
    return pandas.DataFrame(rows)


def runs(**gaps):
    """Runs of the benchmark of a task: ``language={("quantgpt", "2-2-8 0-6", 100): [0.3, 0.31, 0.32]}`` are gaps."""
    rows = [
        {"task": task, "part": part, "config": config, "seed": seed, "steps": steps, "validation_loss": 2 + gap,
         "teacher_loss": 2.0}
        for task, parts in gaps.items()
        for (part, config, steps), values in parts.items()
        for seed, gap in enumerate(values, start=1)
    ]  # fmt: skip
    return pandas.DataFrame(rows, columns=["task", "part", "config", "seed", "steps", "validation_loss",
                                           "teacher_loss"])  # fmt: skip


def retention(table, width=0.004):
    rows = table[table.role == "student"]
    keys = rows[["task", "config", "preset", "retention"]]
    return keys.assign(low=rows.retention - width, high=rows.retention + width)


def students(table):
    rows = table[(table.role == "student") & (table.preset == "dqlib")]
    return rows[["task", "config", "preset"]].to_dict("records")


def positions(table, column="part", values=(1, 2, 3, 4, 5)):
    rows = [
        key | {column: value, "recall": 50.0 - value, "recall_of_teacher": 60.0, "words": 9}
        for key in students(table)
        for value in values
    ]
    return pandas.DataFrame(rows)


def accumulation(table, early=1.0, late=3.0, p_value=0.01):
    return pandas.DataFrame([key | {"early": early, "late": late, "p_value": p_value} for key in students(table)])


def similarity(table, more_alike=0.05, low=0.01, high=0.09):
    measured = {"decoder": 0.3, "teacher": 0.25, "more_alike": more_alike, "low": low, "high": high}
    return pandas.DataFrame([key | measured for key in students(table)])


def comparisons(table, p_value=0.001, difference=5.0):
    rows = []
    for line in table[table.preset == "quantization-only"].itertuples():
        keys = {"task": line.task, "config": line.config, "preset": "dqlib", "headline": line.headline}
        scores = {"score": line.score + difference, "baseline": "quantization-only", "baseline_score": line.score}
        rows.append(keys | scores | {"p_value": p_value})
    return pandas.DataFrame(rows)
