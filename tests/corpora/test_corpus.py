import gzip
import io
import json
import random
import sys
import time
from dataclasses import replace

import datasets
import pandas
import pyarrow
import pyarrow.parquet
import pytest
from transformers import AutoTokenizer

from dqlib.errors import InputError
from dqlib.study.corpora import hub
from dqlib.study.corpora.corpus import build_corpus, load_corpus, unpaired_rows
from dqlib.study.corpora.files import read_rows
from dqlib.study.corpora.pydoc import module_rows, module_texts, name_in_words, rows_once
from dqlib.study.corpora.splits import SPLITS, of_train_alone, split_of
from dqlib.study.corpora.tokenizer import _of_words, source_ids, target_ids, train_tokenizer
from dqlib.study.params import settings as S
from tests.helpers.examples import write_splits
from tests.helpers.folders import contents, hidden

EMBEDDED = {"name": "pydoc", "origin": "embedded", "vocab_size": 500, "source_tokens": 32, "target_tokens": 16}

SOURCE = '''"""Read and write the files of a garden.

A garden is a folder with one file for each plant, in the order of planting."""
raise RuntimeError("importing this must not happen")

class Garden:
    """Hold all plants of a garden.

    Plants are kept in the order of planting; a plant that is dug up leaves a gap behind."""

    def waterAll(self):
        """Water every plant in the garden.

        Plants that were watered today are left out, since too much water does them no good."""

    def short(self):
        """Do one thing only."""

    def wrapped(self):
        """Say in two lines what
        could be said in one.

        A summary that runs over two lines does not follow the convention and is left out."""
'''


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "gardens"
    (folder / "tests").mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "files.py").write_text(SOURCE)
    (folder / "copied.py").write_text(SOURCE)
    (folder / "broken.py").write_text("def :\n")
    (folder / "bytes.py").write_bytes(b"\x00\xff def")
    (folder / "tests" / "test_files.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    return "gardens"


def test_docstrings_become_pairs_without_importing(package):
    pairs = rows_once([package], module_rows)
    assert [pair["target"] for pair in pairs] == [
        "Read and write the files of a garden.",
        "Hold all plants of a garden.",
        "Water every plant in the garden.",
    ]
    assert pairs[2]["name"] == "gardens.copied.Garden.waterAll"
    assert pairs[2]["source"].startswith("gardens.copied.Garden.waterAll: garden water all. Plants that were")
    assert "gardens.files" not in sys.modules
    assert {pair["group"] for pair in pairs} == {"gardens.copied"}  # the other file only repeats


def test_names_become_words_and_an_unknown_package_is_named():
    assert name_in_words("a.b.PeriodIndex._is_full") == "period index is full"
    assert name_in_words("http.HTTPServer2.getURL") == "http server 2 get url"
    with pytest.raises(InputError, match=r"^corpus\.packages\[1\]: 'no_such_package' .* an installed package"):
        rows_once(["stdlib", "no_such_package"], module_rows)


def test_a_corpus_built_twice_is_byte_identical_and_split_by_module_and_has_each_summary_once(tmp_path):
    for name in ("c", "again"):
        build_corpus(S.Corpus(**EMBEDDED, packages=["datasets"], limit=200), tmp_path / name)
    assert contents(tmp_path / "c") == contents(tmp_path / "again")
    corpus = load_corpus(tmp_path / "c")
    assert all(split_of(row["group"]) == split for split in SPLITS for row in corpus.splits[split])
    targets = [row["target"].lower() for split in SPLITS for row in corpus.splits[split]]
    assert len(set(targets)) == len(targets) == 200
    assert corpus.info["truncated"]["train"]["sources"] > 0

    tokenizer, text = AutoTokenizer.from_pretrained(tmp_path / "c" / "tokenizer"), "def f(x): return {'π': x}  # naïve"
    ids = tokenizer(text)["input_ids"]
    assert ids[-1] == tokenizer.eos_token_id == 2
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == text
    assert (tokenizer.pad_token_id, tokenizer.mask_token_id) == (1, 4)


ROWS = [{"text": f"Document number {i}.", "gist": f"Number {i}"} for i in range(5)]


def write(folder, kind):
    path = folder / f"data.{kind}"
    plain = kind.removesuffix(".gz")
    frame = pandas.DataFrame(ROWS)
    if plain == "parquet":
        frame.to_parquet(path)
        return path
    text = frame.to_csv(index=False) if plain == "csv" else "".join(json.dumps(row) + "\n" for row in ROWS)
    path.write_bytes(gzip.compress(text.encode()) if kind.endswith(".gz") else text.encode())
    return path


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "csv", "csv.gz", "parquet"])
def test_files_of_every_kind_give_the_same_rows(tmp_path, kind):
    assert read_rows(write(tmp_path, kind), ["text", "gist"]) == ROWS


LINE = gzip.compress(b'{"text": "x", "gist": "y"}\n', mtime=0)
LINE_OF_TWO = b'{"text": "x", "gist": "y"}\n{"gist": "y", "text": "x", "gist": "z"}\n'


def parquet_of(names):
    """A file of Parquet with a column of each name."""
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays([pyarrow.array(["x"])] * len(names), names), file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", b'{"text": "x", "gist": "y"}\n[1]\n', "line 2"),
        ("a.jsonl", b'{"text": "x", "gist": ""}\n', "line 1, column gist"),
        ("a.jsonl", b'{"text": "x"}\n', "one of text"),
        ("a.jsonl", b"", "at least one row"),
        ("a.csv", b"text,gist\nx,y\nx,y,z\n", "line 3"),
        ("a.csv", b"text,gist\nx\n", "line 2, column gist"),
        ("a.parquet", b"PAR1 not really", "readable .parquet"),
        ("a.jsonl.gz", b"not gzip", "readable .jsonl"),
        ("a.txt", b"x", r"one of \.jsonl"),
        ("a.jsonl", b'{"text": "x", "gist": "y"}\n{"text": "\\ud800"}\n', "line 2, column text: '.ud800' .* lone"),
        ("a.jsonl", b'{"text": "x", "gist": "y"}\n{"text": ' + 10**5 * b"[", "line 2: .* fewer levels"),
        ("a.jsonl", b'{"text": "x", "gist": "y", "n": 1' + 5000 * b"0" + b"}", "line 1: .* a JSON object"),
        ("a.jsonl", b'{"text": "x", "gist": "y"}\n{"text": "\xff", "gist": "y"}\n', "a.jsonl' .*line 2: 'utf-8"),
        ("a.jsonl.gz", LINE + LINE[:10] + 20 * b"\x07", "a.jsonl.gz' .*line 2: Error -3 while decompressing"),
        ("a.jsonl.gz", LINE[:-4], r"a.jsonl.gz' .*line 2: .*end"),
        ("a.csv.gz", gzip.compress(b"text,gist\nx,y\n", mtime=0)[:-4], r"a.csv.gz' .*line 3: .*end"),
        ("a.csv", b"text,gist\nx,y\nz,\xff\n", "a.csv' .* readable .csv .*line 3: 'utf-8"),
        ("a.csv", b'text,gist\nx,y\n"z"w,y\n', "a.csv' .*line 3: .*expected"),
        ("a.csv", b"text,gist,text\nx,y,z\n", "a.csv, column: 'text' .* there once, not 2 times"),
        ("a.jsonl", LINE_OF_TWO, "a.jsonl, line 2, column: 'gist' .* there once, not 2 times"),
        ("a.parquet", parquet_of(["text", "gist", "text"]), "a.parquet, column: 'text' .* there once, not 2 times"),
    ],
)
def test_bad_files_are_refused_in_one_sentence(tmp_path, name, data, message):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(InputError, match=message) as caught:
        read_rows(path, ["text", "gist"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.csv", b"n,text,n,gist,,\n1,x,2,y,,\n"),
        ("a.jsonl", b'{"n": 1, "text": "x", "n": 2, "gist": "y"}\n{"text": "x", "gist": "y", "n": {"a": 1, "a": 2}}'),
        ("a.parquet", parquet_of(["n", "text", "n", "gist"])),
    ],
)
def test_names_of_columns_that_are_not_read_may_be_there_twice(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    assert {"text", "gist"} == set(read_rows(tmp_path / name, ["text", "gist"])[0])


def test_columns_of_parquet_that_python_has_no_values_for_are_passed_over_or_refused(tmp_path):
    far = pyarrow.array([2**62], pyarrow.timestamp("us"))  # a year that Python does not have
    table = pyarrow.table({"text": ["x"], "gist": pyarrow.array(["y"]).dictionary_encode(), "when": far})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert read_rows(tmp_path / "a.parquet", ["text", "gist"]) == [{"text": "x", "gist": "y"}]
    with pytest.raises(InputError, match=r"a.parquet, column when: 'timestamp.*' .* text"):
        read_rows(tmp_path / "a.parquet", ["text", "when"])
    with pytest.raises(InputError, match=r"a.parquet, column: 'who' .* text, gist, when"):
        read_rows(tmp_path / "a.parquet", ["text", "who"])


def test_a_field_of_csv_may_be_as_long_as_one_of_json(tmp_path):
    (tmp_path / "a.csv").write_text(f"text,gist\n{10**5 * 'long '},y\n")
    assert len(read_rows(tmp_path / "a.csv", ["text", "gist"])[0]["text"]) == 5 * 10**5 - 1


WORDS = ["It", "was", "a", "wordless", "river,", "and", "12", "of", "its_", "stones", "were", "grey", "--", "or",
         "'green'!\n"]  # fmt: skip


def test_texts_of_megabytes_are_cut_before_they_are_tokenized_and_counted_as_cut(tmp_path):
    order = random.Random(0)
    texts = [" ".join(order.choices(WORDS, k=60)) for _ in range(50)]
    begun = time.monotonic()
    tokenizer = train_tokenizer([*texts, 10**5 * "a", 10**5 * "-", 10**5 * " "], 400, 32)  # took its square: a minute
    assert time.monotonic() - begun < 10
    long = " ".join(order.choices(WORDS, k=20_000))
    for most in (8, 1024):
        whole = tokenizer(long, truncation=True, max_length=most)["input_ids"]
        assert source_ids(tokenizer, [long], most) == target_ids(tokenizer, [long], most) == [whole]
    for word in ("x", "=", "7", "\u4e2d"):
        assert source_ids(tokenizer, [10**5 * word], 64) == [[*tokenizer(10**5 * word)["input_ids"][:63], 2]]
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps({"source": text, "target": "short"}) + "\n" for text in (*texts, 10**5 * " a")))
    files = dict.fromkeys(SPLITS, str(path))
    build_corpus(S.Corpus(**EMBEDDED | {"origin": "files", "source_tokens": 500}, **files), tmp_path / "c")
    assert load_corpus(tmp_path / "c").info["truncated"]["test"] == {"sources": 1, "targets": 0}


def test_words_of_any_corpus_train_the_tokenizer_that_they_did():
    text = " ".join([*WORDS, 998 * "a", 998 * "7", 998 * "=", 900 * " ", 998 * "_"])
    assert _of_words(text) == text


def test_a_corpus_is_built_from_files_and_a_failed_build_leaves_it(tmp_path):
    path = str(write(tmp_path, "jsonl.gz"))
    spec = {**EMBEDDED, "origin": "files", "train": path, "validation": path, "source": "text", "target": "gist"}
    build_corpus(S.Corpus(**spec, test=path), tmp_path / "corpus")
    with pytest.raises(InputError):
        build_corpus(S.Corpus(**spec, test=str(tmp_path / "gone.jsonl")), tmp_path / "corpus")
    wanted = [{"source": row["text"], "target": row["gist"]} for row in ROWS]
    assert load_corpus(tmp_path / "corpus").splits == dict.fromkeys(SPLITS, wanted)
    assert not hidden(tmp_path)


def aligned(folder, **columns):
    for name, text in columns.items():
        (folder / f"train.{name}").write_bytes(text.encode("utf-8", "surrogateescape"))
    return folder / "train.*"


def test_two_text_files_are_pairs_line_by_line(tmp_path):
    path = aligned(tmp_path, en="a cat\n\nline\u2028end\n", ro="o pisică\n\nfin\n")
    assert read_rows(path, ["en", "ro"]) == [{"en": "a cat", "ro": "o pisică"}, {"en": "line\u2028end", "ro": "fin"}]
    for name in ("en", "ro"):
        (tmp_path / f"z.{name}.gz").write_bytes(gzip.compress((tmp_path / f"train.{name}").read_bytes()))
    assert read_rows(tmp_path / "z.*.gz", ["en", "ro"]) == read_rows(path, ["en", "ro"])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"en": "a\nb\nc\n", "ro": "x\ny\n"}, r"train\.en, line 3: 'c' .*train\.ro, which has 2 lines"),
        ({"en": "a\n", "ro": "x\ny\n"}, r"train\.ro, line 2: 'y'"),
        ({"en": "a\nb\n", "ro": "x\n \n"}, r"train\.ro, line 2, column ro: ' \\n' .* not empty"),
        ({"en": "a\n"}, r"train\.ro.* a file that exists"),
        ({"en": "\n", "ro": "\n"}, "at least one row"),
        ({"en": "one\n\udcfftwo\n", "ro": "unu\ndoi\n"}, r"train.en' .*line 2: .*utf-8"),
    ],
)
def test_text_files_that_do_not_match_are_refused_by_line(tmp_path, columns, message):
    with pytest.raises(InputError, match=message):
        read_rows(aligned(tmp_path, **columns), ["en", "ro"])


def test_a_translation_from_files_has_a_language_in_every_row(tmp_path):
    path = str(aligned(tmp_path, en="one\ntwo\n", ro="unu\ndoi\n", to="ro\nde\n"))
    common = {**EMBEDDED, "origin": "files", "train": path, "validation": path, "test": path, "test_unseen": path}
    columns = {"source": "en", "target": "ro"}
    build_corpus(S.Corpus(**common, **columns, languages=["ro"]), tmp_path / "one")
    build_corpus(S.Corpus(**common, **columns, languages=["ro", "de"], language="to"), tmp_path / "two")
    one, two = (load_corpus(tmp_path / name) for name in ("one", "two"))
    assert [row["language"] for row in one.splits["train"]] == ["ro", "ro"]
    assert [row["language"] for row in two.splits["train"]] == ["ro", "de"]
    assert set(one.test_sets(1)) == {"test", "test_unseen"}
    assert one.test_sets(1)["test_unseen"] == [{"source": "one", "target": "unu", "language": "ro"}]
    with pytest.raises(InputError, match=r"'de' .* ro, the languages that have a token"):
        build_corpus(S.Corpus(**common, **columns, languages=["ro"], language="to"), tmp_path / "three")
    with pytest.raises(InputError, match="language: None"):
        S.Corpus(**common, **columns, languages=["ro", "de"])


@pytest.fixture
def on_hub(monkeypatch):
    """What puts rows on the hub, in every split, and gives the splits that are asked for from then on."""

    def put(rows):
        asked = []
        data = datasets.Dataset.from_list(rows)
        monkeypatch.setattr(datasets, "load_dataset", lambda *_, split, **__: asked.append(split) or data)
        return asked

    return put


def test_a_hub_translation_may_keep_its_pairs_in_one_column(tmp_path, on_hub):
    on_hub([{"translation": {"en": "one", "ro": "unu"}}])
    spec = {**EMBEDDED, "origin": "hub", "dataset": "wmt/wmt16", "languages": ["ro"]}
    build_corpus(S.Corpus(**spec, source="translation.en", target="translation.ro"), tmp_path / "c")
    assert load_corpus(tmp_path / "c").splits["test"] == [{"source": "one", "target": "unu", "language": "ro"}]
    with pytest.raises(InputError, match=r"column: 'en' .* translation\.en"):
        build_corpus(S.Corpus(**spec, source="en", target="ro"), tmp_path / "d")


@pytest.mark.parametrize("prefix", ["", "shorten: "])
def test_rows_of_the_hub_with_a_blank_text_are_left_out_before_the_prefix_is_put(on_hub, prefix):
    texts = [("one", "1"), ("", "2"), (" \t", "3"), (None, "4"), ("five", " "), ("six", "6")]
    on_hub([{"text": text, "gist": gist} for text, gist in texts])
    corpus = S.Corpus(**{**EMBEDDED, "origin": "hub"}, dataset="any/thing", source="text", target="gist", prefix=prefix)
    kept = [{"source": f"{prefix}{text}", "target": gist} for text, gist in (texts[0], texts[-1])]
    assert {split: list(rows) for split, rows in hub.build(corpus, S.KINDS["seq2seq"]).items()} == (
        dict.fromkeys(SPLITS, kept)
    )


# --- texts in no pair


def test_every_docstring_that_is_long_enough_is_a_text_in_the_form_of_a_source(tmp_path):
    path = tmp_path / "files.py"
    path.write_text(SOURCE)
    texts = {row["name"]: row["source"] for row in module_texts("gardens.files", path)}
    pairs = {pair["name"]: pair["source"] for pair in module_rows("gardens.files", path)}
    assert pairs.items() < texts.items()
    (wrapped,) = texts.keys() - pairs.keys()  # the other one has four words
    assert texts[wrapped].startswith("gardens.files.Garden.wrapped: garden wrapped. A summary that runs over two")
    assert module_texts("none", tmp_path / "none.py") == []


def test_a_text_that_a_pair_has_or_that_repeats_what_is_held_out_is_left_out():
    held_out = "one two three four five six seven eight nine ten eleven twelve"
    splits = {"train": [{"source": "a.b: known text", "target": "gist"}],
              "validation": [{"source": "c.d: " + held_out, "target": "Water every plant."}], "test": []}  # fmt: skip
    texts = ["e.f: Known text", "g: other text", "h: other text", f"i: {held_out} and more", "j: water every plant.",
             "k: one two three and so on", "l: and water every plant, too"]  # fmt: skip
    kept = [row["source"] for row in of_train_alone(({"source": text} for text in texts), splits)]
    assert kept == [texts[1], *texts[5:]]


def test_texts_in_no_pair_may_come_from_a_file_in_the_column_of_the_sources(tmp_path):
    of_splits = zip(SPLITS, ("one", "two", "three"), strict=True)
    rows = {split: [{"text": f"{text} text", "gist": "it", "to": "ro"}] for split, text in of_splits}
    files = write_splits(tmp_path, **rows)
    texts = [{"text": f"{text} text", "to": "ro"} for text in ("four", "three", "four", "one", "five")]
    write_splits(tmp_path, texts=texts)
    corpus = S.Corpus(**{**EMBEDDED, "origin": "files"}, **files, source="text", target="gist", languages=["ro"],
                      language="to")  # fmt: skip
    build_corpus(corpus, tmp_path / "c")
    given = S.load_settings("smoke").task("translation")
    spec = replace(given, corpus=corpus, pseudo_labels=S.PseudoLabels(unpaired=str(tmp_path / "texts.jsonl")))
    loaded = load_corpus(tmp_path / "c")
    wanted = [{"source": f"{text} text", "language": "ro"} for text in ("four", "five")]
    assert list(unpaired_rows(spec, loaded)) == wanted
    spec = replace(spec, pseudo_labels=S.PseudoLabels(unpaired=str(tmp_path / "none.jsonl")))
    with pytest.raises(InputError, match=r"none\.jsonl"):
        list(unpaired_rows(spec, loaded))


def test_texts_in_no_pair_may_be_a_split_of_the_hub(on_hub):
    asked = on_hub([{"text": "four"}, {"text": " "}])
    corpus = S.Corpus(**{**EMBEDDED, "origin": "hub"}, dataset="any/thing", source="text", target="gist")
    assert list(hub.unpaired(corpus, "unsupervised")) == [{"source": "four"}]
    assert asked == ["unsupervised"]
