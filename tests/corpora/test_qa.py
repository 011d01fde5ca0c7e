"""The question-answering corpus: descriptions of arguments, read without importing anything."""

import sys

import pytest

from dqlib.study.corpora.corpus import build_corpus, load_corpus
from dqlib.study.corpora.pydoc import rows_once
from dqlib.study.corpora.pydoc_qa import ANSWER_WORDS, module_answers, module_questions
from dqlib.study.corpora.tokenizer import train_tokenizer
from dqlib.study.params import settings as S

GOOGLE = '''
raise RuntimeError("importing this must not happen")

def water(plant, liters: float = 1.0, *, slowly=False, **others):
    """Water one plant.

    Args:
        plant: the plant to water, by its name or by its place in the order in which all were planted.
        liters: how much water the plant gets, where a plant that is dry gets twice of what is said here.
        slowly: too short to be an answer.
        sun: an argument that the function does not have, described at length so that it would be long enough.
        others: what is handed on to the pump, such as pressure and temperature, none of which is checked here.
    """
'''

NUMPY = '''
class Pump:
    """Move water.

    Parameters
    ----------
    pressure : float
        Pressure of the water in the hose in bar, which must not be higher than what the hose can hold.
    """

    def __init__(self, pressure, hose=None):
        """Make a pump.

        :param hose: The hose that the water goes through, or None for one that is as long as the garden is wide.
        """

def repeated(plant):
    """Do it again.

    :param plant: the plant to water, by its name or by its place in the order in which all were planted.
    """
'''

BROKEN = '''
def odd():
    """Odd.

    ::param
    :
    """
'''


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "gardens"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    for name, source in (("water", GOOGLE), ("zpump", NUMPY), ("broken", BROKEN), ("bad", "def :\nArgs:\n")):
        (folder / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    return "gardens"


def test_descriptions_of_arguments_become_answers_in_every_convention(package):
    pairs = rows_once([package], module_answers)
    assert [pair["name"] for pair in pairs] == [
        "gardens.water.water(plant)",
        "gardens.water.water(liters)",
        "gardens.water.water(others)",
        "gardens.zpump.Pump(pressure)",
        "gardens.zpump.Pump(hose)",
    ]  # not: too short, no such argument, and an answer that is there already
    assert pairs[1]["source"] == (
        "What does the argument liters of water mean? gardens.water.water: water water. Water one plant. "
        "liters: float = 1.0 (plant, liters, slowly, others)"
    )
    assert pairs[1]["target"].startswith("how much water the plant gets")
    assert pairs[3]["source"].endswith("Move water. pressure (pressure, hose)")
    assert pairs[4]["source"].endswith("Make a pump. hose = None (pressure, hose)")
    assert "gardens.water" not in sys.modules


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A corpus of two packages with the tokenizer of another one."""
    folder = tmp_path_factory.mktemp("qa")
    given = train_tokenizer(["another corpus, with other words"], 300, 64)
    given.save_pretrained(folder / "tokenizer")
    spec = S.Corpus("pydoc-qa", "embedded", 400, 64, 64, packages=["bs4", "datasets"])
    build_corpus(spec, folder / "c", folder / "tokenizer")
    loaded = load_corpus(folder / "c")
    assert loaded.tokenizer.get_vocab() == given.get_vocab()
    return loaded


def test_answers_are_12_to_80_words_each_once_and_never_in_the_question(corpus):
    rows = [row for split in corpus.splits.values() for row in split]
    shortest, longest = ANSWER_WORDS
    assert len(rows) > 100
    assert all(shortest <= len(row["target"].split()) <= longest for row in rows)
    assert len({row["target"].lower() for row in rows}) == len(rows)
    assert not any(row["target"] in row["source"] for row in rows)


def test_every_argument_may_be_asked_for_in_the_words_of_a_pair(package, tmp_path):
    path = tmp_path / package / "water.py"
    asked = {row["name"]: row["source"] for row in module_questions("gardens.water", path)}
    answered = {pair["name"]: pair["source"] for pair in module_answers("gardens.water", path)}
    assert answered.items() < asked.items()
    assert asked.keys() - answered.keys() == {"gardens.water.water(slowly)"}  # whose description is short
    assert module_questions("none", tmp_path / "none.py") == []
