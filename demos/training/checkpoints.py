"""Checkpoints in pieces small enough for any carrier, written whole or not at all.

A checkpoint is a manifest and the shards that it names. Shards of one step never overwrite those
of another, and the manifest is replaced last, so an interruption at any moment leaves either the
old checkpoint or the new one.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

__all__ = ["MOST_BYTES", "CheckpointError", "read", "write"]

MOST_BYTES = 15 * 1024 * 1024
_MANIFEST = "checkpoint.json"


class CheckpointError(Exception):
    """A checkpoint is incomplete or damaged."""


def write(folder: Path, step: int, about: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Replace the checkpoint in a folder.

    Args:
        folder: Where it lies.
        step: Names the shards.
        about: What JSON can hold.
        tensors: What it cannot, by name.
    """
    shards = {}
    for number, shard in enumerate(_shards(tensors)):
        path = folder / f"checkpoint-{step}-{number}.safetensors"
        save_file(shard, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)
        shards[path.name] = _digest(path)
    part = folder / f"{_MANIFEST}.part"
    part.write_text(json.dumps({"about": about, "shards": shards}, indent=1) + "\n")
    part.replace(folder / _MANIFEST)
    for path in folder.glob("checkpoint-*"):
        if path.name not in shards:
            path.unlink()


def read(folder: Path, device: torch.device) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """What `write` was given, or None where there is no checkpoint.

    Args:
        folder: Where it lies.
        device: Where the tensors go.

    Raises:
        CheckpointError: If a shard is missing or is not the one that was written.
    """
    if not (folder / _MANIFEST).exists():
        return None
    manifest = json.loads((folder / _MANIFEST).read_text())
    tensors: dict[str, Tensor] = {}
    for name, digest in manifest["shards"].items():
        path = folder / name
        if not path.exists() or _digest(path) != digest:
            state = "differs from what was written" if path.exists() else "is missing"
            raise CheckpointError(
                f"{path} {state}. Put all of the checkpoint's files into one folder: "
                f"{', '.join(manifest['shards'])}; or start anew in another folder."
            )
        tensors |= load_file(path, device=str(device))
    return manifest["about"], tensors


def _shards(tensors: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Cut by size, in the order given; a single larger tensor is a shard of its own."""
    shard: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors.items():
        if shard and size + tensor.nbytes > MOST_BYTES:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor.detach().cpu().contiguous().clone()
        size += tensor.nbytes
    yield shard


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
