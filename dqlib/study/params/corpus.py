"""The parameters of a corpus: where its pairs come from, and how they become tokens."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import partial

from dqlib.errors import InputError, check_choice
from dqlib.study.params.kinds import SEQ2SEQ
from dqlib.study.params.schema import LONGEST, MANY, SEEDS, a_name, bounded, each, no_repetitions


@dataclass(frozen=True)
class Embedded:
    """A corpus that is made from what is installed."""

    module: str  # its function ``build`` takes the parameters of a corpus and gives the rows of every split
    needs: tuple[str, ...]  # parameters that have to be given
    # whether its function ``unpaired`` gives texts for a teacher to label, of which no pair is made
    unpaired: bool = False
    kind: str = SEQ2SEQ  # of the tasks that it is for


EMBEDDED = {
    "pydoc": Embedded("dqlib.study.corpora.pydoc", needs=("packages",), unpaired=True),
    "pydoc-qa": Embedded("dqlib.study.corpora.pydoc_qa", needs=("packages",), unpaired=True),
    "cldr": Embedded("dqlib.study.corpora.cldr", needs=("languages", "limit"), unpaired=True),
    "pydoc-match": Embedded("dqlib.study.corpora.pydoc_match", needs=("packages",), kind="classification"),
    "pydoc-topic": Embedded("dqlib.study.corpora.pydoc_topic", needs=("packages",), kind="classification"),
    "pydoc-text": Embedded("dqlib.study.corpora.pydoc_text", needs=("packages",), kind="language_modelling"),
}
ORIGINS = ("embedded", "files", "hub")


@dataclass(frozen=True)
class Support:
    """Support documents of a hub's questions, in a data set of its own whose rows have the same ``id``.

    ``text`` is the path of the passages' texts. A source becomes ``question: Q context: <P> TEXT <P> TEXT``;
    questions without a passage are left out.
    """

    dataset: str
    text: str
    revision: str | None = None
    id: str = "id"


@dataclass(frozen=True)
class Corpus:
    """Where the pairs come from and how they become tokens.

    The origin ``embedded`` makes the corpus of that ``name``: ``pydoc`` and ``pydoc-qa`` from ``packages``, ``cldr``
    for ``languages`` from ``seed``. The origin ``files`` reads ``train``, ``validation``, ``test`` and, where given,
    ``test_unseen``, the origin ``hub`` the ``dataset`` with ``dataset_config`` and ``revision``; in both ``source``
    and ``target`` name the columns. ``limit`` is the most pairs (of each file; null for all).

    In a classification ``target`` is the column of the class (text or whole numbers), and ``second`` that of the second
    text of a pair; ``source_tokens`` is the length of both texts together. A language model reads the column ``source``
    in blocks of ``source_tokens``. Neither has ``target_tokens``.

    A ``dataset`` is a name on the hub, or the folder of a snapshot. Its splits are those of the same names, unless
    ``train``, ``validation`` or ``test`` say otherwise (``train[1%:]``). A column may be a path through nested columns
    (``translation.ro``); of a list, the first text that is not empty is taken. ``support`` adds support documents.

    A path with ``*`` names two text files whose lines are pairs: with ``source: en`` and ``target: ro``,
    ``data/train.*`` stands for ``data/train.en`` and ``data/train.ro``.

    ``languages`` makes it a translation: each target starts with its language's token (``<ro>``), and the first
    language is the one that is judged. With several, the column ``language`` of files or hub says which a row is in.

    Where ``validation`` or ``test`` of files is left out, a part of train is held out for it, by a hash of each source.

    ``prefix`` stands before each source: T5 knows its task by it. ``start`` is the id that targets start from in a
    checkpoint where that is neither ``</s>`` nor a language's token, as in T5 and Marian. ``labels`` are the classes of
    a checkpoint in the order of its logits; without them, those of train.

    ``tokenizer`` names a ready one (folder or hub, at ``tokenizer_revision``); without it, that of the checkpoint that
    the teacher starts from is taken, or else one of ``vocab_size`` tokens is trained. mBART's needs
    ``source_language``, whose token ends each source.
    """

    name: str
    origin: str
    vocab_size: int
    source_tokens: int
    target_tokens: int = 0
    packages: list[str] = field(default_factory=list)
    limit: int | None = None
    train: str | None = None
    validation: str | None = None
    test: str | None = None
    test_unseen: str | None = None
    dataset: str | None = None
    dataset_config: str | None = None
    revision: str | None = None
    source: str = "source"
    target: str = "target"
    languages: list[str] = field(default_factory=list)
    language: str | None = None
    seed: int = 28
    tokenizer: str | None = None
    tokenizer_revision: str | None = None
    source_language: str | None = None
    support: Support | None = None
    second: str | None = None
    prefix: str = ""
    start: int | None = None
    labels: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_choice("origin", self.origin, ORIGINS)
        a_name("name", self.name)
        bounded(
            self, vocab_size=(1 if self.tokenizer else 300, 10**7), source_tokens=(8, LONGEST),
            target_tokens=(0, LONGEST), limit=(100, MANY), seed=SEEDS,
        )  # fmt: skip
        self._check_languages()
        if self.origin == "embedded":
            self._check_embedded()
        if self.origin == "hub" and not self.dataset:
            raise InputError("dataset", self.dataset, "the name of a dataset when origin is 'hub'")
        if self.support is not None and self.origin != "hub":
            raise InputError("support", self.support.dataset, "left out: only data sets of the hub have it")
        if self.origin == "files" and not self.train:
            raise InputError("train", self.train, "a file when origin is 'files'")

    def _check_languages(self) -> None:
        each(self, "languages", partial(_check_language, "language"))
        if self.source_language:
            _check_language("source_language", self.source_language)
        no_repetitions("languages", self.languages)
        if len(self.languages) > 1 and self.origin != "embedded" and not self.language:
            raise InputError("language", self.language, "the column of a row's language, where there are several")
        if self.language and not self.languages:
            raise InputError("languages", self.languages, "the languages that the column 'language' may name")

    def _check_embedded(self) -> None:
        if self.name not in EMBEDDED:
            raise InputError("name", self.name, f"one of {', '.join(EMBEDDED)} when origin is 'embedded'")
        needs = EMBEDDED[self.name].needs
        for name in needs:
            if not getattr(self, name):
                raise InputError(name, getattr(self, name), f"given for the embedded corpus '{self.name}'")
        if self.languages and "languages" not in needs:
            raise InputError("languages", self.languages, f"left out: '{self.name}' is no translation")


def _check_language(field: str, language: str) -> None:
    if not re.fullmatch(r"[a-z]{2,3}(_[A-Za-z0-9]+)*", language):
        raise InputError(field, language, "the code of a language, such as ro or pt_BR")
