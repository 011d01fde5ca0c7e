"""What is named on the hub or lies in a folder: where it is, its shape, and failing at once without a network."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.utils import get_session

from dqlib.architectures import ARCHITECTURES
from dqlib.errors import InputError
from dqlib.files import DiskFullError, room_in
from dqlib.study.params.model import MODEL_TYPES, SIZES
from dqlib.study.params.paths import project_root
from dqlib.study.params.schema import LONGEST

#: Configuration and weights of a model; the last are older ones, which are read where there are no others.
MODEL_FILES = ("config.json", "generation_config.json", "model*.safetensors*", "pytorch_model*.bin*")

#: Seconds that the hub has for a first answer.
PATIENCE = 5.0


def located(name: str, revision: str | None = None) -> tuple[str, str | None]:
    """Where a data set or model is: a folder, from the project's if it is relative, or else a name and its revision."""
    return (str(_folder(name)), None) if on_disk(name) else (name, revision)


def on_disk(name: str) -> bool:
    """Whether it is the folder of a snapshot, and no name on the hub."""
    return _folder(name).is_dir()


def _folder(name: str) -> Path:
    return project_root() / Path(name).expanduser()


def snapshot(name: str, revision: str | None = None) -> str:
    """The folder of a model, of its configuration and weights, fetched from the hub where it is named there."""
    *wanted, bins = MODEL_FILES
    folder = _fetched(name, revision, *wanted)
    if not on_disk(name) and not any(folder.glob("model*.safetensors")):
        folder = _fetched(name, revision, bins)
    return str(folder)


def _fetched(name: str, revision: str | None, *wanted: str) -> Path:
    """The folder of a checkpoint, with these of its files where it is on the hub and has them."""
    if on_disk(name):
        return _folder(name)
    return Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=list(wanted)))


@contextmanager
def fetching(field: str, name: str) -> Iterator[None]:
    """Load something from the hub or a folder; without a network only the cache is looked into, which takes no time.

    ``field`` is the parameter that names it.

    Raises:
        DiskFullError: there is no room for it in the cache.
        InputError: it is not there, cannot be reached, or cannot be read.
    """
    on_hub = not on_disk(name)
    offline = on_hub and not _reachable()
    try:
        with room_in(Path(huggingface_hub.constants.HF_HOME)), _only_the_cache(offline):
            yield
    except (DiskFullError, InputError):
        raise
    except Exception as error:
        of_datasets = type(error).__module__.startswith("datasets.")  # which is slow to import, for all other errors
        if not of_datasets and not isinstance(error, (OSError, ValueError, KeyError)):
            raise
        reason = " ".join(str(error).split())[:200]
        if offline:
            allowed = "in the cache (HF_HOME), or the folder of a snapshot in place of the name, since "
            allowed += f"{huggingface_hub.constants.ENDPOINT} cannot be reached"
        else:
            allowed = "a name on the hub or the folder of a snapshot, with what is asked of it"
        raise InputError(field, name, f"{allowed} ({reason})") from None


def shape_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the content of a ``config.json`` says of a model's shape, by the names of parameters."""
    architecture = config["model_type"]
    names = ARCHITECTURES[architecture]
    depths = [None if stack is None else stack.depth for stack in (names.encoder, names.decoder)]
    fields = (names.width_field, *depths, names.head_fields[0], names.neuron_fields[0], names.position_field)
    shape = {ours: config.get(theirs) if theirs else 0 for ours, theirs in zip(SIZES, fields, strict=True)}
    if not names.position_field:
        shape["max_positions"] = LONGEST  # they have no end
    if architecture == "gpt2" and shape["ffn_dim"] is None and shape["d_model"] is not None:
        shape["ffn_dim"] = 4 * shape["d_model"]  # GPT-2 says it where it is another one
    if shape["decoder_layers"] is None:
        shape["decoder_layers"] = shape["encoder_layers"]  # T5 says it where it is another one
    shape |= {"architecture": architecture, "vocab_size": config.get("vocab_size")}
    return {name: value for name, value in shape.items() if value is not None}


def checkpoint_shape(
    field: str, name: str, revision: str | None = None, architectures: Collection[str] = MODEL_TYPES
) -> dict[str, Any]:
    """What a checkpoint on the hub or in a folder says of its shape, by the names of :func:`shape_of`.

    Raises:
        InputError: it is not there, or of another architecture.
    """
    config = checkpoint_config(field, name, revision)
    if config.get("model_type") not in architectures:
        raise InputError(field, name, f"one of {', '.join(architectures)}; it is of {config.get('model_type')!r}")
    return shape_of(config)


def checkpoint_config(field: str, name: str, revision: str | None = None) -> dict[str, Any]:
    """The content of a checkpoint's ``config.json``, from a folder or the hub.

    Raises:
        InputError: it is not there, or no JSON object.
    """
    with fetching(field, name):
        config = json.loads((_fetched(name, revision, "config.json") / "config.json").read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("its config.json is no JSON object")
    return config


def generation_settings(field: str, name: str, revision: str | None = None) -> dict[str, Any]:
    """The content of a checkpoint's ``generation_config.json``, from a folder or the hub; empty where it has none.

    Raises:
        InputError: the checkpoint cannot be reached, or the file cannot be read.
    """
    from dqlib.storage.reading import json_object  # which imports PyTorch

    with fetching(field, name):
        path = _fetched(name, revision, "*config.json") / "generation_config.json"
        return json_object(path.read_bytes(), f"{field}, {path.name}") if path.is_file() else {}


@cache
def _reachable() -> bool:
    """Whether the hub answers, asked once; proxies of the environment are used, as in all else."""
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(huggingface_hub.constants.ENDPOINT, timeout=PATIENCE)
    except Exception:  # the session's library has errors of its own for names, routes, certificates and time
        return False
    return True


@contextmanager
def _only_the_cache(wanted: bool) -> Iterator[None]:
    """What ``HF_HUB_OFFLINE=1`` does, which is read when the libraries are imported."""
    if not wanted:
        yield
        return
    import datasets

    places: tuple[Any, Any] = (huggingface_hub.constants, datasets.config)
    before = [place.HF_HUB_OFFLINE for place in places]
    try:
        for place in places:
            place.HF_HUB_OFFLINE = True
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value
