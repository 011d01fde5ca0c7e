"""What a training starts from: a new model with random weights, or one that was pre-trained, here or by others."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from dqlib.errors import InputError
from dqlib.storage.reading import read_model
from dqlib.study.corpora.corpus import LoadedCorpus
from dqlib.study.params import settings as S
from dqlib.study.params.checkpoint import fetching, shape_of, snapshot
from dqlib.study.training.kinds import training_of


def starting_model(settings: S.Settings, task: str, corpus: LoadedCorpus) -> PreTrainedModel:
    """What a task's teacher starts from: the pre-trained model, or one with random weights.

    Raises:
        InputError: the tokenizer is not the model's, or has no token of the language.
    """
    spec, pretrained = settings.task(task), settings.pretrained_folder(task)
    kind = training_of(spec.form)
    model = kind.new(spec, corpus.tokenizer) if pretrained is None else read_model(pretrained)
    if len(corpus.tokenizer) > model.config.vocab_size:
        allowed = f"one of at most {model.config.vocab_size} tokens, which the model '{spec.model.pretrained}' knows"
        raise InputError("corpus.tokenizer", spec.corpus.tokenizer, allowed)
    return kind.started(model, spec, corpus)


def pretrained_model(spec: S.Model, kind: S.Kind, finetuned: bool = False) -> PreTrainedModel:
    """A model that others have pre-trained, or fine-tuned, in fp32, from a folder or the hub.

    Raises:
        InputError: it cannot be reached, or is not of the shape that the parameters say.
    """
    assert spec.pretrained is not None
    with fetching("model.pretrained", spec.pretrained):
        name = kind.finetuned if finetuned else kind.checkpoint
        model = read_model(snapshot(spec.pretrained, spec.revision), name, dtype=torch.float32, bins=True)
    shape = shape_of({"model_type": model.config.model_type} | vars(model.config))
    for name in ("architecture", *S.SIZES):
        if getattr(spec, name) != shape[name]:
            allowed = f"{shape[name]}, as in the model '{spec.pretrained}'"
            raise InputError(f"model.{name}", getattr(spec, name), allowed)
    return model
