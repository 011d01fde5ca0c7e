"""The committed notebooks: without outputs, with parameters, readable; and what they show."""

import json
import random
import re
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from dqlib.config import Config
from dqlib.errors import InputError
from dqlib.study.corpora.tokenizer import train_tokenizer
from dqlib.study.evaluation.records import COLUMNS, Detail, Record, write_details, write_record
from dqlib.study.notebooks import classes, deploy, show
from dqlib.study.params.kinds import KINDS
from dqlib.study.params.paths import LOG, PREDICTIONS, project_root
from dqlib.study.params.settings import load_settings
from dqlib.study.pipeline import notebook as run
from dqlib.study.training import classification
from tests.helpers import grid
from tests.helpers.checkpoints import save_checkpoint
from tests.helpers.projects import committed

NOTEBOOKS = sorted((committed() / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_parameters_prose_and_short_cells_without_outputs_of_what_the_tutorial_has(path):
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    kinds, code = [cell.cell_type for cell in notebook.cells], [c for c in notebook.cells if c.cell_type == "code"]
    assert kinds[0] == "markdown"
    assert kinds.count("markdown") >= 0.7 * len(code)
    for cell in code:
        assert (cell.outputs, cell.execution_count) == ([], None)
        assert len(cell.source.splitlines()) <= 12
        assert "def " not in cell.source
        assert '["test_unseen"]' not in cell.source  # which some corpora lack
    (given,) = [cell.source for cell in code if "parameters" in cell.metadata.get("tags", [])]
    values: dict = {}
    exec(given, values)  # a few assignments
    assert values["params"] in ("tutorial", "committed")
    task = load_settings(values["params"]).tasks.get(values.get("task", path.stem))
    if "config" in values and task is not None:
        assert Config.parse(values["config"]) in [config for config, _ in task.students()]


def cell_of(name, part):
    """The source of the cell of a notebook that has a part."""
    cells = nbformat.read(committed() / "notebooks" / f"{name}.ipynb", 4).cells
    (source,) = [cell.source for cell in cells if cell.cell_type == "code" and part in cell.source]
    return source


@pytest.mark.parametrize(("name", "shown"), [("teacher", "source:"), ("classification", "text:")])
def test_the_text_that_is_masked_is_the_first_that_is_long_enough(name, shown, capsys):
    rows = [{"source": "one two", "target": "one"}, {"source": "one two three " * 20, "target": "two"}]
    tokenizer = train_tokenizer(["one two three"] * 3, 300, 64, kind=KINDS["classification"])
    study = SimpleNamespace(base=None, task=load_settings("smoke").task("topics"))
    corpus = SimpleNamespace(splits={"validation": rows}, tokenizer=tokenizer)
    names = {"study": study, "corpus": corpus, "kind": classification.TRAINING, "random": random}
    exec(cell_of(name, "windows("), vars(classification) | names)
    assert re.search(rf"{shown}.*three", capsys.readouterr().out)


def test_the_parameters_of_a_teacher_from_a_checkpoint_are_those_of_the_checkpoint(tmp_path):
    folder = save_checkpoint("t5", tmp_path / "checkpoint", num_heads=3)  # which do not divide its width, 16
    spec = SimpleNamespace(form=KINDS["seq2seq"], model=SimpleNamespace(checkpoint=str(folder)))
    names = {"spec": spec, "study": SimpleNamespace(pretrained=lambda: folder), "pandas": pandas}
    exec(cell_of("teacher", "get_input_embeddings"), names)
    assert type(names["model"]).__name__ == "T5ForConditionalGeneration"
    assert list(names["parts"]) == ["embedding = head", "encoder", "decoder"]


def test_the_confusion_of_classes_is_drawn_for_each_model(tmp_path):
    labels, folders = ["cats", "dogs", "owls"], {}
    for name, predictions in (("teacher", "cats dogs owls cats"), ("student", "cats cats owls cats")):
        folders[name] = tmp_path / name
        folders[name].mkdir()
        lines = zip(["cats", "dogs", "owls", "dogs"], predictions.split(), strict=True)
        text = "".join(json.dumps({"reference": a, "prediction": b}) + "\n" for a, b in lines)
        (folders[name] / PREDICTIONS).write_text(text)
    assert classes.confusion(folders["teacher"], labels).tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    figure = classes.confusions(folders, labels)
    assert [axes.get_title() for axes in figure.axes] == ["teacher: 75.0% right", "student: 50.0% right"]
    assert [text.get_text() for text in figure.axes[0].texts][3:6] == ["50", "50", "0"]


def test_the_score_by_layers_has_a_line_for_each_number_of_bits_and_the_teacher_s():
    metrics = grid.of_readers(language={"2-2-8 0-3": 0.8, "1-1-8 0-6": 0.7})
    (axes,) = show.by_depth(metrics[metrics.task == "language"]).axes
    lines = {container.get_label(): container[0].get_xdata().tolist() for container in axes.containers}
    assert lines == {"2-2-8": [3, 6], "1-1-8": [6]}
    assert axes.yaxis_inverted()


def test_a_language_model_goes_on_with_the_end_of_a_text_that_is_too_long(tmp_path):
    tokenizer = train_tokenizer(["one two three four"] * 3, 300, 64, kind=KINDS["language_modelling"])
    tokenizer.save_pretrained(tmp_path)
    torch.manual_seed(0)
    ids = GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=32, bos_token_id=2,
                     eos_token_id=2)  # fmt: skip
    model = GPT2LMHeadModel(ids).eval()
    short, long = (show.answer(model, tmp_path, "three one two " * n, beams=1, max_new_tokens=5) for n in (1, 60))
    assert "three one two" not in short
    assert isinstance(long, str)
    with pytest.raises(InputError, match=r"text: ' ' .* not empty"):
        show.answer(model, tmp_path, " ")


@pytest.mark.parametrize(
    ("preset", "columns", "panels"),
    [
        ("fine-tuning", ["task", "validation_loss"], ["loss\n(nats per token)"]),
        ("dqlib", ["loss", "validation_loss"], ["weighted sum of all terms", "loss\n(nats per token)"]),
        ("dqlib", ["task", "logits"], ["loss\n(nats per token)", "divergence from the teacher\n(nats per token)"]),
        ("dq-bart", ["logits"], ["squared difference from the teacher's logits"]),
        ("mine", ["logits"], ["logits"]),
    ],
)
def test_nats_stand_where_nats_are_drawn(tmp_path, preset, columns, panels):
    write_record(Record(**dict.fromkeys(COLUMNS) | {"preset": preset}), tmp_path)
    log = {"step": [1, 2], "loss": [9.0, 8.0], "task": [5.0, 4.0], "logits": [0.4, 0.3], "validation_loss": [None, 4.0]}
    pandas.DataFrame(log).to_csv(tmp_path / LOG, index=False)
    figure = show.curves(tmp_path, columns)
    assert [axes.get_ylabel() for axes in figure.axes] == panels
    drawn = {line.get_label() for axes in figure.axes for line in axes.lines}
    assert drawn == {name.replace("_", " ") for name in columns}
    assert [axes.get_xlabel() for axes in figure.axes] == [*[""] * (len(panels) - 1), "training step"]


def corpus_of(rows):
    """A corpus whose texts are numbers: how many tokens they have."""

    def tokenizer(*texts, **_):
        return {"input_ids": [[0] * sum(map(int, parts)) for parts in zip(*texts, strict=True)]}

    return SimpleNamespace(splits={"validation": rows}, tokenizer=tokenizer)


def test_every_text_is_in_the_figure_of_lengths_and_none_of_its_bars_is_both_read_and_cut():
    counts = [1, 23, 24, 25, 26, 30, 95, 96, 97, 500]
    corpus = corpus_of([{"source": str(count), "target": str(count)} for count in counts])
    figure = show.lengths(corpus, SimpleNamespace(source_tokens=64, target_tokens=24))
    for axes, most in zip(figure.axes, (64, 24), strict=True):
        bars = [(bar.get_x(), bar.get_x() + bar.get_width(), bar.get_height()) for bar in axes.patches]
        assert sum(height for *_, height in bars) == len(counts)
        assert sum(height for low, _, height in bars if low <= most) == sum(count <= most for count in counts)
        assert len({round(high - low, 6) for low, high, _ in bars}) == 1
        assert np.allclose([low % 1 for low, *_ in bars], 0)


def test_texts_that_are_read_together_are_one_source_and_what_has_no_target_has_one_panel():
    corpus = corpus_of([{"source": "3", "second": "4"}, {"source": "60", "second": "10"}])
    (axes,) = show.lengths(corpus, SimpleNamespace(source_tokens=64, target_tokens=0)).axes
    high = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in axes.patches if bar.get_height()]
    assert [low <= count < top for count, (low, top) in zip((7, 70), high, strict=True)] == [True, True]
    assert axes.get_ylabel() == "texts"


def test_predictions_show_what_a_model_makes_of_a_text_whatever_its_kind(tmp_path, capsys):
    pair = {"source": "a", "second": "b", "reference": "yes", "prediction": "no", "probability": 0.75}
    shown = {
        "writer": (
            {"source": "a text", "reference": "ein Text", "language": "de", "prediction": "Text"},
            ["source:     a text", "reference: ein Text (de)", "writer:    Text"],
        ),
        "reader": (pair, ["source:     a", "and:        b", "reference: yes ", "reader:    no (75%)"]),
        "model": (
            {"source": "a document", "nats": 20 * np.log(5), "tokens": 20, "bytes": 90},
            ["source:     a document", "model:     perplexity 5.0 of 20 tokens"],
        ),
    }
    for name, (line, wanted) in shown.items():
        (tmp_path / PREDICTIONS).write_text(json.dumps(line) + "\n")
        show.predictions({name: tmp_path}, count=1)
        assert capsys.readouterr().out.splitlines() == [*wanted, ""]


def test_simpler_methods_are_a_table_of_their_own(tmp_path):
    names = ("perplexity", "bits_per_byte", "5-gram_perplexity", "5-gram_bits_per_byte")
    write_details([Detail("test", None, name, 2.0, 1.0, 3.0, "") for name in names], tmp_path)
    table = show.baselines(tmp_path)
    assert (table.index.tolist(), table.columns.tolist()) == (["5-gram"], ["perplexity", "bits per byte"])
    assert set(table.loc["5-gram"]) == {"2.00 (1.00 to 3.00)"}


@pytest.fixture
def given(tmp_path, monkeypatch):
    """The parameters of each notebook that is run; none is executed."""
    found: list[dict[str, str]] = []
    monkeypatch.setattr(run.papermill, "execute_notebook", lambda _, to, values, **more: found.append(values))
    monkeypatch.setattr(run, "HTMLExporter", lambda: SimpleNamespace(from_filename=lambda path: ("", None)))
    monkeypatch.setattr(run, "write_text", lambda path, text: None)
    monkeypatch.setattr(run, "executed_path", lambda *_: tmp_path / "executed.ipynb")
    return found


@pytest.mark.parametrize("name", ["deploy", "summarization", "teacher", "compare"])
def test_a_notebook_shows_the_headline_of_the_task_that_it_is_of(name, given):
    task = "topics" if name == "teacher" else None
    run.run_notebook(name, "smoke", task=task)
    headline = {"config": str(load_settings("smoke").task("summarization").headline)}
    more = {"deploy": headline, "summarization": headline, "teacher": {"task": task}, "compare": {}}[name]
    assert given == [{"params": "smoke"} | more]


def test_a_notebook_is_of_a_task_of_its_kind_that_the_profile_has(given):
    run.run_notebook("teacher", "bert")
    run.run_notebook("classification", "bert", task="matching")
    assert [values["task"] for values in given] == ["matching", "matching"]
    with pytest.raises(InputError, match=r"notebook: 'deploy' .* for the tasks of 'bert': matching, topics, shallow_"):
        run.run_notebook("deploy", "bert")
    with pytest.raises(InputError, match=r"notebook 'deploy': 'topics' .* one of summarization, eli5, translation\.$"):
        run.run_notebook("deploy", "smoke", task="topics")
    run.run_notebook("methods", "gpt2", task="language")
    assert given[2:] == [{"params": "gpt2", "task": "language"}]


def test_a_table_of_texts_shows_what_looks_like_a_tag():
    page = show.texts_table([{"answer": "ctext = <printable> & more"}]).to_html()
    assert "ctext = &lt;printable&gt; &amp; more" in page


def test_an_engine_that_tells_nothing_of_its_export_is_told_by_its_size(tmp_path, monkeypatch, capsys):
    def export(model, folder, engine, tokenizer):
        folder.mkdir()
        (folder / "model.bin").write_bytes(b"1234")

    monkeypatch.setattr(deploy, "load_model", lambda folder: (None, None))
    monkeypatch.setattr(deploy, "export_model", export)
    folders = deploy.export_each(tmp_path / "packed", ["torch", "onnxruntime"])
    assert capsys.readouterr().out.strip() == f"{folders['onnxruntime']}: 4 bytes"


def test_texts_and_table_of_the_engines_come_from_one_search():
    class Fake:
        early_stopping = False

        def encode(self, texts):
            return [[1, 2] for _ in texts]

        def generate(self, texts, **search):
            searches.append((self.early_stopping, search))
            return ["a"] * len(texts)

        generate_ids = generate

    searches: list[tuple] = []
    deploy.answers({"torch": Fake()}, ["text"])
    deploy.measured({"torch": Fake()}, {"torch": project_root() / "profiles"}, ["text"], repeats=1)
    assert all(search == searches[0] for search in searches)
    notebook = nbformat.read(project_root() / "notebooks" / "deploy.ipynb", 4)
    calls = [cell.source for cell in notebook.cells if "running, " in cell.source]
    assert [call.partition("(")[0] for call in calls] == ["deploy.answers", "deploy.measured"]
    assert all(call.endswith(", beams)") for call in calls)
