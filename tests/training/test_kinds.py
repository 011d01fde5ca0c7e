"""Tasks of other kinds than texts from texts: their batches, their masks, and a whole study of seconds for each."""

import json
import random
from pathlib import Path

import pandas
import pytest
import torch
import yaml
from transformers import BertForSequenceClassification

from dqlib.losses import IGNORED_LABEL
from dqlib.storage.reading import read_model
from dqlib.storage.students import load_student
from dqlib.study.corpora.splits import SPLITS
from dqlib.study.corpora.tokenizer import train_tokenizer
from dqlib.study.evaluation.records import read_details, read_record
from dqlib.study.params.kinds import KINDS
from dqlib.study.params.model import Model
from dqlib.study.params.training import Pretraining
from dqlib.study.pipeline.plan import plan
from dqlib.study.pipeline.study import Study
from dqlib.study.report.pages import markdown_table, overview_table
from dqlib.study.report.tables import collect
from dqlib.study.training.batches import collate_texts
from dqlib.study.training.classification import compare_tokens, masked, new_config, windows
from dqlib.study.training.examples import Example
from dqlib.study.training.loop import token_counts
from tests.helpers.examples import write_splits
from tests.helpers.projects import committed


def test_a_pair_is_padded_and_each_token_knows_its_text():
    batch = collate_texts([Example([0, 7, 2, 8, 9, 2], [1]), Example([0, 5, 2], [0])], pad=1, separator=2)
    assert batch.input_ids.tolist() == [[0, 7, 2, 8, 9, 2], [0, 5, 2, 1, 1, 1]]
    assert batch.attention_mask.tolist() == [[1] * 6, [1, 1, 1, 0, 0, 0]]
    assert batch.token_type_ids.tolist() == [[0, 0, 0, 1, 1, 1], [0] * 6]
    assert batch.labels.tolist() == [1, 0]
    assert set(batch.inputs()) == {"input_ids", "attention_mask", "token_type_ids"}


def test_a_text_that_holds_the_padding_s_id_is_no_padding():
    batch = collate_texts([Example([2, 5, 2, 6], [5, 2, 6, 2]), Example([2, 5], [5, 2])], pad=2)
    assert batch.attention_mask.sum(dim=1).tolist() == [4, 2]
    assert batch.labels.tolist() == [[5, 2, 6, 2], [5, 2, IGNORED_LABEL, IGNORED_LABEL]]
    assert set(batch.inputs()) == {"input_ids", "attention_mask"}


def test_the_labels_of_a_step_are_classes_next_tokens_or_masked_tokens():
    masked_one = Example([0, 4, 4, 2], [IGNORED_LABEL, 7, IGNORED_LABEL, IGNORED_LABEL])
    assert token_counts([[Example([0, 4, 2], [1])], [masked_one]]) == (7.0, 2.0)


@pytest.mark.parametrize("span", [1.0, 3.0])
def test_masks_cover_the_ratio_and_the_target_has_what_is_under_them(span):
    pretraining = Pretraining(steps=1, learning_rate=1, batch_tokens=1, mask_ratio=0.4, mean_span=span)
    example, order = Example([0, *range(10, 110), 2], []), random.Random(0)
    seen = {"mask": 0, "same": 0, "other": 0}
    for _ in range(50):
        made = masked(example, order, pretraining, mask=4, kept=frozenset(range(5)), vocabulary=500)
        hidden = [place for place, label in enumerate(made.target) if label != IGNORED_LABEL]
        assert 40 <= len(hidden) <= 40 + 20 * (span > 1)
        assert all(made.target[place] == example.source[place] for place in hidden)
        assert not {0, len(example.source) - 1} & set(hidden)
        for place, token in enumerate(made.source):
            if place not in hidden:
                assert token == example.source[place]
            else:
                seen["mask" if token == 4 else "same" if token == example.source[place] else "other"] += 1
    total = sum(seen.values())
    assert seen["mask"] / total == pytest.approx(0.8, abs=0.04)
    assert seen["other"] / total == pytest.approx(0.1, abs=0.03)


def test_windows_of_pre_training_keep_pairs_together_and_cut_long_texts():
    tokenizer = train_tokenizer(["one two three"] * 3, 300, 64, kind=KINDS["classification"])
    pairs = windows([{"source": "one two three", "second": "three one two"}] * 2, tokenizer, 16)
    assert [example.source.count(tokenizer.sep_token_id) for example in pairs] == [2, 2]
    cut = windows([{"source": "one two three " * 20}], tokenizer, 16)
    assert all(e.source[0] == tokenizer.cls_token_id and e.source[-1] == tokenizer.sep_token_id for e in cut)
    assert max(len(example.source) for example in cut) == 16
    inner = [token for example in cut for token in example.source[1:-1]]
    read = tokenizer.decode(inner).split()
    assert len(read) > 50  # a rest that is too short is left out
    assert read == (["one", "two", "three"] * 20)[: len(read)]


def pairs_of_texts(order, count, vocabulary):
    """Five tokens beside twelve; the first three of the five are of the twelve, or of another pair's twelve."""
    bodies = [order.sample(range(5, vocabulary), 12) for _ in range(count)]
    shared = [order.sample(body, 3) for body in bodies]
    labels = [number % 2 for number in range(count)]
    firsts = [
        [*(shared[i] if label else shared[i - 2]), *order.choices(range(5, vocabulary), k=2)]
        for i, label in enumerate(labels)
    ]
    return [Example([0, *one, 2, *two, 2], [label]) for one, two, label in zip(firsts, bodies, labels, strict=True)]


def share_right_after_training(compares):
    torch.manual_seed(0)
    shape = Model(d_model=64, encoder_layers=2, decoder_layers=0, heads=2, ffn_dim=64, max_positions=24, init_std=0.1)
    model = BertForSequenceClassification(new_config(shape, vocabulary := 400))
    if compares:
        compare_tokens(model)
    order, steps = random.Random(0), 120
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.003)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.003, steps)
    for _ in range(steps):
        batch = collate_texts(pairs_of_texts(order, 32, vocabulary), pad=1, separator=2)
        torch.nn.functional.cross_entropy(model(**batch.inputs()).logits, batch.labels).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    batch = collate_texts(pairs_of_texts(order, 400, vocabulary), pad=1, separator=2)
    with torch.no_grad():
        return (model.eval()(**batch.inputs()).logits.argmax(dim=-1) == batch.labels).float().mean().item()


@pytest.mark.slow
def test_a_new_classifier_learns_to_compare_two_texts_where_a_small_random_start_does_not():
    assert share_right_after_training(compares=True) > 0.85
    assert share_right_after_training(compares=False) < 0.65


def test_a_token_first_attends_to_its_equal_in_the_other_text():
    torch.manual_seed(0)
    shape = Model(d_model=128, encoder_layers=1, decoder_layers=0, heads=4, ffn_dim=64, max_positions=64, init_std=0.08)
    model = BertForSequenceClassification(new_config(shape, 400))
    compare_tokens(model)
    model.set_attn_implementation("eager")
    one, two = list(range(10, 20)), list(range(15, 45))
    batch = collate_texts([Example([0, *one, 2, *two, 2], [0])], pad=1, separator=2)
    with torch.no_grad():
        weights = model(**batch.inputs(), output_attentions=True).attentions[0][0]  # (heads, query, key)
    ids = batch.input_ids[0].tolist()
    for token in range(15, 20):  # in both texts
        first, second = (place for place, each in enumerate(ids) if each == token)
        assert (weights[:2, first, second] > 0.4).all()
        assert (weights[:2, second, first] > 0.4).all()


#: Parameters of a study of one task, from files.
TASKS = {
    "topics": {
        "corpus": {"source": "text", "target": "label", "source_tokens": 16},
        "model": {"encoder_layers": 2, "decoder_layers": 0},
        "pretrain": {"steps": 6, "learning_rate": 0.002, "batch_tokens": 600, "window": 14, "mean_span": 1.0},
        "configs": ["8-8-8_2-0", "2-2-8_1-0"],
        "controls": ["2-2-8_1-0"],
    },
    "language": {
        "corpus": {"source": "text", "source_tokens": 16},
        "model": {"encoder_layers": 0, "decoder_layers": 2},
        "pretrain": None,
        "configs": ["8-8-8_0-2", "2-2-8_0-1"],
    },
}
WORDS = {"plants": ["bed", "tulip", "rose", "soil"], "dishes": ["pan", "spoon", "oven", "plate"]}


def rows_of(count, seed):
    order = random.Random(seed)
    labels = [order.choice(list(WORDS)) for _ in range(count)]
    return [{"text": f"the {' and the '.join(order.choices(WORDS[label], k=4))} .", "label": label} for label in labels]


def study_of(folder, task):
    (folder / "dvc.yaml").touch()
    sizes = zip(SPLITS, (300, 40, 40), strict=True)
    files = write_splits(folder, **{split: rows_of(size, seed) for seed, (split, size) in enumerate(sizes)})
    loop = {"steps": 60, "learning_rate": 0.003, "batch_tokens": 600, "validations": 2}
    block = {"finetune": {**loop, "label_smoothing": 0.0}, "distill": loop | {"steps": 20}, **TASKS[task]}
    block["evaluate"] = {"bootstrap": 100}
    block["corpus"] = {"name": "mine", "origin": "files", "vocab_size": 300, **files, **block["corpus"]}
    shape = {"d_model": 32, "heads": 2, "ffn_dim": 48, "max_positions": 16, "init_std": 0.1}
    block["model"] = shape | block["model"]
    study = {"profile": "mine", "results": "results", "compute": {"processes": 1}, task: block}
    (folder / "mine.yaml").write_text(yaml.safe_dump(study))
    return Study("mine.yaml", task)


@pytest.fixture(scope="module", params=list(TASKS))
def study(request, tmp_path_factory):
    """A study whose teacher and students are made."""
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        made = study_of(folder, request.param)
        for config, preset in made.task.students():
            made.student(config, preset)
        yield made


def test_a_teacher_learns_and_is_measured_by_its_kind_s_metrics_beside_simpler_methods(study):
    record = read_record(study.folders.teacher)
    model = read_model(study.folders.teacher)
    names = {detail.metric for detail in read_details(study.folders.teacher)}
    if study.name == "topics":
        assert type(model).__name__ == "BertForSequenceClassification"
        assert model.config.id2label == {0: "dishes", 1: "plants"}
        assert record.accuracy > 90
        assert {"majority_accuracy", "bag_of_words_accuracy", "bag_of_words_mcc"} <= names
        assert not any(name.startswith("overlap") for name in names)  # there is but one text
    else:
        assert type(model).__name__ == "GPT2LMHeadModel"
        assert record.perplexity < 12  # of 300 tokens
        assert {"5-gram_perplexity", "5-gram_bits_per_byte"} <= names
    assert record.headline == study.task.form.metrics[0]
    written = json.loads((study.folders.teacher / "record.json").read_text())
    others = {name for kind in KINDS.values() for name in kind.metrics} - set(study.task.form.metrics)
    assert set(study.task.form.metrics) <= written.keys()
    assert not others & written.keys()


def test_students_are_trained_saved_and_scored_as_any(study):
    for config, preset in study.task.students():
        folder = study.settings.student_folder(study.name, config, preset)
        record, student = read_record(folder), load_student(folder)
        assert record.compression > (6 if config.w_bits == 2 else 2)
        assert (record.encoder_layers, record.decoder_layers) == (config.encoder_layers, config.decoder_layers)
        assert type(student) is type(read_model(study.folders.teacher))
        score, teacher = record.score, read_record(study.folders.teacher).score
        kept = teacher / score if study.name == "language" else score / teacher
        assert record.retention == pytest.approx(kept, abs=1e-4)


def test_tables_are_collected_of_every_kind(study):
    tables = collect([study])
    assert list(tables.metrics.role) == ["teacher", *["student"] * len(study.task.students())]
    assert set(study.task.form.metrics) <= set(tables.metrics.columns)
    assert "rougeL" not in tables.metrics
    assert (tables.retention.low <= tables.retention.retention + 1e-3).all()
    assert (tables.retention.high >= tables.retention.retention - 1e-3).all()
    assert len(tables.comparisons) == len(study.task.controls)
    assert tables.positions.empty
    assert tables.similarity.empty == (study.task.kind == "classification")  # classes have no tokens to compare
    tables.claims()


def test_the_notebook_of_the_comparison_writes_a_page_of_any_one_task(study):
    notebook = json.loads((committed() / "notebooks" / "compare.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert cells[0].startswith('params = "tutorial"')
    figures = Path("results/figures")
    stale = [Path("results/tasks/matching.md"), figures / "accumulation.svg", figures / "training_matching.png"]
    others = figures / "benchmark.svg"  # not of the comparison
    for path in (*stale, others):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("of an earlier run")
    exec("\n".join(['params = "mine.yaml"', *cells[1:]]), {"display": lambda *_: None})
    assert not any(path.exists() for path in stale)
    assert others.exists()
    metrics, page = pandas.read_csv("results/tables/metrics.csv"), Path("results/README.md").read_text()
    assert set(metrics.task) == {study.name}
    assert markdown_table(overview_table(metrics)) in page
    assert "accumulation.svg" not in page
    assert Path(f"results/tasks/{study.name}.md").is_file()


def test_the_plan_times_every_training(study):
    found = plan(study.settings)
    assert all(each.seconds > 0 for each in found.trainings)
    assert all(each.test_seconds is not None for each in found.trainings)
    assert len(found.trainings) == len(study.task.students()) + 1 + (study.task.pretrain is not None)


@pytest.mark.parametrize("study", ["topics"], indirect=True)
def test_two_models_pre_trained_by_the_same_parameters_are_the_same(study, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other = study_of(tmp_path, study.name)
    ours, theirs = (read_model(each).state_dict() for each in (study.folders.pretrained, other.pretrained()))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
