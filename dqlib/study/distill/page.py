"""The pages about a distilled checkpoint: ``report.md``, ``report.html`` and the model card ``README.md``."""

from __future__ import annotations

import html
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path

import pandas
import yaml
from nbconvert.filters.markdown_mistune import markdown2html_mistune

from dqlib.config import Config
from dqlib.engines import load_classifier, load_engine
from dqlib.files import write_text
from dqlib.storage.account import account, fp32_bytes_of
from dqlib.storage.manifest import MANIFEST, sha256
from dqlib.storage.reading import SAFETENSORS
from dqlib.study.corpora.corpus import load_corpus, load_info
from dqlib.study.distill.arguments import DistillArguments, flag
from dqlib.study.evaluation.bootstrap import two_sided
from dqlib.study.evaluation.perplexity import perplexity_of
from dqlib.study.evaluation.records import FALLING, metrics_table
from dqlib.study.params.identity import code_hash
from dqlib.study.params.paths import FIGURES
from dqlib.study.params.tasks import kind_of
from dqlib.study.pipeline.study import Study
from dqlib.study.report.engines import measured, measured_classifiers
from dqlib.study.report.figures import training_curves
from dqlib.study.report.names import METRIC_NAMES, interval_text, percent
from dqlib.study.report.pages import markdown_table, short_table
from dqlib.study.report.style import save
from dqlib.study.report.tables import Trained, collect_retention, collect_training
from dqlib.study.training.kinds import training_of

REPORT, PAGE, CARD = "report.md", "report.html", "README.md"

#: Texts that are shown, those that engines are timed on and how often, and characters of a text that are shown.
SHOWN, TIMED, TURNS, LONGEST = 10, 4, 2, 300

#: Tokens that a language model writes where it is timed.
CONTINUATION = 32

#: What Hugging Face calls our metrics.
_METRICS = {"rougeL": "rouge", "bleu": "bleu", "accuracy": "accuracy", "perplexity": "perplexity"}


def measure(study: Study, folders: Mapping[str, Path]) -> str:
    """Size and time of a text of each engine on the first test texts, one at a time, as CSV.

    The folders are those of the models, by name; the others are compared with the first.
    """
    spec, corpus = study.task, load_corpus(study.folders.corpus)
    examples = training_of(spec.form).encode(corpus.splits["test"][:TIMED], corpus, spec.corpus)[:TIMED]
    sources = [example.source for example in examples]
    positions, tokens = spec.model.max_positions, spec.corpus.target_tokens
    if spec.form.labels:
        classifiers = {name: load_classifier(folder) for name, folder in folders.items()}
        table = measured_classifiers(classifiers, folders, sources, TURNS)
    else:
        if not spec.form.writes:
            tokens = min(CONTINUATION, positions // 2)
            sources = [source[: max(1, positions - tokens)] for source in sources]
        engines = {name: load_engine(folder) for name, folder in folders.items()}
        table = measured(engines, folders, sources, spec.evaluate.beams, min(tokens, positions - 1), TURNS)
    return table.to_csv(lineterminator="\n")


def write_report(
    study: Study, student: Path, out: Path, latency: pandas.DataFrame, arguments: DistillArguments
) -> None:
    """Write the report as Markdown and as one file of HTML, and the model card.

    ``student`` is the folder of a student that is made, and ``latency`` what :func:`measure` gave.
    """
    models = [Trained(study, study.folders.teacher), Trained(study, student, Config.parse(arguments.config))]
    curves = collect_training([study])
    curves = curves[curves.model != "teacher"]
    training = "## Training\n"
    for name in ("logits", "validation_loss"):
        if name in curves and curves[name].notna().any():
            save(training_curves(curves, name), out / FIGURES, name)
            training += f"\n![{name}]({FIGURES}/{name}.svg)\n"
    text = "\n".join([_scores(study, models, latency), training, _texts(models), _reproduced(study, out, arguments)])
    write_text(out / REPORT, text)
    body = re.sub(r'<img[^>]*src="(.*?)"[^>]*>', lambda found: _svg(out / found[1]), markdown2html_mistune(text))
    body = re.sub(r'<a class="anchor-link".*?</a>', "", body)
    write_text(out / PAGE, _HTML.format(title=html.escape(f"{arguments.config} of {_base(arguments)}"), body=body))
    write_text(out / CARD, _card(models, latency, out, arguments))


def _scores(study: Study, models: Sequence[Trained], latency: pandas.DataFrame) -> str:
    teacher, student = (model.record for model in models)
    kept = collect_retention([study]).iloc[0]
    between = "" if pandas.isna(kept.low) else f" ({percent(kept.low)} to {percent(kept.high)})"
    p_value = two_sided(models[1].resampled - models[0].resampled)
    better = "lower" if teacher.headline in FALLING else "higher"
    beams = f", {study.task.evaluate.beams} beams" if study.task.form.writes else ""
    return f"""# `{student.config}` of a checkpoint

{markdown_table(short_table(metrics_table([teacher, student])))}
{student.n_test} test texts{beams}; 95% intervals by the bootstrap over the texts, of {METRIC_NAMES[teacher.headline]}
({better} is better). Of the teacher's score is left: {percent(student.retention)}{between}; p = {p_value:.4f} for a
difference between the two.

## Speed and size

{markdown_table(latency)}
One text at a time on this machine's processor, the median of {TURNS} turns over {TIMED} test texts. `packed` is the
student in PyTorch, which simulates its few bits; the exports compute with them. What agrees, agrees with `packed`.
"""


def _texts(models: Sequence[Trained]) -> str:
    """Test texts with what both wrote, side by side; of a language model, what it makes of each document."""
    theirs, ours = (model.lines[:SHOWN] for model in models)
    rows = [
        {"source": _cell(one["source"]), "reference": _cell(one["reference"]),
         "teacher": _cell(one["prediction"]), "student": _cell(other["prediction"])}
        if "prediction" in one else
        {"text": _cell(one["source"]), "teacher's perplexity": f"{perplexity_of(one):.2f}",
         "student's": f"{perplexity_of(other):.2f}"}
        for one, other in zip(theirs, ours, strict=True)
    ]  # fmt: skip
    return f"## The first {len(rows)} test texts\n\n{markdown_table(pandas.DataFrame(rows))}"


def _cell(text: str) -> str:
    """A text in a cell of a table: one line, not too long, and nothing that Markdown or HTML would read."""
    text = " ".join(text.split())
    text = text[:LONGEST] + " ..." * (len(text) > LONGEST)
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", text.replace("&", "&amp;").replace("<", "&lt;"))


def _reproduced(study: Study, out: Path, arguments: DistillArguments) -> str:
    """What the same numbers are made from."""
    info = load_info(study.folders.corpus)
    hashes = {
        "splits of the data": info["sha256"],
        "weights of the checkpoint": sha256((study.folders.teacher / SAFETENSORS).read_bytes()),
        "packed model, its manifest": sha256((out / "packed" / MANIFEST).read_bytes()),
        "code that decides numbers": code_hash(),
    }
    table = pandas.DataFrame([{"of": name, "SHA-256": f"`{digest}`"} for name, digest in hashes.items()])
    sizes = ", ".join(f"{size:,} {split}" for split, size in info["sizes"].items())
    versions = ", ".join(f"{name} {version(name)}" for name in ("dqlib", "torch", "transformers"))
    whole = account(out / "packed", fp32_bytes_of(study.folders.teacher))
    return f"""
## Where the bytes are

```
{whole}
```

## How it was made

```
{command_line(arguments)}
```

{versions}; {sizes}; {study.task.distill.steps:,} steps. All parameters are in `params.yaml`.

{markdown_table(table)}"""


def command_line(arguments: DistillArguments) -> str:
    """The call of the command that has these arguments."""
    words = ["dqlib", "distill", arguments.checkpoint, arguments.out]
    for each in fields(arguments):
        value = getattr(arguments, each.name)
        if each.name not in ("checkpoint", "out", "dry_run") and value not in (None, [], each.default):
            words += [flag(each.name), *map(str, value if each.name == "export" else [value])]
    return shlex.join(words)


def _base(arguments: DistillArguments) -> str:
    return Path(arguments.checkpoint).name if Path(arguments.checkpoint).is_dir() else arguments.checkpoint


def _card(models: Sequence[Trained], latency: pandas.DataFrame, out: Path, arguments: DistillArguments) -> str:
    """A model card in Hugging Face's form: what machines read of it first, then what people do."""
    teacher, student = (model.record for model in models)
    metric = {"name": METRIC_NAMES[student.headline], "type": _METRICS[student.headline], "value": student.score}
    form = kind_of(student.task)
    task = {"type": "translation" if models[0].language else form.tag}
    result = {"task": task, "dataset": {"name": student.corpus, "type": student.corpus}, "metrics": [metric]}
    hub = not Path(arguments.checkpoint).is_dir()
    head = {
        "library_name": "dqlib",
        "pipeline_tag": task["type"],
        **({"base_model": arguments.checkpoint, "base_model_relation": "quantized"} if hub else {}),
        **({"language": [models[0].language.partition("_")[0]]} if models[0].language else {}),
        "tags": ["dqlib", "quantization", "distillation"],
        "metrics": [metric["type"]],
        "model-index": [{"name": out.name, "results": [result]}],
    }
    return f"""---
{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---

# {out.name}

`{student.config}` of {_base(arguments)}, {student.compression:.1f} times smaller.
{METRIC_NAMES[student.headline]} on {student.n_test} test texts of `{student.corpus}`: {student.score:.2f} (95% interval
{interval_text(student.score_low, student.score_high)}) against the teacher's {teacher.score:.2f}
({percent(student.retention)}). Distilled and quantized together by dqlib, preset `{student.preset}`, in
{student.train_steps:,} steps.

```python
import dqlib
from transformers import {form.auto}, AutoTokenizer

model, tokenizer = {form.auto}.from_pretrained("packed"), AutoTokenizer.from_pretrained("packed")
```

{markdown_table(latency)}
All scores, curves and texts side by side: `{PAGE}`. What it was made from: `{REPORT}`, `params.yaml`.
"""


def _svg(path: Path) -> str:
    """A figure as it stands in a page."""
    return path.read_text(encoding="utf-8").partition("?>")[2].partition("<!DOCTYPE")[2].partition(">")[2]


_HTML = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px/1.5 sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em }}
table {{ border-collapse: collapse }} td, th {{ border: 1px solid #ccc; padding: 0.2em 0.5em; vertical-align: top }}
pre {{ overflow-x: auto; background: #f4f4f4; padding: 0.5em }} svg {{ max-width: 100%; height: auto }}
</style></head><body>
{body}
</body></html>
"""
