"""Kinds of tasks: what models of a kind read and give, how they are trained, and how they are judged."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """What all tasks of one form have in common."""

    description: str  # of the kind, for messages
    # parameters of a corpus that name the texts of a row; those that a corpus leaves out are not there
    columns: tuple[str, ...]
    encoder: bool  # whether its models have layers on that side, as
    decoder: bool  # on this one
    architecture: str  # of a model that is new here
    architectures: tuple[str, ...]  # that a checkpoint may be of
    checkpoint: str  # class that a checkpoint of others is read as; see :func:`dqlib.storage.reading.read_model`
    finetuned: str  # the same of one that is a teacher as it is, without fine-tuning here
    pretraining: str | None  # what ``pretrain`` trains; None where there is none
    tokens: tuple[str, ...]  # special tokens that a tokenizer needs
    training: str  # module whose ``TRAINING`` makes models, examples and batches
    scoring: str  # module whose ``score`` tests a model
    metrics: tuple[str, ...]  # columns of a record
    auto: str  # class of transformers that loads a model of any of its architectures
    tag: str  # what Hugging Face calls its task
    unit: str = "token"  # what a loss is the mean over
    falling: tuple[str, ...] = ()  # metrics that are lower for better models
    # module whose ``baselines`` says what simpler methods reach on the same test; None for none
    baselines: str | None = None
    notebook: str | None = None  # that shows a task; None where each task has one of its own name
    labels: bool = False  # whether the target is a class and not a text
    writes: bool = False  # whether models answer in texts, which tables compare with the references word by word

    @property
    def running_text(self) -> bool:
        """Whether its rows are documents, which are read window by window."""
        return not (self.labels or self.writes)

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
        architectures=("bart", "mbart", "marian", "t5"),
        checkpoint="seq2seq",
        finetuned="seq2seq",
        pretraining="text infilling",
        tokens=("pad", "eos"),
        training="dqlib.study.training.seq2seq",
        scoring="dqlib.study.evaluation.scoring",
        metrics=("rouge1", "rouge2", "rougeL", "rougeLsum", "bleu", "chrf"),
        auto="AutoModelForSeq2SeqLM",
        tag="text2text-generation",
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
        finetuned="BertForSequenceClassification",
        pretraining="masked language modelling",
        tokens=("cls", "sep", "pad", "mask"),
        training="dqlib.study.training.classification",
        scoring="dqlib.study.evaluation.classification",
        baselines="dqlib.study.evaluation.words",
        notebook="classification",
        metrics=("accuracy", "f1", "mcc"),
        auto="AutoModelForSequenceClassification",
        tag="text-classification",
        unit="text",
    ),
    "language_modelling": Kind(
        description="the next token",
        columns=("source",),
        encoder=False,
        decoder=True,
        architecture="gpt2",
        architectures=("gpt2",),
        checkpoint="GPT2LMHeadModel",
        finetuned="GPT2LMHeadModel",
        pretraining=None,
        tokens=("eos",),
        training="dqlib.study.training.language_modelling",
        scoring="dqlib.study.evaluation.perplexity",
        baselines="dqlib.study.evaluation.ngrams",
        notebook="language_modelling",
        metrics=("perplexity", "bits_per_byte"),
        auto="AutoModelForCausalLM",
        tag="text-generation",
        falling=("perplexity", "bits_per_byte"),
    ),
}
