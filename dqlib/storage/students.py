"""Students on disk: folders from which training goes on.

A saved student is a folder in the Hugging Face layout: full-precision weights, with the scales that were trained, and
``dqlib.json``, which says how to quantize them again. ``student.save_pretrained`` writes the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from dqlib.architectures import architecture_of
from dqlib.config import Config
from dqlib.errors import InputError
from dqlib.fake_quantize import LEARNED
from dqlib.presets import Preset
from dqlib.storage.manifest import opened
from dqlib.storage.reading import CONFIG, ELSEWHERE, OF_A_STUDENT, add_to_config, check_finite, read_model, saved
from dqlib.student import is_student, quantize_model, round_for_storage, save_weights, weight_quantizers


def describe(model: PreTrainedModel) -> dict[str, Any]:
    """What must be known of a student besides its numbers to build it again, as JSON has it."""
    config: Config = model.dqlib_config
    about = {"class": type(model).__name__, "config": str(config)} | model.dqlib_preset.describe()
    if config.modules:
        about |= {"w_bits": config.w_bits, "e_bits": config.e_bits, "modules": dict(config.modules)}
    return about


def described_config(about: Mapping[str, Any]) -> Config:
    """The configuration that :func:`describe` described, with the bits of each module where there was a budget.

    Raises:
        InputError: an entry is missing, or out of range.
    """
    config = Config.parse(about.get("config"))
    if not config.is_open:
        return config
    modules = about.get("modules")
    if not isinstance(modules, dict) or not modules or not all(type(bits) is int for bits in modules.values()):
        raise InputError("modules", modules, f"bits of each module, which '{config}' has")
    w_bits, e_bits = (about.get(name, 0) for name in ("w_bits", "e_bits"))
    return replace(config, w_bits=w_bits, e_bits=e_bits, modules=tuple(modules.items()))


def save_student(model: PreTrainedModel, folder: str | Path, tokenizer: Tokenizer | None = None) -> None:
    """Save a student in the Hugging Face layout, with what :func:`load_student` reads beside it.

    ``from_pretrained`` refuses the folder in a sentence, since the weights alone would give another function. Other
    files of the folder stay. All of the student's are written before the first of an old one is replaced.

    Raises:
        InputError: the model is no student, or was loaded from a packed model, which holds codes only.
    """
    if not is_student(model):
        raise InputError("model", type(model).__name__, "a student, of make_student or load_student")
    add_to_folder(model, folder, tokenizer=tokenizer)


def load_student(folder: str | Path) -> PreTrainedModel:
    """Load what :func:`save_student`, or ``save_pretrained`` of a student, saved, in evaluation mode.

    Raises:
        InputError: the folder is not a student's, a file of it was changed, a tensor is missing or left over, or a
            number is not finite.
    """
    about = opened(folder, "student").about
    config, preset = described_config(about), Preset.described(about)
    learned: dict[str, Tensor] = {}
    model = read_model(folder, about.get("class") or "", scales=learned, heads=config.heads)
    config = in_shape(config, model)
    if config.heads is not None:
        model.dqlib_kept_heads = _kept_heads(about.get("kept_heads"), config, model)
    quantize_model(model, config, preset)
    check_finite(learned)
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name.endswith(LEARNED):
            names.setdefault(parameter, []).append(name)
    with torch.no_grad():
        for parameter, tied in names.items():
            value = next((learned.pop(name) for name in tied if name in learned), None)
            if value is None or value.shape != parameter.shape:
                found = "missing" if value is None else tuple(value.shape)
                raise InputError(tied[0], found, f"in {folder}, of the shape {tuple(parameter.shape)}")
            parameter.copy_(value)
    if learned:
        allowed = f"a trained scale of the preset '{preset.name}', or not be there"
        raise InputError(min(learned), f"in {folder}", allowed)
    if about.get("half_scales"):
        round_for_storage(model)  # what the folder leaves out, such as positions that are computed, is rounded too
    return model.eval()


def in_shape(config: Config, model: PreTrainedModel) -> Config:
    """The configuration of a student, once it is checked that the model has the layers and neurons that it says.

    The model's heads were made as many as that says (:func:`dqlib.pruning.narrow`), and its tensors fit.

    Raises:
        InputError: it has not.
    """
    names = architecture_of(model.config)
    depths = names.depths(model.config)
    config = config.with_layers_of(*depths)
    if depths != (config.encoder_layers, config.decoder_layers):
        raise InputError("config", str(config), f"one of {depths[0]}-{depths[1]} layers, as {CONFIG} has it")
    for field in names.neuron_fields if config.ffn is not None else ():
        if getattr(model.config, field) != config.ffn:
            raise InputError("config", str(config), f"one of f{getattr(model.config, field)}, as {CONFIG} has it")
    return config


def _kept_heads(kept: Any, config: Config, model: PreTrainedModel) -> dict[str, list[list[int]]]:
    """The teacher's heads that each layer of a student has, if they are as many as the configuration says."""
    names = architecture_of(model.config)
    expected = {side: getattr(config, f"{side}_layers") for side in names.stacks}
    if len(names.attentions) > 1:
        expected["cross"] = config.decoder_layers
    most = max(getattr(model.config, field) for field in names.head_fields)
    sound = isinstance(kept, dict) and all(isinstance(layers, list) for layers in kept.values())
    sound = sound and {part: len(kept[part]) for part in kept} == expected
    for heads in [heads for part in kept.values() for heads in part] if sound else ():
        whole = isinstance(heads, list) and all(type(head) is int and 0 <= head < most for head in heads)
        sound = sound and whole and len(heads) == config.heads and sorted(set(heads)) == heads
    if not sound:
        raise InputError("kept_heads", kept, f"{config.heads} of the teacher's heads for each attention, in order")
    return kept


def add_to_folder(
    model: PreTrainedModel,
    folder: str | Path,
    state_dict: dict[str, Tensor] | None = None,
    *,
    tokenizer: Tokenizer | None = None,
    **options: Any,
) -> None:
    """What ``student.save_pretrained`` does, with its arguments."""
    rounded = getattr(model, "dqlib_rounded", False)
    rounded = rounded or any(quantizer.half_scales for quantizer in weight_quantizers(model))
    numbers = sum(value.numel() for name, value in model.named_parameters() if not name.endswith(LEARNED))
    about = describe(model) | {"half_scales": rounded, "numbers": numbers}
    if model.dqlib_config.heads is not None:  # which teach the maps of a student that is trained on
        about["kept_heads"] = model.dqlib_kept_heads
    with saved(folder, "student", about, tokenizer) as scratch:
        save_weights(model, scratch, state_dict=state_dict, **options)
        add_to_config(scratch, {ELSEWHERE: OF_A_STUDENT})
