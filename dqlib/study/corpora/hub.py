"""The hub: what is named there or lies in a folder, and failing at once where the hub cannot be reached."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import huggingface_hub
from huggingface_hub.utils import get_session

from dqlib.errors import InputError
from dqlib.files import DiskFullError, room_in
from dqlib.study.corpora.rows import Row, named_row
from dqlib.study.corpora.splits import SPLITS
from dqlib.study.params.model import ARCHITECTURES
from dqlib.study.params.paths import project_root

if TYPE_CHECKING:
    from datasets import Dataset

    from dqlib.study.params import settings as S

#: Seconds that the hub has for a first answer.
PATIENCE = 5.0


def located(name: str, revision: str | None = None) -> tuple[str, str | None]:
    """Where a data set or model is: a folder, from the project's if it is relative, or else a name and its revision."""
    folder = project_root() / Path(name).expanduser()
    return (str(folder), None) if folder.is_dir() else (name, revision)


def snapshot(name: str, revision: str | None = None) -> str:
    """The folder of a model, of its configuration and weights, fetched from the hub where it is named there."""
    place, revision = located(name, revision)
    if place != name:
        return place
    wanted = ["config.json", "generation_config.json", "model*.safetensors*"]
    folder = huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=wanted)
    if not any(Path(folder).glob("model*.safetensors")):
        folder = huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=["pytorch_model*.bin*"])
    return folder


@contextmanager
def fetching(field: str, name: str) -> Iterator[None]:
    """Load something from the hub or a folder; without a network only the cache is looked into, which takes no time.

    Args:
        field: parameter that names it.
        name: of what is loaded.

    Raises:
        DiskFullError: there is no room for it in the cache.
        InputError: it is not there, cannot be reached, or cannot be read.
    """
    on_hub = located(name)[0] == name
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
            where = huggingface_hub.constants.ENDPOINT
            allowed = (
                f"in the cache (HF_HOME), or the folder of a snapshot in place of the name, since {where} cannot be "
                f"reached ({reason})"
            )
        else:
            allowed = f"a name on the hub or the folder of a snapshot, with what is asked of it ({reason})"
        raise InputError(field, name, allowed) from None


#: What parameters call the entries of a checkpoint's ``config.json``.
SHAPE = {
    "architecture": "model_type",
    "d_model": "d_model",
    "encoder_layers": "encoder_layers",
    "decoder_layers": "decoder_layers",
    "heads": "encoder_attention_heads",
    "ffn_dim": "encoder_ffn_dim",
    "max_positions": "max_position_embeddings",
    "vocab_size": "vocab_size",
}


def checkpoint_shape(field: str, name: str, revision: str | None = None) -> dict[str, Any]:
    """What a checkpoint on the hub or in a folder says of its shape, by the names of :data:`SHAPE`.

    Args:
        field: parameter that names it.
        name, revision: of the checkpoint.

    Raises:
        InputError: it is not there, or not a BART or mBART.
    """
    with fetching(field, name):
        place, revision = located(name, revision)
        path = Path(place, "config.json")
        if place == name:
            path = Path(huggingface_hub.hf_hub_download(name, path.name, revision=revision))
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("its config.json is no JSON object")
    if config.get("model_type") not in ARCHITECTURES:
        raise InputError(field, name, f"one of {', '.join(ARCHITECTURES)}; it is of {config.get('model_type')!r}")
    return {ours: config[theirs] for ours, theirs in SHAPE.items() if theirs in config}


def build(corpus: S.Corpus) -> dict[str, Iterator[Row]]:
    """The rows of every split of a corpus from the hub, read when they are asked for; empty texts are left out.

    Raises:
        InputError: the data set cannot be reached, a column is missing, or a language has no token.
    """

    def rows(split: str) -> Iterator[Row]:
        for source, target, language in hub_rows(corpus, split):
            row = named_row(source, target, language, corpus, corpus.dataset or "")
            if row["source"] and row["target"]:
                yield row

    return {name: itertools.islice(rows(getattr(corpus, name) or name), corpus.limit) for name in SPLITS}


def hub_rows(corpus: S.Corpus, split: str) -> Iterator[tuple[str, str, str | None]]:
    """Source, target and language of the rows of a split, none of them kept; empty texts where a row has none.

    Args:
        corpus: its data set, columns and support documents.
        split: name of the split, or a part of it as ``datasets`` writes it: ``train[1%:]``.

    Raises:
        InputError: the data set cannot be reached, or a column is missing.
    """
    assert corpus.dataset is not None  # the parameters are checked
    data = _loaded(corpus.dataset, corpus.dataset_config, split, corpus.revision, "corpus.dataset")
    paths = [corpus.source, corpus.target, *([corpus.language] if corpus.language else [])]
    passages = None
    if corpus.support is not None:
        paths.append(corpus.support.id)
        passages = _Passages(corpus.support)
    data = _with_columns(data, paths)
    for row in data:
        source, target = (next(_texts(row, path), "") for path in (corpus.source, corpus.target))
        if passages is not None and source:
            source = passages.added_to(source, row[passages.support.id])
        yield source, target, row[corpus.language] if corpus.language else None


class _Passages:
    """Support documents by the id of their question; in memory is where each of them is."""

    def __init__(self, support: S.Support) -> None:
        self.support = support
        self._splits = list(_loaded(support.dataset, None, None, support.revision, "corpus.support.dataset").values())
        self._splits = [_with_columns(data, [support.id, support.text]) for data in self._splits]
        self._places: dict[str, tuple[int, int]] = {}
        for number, data in enumerate(self._splits):
            for place, row in enumerate(data.select_columns([support.id])):
                self._places.setdefault(row[support.id], (number, place))

    def added_to(self, question: str, name: str) -> str:
        """The question with its passages, or an empty text where it has none."""
        if name not in self._places:
            return ""
        number, place = self._places[name]
        texts = list(_texts(self._splits[number][place], self.support.text))
        return f"question: {question} context: {' '.join(f'<P> {text}' for text in texts)}" if texts else ""


def _loaded(name: str, config: str | None, split: str | None, revision: str | None, field: str) -> Dataset:
    import datasets  # slow to import, and needed by corpora of the hub only

    path, revision = located(name, revision)
    with fetching(field, name):
        return datasets.load_dataset(path, config, split=split, revision=revision)


def _with_columns(data: Dataset, paths: list[str]) -> Dataset:
    """The data set with the columns that the paths are in, and no others, which are not even read."""
    known = list(_leaves(data.features))
    for path in paths:
        if path not in known:
            raise InputError("corpus.column", path, f"one of {', '.join(known)}")
    return data.select_columns(list(dict.fromkeys(path.partition(".")[0] for path in paths)))


def _leaves(feature: Any, path: str = "") -> Iterator[str]:
    """Paths of all texts and numbers below a feature; a list adds nothing to the path of what it holds."""
    if hasattr(feature, "languages"):
        yield from (f"{path}.{language}" for language in feature.languages)
    elif isinstance(feature, dict):
        for name, inner in feature.items():
            yield from _leaves(inner, f"{path}.{name}" if path else name)
    elif hasattr(feature, "feature"):
        yield from _leaves(feature.feature, path)
    else:
        yield path


def _texts(value: Any, path: str) -> Iterator[str]:
    """Texts at a path that are not blank, without the blanks around them; of lists, those of all elements."""
    if isinstance(value, list):
        for each in value:
            yield from _texts(each, path)
    elif isinstance(value, dict):
        name, _, rest = path.partition(".")
        yield from _texts(value.get(name), rest)
    elif isinstance(value, str) and value.strip():
        yield value.strip()


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
