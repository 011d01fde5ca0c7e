"""Kinds of tasks: what models of a kind read and give, how they are trained, and how they are judged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """What all tasks of one form have in common.

    Args:
        description: of the kind, for messages.
        columns: parameters of a corpus that name the texts of a row; those that a corpus leaves out are not there.
        labels: whether the target is a class and not a text.
        encoder, decoder: whether its models have layers on that side.
        architecture: of a model that is new here.
        architectures: that a checkpoint may be of.
        checkpoint: class that a checkpoint of others is read as; see :func:`dqlib.storage.reading.read_model`.
        pretraining: what ``pretrain`` trains; None where there is none.
        tokens: special tokens that a tokenizer needs, with the id that each must have (None: any).
        template: how a tokenizer that is trained here marks one text, and two.
        training: module whose ``TRAINING`` makes models, examples and batches.
        scoring: module whose ``score`` tests a model.
        baselines: module whose ``baselines`` says what simpler methods reach on the same test; None for none.
        metrics: columns of a record.
        falling: those of them that are lower for better models.
        writes: whether models answer in texts, which tables compare with the references word by word.
    """

    description: str
    columns: tuple[str, ...]
    encoder: bool
    decoder: bool
    architecture: str
    architectures: tuple[str, ...]
    checkpoint: str
    pretraining: str | None
    tokens: Mapping[str, int | None]
    template: tuple[str, str]
    training: str
    scoring: str
    metrics: tuple[str, ...]
    falling: tuple[str, ...] = ()
    baselines: str | None = None
    labels: bool = False
    writes: bool = False

    @property
    def layers(self) -> dict[str, bool]:
        """Whether its models have layers on a side, by the name of the parameter that says how many."""
        return {"encoder_layers": self.encoder, "decoder_layers": self.decoder}


SEQ2SEQ = "seq2seq"

KINDS = {
    SEQ2SEQ: Kind(
        description="a text from a text",
        columns=("source", "target"),
        encoder=True,
        decoder=True,
        architecture="mbart",
        architectures=("bart", "mbart"),
        checkpoint="seq2seq",
        pretraining="text infilling",
        tokens={"bos": 0, "pad": 1, "eos": 2, "unk": 3},
        template=("$A </s>", "$A $B </s>"),
        training="dqlib.study.training.seq2seq",
        scoring="dqlib.study.evaluation.scoring",
        metrics=("rouge1", "rouge2", "rougeL", "rougeLsum", "bleu", "chrf"),
        writes=True,
    ),
    "classification": Kind(
        description="a class from a text or two",
        columns=("source", "second", "target"),
        labels=True,
        encoder=True,
        decoder=False,
        architecture="bert",
        architectures=("bert",),
        checkpoint="BertForPreTraining",
        pretraining="masked language modelling",
        tokens={"cls": None, "sep": None, "pad": None, "mask": None},
        template=("<s> $A </s>", "<s> $A </s> $B:1 </s>:1"),
        training="dqlib.study.training.classification",
        scoring="dqlib.study.evaluation.classification",
        baselines="dqlib.study.evaluation.words",
        metrics=("accuracy", "f1", "mcc"),
    ),
    "language_modelling": Kind(
        description="the next token",
        columns=("source",),
        encoder=False,
        decoder=True,
        architecture="gpt2",
        architectures=("gpt2",),
        checkpoint="GPT2LMHeadModel",
        pretraining=None,
        tokens={"eos": None},
        template=("$A </s>", "$A $B </s>"),
        training="dqlib.study.training.language_modelling",
        scoring="dqlib.study.evaluation.perplexity",
        baselines="dqlib.study.evaluation.ngrams",
        metrics=("perplexity", "bits_per_byte"),
        falling=("perplexity", "bits_per_byte"),
    ),
}
