"""Tasks that a parameter file may have, and what is known of each: the one place that names them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from dqlib.study.params.kinds import KINDS, SEQ2SEQ, Kind


class Aim(NamedTuple):
    """The least part of the teacher's score that a student was to keep, of these bits and this shape of its layers."""

    bits: str
    shape: str
    least: float


@dataclass(frozen=True)
class KnownTask:
    """What is known of a task beside its parameters."""

    title: str  # its name on pages
    translates: bool = False  # whether each target starts with the token of its language
    kind: str = SEQ2SEQ  # name of what its models do, one of :data:`dqlib.study.params.kinds.KINDS`
    compared: bool = True  # whether the stages of ``dvc.yaml`` make it
    # what DQ-BART says that its students of 16.5x lose: who, and how much (``little`` or ``nothing``)
    claim: tuple[str, str] | None = None
    teacher_aim: float | None = None  # the least score that its teacher was to have in the default study
    aims: tuple[Aim, ...] = ()  # of its students in the default study
    # task beside whose students of the same layers its teacher stands, which is pre-trained at that depth
    beside: str | None = None
    example: str | None = None  # a source, in the form that its embedded corpus has them


#: Titles of tasks of QuantGPT's and XTC's own experiments.
_GLUE = {
    "cola": "CoLA", "sst2": "SST-2", "mrpc": "MRPC", "qqp": "QQP", "mnli": "MNLI", "qnli": "QNLI", "rte": "RTE",
}  # fmt: skip
_TEXTS = {"wikitext2": "WikiText-2", "wikitext103": "WikiText-103", "ptb": "Penn Treebank"}

#: Every task, in the order in which they are shown.
TASKS = {
    "summarization": KnownTask(
        "Summarization",
        claim=("summarization loses", "little"),
        teacher_aim=25.0,
        aims=(
            Aim("8-8-8", "full", 0.99),
            Aim("4-4-8", "full", 0.99),
            Aim("2-2-8", "full", 0.96),
            Aim("2-2-8", "half", 0.95),
            Aim("1-1-8", "full", 0.90),
        ),
        example="os.path.commonprefix: path commonprefix. Given a list of pathnames, returns the longest common "
        "leading component",
    ),
    "eli5": KnownTask(
        "Long-form question answering",
        claim=("long-form answers lose", "nothing"),
        example="What does the argument encoding of read_text mean? pathlib.Path.read_text: path read text. Open the "
        "file in text mode, read it, and close the file. encoding = None (encoding, errors)",
    ),
    "translation": KnownTask(
        "Translation",
        translates=True,
        teacher_aim=90.0,
        aims=(Aim("8-8-8", "full", 0.99), Aim("2-2-8", "full", 0.95)),
        example="Armenia, Hungary, and Kenya",
    ),
    "matching": KnownTask("Matching of summary and body", kind="classification"),
    "topics": KnownTask("Classification by topic", kind="classification"),
    "language": KnownTask("Language modelling", kind="language_modelling"),
    "shallow_matching": KnownTask(
        "Matching, pre-trained with fewer layers", kind="classification", compared=False, beside="matching"
    ),
    "shallow_topics": KnownTask(
        "Topics, pre-trained with fewer layers", kind="classification", compared=False, beside="topics"
    ),
    **{name: KnownTask(title, kind="classification", compared=False) for name, title in _GLUE.items()},
    **{name: KnownTask(title, kind="language_modelling", compared=False) for name, title in _TEXTS.items()},
    "texts": KnownTask("Texts from texts", compared=False),
    "classes": KnownTask("Classes of texts", kind="classification", compared=False),
}


#: Task whose benchmark has files and a folder without its name.
BENCHMARKED = "summarization"


def benchmark_file(name: str, task: str) -> str:
    """Name of a file or folder of a task's benchmark: ``parts_language.csv`` for ``parts.csv``, say."""
    stem, dot, end = name.partition(".")
    return name if task == BENCHMARKED else f"{stem}_{task}{dot}{end}"


def kind_of(task: str) -> Kind:
    """What the models of a task do; a name that is none of :data:`TASKS` is taken for a text from a text."""
    return KINDS[TASKS[task].kind if task in TASKS else SEQ2SEQ]
