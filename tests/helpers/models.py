"""Tiny teachers of every architecture, their students, and presets that have every kind of grid between them."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    MarianConfig,
    MarianMTModel,
    MBartConfig,
    MBartForConditionalGeneration,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from dqlib.architectures import architecture_of
from dqlib.config import ActivationQuantization, Config, WeightQuantization
from dqlib.presets import get_preset
from dqlib.student import make_student

#: Of an encoder-decoder whose numbers of layers a test says.
TINY = {
    "vocab_size": 96, "d_model": 32, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 40, "init_std": 0.2, "dropout": 0.0,
    "scale_embedding": True, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}  # fmt: skip

VOCABULARY = 60
PAD, EOS = 1, 2

_SEQUENCE_TO_SEQUENCE = {
    "vocab_size": VOCABULARY, "d_model": 16, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_layers": 3, "decoder_layers": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24,
    "max_position_embeddings": 24, "init_std": 0.2, "dropout": 0.0, "bos_token_id": 0, "pad_token_id": PAD,
    "eos_token_id": EOS, "decoder_start_token_id": EOS, "forced_eos_token_id": None, "scale_embedding": True,
}  # fmt: skip
_T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "d_kv": 6,  # the heads together are narrower than the model
    "d_ff": 24,
    "num_heads": 2,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
    "dropout_rate": 0.0,
    "initializer_factor": 1.0,
    "pad_token_id": PAD,
    "eos_token_id": EOS,
    "decoder_start_token_id": PAD,
}
_BERT = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 24, "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0, "initializer_range": 0.2, "pad_token_id": PAD, "num_labels": 3,
}  # fmt: skip
_GPT2 = {
    "vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 24, "resid_pdrop": 0.0,
    "embd_pdrop": 0.0, "attn_pdrop": 0.0, "initializer_range": 0.2, "bos_token_id": 0, "pad_token_id": PAD,
    "eos_token_id": EOS,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A tiny teacher, and how to make a student of it that has fewer layers."""

    model: type[PreTrainedModel]
    config: object
    layers: str  # of the student
    depths: str  # of the teacher

    @property
    def generates(self) -> bool:
        return self.model.can_generate() and "Bert" not in self.model.__name__

    @property
    def encodes_and_decodes(self) -> bool:
        return "0" not in self.layers


CASES = {
    "bart": Case(BartForConditionalGeneration, BartConfig(**_SEQUENCE_TO_SEQUENCE), "2-1", "3-2"),
    "mbart": Case(MBartForConditionalGeneration, MBartConfig(**_SEQUENCE_TO_SEQUENCE), "2-1", "3-2"),
    "marian": Case(MarianMTModel, MarianConfig(**_SEQUENCE_TO_SEQUENCE), "2-1", "3-2"),
    "marian-unshared": Case(
        MarianMTModel,
        MarianConfig(**_SEQUENCE_TO_SEQUENCE, share_encoder_decoder_embeddings=False, decoder_vocab_size=VOCABULARY),
        "2-1",
        "3-2",
    ),
    "t5": Case(T5ForConditionalGeneration, T5Config(**_T5), "2-1", "3-2"),
    "t5-untied": Case(
        T5ForConditionalGeneration,
        T5Config(**_T5, tie_word_embeddings=False, feed_forward_proj="gated-gelu"),  # as Flan-T5
        "2-1",
        "3-2",
    ),
    "bert": Case(BertForMaskedLM, BertConfig(**_BERT), "2-0", "3-0"),
    "bert-classifier": Case(BertForSequenceClassification, BertConfig(**_BERT), "2-0", "3-0"),
    "gpt2": Case(GPT2LMHeadModel, GPT2Config(**_GPT2), "0-2", "0-3"),
}


EVERY = pytest.mark.parametrize("name", CASES)
#: For a test that the place of norms matters to: mBART's come before the layers' parts, BART's after them.
BOTH = pytest.mark.parametrize("teacher", ["mbart", "bart"], indirect=True)
WANTED = {"output_attentions": True, "output_hidden_states": True}


def make_teacher(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    case = CASES[name]
    teacher = case.model(copy.deepcopy(case.config)).eval()  # transformers writes into the config of a model it trains
    if name == "t5-untied":  # transformers ties every new T5, and leaves apart what a checkpoint has apart
        teacher.lm_head.weight = nn.Parameter(torch.randn(VOCABULARY, 16) / 4)
        teacher.all_tied_weights_keys.pop("lm_head.weight")
    with torch.no_grad():  # biases and norms that are not zero and one, as a trained model has them
        for parameter in teacher.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.05 * torch.randn_like(parameter))
    teacher.set_attn_implementation("eager")
    return teacher


def student_of(teacher: PreTrainedModel, name: str, bits: str = "2-2-8", preset: str = "dqlib") -> PreTrainedModel:
    return make_student(teacher, Config.parse(f"{bits} {CASES[name].layers}"), preset)


def narrow_student(name: str, bits: str, widths: str, **fields: object) -> PreTrainedModel:
    """A student with some of four heads, its teacher's most important ones; ``fields`` are of the teacher's config."""
    case = CASES[name]
    heads = dict.fromkeys(architecture_of(case.config).head_fields, 4)
    torch.manual_seed(2)
    teacher = case.model(type(case.config).from_dict(case.config.to_dict() | heads | fields)).eval()
    config = Config.parse(f"{bits} {case.layers} {widths}".strip())
    return make_student(teacher, config, "dqlib", calibration_of(name)).eval()


@dataclass(frozen=True)
class Data:
    """What a model's forward takes, and the labels aligned with its logits."""

    inputs: dict[str, torch.Tensor]
    labels: torch.Tensor
    source_mask: torch.Tensor


def data_of(name: str) -> Data:
    generator = torch.Generator().manual_seed(1)
    case = CASES[name]
    ids = torch.randint(3, VOCABULARY, (3, 8), generator=generator)
    mask = torch.ones(3, 8, dtype=torch.long)
    for row, length in enumerate((8, 5, 3)):
        ids[row, length:], mask[row, length:] = PAD, 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    if case.encodes_and_decodes:
        labels = torch.randint(3, VOCABULARY, (3, 5), generator=generator)
        labels[1, 3:] = -100
        start = case.config.decoder_start_token_id
        shifted = torch.cat([torch.full((3, 1), start), labels[:, :-1]], dim=1)
        inputs["decoder_input_ids"] = shifted.masked_fill(shifted == -100, PAD)
    elif case.model is GPT2LMHeadModel:  # the label of a logit is the next token
        labels = torch.cat([ids[:, 1:], torch.full((3, 1), PAD)], dim=1)
        labels = labels.masked_fill(labels == PAD, -100)
    elif case.model is BertForMaskedLM:
        labels = torch.full_like(ids, -100)
        labels[:, 1] = torch.randint(3, VOCABULARY, (3,), generator=generator)
    else:
        labels = torch.tensor([0, 2, 1])
    return Data(inputs, labels, mask.bool())


def calibration_of(name: str) -> list[dict[str, torch.Tensor]]:
    """One batch, with labels."""
    data = data_of(name)
    return [data.inputs | {"labels": data.labels}]


#: Methods that have every kind of grid, granularity, zero point and trained scale between them.
ASYMMETRIC = replace(
    get_preset("dqlib"),
    name="asymmetric",
    weights=WeightQuantization(
        two_bits="asymmetric", more_bits="asymmetric", linear="per_group_4", clip=0.5, factor=True
    ),
    activations=ActivationQuantization(granularity="per_tensor", unsigned=False, clip=2.5),
    position_bits=5,
)
LSQ = replace(
    get_preset("dqlib"), name="lsq", weights=WeightQuantization(two_bits="lsq", more_bits="lsq", linear="per_tensor")
)
#: Odd codes with trained scales, in groups.
FOUR_LEVELS = replace(
    get_preset("dqlib"),
    name="stretched",
    weights=WeightQuantization(one_bit="lsq", two_bits="stretched", linear="per_group_4", clip=0.5),
)
