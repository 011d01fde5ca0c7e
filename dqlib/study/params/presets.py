"""Presets from YAML files: which built-in preset one starts from, and what it changes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from dqlib.errors import InputError, check_choice
from dqlib.presets import PRESETS, VARIANTS, Preset, get_preset
from dqlib.study.params.paths import project_root
from dqlib.study.params.schema import a_name, build, read

#: The file of each preset that this process has read from one, by its name.
_FILES: dict[str, Path] = {}


def is_file(preset: str) -> bool:
    """Whether a preset is given by a file, and not by its name."""
    return preset.endswith((".yaml", ".yml"))


def preset_named(preset: str) -> str:
    """The name of a preset, by which :func:`dqlib.presets.get_preset` knows it from here on.

    ``preset`` is a name, or a YAML file, from the project's folder if its path is relative.

    Raises:
        InputError: there is none, or the file says something that is not allowed.
    """
    if not is_file(preset):
        return get_preset(preset).name
    path = project_root() / Path(preset).expanduser()
    remember(load_preset(path), path)
    return path.stem


def file_of(preset: str) -> str:
    """The file that a preset was read from, for another process to read it; its name where it is built in."""
    return str(_FILES.get(preset, preset))


def own_presets() -> dict[Path, Preset]:
    """The presets that this process has read from files."""
    return {path: PRESETS[name] for name, path in _FILES.items()}


def remember(preset: Preset, path: Path) -> None:
    """Let :func:`dqlib.presets.get_preset` know a preset that was read from a file."""
    PRESETS[preset.name], _FILES[preset.name] = preset, path


def load_preset(path: str | Path) -> Preset:
    """The preset that a YAML file describes.

    Its key ``from`` names a built-in preset. Others are fields of :class:`dqlib.presets.Preset`; of blocks, the entries
    that are given replace those of the preset that it starts from. What ``recipe`` changes holds for all bits, unless
    ``by_bits`` says something else.

    Raises:
        InputError: the file is not there or no YAML, has the name of another preset, starts from none, or has a key or
            a value that is not allowed.
    """
    path = Path(path).absolute()
    if not path.is_file():
        raise InputError("preset", str(path), "a name, or a YAML file that exists")
    name, built_in = path.stem, tuple(each for each in PRESETS | VARIANTS if each not in _FILES)
    try:
        a_name("name", name)
        if name in built_in or _FILES.get(name, path) != path:
            raise InputError("name", name, "a file of another name than every other preset has")
        content = read(path)
        content = content if isinstance(content, dict) else {}
        check_choice("from", content.get("from"), built_in)
        if "name" in content:
            raise InputError("name", content["name"], "left out: the name is that of the file")
        changes = {key: value for key, value in content.items() if key != "from"}
        return build(Preset, {"name": name} | _changed(get_preset(content["from"]), changes), "")
    except InputError as error:
        field = error.field.removeprefix("params").removeprefix(", ")
        where = f"preset '{path.name}'"
        raise InputError(f"{where}, {field}" if field else where, error.value, error.allowed) from None


def _changed(preset: Preset, changes: dict[str, Any]) -> dict[str, Any]:
    """The fields of a preset with changes, as YAML would have them."""
    before = {key: value for key, value in asdict(preset).items() if key != "name"}
    fields = before | {key: _merged(before.get(key), value) for key, value in changes.items()}
    if isinstance(of_bits := changes.get("by_bits", {}), dict):
        recipe = changes.get("recipe", {})
        by_bits = {str(bits): _merged(each, recipe) for bits, each in before["by_bits"].items()}
        by_bits |= {bits: _merged(by_bits.get(bits, fields["recipe"]), change) for bits, change in of_bits.items()}
        fields["by_bits"] = by_bits
    return fields


def _merged(block: Any, change: Any) -> Any:
    return block | change if isinstance(block, dict) and isinstance(change, dict) else change
