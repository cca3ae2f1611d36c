"""Relevance on disk: arrays, pictures and a manifest, written whole or not at all."""

import io
import json
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from zipfile import BadZipFile

import numpy as np
import torch

from vimlrp import heatmaps
from vimlrp.account import Account
from vimlrp.errors import InputError
from vimlrp.files import atomic_folder, distinct_names, sha256_of
from vimlrp.layers import LayerRecord

if TYPE_CHECKING:
    from vimlrp.relevance import Relevance

__all__ = ["load", "save"]

_FORMAT = 1
_ARRAYS = "relevance.npz"
_MANIFEST = "manifest.json"
_OVERLAYS: tuple[Literal["pixels", "patches"], ...] = ("pixels", "patches")
_FIELDS = ("pixels", "patches", "tokens", "logits", "target", "contrast")


def save(relevance: "Relevance", folder: str | Path, *, overwrite: bool = False) -> Path:
    """Write a relevance into a folder.

    The folder holds `relevance.npz` (all arrays), for each sample an overlay of pixels, one of
    patches and a panel of both beside the photo as PNG, and `manifest.json` (what was explained,
    the account, versions, hashes).

    Args:
        relevance: What to write.
        folder: Must not exist, unless `overwrite`.
        overwrite: Replace a folder that vimlrp wrote.

    Raises:
        InputError: If the folder exists and may not be replaced.
    """
    folder = Path(folder)
    with atomic_folder(folder, overwrite=overwrite, marker=_MANIFEST) as part:
        data = _pack(relevance)
        (part / _ARRAYS).write_bytes(data)
        pictures = _draw(relevance, part)
        manifest = _manifest(relevance, sha256_of(data), pictures)
        (part / _MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return folder


def load(folder: str | Path) -> dict[str, Any]:
    """Read a relevance that `save` wrote; its pictures stay on disk.

    Args:
        folder: Where it was written.

    Returns:
        The fields of `Relevance`.

    Raises:
        InputError: If the folder holds none, or its arrays were changed.
    """
    folder = Path(folder)
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        data = (folder / _ARRAYS).read_bytes()
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} holds no relevance that vimlrp saved ({error})") from error
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        raise InputError(
            f"{folder} holds no relevance that vimlrp saved: its manifest is another's"
        )
    if manifest.get("arrays_sha256") != sha256_of(data):
        raise InputError(f"{folder}: the arrays are not those that its manifest describes")
    try:
        return _unpack(manifest, data)
    except (KeyError, ValueError, BadZipFile) as error:
        raise InputError(
            f"{folder} holds no relevance that vimlrp saved: it cannot be read ({error})"
        ) from error


def _unpack(manifest: dict[str, Any], data: bytes) -> dict[str, Any]:
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        tensors = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    names = manifest["class_names"]
    return {
        "pixels": tensors["pixels"],
        "patches": tensors["patches"],
        "tokens": tensors.get("tokens"),
        "logits": tensors["logits"],
        "target": tensors.get("target"),
        "contrast": tensors.get("contrast"),
        "account": _account(tensors),
        "recorded": _recorded(tensors),
        "model": manifest["model"],
        "composite": manifest["composite"],
        "class_names": tuple(names) if names else None,
    }


def _pack(relevance: "Relevance") -> bytes:
    tensors: dict[str, Any] = {name: getattr(relevance, name) for name in _FIELDS}
    tensors["account/target"] = relevance.account.target
    tensors |= {f"account/parts/{k}": v for k, v in relevance.account.parts.items()}
    for name, record in relevance.recorded.items():
        tensors[f"recorded/{name}/activation"] = record.activation
        tensors[f"recorded/{name}/relevance"] = record.relevance
    present = {name: _array(value) for name, value in tensors.items() if value is not None}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **present)
    return buffer.getvalue()


def _array(x: torch.Tensor) -> Any:
    x = x.detach().cpu()
    return (x.float() if x.dtype in (torch.bfloat16, torch.float16) else x).numpy()


def _account(tensors: dict[str, torch.Tensor]) -> Account:
    prefix = "account/parts/"
    parts = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    return Account(tensors["account/target"], parts)


def _recorded(tensors: dict[str, torch.Tensor]) -> dict[str, LayerRecord]:
    names = [k.split("/")[1] for k in tensors if k.endswith("/activation")]
    return {
        name: LayerRecord(
            tensors[f"recorded/{name}/activation"], tensors[f"recorded/{name}/relevance"]
        )
        for name in names
    }


def _draw(relevance: "Relevance", folder: Path) -> list[list[str]]:
    """Write the overlays; the names of the files of each sample."""
    if not relevance.sources:
        return [[] for _ in range(len(relevance))]
    stems = distinct_names([Path(source.name).stem for source in relevance.sources])
    drawn: list[list[str]] = [[] for _ in stems]
    overlays = {of: relevance.overlay(of) for of in _OVERLAYS}
    for kind, pictures in (("panel", relevance.panel(overlays)), *overlays.items()):
        for files, stem, picture in zip(drawn, stems, pictures, strict=True):
            files.append(f"{stem}.{kind}.png")
            heatmaps.write_png(folder / files[-1], picture)
    return drawn


def _manifest(relevance: "Relevance", digest: str, pictures: list[list[str]]) -> dict[str, Any]:
    return {
        "format": _FORMAT,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": relevance.model,
        "composite": relevance.composite,
        "class_names": relevance.class_names,
        "samples": [_sample(relevance, i, files) for i, files in enumerate(pictures)],
        "arrays": _ARRAYS,
        "arrays_sha256": digest,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("vimlrp", "torch", "timm", "numpy")},
        },
    }


def _sample(relevance: "Relevance", i: int, files: list[str]) -> dict[str, Any]:
    source = relevance.sources[i] if relevance.sources else None
    target = None if relevance.target is None else int(relevance.target[i])
    return {
        "name": source.name if source else f"image {i}",
        "file": str(source.photo.path) if source and source.photo and source.photo.path else None,
        "seen": list(source.geometry.box) if source else None,
        "target": target,
        "target_name": None if target is None else relevance.name_of(target),
        "contrast": None if relevance.contrast is None else int(relevance.contrast[i]),
        "top": [
            {"class": index, "name": name, "probability": round(p, 6)}
            for index, name, p in relevance[i].top()[0]
        ],
        "value": float(relevance.account.target[i]),
        "account": {kind: value for kind, value, _ in relevance.account.rows(i)},
        "pictures": files,
    }
