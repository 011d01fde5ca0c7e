"""``dqlib evaluate``: the scores of a model on pairs, with intervals, whichever engine runs it, and p-values."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas
import torch

from dqlib.engines import check_threads, engine_of, load_classifier, load_engine
from dqlib.engines.kept import kept
from dqlib.engines.torch_engine import TorchClassifier, load_model
from dqlib.errors import InputError
from dqlib.storage.reading import CONFIG, read_json
from dqlib.study.corpora import hub
from dqlib.study.corpora.files import rows_of_file
from dqlib.study.corpora.rows import Row, documents
from dqlib.study.corpora.tokenizer import marks_source
from dqlib.study.distill.arguments import Test, arguments_of, options_named, options_of
from dqlib.study.distill.parameters import SOURCE_TOKENS, Checkpoint, asked_of, corpus_columns, data_of, language_of
from dqlib.study.evaluation import perplexity
from dqlib.study.evaluation.bootstrap import two_sided
from dqlib.study.evaluation.classification import class_scores
from dqlib.study.evaluation.records import Scored, Scores
from dqlib.study.evaluation.scoring import text_scores, translation_scores
from dqlib.study.params import settings as S
from dqlib.study.params.evaluation import FEWEST_DOCUMENTS
from dqlib.study.params.kinds import SEQ2SEQ
from dqlib.study.params.schema import build
from dqlib.study.pipeline.jobs import quiet
from dqlib.study.process.exit_codes import exit_code
from dqlib.study.report.names import METRIC_NAMES, interval_text
from dqlib.study.report.scores import resampled_headline
from dqlib.study.training.loop import make_accelerator

#: Draws of the test texts, of an interval.
BOOTSTRAP = 1000


def evaluate_command(options: argparse.Namespace) -> int:
    """The command ``dqlib evaluate``, and its exit code."""
    return exit_code(lambda: print(evaluate(arguments_of(Test, options)).to_string(index=False)), "dqlib evaluate")


@options_named(options_of(Test))
def evaluate(arguments: Test) -> pandas.DataFrame:
    """One row per metric: value and 95% interval of each model, and the p-value of a difference of the headline, or of
    the bits per byte of models whose tokenizers differ.

    Of fewer than :data:`FEWEST_DOCUMENTS` texts nobody can tell how sure a score is: intervals and p-value are empty.

    Raises:
        InputError: a model, the data or a column is not there, or an engine does not serve the model.
    """
    quiet()
    check_threads(arguments.threads)
    folders = [Path(each) for each in (arguments.model, arguments.against) if each is not None]
    for folder in folders:
        engine_of(folder)  # refuses what is no folder, before anything is read
    kind = SEQ2SEQ if arguments.text is None else "language_modelling"
    kind = kind if arguments.label is None else "classification"
    columns = corpus_columns(arguments, kind)
    arguments = _asked(arguments, kind)
    rows, corpus = _rows(arguments, kind, columns)
    tests = [_loaded(folder, rows, corpus, kind, arguments) for folder in folders]  # both, before one is tested
    tested = [test() for test in tests]
    table, *others = (_table(scores, len(rows)) for scores, _ in tested)
    if not others:
        return table
    headline, counts = tested[0][0].headline, [[line.get("tokens") for line in lines] for _, lines in tested]
    if counts[0] != counts[1]:  # perplexities of tokens of another tokenizer say nothing of each other
        headline = "bits_per_byte"
    ours, theirs = (resampled_headline(headline, lines) for _, lines in tested)
    table = table.merge(others[0], on="metric", suffixes=("", " of the other"))
    p_value = f"{two_sided(ours - theirs):.4f}" if len(rows) >= FEWEST_DOCUMENTS else ""
    return table.assign(p=np.where(table.metric == METRIC_NAMES[headline], p_value, ""))


def _asked(arguments: Test, kind: str) -> Test:
    """The arguments, with what the model says of itself in place of those that are not given.

    Raises:
        InputError: the model's tokenizer cannot be read, or it says too little: a prefix or a language has to be given.
    """
    asked = kept(arguments.model)
    if not asked and "model_type" in read_json(Path(arguments.model) / CONFIG, optional=True):
        checkpoint = Checkpoint("model", str(Path(arguments.model).absolute()))
        if checkpoint.kind == kind:
            asked = asked_of(checkpoint.corpus(arguments), checkpoint.evaluate(arguments), checkpoint.positions)
    return replace(arguments, **{name: asked[name] for name in asked if getattr(arguments, name) is None})


def _rows(arguments: Test, kind: str, columns: dict[str, str | None]) -> tuple[list[Row], S.Corpus]:
    """The rows that are tested, and the parameters of their corpus, of which ``columns`` are some.

    Raises:
        InputError: the data or a column is not there, or no text is asked for.
    """
    if arguments.documents < 1:
        raise InputError("--documents", arguments.documents, "at least 1")
    more = {
        "vocab_size": 1, "tokenizer": arguments.model, "prefix": arguments.prefix or "",
        "source_tokens": arguments.source_tokens or SOURCE_TOKENS,
        "languages": [arguments.language] if arguments.language else [],
    }  # fmt: skip
    corpus = build(S.Corpus, data_of(arguments, train=arguments.data) | columns | more, "data")
    form = S.KINDS[kind]
    rows = list(hub.build(corpus, form)["test"]) if corpus.origin == "hub" else rows_of_file(corpus, form, corpus.train)
    if corpus.origin == "files" and form.running_text:  # the hub's are documents already
        rows = list(documents(row["source"] for row in rows))
    return [row | {"test_set": "test"} for row in rows[: arguments.documents]], corpus


def _loaded(folder: Path, rows: Sequence[Row], corpus: S.Corpus, kind: str, arguments: Test) -> Callable[[], Scored]:
    """The test of a model, which is loaded."""
    if kind == "classification":
        return _classified(folder, rows, corpus, arguments)
    if kind != SEQ2SEQ:
        return _measured(folder, rows, corpus, arguments)
    engine = load_engine(folder, threads=arguments.threads)

    def test() -> Scored:
        if (tokenizer := engine.tokenizer) is not None:
            tokenizer.model_max_length = min(tokenizer.model_max_length, corpus.source_tokens)
        by_language = tokenizer and (marks_source(tokenizer) or language_of(tokenizer, engine.decoding.start))
        written = engine.generate(
            [row["source"] for row in rows], num_beams=arguments.beams or 4, max_new_tokens=arguments.target_tokens,
            languages=arguments.language if by_language else None, batch_size=arguments.batch_size,
        )  # fmt: skip
        texts = [text.strip() for text in written]
        if corpus.languages:
            return translation_scores(rows, texts, BOOTSTRAP, corpus.languages[0])
        return text_scores(rows, texts, BOOTSTRAP)

    return test


def _classified(folder: Path, rows: Sequence[Row], corpus: S.Corpus, arguments: Test) -> Callable[[], Scored]:
    """The test of a classifier, which names its classes itself."""
    classifier = load_classifier(folder, threads=arguments.threads)
    if classifier.tokenizer is None:
        raise InputError("model", str(folder), "a model with a tokenizer")
    classifier.tokenizer.model_max_length = min(classifier.tokenizer.model_max_length, corpus.source_tokens)
    if isinstance(classifier, TorchClassifier):
        classifier.model.to(make_accelerator(0).device)
    labels = list(classifier.labels)
    for number, row in enumerate(rows, start=1):
        if row["target"] not in labels:
            allowed = f"a class of {folder}: {', '.join(labels[:20])}"
            raise InputError(f"{arguments.data}, row {number}, {arguments.label}", row["target"], allowed)
    columns = [[row[name] for row in rows] for name in ("source", "second") if name in rows[0]]

    def test() -> Scored:
        classified = classifier.classify(*columns, batch_size=arguments.batch_size)
        chances = np.array([list(each.probabilities.values()) for each in classified])
        return class_scores(rows, chances, labels, BOOTSTRAP)

    return test


def _measured(folder: Path, rows: Sequence[Row], corpus: S.Corpus, arguments: Test) -> Callable[[], Scored]:
    """The test of a language model, in PyTorch: the engines that write give no logits of a text that is there."""
    if engine_of(folder) != "torch":
        allowed = "the model itself, packed or not, where --text stands alone: an export gives no probabilities"
        raise InputError("model", str(folder), allowed)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    model, tokenizer = load_model(folder)
    known = S.KINDS["language_modelling"].architectures
    if model.config.model_type not in known:
        raise InputError("model", type(model).__name__, f"one of {', '.join(known)}, where --text stands alone")
    if tokenizer is None:
        raise InputError("model", str(folder), "a model with a tokenizer")
    positions = min(corpus.source_tokens, model.config.max_position_embeddings)

    def test() -> Scored:
        accelerator = make_accelerator(0)
        losses = perplexity.document_losses(
            model.to(accelerator.device), rows, tokenizer, positions, arguments.batch_size, accelerator, str(folder)
        )
        return perplexity.perplexity_scores(rows, losses, BOOTSTRAP, f"windows of {positions} tokens")

    return test


def _table(scores: Scores, count: int) -> pandas.DataFrame:
    """Metrics of a model on so many texts."""
    details = [each for each in scores.details if each.metric in METRIC_NAMES]
    told = count >= FEWEST_DOCUMENTS
    rows = [
        (METRIC_NAMES[each.metric], f"{each.value:.2f}", interval_text(each.low, each.high) if told else "")
        for each in details
    ]
    return pandas.DataFrame(rows, columns=["metric", "score", "95% interval"])
