"""Packed models as transformers reads and saves them: ``from_pretrained`` of a folder or a repository of the hub.

Imported while transformers is still being imported (:mod:`dqlib.registration`), so what needs its models is imported
when it is called.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from dqlib.errors import InputError
from dqlib.storage.manifest import FORMAT, MANIFEST, WEIGHTS

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel

    from dqlib.storage.packed import Packed

#: Files of a packed model that are read here and are none of those that transformers fetches before it asks.
_BESIDE = (MANIFEST, "generation_config.json")


@register_quantization_config(FORMAT)
class PackedConfig(QuantizationConfigMixin):
    """``quantization_config`` of a packed model. All that there is to know stands in its manifest."""

    def __init__(self, quant_method: str = FORMAT, **_: Any) -> None:
        self.quant_method = quant_method  # type: ignore[assignment]  # those of transformers are an enumeration


@register_quantizer(FORMAT)
class PackedReader(HfQuantizer):
    """Reads a packed model where transformers loads a quantized one; what it makes is what ``load_packed`` makes.

    Manifest, weights and configuration are checked as ``load_packed`` checks them, before any memory is taken.
    """

    requires_calibration = True  # so that transformers refuses to quantize another model with it
    packed: Packed
    values: dict[str, Tensor]

    @property
    def is_trainable(self) -> bool:
        """Whether adapters can be trained on it: its own weights are codes."""
        return True

    def is_serializable(self, safe_serialization: bool | None = None) -> bool:
        """Whether ``save_pretrained`` saves it: as the packed model that it is."""
        return True

    def update_attn_implementation(self, config: PreTrainedConfig) -> PreTrainedConfig:
        """Tell transformers where the weights are: the configuration says to import dqlib to those who did not."""
        config.transformers_weights = WEIGHTS
        return config

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The type that the model computes in.

        Raises:
            InputError: another than fp32 is asked for.
        """
        import torch

        if dtype not in (None, torch.float32):
            allowed = "torch.float32, which a packed model computes in; its weights may be cast when it is loaded"
            raise InputError("dtype", str(dtype), allowed)
        return torch.float32

    def update_device_map(self, device_map: dict[str, Any] | None) -> dict[str, Any] | None:
        """Where the model is put.

        Raises:
            InputError: on the disk in part, from where its weights would be read at each step, as codes.
        """
        if "disk" in (device_map or {}).values():
            raise InputError("device_map", device_map, "devices: packed weights are not left on the disk")
        return device_map

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: list[str] | None = None, **_: Any
    ) -> None:
        from dqlib.pruning import narrow
        from dqlib.storage.packed import (
            check_fit,
            in_one_memory,
            keep_apart,
            numbers_of,
            read_packed,
            round_activations,
        )

        folder = Path((checkpoint_files or [""])[0]).parent
        _fetch(model.config.name_or_path, folder)
        self.packed = read_packed(folder)
        name = self.packed.manifest.about.get("class")
        if type(model).__name__ != name:
            raise InputError("class", type(model).__name__, f"{name}, which was packed in {folder}")
        narrow(model, self.packed.config.heads)
        check_fit(model, self.packed.parameters)
        keep_apart(model, self.packed.parameters)
        round_activations(model, self.packed)
        zeros = {each.name for each in self.packed.parameters if each.content is None}
        model._keys_to_ignore_on_load_missing = {*(model._keys_to_ignore_on_load_missing or ()), *zeros}
        coded = [each for each in self.packed.parameters if f"{each.name}.codes" in each.tensors]
        self.values = {each.name: value for each, value in numbers_of(coded, in_one_memory(coded))}

    def update_weight_conversions(self, weight_conversions: list[Any], model: PreTrainedModel) -> list[Any]:
        """Codes, scales and zero points make a parameter together; what else the file holds are parameters."""
        from transformers.core_model_loading import WeightConverter

        endings = [rf"\.{ending}$" for ending in ("codes", "scale", "zero_point")]
        return [WeightConverter(endings, "", [_Unpacked(self)])]

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **_: Any) -> PreTrainedModel:
        from dqlib.storage.packed import tie

        for each in self.packed.parameters:
            if each.content is None:
                model.get_buffer(each.name).zero_()
            tie(model, each.names)
        del model._keys_to_ignore_on_load_missing, self.values
        model._weight_conversions = None  # it is saved from its codes
        return model


class _Unpacked:
    """The step of transformers' loading that makes a parameter of its codes."""

    def __init__(self, reader: PackedReader) -> None:
        self.hf_quantizer = reader  # by which transformers knows that it casts nothing

    def __deepcopy__(self, _: Any) -> _Unpacked:
        return self  # one for all parameters

    def convert(self, tensors: dict[str, list[Tensor]], *, full_layer_name: str, **_: Any) -> dict[str, Tensor]:
        """The numbers of a parameter, where its codes were put."""
        device = next(iter(tensors.values()))[0].device
        return {full_layer_name: self.hf_quantizer.values.pop(full_layer_name).to(device)}


def _fetch(name: str, folder: Path) -> None:
    """Fetch the manifest of a repository of the hub, whose snapshot so far has configuration and weights."""
    if (folder / MANIFEST).is_file() or "snapshots" not in folder.parts:
        return  # reading the folder names what it lacks
    from transformers.utils import cached_file

    # .../<cache>/models--<owner>--<name>/snapshots/<revision>[/<subfolder>]
    place = len(folder.parts) - 1 - folder.parts[::-1].index("snapshots")
    cache, subfolder = Path(*folder.parts[: place - 1]), "/".join(folder.parts[place + 2 :])
    for file in _BESIDE:
        try:
            cached_file(name, file, revision=folder.parts[place + 1], cache_dir=cache, subfolder=subfolder)
        except OSError as error:
            if file == MANIFEST:
                allowed = f"a packed model with its {MANIFEST}, that can be fetched: of a private one, log in first"
                raise InputError("model", f"{name} ({' '.join(str(error).split())})", allowed) from None
