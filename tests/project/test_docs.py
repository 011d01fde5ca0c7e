"""The code of the documentation runs as it is printed."""

import itertools
import re
import sys
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dqlib import Config, load_packed, load_student, make_student, round_for_storage, save_packed, save_student
from dqlib.architectures import layer_weights
from dqlib.presets import PRESETS
from dqlib.schemes import SCHEMES
from dqlib.storage.footprint import fp32_size_bytes
from dqlib.storage.manifest import packed_size_bytes
from dqlib.storage.reading import read_model, read_tokenizer
from dqlib.study.corpora.corpus import load_corpus
from dqlib.study.distill.arguments import DistillArguments
from dqlib.study.params.corpus import EMBEDDED
from dqlib.study.params.paths import project_root
from dqlib.study.params.tasks import TASKS
from dqlib.study.pipeline.study import Study
from tests.helpers.checkpoints import save_checkpoint

ROOT = project_root()


def checkpoint_in(folder):
    """A random BART that is saved with a tokenizer that knows no longest text."""
    shape = {"d_model": 48, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96, "max_position_embeddings": 40}
    return read_model(save_checkpoint("bart", folder, longest=None, **shape))


def test_every_relative_link_leads_to_a_file():
    pages = [page for page in ROOT.rglob("*.md") if not {".venv", "runs", "build"} & set(page.relative_to(ROOT).parts)]
    assert {ROOT / "README.md", ROOT / "docs" / "extend.md"} <= set(pages)
    links = [(page, link) for page in pages for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text())]
    inside = [(page, link) for page, link in links if not link.startswith(("https://", "http://", "#", "file:"))]
    assert [(str(p), link) for p, link in inside if not (p.parent / link.partition("#")[0]).exists()] == []


def test_a_student_is_packed_and_writes_by_the_code_of_the_page(tmp_path, monkeypatch, capsys):
    section = (ROOT / "docs" / "small-file.md").read_text().partition("## A small file")[2].partition("\n#")[0]
    code = "\n".join(re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL))
    monkeypatch.chdir(tmp_path)
    folder = Path(re.search(r'folder = "(.*?)"', code)[1])
    student = make_student(checkpoint_in(folder), Config.parse("2-2-8 2-1"))
    round_for_storage(student)
    save_student(student, folder)
    exec(code, {})
    assert capsys.readouterr().out.endswith("\n")


@pytest.mark.parametrize("config", ["2-2-8 2-1", "2-2-8 3-3 h1 f48"])
def test_a_checkpoint_becomes_a_small_file_by_the_code_of_the_page(config, tmp_path, monkeypatch):
    teacher = checkpoint_in(tmp_path / "checkpoint")
    page = (ROOT / "docs" / "your-model.md").read_text()
    monkeypatch.chdir(tmp_path)
    code = "\n".join(re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL))
    long = "the " * 2 * teacher.config.max_position_embeddings
    pairs = [(["old stone house", "the river of green water", long], ["stone house", "green river", long])]
    losses: list[float] = []
    names = {
        "CHECKPOINT": "checkpoint", "CONFIG": config, "LEARNING_RATE": 1e-3, "STEPS": 12, "LENGTH": 100,
        "TRAINING": itertools.cycle(pairs), "VALIDATION": pairs, "losses": losses,
        "PAIRS": [{"input_ids": [0, 4, 5, 2], "attention_mask": [1] * 4, "labels": [0, 6, 2]}] * 8,
    }  # fmt: skip
    exec(code.replace("    loss.backward()\n", "    losses.append(float(loss.detach()))\n    loss.backward()\n"), names)
    assert losses[-1] < 0.8 * losses[0]
    rates = [group["initial_lr"] for group in names["optimizer"].param_groups]
    kept = layer_weights(names["student"]) / layer_weights(names["teacher"])
    assert 0.4 < kept < 0.8  # fewer or narrower layers, and 2 bits
    assert rates == [pytest.approx(1.25 * 1e-3 / kept)] * 2
    assert names["validation_loss"]() == pytest.approx(names["best_loss"], rel=0.01)  # but for fp16
    names["student"].eval()
    assert read_tokenizer("student").get_vocab() == names["tokenizer"].get_vocab()
    ids = torch.tensor([[0, 4, 5, 6, 2]])
    with torch.no_grad():
        ours, stored, trained = (
            model(input_ids=ids, decoder_input_ids=ids).logits
            for model in (names["student"], names["model"], load_student("student"))
        )
    assert torch.equal(ours, stored)
    assert torch.equal(ours, trained)
    assert type(load_student("checkpoints/checkpoint-12")) is type(teacher)
    assert packed_size_bytes("small") < fp32_size_bytes(teacher) / 4


def test_the_page_of_a_checkpoint_names_every_option_of_its_command():
    page = (ROOT / "docs" / "your-model.md").read_text()
    given = ("`--checkpoint`", "`--out`")  # as they are, without a name
    options = {f"`--{field.name.replace('_', '-')}`" for field in fields(DistillArguments)}.difference(given)
    assert {option for option in options if option not in page} == set()


@pytest.fixture
def added(monkeypatch):
    """What the code of the page of one's own parts defines; what it puts into tables is taken away afterwards."""
    for table, name in ((SCHEMES, "clipped"), (PRESETS, "mine"), (EMBEDDED, "characters"), (TASKS, "naming")):
        monkeypatch.setitem(table, name, None)
    page = (ROOT / "docs" / "extend.md").read_text()
    names: dict = {}
    exec("\n".join(re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)), names)
    return names


def test_a_scheme_a_preset_a_loss_and_a_corpus_are_added_by_the_code_of_the_page(added, tmp_path):
    teacher = checkpoint_in(tmp_path / "checkpoint").eval()
    student = make_student(teacher, Config.parse("2-2-8 2-1"), "mine")
    round_for_storage(student)
    save_packed(student.eval(), tmp_path / "packed")
    ids = torch.tensor([[0, 4, 5, 6, 2]])
    with torch.no_grad():
        ours, packed, theirs = (
            model(input_ids=ids, decoder_input_ids=ids, output_hidden_states=True)
            for model in (student, load_packed(tmp_path / "packed"), teacher)
        )
    assert torch.equal(ours.logits, packed.logits)
    states = ours.encoder_last_hidden_state, theirs.encoder_last_hidden_state
    mask = torch.tensor([[True] * 4 + [False]])
    loss = added["relation_mse"](*states, mask)
    assert loss > 0
    torch.testing.assert_close(loss, added["relation_mse"](*(x[:, :4] for x in states), mask[:, :4]))
    splits = added["build"](SimpleNamespace(limit=100))
    assert {split: len(rows) for split, rows in splits.items()} == dict.fromkeys(("train", "validation", "test"), 100)
    assert not {row["group"] for row in splits["train"]} & {row["group"] for row in splits["test"]}


def test_a_task_is_added_by_the_code_of_the_page(added, tmp_path, monkeypatch):
    section = (ROOT / "docs" / "extend.md").read_text().partition("\n## A task\n")[2].partition("\n## ")[0]
    (profile,) = re.findall(r"```yaml\n(.*?)```", section, flags=re.DOTALL)
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "naming.yaml").write_text(profile)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, EMBEDDED["characters"].module, SimpleNamespace(build=added["build"]))
    study = Study("naming", "naming")
    corpus = load_corpus(study.corpus())
    assert {split: len(rows) for split, rows in corpus.splits.items()}["train"] == study.task.corpus.limit
    assert min(len(corpus.splits[split]) for split in ("validation", "test")) >= study.task.evaluate.documents
    assert [str(config) for config, _ in study.task.students()] == ["8-8-8 2-2", "2-2-8 2-1"]
    assert study.settings.student_folder("naming", study.task.headline, "dqlib").name == "2-2-8_2-1"
    command = f"`python -m dqlib.study make students --params {study.settings.profile} --task {study.name}`"
    assert command in section
