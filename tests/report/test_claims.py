import json

import numpy as np
import pandas
import pytest

from dqlib.study.evaluation.records import ZERO
from dqlib.study.report import figures
from dqlib.study.report import pages as report
from dqlib.study.report.claims import Tables, claims_table
from dqlib.study.report.recompute import retention_table
from dqlib.study.report.scores import ModelKey, Resampled
from dqlib.study.report.verdicts import Basis, needed_by_p
from tests.helpers import grid


def verdicts(metrics=None, **changed):
    metrics = grid.metrics() if metrics is None else metrics
    tables = {
        "comparisons": grid.comparisons(metrics),
        "retention": grid.retention(metrics),
        "accumulation": grid.accumulation(metrics),
        "similarity": grid.similarity(metrics),
    } | changed
    table = claims_table(Tables(metrics, **tables))
    return {(row.claim[1], row.task, f"{row.claim} {row.measured}"): row.verdict for row in table.itertuples()}


def of_readers(runs=None, comparisons=None, **by_task):
    empty = pandas.DataFrame(columns=["task", "config", "preset", "baseline"])
    nothing = {"accumulation": empty, "similarity": empty, "comparisons": empty if comparisons is None else comparisons}
    return verdicts(grid.of_readers(**by_task), **nothing, **({} if runs is None else {"runs": runs}))


def of(decided, letter, task):
    return [verdict for (which, of_task, _), verdict in decided.items() if (which, of_task) == (letter, task)]


METRICS = grid.metrics()
HALF = {"eli5": {("2-2-8", "half"): 0.96}, "summarization": {("2-2-8", "half"): 0.96}}
AGREES, OTHERWISE, OPEN = "agrees", "does not agree", "not decided"


def of_two_bits(part, at_8_bits=1.0):
    return verdicts(grid.metrics(translation={("2-2-8", "full"): part, ("8-8-8", "full"): at_8_bits}))


def compared(*measured):
    return verdicts(comparisons=grid.comparisons(METRICS, *measured))


def gaps(task, config, first, runs=of_readers):
    """Claims of runs whose gaps of three seeds begin with these, by what was trained."""
    seeds = {(name, config, 100): [gap, gap + 0.01, gap + 0.02] for name, gap in first.items()}
    return runs(runs=grid.runs(**{task: seeds}))


def longer(steps, *values):
    """Claims of a recipe whose gap is 0.4 after 100 steps, and these after longer training."""
    runs = {("xtc", "1-1-8 6-0", 100): [0.40, 0.41, 0.42], ("xtc", "1-1-8 6-0", steps): values}
    return of_readers(grid.runs(topics=runs | {("dqlib", "1-1-8 6-0", 800): [0.0] * 3}))


def few_layers(two_layers):
    return of_readers(matching={"1-1-8 3-0": 0.99, "1-1-8 2-0": two_layers, "1-1-8 1-0": 0.9})


def pretrained(score, width=0.004):
    row = {"task": "topics", "config": "32-32-32 3-0", "preset": "dqlib", "headline": "accuracy", "score": score,
           "baseline": "pre-trained", "baseline_score": 75.0, "p_value": 0.5, "kept": score / 75,
           "low": score / 75 - width, "high": score / 75 + width}  # fmt: skip
    return of_readers(comparisons=pandas.DataFrame([row]), topics={"32-32-32 3-0": score / 75})


QUANTGPT = {"quantgpt": 0.3, "quantgpt-no-contrast": 0.4, "quantgpt-fixed-clip": 0.2, "quantgpt-learned-clip": 0.301}
WITH_CONTRAST = {"dqlib": 0.1, "quantization-only": 0.05, "dqlib-with-contrast": 0.2}


@pytest.mark.parametrize(
    ("letter", "task", "decide", "expected"),
    [
        *((letter, task, verdicts, [AGREES]) for letter in "aef" for task in grid.DEPTHS),
        # joint training must be better, and significantly so
        ("a", "eli5", lambda: compared(0.2), [OPEN]),
        ("a", "eli5", lambda: compared(0.001, -5.0), [OTHERWISE]),
        ("a", "eli5", lambda: compared(0.2, -5.0), [OPEN]),
        # no loss asks for more than little loss
        ("b", "summarization", lambda: verdicts(grid.metrics(**HALF)), [AGREES]),
        ("b", "eli5", lambda: verdicts(grid.metrics(**HALF)), [OTHERWISE]),
        *(
            (
                "b",
                task,
                lambda: verdicts(metrics := grid.metrics(**HALF), retention=grid.retention(metrics, 0.04)),
                [OPEN],
            )
            for task in HALF
        ),
        # the limit differs by task only if one keeps clearly more than another
        ("c", "all", verdicts, [OPEN]),
        ("c", "all", lambda: verdicts(grid.metrics(eli5={("2-2-8", "one"): 0.9})), [AGREES]),
        # translation must keep its quality at 8 bits, and lose most at 2
        ("d", "translation", lambda: of_two_bits(0.9, 0.98), [OTHERWISE, AGREES]),
        ("d", "translation", lambda: of_two_bits(0.99), [AGREES, OTHERWISE]),
        ("d", "translation", lambda: of_two_bits(0.955), [AGREES, OPEN]),  # less, and within the intervals
        # errors accumulate only where the end loses more
        ("e", "eli5", lambda: verdicts(accumulation=grid.accumulation(METRICS, early=4.0)), [OTHERWISE]),
        ("e", "eli5", lambda: verdicts(accumulation=grid.accumulation(METRICS, p_value=0.3)), [OPEN]),
        # tokens are alike only where the interval is above zero
        ("f", "eli5", lambda: verdicts(similarity=grid.similarity(METRICS, low=-0.01)), [OPEN]),
        ("f", "eli5", lambda: verdicts(similarity=grid.similarity(METRICS, low=-0.02, high=-0.01)), [OTHERWISE]),
        # earlier recipes are under-trained where eight times the steps halve the gap
        ("g", "topics", lambda: longer(800, 0.15, 0.16, 0.17), [AGREES]),
        ("g", "topics", lambda: longer(800, 0.30, 0.31, 0.32), [OTHERWISE]),
        ("g", "topics", lambda: longer(800, 0.15), [OPEN]),
        ("g", "topics", lambda: longer(800, 0.1, 0.2, 0.3), [OPEN]),
        ("g", "topics", lambda: longer(400, 0.1, 0.1, 0.1), ["not run"]),
        # a student cut from its teacher must keep what one has that was pre-trained; of (a) that says nothing
        ("h", "topics", lambda: pretrained(75.0), [AGREES]),
        ("h", "topics", lambda: pretrained(75.0, width=0.02), [OPEN]),
        ("h", "topics", lambda: pretrained(70.0), [OTHERWISE]),
        ("a", "topics", lambda: pretrained(76.0), []),
        # one bit and few layers are judged by the deepest student with fewer than half
        ("i", "matching", lambda: few_layers(0.96), [AGREES]),
        ("i", "matching", lambda: few_layers(0.93), [OTHERWISE]),
        # contrast and dynamic scales must lower the gap over seeds, wherever such runs are
        ("j", "language", lambda: gaps("language", "2-2-8 0-6", QUANTGPT), [AGREES]),
        ("k", "language", lambda: gaps("language", "2-2-8 0-6", QUANTGPT), [OTHERWISE, OPEN]),
        ("j", "summarization", lambda: gaps("summarization", "2-2-8 2-4", WITH_CONTRAST, verdicts), [OTHERWISE]),
        ("a", "summarization", lambda: gaps("summarization", "2-2-8 2-4", WITH_CONTRAST, verdicts), [AGREES]),
        ("j", "eli5", lambda: gaps("summarization", "2-2-8 2-4", WITH_CONTRAST, verdicts), []),
        # a language model is near its teacher within a fifth of its perplexity
        *(
            ("l", "language", lambda part=part: of_readers(language={"2-2-8 0-6": part}), [verdict])
            for part, verdict in ((0.9, AGREES), (0.8, OTHERWISE), (0.834, OPEN))
        ),
        # what was not run is said, and of tasks that are not there nothing
        *((letter, task, of_readers, ["not run"]) for letter in "ghi" for task in ("matching", "topics")),
        ("j", "language", of_readers, ["not run"]),
        ("k", "language", of_readers, ["not run", "not run"]),
        *((letter, task, verdicts, []) for letter in "ghijkl" for task in grid.HEADLINES),
        *(
            (letter, task, lambda: verdicts(METRICS[METRICS.task == "summarization"]), expected)
            for letter, task, expected in (
                ("b", "summarization", [OPEN]),
                ("e", "summarization", [AGREES]),
                ("c", "all", []),
                ("d", "translation", []),
            )
        ),
    ],
)
def test_a_claim_is_judged_by_what_was_measured(letter, task, decide, expected):
    assert of(decide(), letter, task) == expected


def test_a_claim_that_is_not_decided_says_how_many_documents_would_decide_it():
    half = grid.metrics(summarization={("2-2-8", "half"): 0.96})  # nine documents each
    texts = {text for *_, text in verdicts(half, retention=grid.retention(half, width=0.04))}
    assert any(text.endswith("the bar is 95%; about 150 documents would decide it") for text in texts)  # 9 (4 / 1)^2
    tested = verdicts(half, comparisons=grid.comparisons(half, 0.2))
    (text,) = [text for letter, task, text in tested if (letter, task) == ("a", "eli5")]
    assert text.endswith("p = 0.600; about 32 documents would decide it")  # 9 (2.394 / 1.282)^2, three tests
    level = verdicts(half, comparisons=grid.comparisons(half, 1.0, 0.0))
    assert any(text.endswith("more than 1,000,000 documents would be needed to decide it") for *_, text in level)
    assert not any("would decide it" in text for (*_, text), verdict in verdicts().items() if verdict != "not decided")
    runs = grid.runs(language={("quantgpt", "2-2-8 0-6", 9): [0.1, 0.2, 0.3],
                               ("quantgpt-no-contrast", "2-2-8 0-6", 9): [0.2, 0.3, 0.4]})  # fmt: skip
    assert any(text.endswith("p = 0.288; about 11 seeds would decide it") for *_, text in of_readers(runs))


def test_where_there_are_several_seeds_more_of_them_are_needed_too():
    half = grid.metrics(summarization={("2-2-8", "half"): 0.96, ("2-2-8", "one"): 0.82}).assign(seeds=3)
    texts = {text for *_, text in verdicts(half, retention=grid.retention(half, width=0.04))}
    assert any(text.endswith("about 150 documents from 48 seeds would decide it") for text in texts)  # 16 times both
    assert any(text.endswith("times the documents and seeds of each task would decide it") for text in texts)


def test_what_is_needed_is_told_of_any_p_value():
    assert needed_by_p(Basis(9), 0.0, 1).endswith("about 1 documents would decide it")
    assert "more than 1,000,000 documents" in needed_by_p(Basis(9), 1.0, 1)


def test_a_claim_tells_the_numbers_of_the_metrics_and_what_it_needs():
    decided = verdicts(grid.metrics(summarization={("2-2-8", "half"): 0.9321}))
    (text,) = [text for letter, task, text in decided if (letter, task) == ("b", "summarization")]
    assert "2-2-8 2-2 keeps 93.2% (92.8 to 93.6)" in text
    assert any("needs a student 1-1-8 of at most 2 of 6 layers" in text for *_, text in of_readers())
    near = of_readers(language={"2-2-8 0-6": 0.8})
    assert any("1.25 (" in text and "the bar is 1.2" in text for *_, text in near)


@pytest.mark.parametrize("best", [0.0, ZERO / 2, 2.0])  # the last one's interval reaches down to zero
def test_beside_a_teacher_that_scores_zero_nothing_is_decided_and_all_else_goes_on(best):
    metrics = grid.metrics()
    rows, students = metrics.task == "summarization", metrics.role == "student"
    metrics.loc[rows, ["score", "score_low", "score_high"]] = 12.6
    metrics.loc[rows & ~students, ["score", "score_low"]] = best, 0.0
    metrics.loc[rows & students, "retention"] = np.nan if best < ZERO else 6.3

    scores = {ModelKey(row.task, row.role, row.config, row.preset, 9): row.score for row in metrics.itertuples()}

    class Drawn(Resampled):
        models = property(lambda self: list(scores))
        score = staticmethod(scores.get)
        headline = staticmethod(lambda model: "rougeL")

        def drawn(self, model):
            score = scores[model]
            return np.linspace(-1 if score == best else score, score, 99).clip(0)

    retention = retention_table(Drawn(pandas.DataFrame()))
    decided = verdicts(metrics, retention=retention)
    assert of(decided, "b", "summarization") == ["not decided"]
    assert of(decided, "b", "eli5") == ["does not agree"]
    measured = " ".join(text for letter, _, text in decided if letter in "bcd")
    assert "summarization not decided" in measured
    assert "too near to zero" in measured
    assert "nan" not in measured
    if best < ZERO:
        tables = report.short_table(metrics), report.overview_table(metrics)
        pages = "".join(map(report.markdown_table, tables))
        assert "12.60 (not decided)" in pages
        assert "nan" not in pages
        json.loads(report._metrics_json(metrics), parse_constant=pytest.fail)
        assert "not decided" in {text.get_text() for text in figures.heat_map(metrics).axes[0].texts}
