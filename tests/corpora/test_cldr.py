"""The translation corpus: exact pairs from CLDR, nothing of the test in training."""

import hashlib
import itertools
import re

import pytest
from babel import Locale

from dqlib.errors import InputError
from dqlib.study.corpora.cldr import NAME_KINDS, names, phrases, unpaired
from dqlib.study.corpora.corpus import build_corpus, load_corpus
from dqlib.study.corpora.splits import SPLITS, TEST_PERCENT, UNSEEN, of_train_alone, split_of
from dqlib.study.params import settings as S

LANGUAGES = ["ro", "de", "fr"]
SPEC = {"name": "cldr", "origin": "embedded", "vocab_size": 600, "source_tokens": 48, "target_tokens": 48}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    target = tmp_path_factory.mktemp("cldr") / "corpus"
    build_corpus(S.Corpus(**SPEC, languages=LANGUAGES, limit=3000), target)
    return target


@pytest.fixture(scope="module")
def corpus(folder):
    return load_corpus(folder)


def test_phrases_are_what_cldr_says_in_both_languages():
    rows = {(row["source"], row["language"]): row["target"] for row in _first(9000)}
    rules = {
        (r"in (\d+) weeks", "ro"): "peste {} săptămâni",
        (r"(\d+) minutes ago", "de"): "vor {} Minuten",
        (r"([2-9]\d) watts", "ro"): "{} de wați",  # from 20 on, Romanian says "de"
        (r"(1\d) watts", "ro"): "{} wați",
    }
    for (pattern, language), wanted in rules.items():
        found = {key[0]: text for key, text in rows.items() if key[1] == language and re.fullmatch(pattern, key[0])}
        assert found, pattern
        assert all(text == wanted.format(re.fullmatch(pattern, english)[1]) for english, text in found.items())
    assert not any(re.search("[\xa0\u2009\u202f]", text) for text in (*rows.values(), *(key[0] for key in rows)))


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(folder, tmp_path):
    for name, seed in (("same", 28), ("other", 29)):
        build_corpus(S.Corpus(**SPEC, languages=LANGUAGES, limit=3000, seed=seed), tmp_path / name)
    one, two, three = (_digest(each) for each in (folder, tmp_path / "same", tmp_path / "other"))
    assert one == two
    assert one != three


def test_as_many_pairs_as_asked_each_once_in_all_languages(corpus):
    rows = [row for split in SPLITS for row in corpus.splits[split]]
    assert len(rows) == 3000
    assert len(corpus.splits[UNSEEN]) == 3000 * TEST_PERCENT // 100
    assert len({(row["source"], row["language"]) for row in rows}) == 3000
    for split in (*SPLITS, UNSEEN):
        assert {row["language"] for row in corpus.splits[split]} == set(LANGUAGES)
    assert set(rows[0]) == {"source", "target", "language", "group"}


def test_no_combination_of_the_test_is_in_train(corpus):
    for column in ("group", "source"):
        train, test = ({row[column] for row in corpus.splits[split]} for split in ("train", "test"))
        assert not train & test
    assert all(split_of(row["group"]) == split for split in SPLITS for row in corpus.splits[split])


def test_a_list_in_another_order_is_the_same_combination():
    lists = [row for row in _first(3000) if row["group"].split()[0] == "territories"]
    assert all(row["group"].split()[1:] == sorted(row["group"].split()[1:]) for row in lists)


def test_unseen_names_occur_nowhere_in_training(corpus):
    text = "\n".join(row["source"] for row in corpus.splits["train"])
    for kind in ("territories", "languages"):
        known = getattr(Locale("en"), kind)
        assert len(names(kind, True, tuple(LANGUAGES))) >= 5
        for code in names(kind, True, tuple(LANGUAGES)):
            assert not re.search(rf"(^|, |or |and ){re.escape(known[code])}($|,| or | and )", text, re.M), known[code]
    unseen = {code for kind in NAME_KINDS for code in names(kind, True, tuple(LANGUAGES))}
    used = {code for split in SPLITS for row in corpus.splits[split] for code in row["group"].split()}
    assert not unseen & used
    assert all(unseen & set(row["group"].split()) for row in corpus.splits[UNSEEN])


def test_every_language_has_a_token_of_its_own(corpus):
    vocabulary = corpus.tokenizer.get_vocab()
    assert [vocabulary[f"<{language}>"] for language in LANGUAGES] == [5, 6, 7]
    assert corpus.tokenizer.decode([5, *corpus.tokenizer("5 lei")["input_ids"]], skip_special_tokens=True) == " 5 lei"


@pytest.mark.parametrize("code", ["xx", "tlh"])
def test_a_locale_that_cldr_lacks_is_named(code, tmp_path):
    with pytest.raises(InputError, match=rf"corpus.languages\[1\]: '{code}' .* CLDR"):
        build_corpus(S.Corpus(**SPEC, languages=["ro", code], limit=200), tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_a_language_that_a_ready_tokenizer_has_no_token_for_is_named(folder, tmp_path):
    spec = S.Corpus(**SPEC, languages=["ro", "es"], limit=200, tokenizer=str(folder / "tokenizer"))
    with pytest.raises(InputError, match=r"language: 'es' .* <es>"):
        build_corpus(spec, tmp_path / "c")


def _first(count):
    return list(itertools.islice(phrases(LANGUAGES, 1), count))


def _digest(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def test_texts_in_no_pair_are_other_phrases_of_the_training_combinations(corpus):
    spec = S.Corpus(**SPEC, languages=LANGUAGES, limit=3000)
    drawn = list(itertools.islice(unpaired(spec), 2000))
    assert {split_of(row["group"]) for row in drawn} == {"train"}
    kept = list(of_train_alone(drawn, corpus.splits))
    assert 1000 < len(kept) < 2000
    assert all("target" not in row for row in kept)
    assert {row["language"] for row in kept} == set(LANGUAGES)
    known = {(row["language"], row["source"]) for split in corpus.splits.values() for row in split}
    assert not known & {(row["language"], row["source"]) for row in kept}
