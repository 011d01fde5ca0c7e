"""Corpora of classifications and of running text: what is in them, and what is refused."""

import re
from collections import Counter
from dataclasses import replace

import pandas
import pytest
from datasets import Dataset, Features, Value

from dqlib.errors import InputError
from dqlib.study.corpora import pydoc_match, pydoc_text, pydoc_topic
from dqlib.study.corpora.corpus import build_corpus, load_corpus
from dqlib.study.corpora.pydoc import python_files
from dqlib.study.corpora.rows import LONGEST_DOCUMENT, documents
from dqlib.study.corpora.splits import SPLITS, split_of
from dqlib.study.params import settings as S
from tests.helpers.examples import write_splits
from tests.helpers.folders import contents

KINDS = {"pydoc-match": "classification", "pydoc-topic": "classification", "pydoc-text": "language_modelling"}
MODULE = '''"""Tools of the {name} kind."""

def water_all(plants):
    """Water every plant {where}.

    {body} `plants` that were watered today are left out, and garden.pump() is needed for it."""

def dig_up(plant):
    """Take one plant away {where}.

    {body} The bed has a gap then, which water_all does not fill with another plant."""
'''


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Two packages of many modules, which are in all splits."""
    for package, place in (("gardens", "lawn"), ("kitchens", "window sill")):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("")
        for number in range(120):
            where = f"on the {place} of {package} number {number}"
            text = MODULE.format(name=f"{package} {number}", body=f"It is {where}.", where=where)
            (tmp_path / package / f"beds{number}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    return ["gardens", "kitchens"]


def embedded(name, packages):
    return S.Corpus(name, "embedded", 400, 48, packages=packages)


@pytest.mark.parametrize("name", KINDS)
def test_a_corpus_built_twice_is_byte_identical_and_split_by_module(name, packages, tmp_path):
    for folder in ("one", "other"):
        build_corpus(embedded(name, packages), tmp_path / folder, kind=KINDS[name])
    assert contents(tmp_path / "one") == contents(tmp_path / "other")
    splits = load_corpus(tmp_path / "one").splits
    assert {split: {split_of(row["group"]) for row in rows} for split, rows in splits.items()} == {
        split: {split} for split in SPLITS
    }


def test_half_of_the_pairs_have_exchanged_bodies_with_another_package(packages):
    splits = pydoc_match.build(embedded("pydoc-match", packages))
    number = re.compile(r"(lawn|sill) of \w+ number (\d+)")  # of a module, in its summaries and bodies
    files = [(module, path) for _, module, path in python_files(packages)]
    modules = {number.search(path.read_text()).groups(): module for module, path in files if path.stem != "__init__"}
    for rows in splits.values():
        counts = Counter(row["target"] for row in rows)
        assert abs(counts["match"] - counts["other"]) <= 2
        for row in rows:
            module = modules[number.search(row["second"]).groups()]
            same = module == row["group"] and ("watered" in row["second"]) == ("Water" in row["source"])
            assert same == (row["target"] == "match")
            assert same or module.partition(".")[0] != row["group"].partition(".")[0]
            assert split_of(module) == split_of(row["group"])
    bodies = [row["second"] for rows in splits.values() for row in rows]
    in_splits = [Counter(module[0] for module in modules.values() if split_of(module) == split) for split in SPLITS]
    partners = sum(min(counts["g"], counts["k"]) for counts in in_splits)  # of each of two docstrings in a module
    assert len(bodies) == len(set(bodies)) == 4 * partners  # so neither text alone gives the class away


def test_a_body_is_exchanged_with_one_of_like_length():
    modules = [f"{package}.{i}" for package in ("gardens", "kitchens") for i in range(60)]
    pairs = [
        {"group": module, "name": f"{module}.{size}", "source": "word " * size + module, "target": module}
        for module in [next(m for m in modules if m[0] == first and split_of(m) == "train") for first in "gk"]
        for size in range(1, 40)
    ]
    rows = pydoc_match.paired(pairs)
    assert len(rows) == len(pairs)
    own = {pair["name"]: len(pair["source"].split()) for pair in pairs}
    assert all(abs(own[row["name"]] - len(row["second"].split())) <= 1 for row in rows)


def test_pairs_of_one_package_are_refused(packages, tmp_path):
    with pytest.raises(InputError, match="at least one pair; allow more pairs or packages"):
        build_corpus(embedded("pydoc-match", packages[:1]), tmp_path / "made", kind="classification")


def test_names_and_identifiers_are_masked():
    names = pydoc_match.maskable(["Garden", "dig", "to"])
    text = "Use `x` of garden to dig: run_all, runAll, a.b.C, HTMLParser, pump() and plants; it's PEP 257."
    assert pydoc_match.masked_text(text, names) == (
        "Use NAME of NAME to NAME: NAME, NAME, NAME, HTMLParser, NAME and plants; it's PEP 257."
    )


def test_bodies_that_occur_twice_and_single_docstrings_are_left_out():
    pairs = [
        {"group": "a.b", "name": f"a.b.{i}", "source": "the same body", "target": f"Summary {i}."} for i in range(3)
    ]
    assert pydoc_match.paired(pairs) == []


def test_names_of_packages_and_their_modules_do_not_tell_the_topic(packages):
    splits = pydoc_topic.build(embedded("pydoc-topic", packages))
    rows = [row for each in splits.values() for row in each]
    assert {row["target"] for row in rows} == set(packages)
    assert not any("gardens" in row["source"].lower() or "kitchens" in row["source"].lower() for row in rows)
    assert len({row["source"] for row in rows}) > 100


def test_a_module_is_one_document_and_each_docstring_is_there_once(packages):
    rows = [row for each in pydoc_text.build(embedded("pydoc-text", packages)).values() for row in each]
    assert 200 < len({row["name"] for row in rows}) == len(rows) <= 240
    lines = [line for row in rows for line in row["source"].splitlines()]
    assert len(lines) == len(set(lines))


def test_held_out_text_has_no_docstring_that_train_has_nearly_word_for_word():
    known = "Return the garden that lies behind the house by the river, or None."
    other = "Water all of the flowers which grow along the old wall of the kitchen, twice a day, and once on a Sunday."
    row = {"group": "a", "name": "a", "source": f"{known[:-9]} again.\n{other}"}
    assert pydoc_text.not_in([row], [known]) == [row | {"source": other}]
    assert pydoc_text.not_in([row], [known, other]) == []


def test_classes_and_their_balance_are_known_of_a_corpus(packages, tmp_path):
    build_corpus(embedded("pydoc-match", packages), tmp_path / "made", kind="classification")
    corpus = load_corpus(tmp_path / "made")
    assert corpus.labels == ["match", "other"]
    for split, counts in corpus.info["balance"].items():
        assert sum(counts.values()) == corpus.info["sizes"][split]
    ids = corpus.tokenizer("a garden", "its plants")["input_ids"]
    assert corpus.tokenizer.convert_ids_to_tokens(ids)[0] == "<s>"
    assert ids.count(corpus.tokenizer.sep_token_id) == 2


def from_files(tmp_path, train, test, kind="jsonl", **columns):
    rows = {"train": train, "validation": train[:3], "test": test}
    files = write_splits(tmp_path, **rows)
    if kind != "jsonl":
        files = {split: path.replace("jsonl", kind) for split, path in files.items()}
        for split, path in files.items():
            getattr(pandas.DataFrame(rows[split]), f"to_{kind}")(path)
    return S.Corpus("mine", "files", 300, 16, **files, **({"source": "text", "target": "label"} | columns))


ROWS = [{"text": f"text {i}", "label": i % 3} for i in range(12)]


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        ([0, 1, 10], "jsonl"),
        ([0, 1, 10], "csv"),
        ([0, 1, 10], "parquet"),
        (["neg", "neutral", "pos"], "jsonl"),
        ([False, True], "jsonl"),
    ],
)
def test_a_column_of_labels_may_be_text_or_whole_numbers(labels, kind, tmp_path):
    rows = [{"text": f"text {i}", "label": labels[i % len(labels)]} for i in range(12)]
    build_corpus(from_files(tmp_path, rows, rows[:4], kind), tmp_path / "made", kind="classification")
    assert load_corpus(tmp_path / "made").labels == list(map(str, labels))


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (ROWS, [*ROWS[:2], {"text": "x", "label": 7}], r"test\.jsonl, line 3, class: '7' .* a class of train: 0, 1, 2"),
        (ROWS, [{"text": "x", "label": 0.5}], r"line 1, column label: 0\.5 .* a class: text or a whole number"),
        (ROWS, [{"text": "x", "label": None}], r"line 1, column label: None .* a class"),
        (ROWS, [{"text": " ", "label": 1}], r"test\.jsonl, line 1, column text: ' ' .* text that is not empty"),
        (ROWS, [{"text": "x"}], r"test\.jsonl, line 1, column: 'label' .* one of text"),
        ([{"text": str(i), "label": 1} for i in range(9)], ROWS, r"corpus\.train, classes: '1' .* two or more"),
    ],
)
def test_bad_classes_are_refused_in_one_sentence_with_the_line(tmp_path, train, test, message):
    with pytest.raises(InputError, match=message) as caught:
        build_corpus(from_files(tmp_path, train, test), tmp_path / "made", kind="classification")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "made").exists()


def test_a_column_of_fractions_has_no_classes(tmp_path):
    corpus = from_files(tmp_path, [row | {"label": 0.5} for row in ROWS], ROWS, "parquet")
    with pytest.raises(InputError, match=r"^[^\n]*train\.parquet, column label: 'double' .* whole numbers of classes"):
        build_corpus(corpus, tmp_path / "made", kind="classification")


def test_pairs_that_are_longer_than_the_model_reads_are_counted(tmp_path):
    rows = [{"a": "word " * (1 + 20 * (i % 2)), "b": "text", "label": i % 2} for i in range(8)]
    corpus = from_files(tmp_path, rows, rows[:4], source="a", second="b")
    build_corpus(corpus, tmp_path / "made", kind="classification")
    assert load_corpus(tmp_path / "made").info["truncated"]["test"] == {"sources": 2}


def test_a_data_set_of_the_hub_may_have_whole_numbers_for_classes_and_hidden_ones_are_refused(tmp_path):
    features = Features({"question": Value("string"), "sentence": Value("string"), "label": Value("int64")})
    rows = [{"question": f"q {i}?", "sentence": f"s {i}.", "label": i % 2} for i in range(20)]
    hidden = [row | {"label": -1} for row in rows]  # as the test splits of GLUE
    for split, each in {"train": rows, "validation": rows, "test": hidden}.items():
        Dataset.from_list(each, features).to_parquet(tmp_path / "snapshot" / f"{split}.parquet")
    corpus = S.Corpus(
        "qnli", "hub", 300, 16, dataset=str(tmp_path / "snapshot"), train="train[4:]", validation="train[:4]",
        test="validation", source="question", second="sentence", target="label",
    )  # fmt: skip
    build_corpus(corpus, tmp_path / "made", kind="classification")
    made = load_corpus(tmp_path / "made")
    assert made.labels == ["0", "1"]
    assert made.info["sizes"] == {"train": 16, "validation": 4, "test": 20}
    assert made.splits["test"][0].keys() == {"source", "second", "target"}
    with pytest.raises(InputError, match=r"^corpus\.test, row 1, class: '-1' [^\n]* a class of train: 0, 1") as caught:
        build_corpus(replace(corpus, test="test"), tmp_path / "made", kind="classification")
    assert "\n" not in str(caught.value)


def test_lines_of_running_text_become_documents(tmp_path):
    assert list(documents(["= A =", " ", "", "one line ", "another"])) == [{"source": "= A =\none line\nanother"}]
    many = list(documents(["word " * 2000] * 25))
    assert [len(row["source"]) >= LONGEST_DOCUMENT - 25 for row in many] == [True, True, False]
    rows = [{"text": f"line {i} of a text"} for i in range(40)]
    corpus = from_files(tmp_path, rows, rows[:5], target="target")
    build_corpus(corpus, tmp_path / "made", kind="language_modelling")
    made = load_corpus(tmp_path / "made")
    assert made.info["sizes"] == {"train": 1, "validation": 1, "test": 1}
    assert made.info["tokens"]["test"] > 5
