"""What is in folders, and folders that somebody changed and sealed again, as one does who means harm."""

import hashlib
import json
from pathlib import Path

import safetensors.torch

from dqlib.storage.manifest import MANIFEST


def reseal(folder, changed=(), **fields):
    """Change the manifest: fields of it, and the checksums of files that were changed."""
    manifest = json.loads((folder / MANIFEST).read_text())
    for name in changed:
        data = (folder / name).read_bytes()
        manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest |= fields
    del manifest["sha256"]
    sealed = hashlib.sha256(json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(manifest | {"sha256": sealed}))


def reconfigure(folder, name="config.json", **fields):
    """Write other fields in a file of the folder, and its checksum if the folder has a manifest."""
    (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | fields))
    if (folder / MANIFEST).is_file():
        reseal(folder, [name])


def reweigh(folder, change, name="model.safetensors"):
    """Change the tensors of a file of weights, given by name, and its checksum if the folder has a manifest."""
    tensors = safetensors.torch.load((folder / name).read_bytes())
    change(tensors)
    (folder / name).write_bytes(safetensors.torch.save(tensors, metadata={"format": "pt"}))
    if (folder / MANIFEST).is_file():
        reseal(folder, [name])


def flip(path, place=-100, bits=4):
    """Turn bits of one byte of a file."""
    data = bytearray(path.read_bytes())
    data[place] ^= bits
    path.write_bytes(data)


def contents(folder):
    """The bytes of every file, by its path in the folder."""
    return {path.relative_to(folder): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def hidden(folder):
    """Hidden files and folders: what is left of something that was being written."""
    return [path for path in Path(folder).rglob(".*") if path.name.startswith(".")]
