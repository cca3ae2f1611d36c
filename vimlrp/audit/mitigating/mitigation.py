"""A correction of one layer's activation that makes a model blind to a cue, on file and attached.

P-ClArC (Anders et al., Information Fusion 77, 2022) moves activations to the hyperplane on which
samples without the artifact lie on average, a' = a + ((mu - a . h) / (h . h)) h; with several
directions, to the intersection of their hyperplanes. Reactive P-ClArC (Bareeva et al., CVPR
workshops 2024) does so only where the artifact is seen, and leaves clean pictures as they are.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from vimlrp.audit.channels import channel_axis
from vimlrp.audit.watching import stream_sum
from vimlrp.errors import InputError
from vimlrp.evaluation.fingerprints import weights_hash
from vimlrp.files import atomic_write

__all__ = ["Attached", "Mitigation"]

_FORMAT = "vimlrp mitigation 1"


class Attached:
    """What was added to a model, until it is removed; a context manager too."""

    def __init__(self, remove: Callable[[], None]) -> None:
        self._remove = remove

    def remove(self) -> None:
        """Leave the model as it was; a second time does nothing."""
        self._remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()


@dataclass(frozen=True, eq=False)
class Mitigation:
    """Directions of a layer that are brought to where pictures without the cue have them.

    Args:
        layer: Name of the layer.
        directions: (r, K) float32, at right angles and of unit length.
        targets: Mean projection, over positions, of pictures without the cue, (r,) float32.
        gate: Direction (K,) of the score that says whether a picture shows the cue: the projection
            of the greatest activations over positions.
        threshold: Pictures with a greater score are corrected; None to correct all.
        label: The class whose cue it was.
        fingerprint: Hash of the model's weights.

    Example:
        >>> with Mitigation.load("cue.safetensors", model).attach(model):  # doctest: +SKIP
        ...     logits = model(x)
    """

    layer: str
    directions: Tensor
    targets: Tensor
    gate: Tensor
    threshold: float | None
    label: int
    fingerprint: str

    @property
    def reactive(self) -> bool:
        """Whether only pictures that show the cue are corrected."""
        return self.threshold is not None

    def attach(self, model: nn.Module) -> Attached:
        """Correct every pass of a model from now on, until the handle is removed.

        Args:
            model: The one it was fitted on. Explaining it goes on as without the correction.

        Raises:
            InputError: If it is another model, or has the layer only in its wrapped counterpart.
        """
        check_same_model(model, self.fingerprint, "mitigation")
        module = layer_of(model, self.layer)

        def correct(_module: nn.Module, _args: Any, output: Any) -> Any:
            return self._corrected(model, output)

        return Attached(module.register_forward_hook(correct).remove)

    def corrected(self, activation: Tensor, axis: int) -> Tensor:
        """The correction to add to an activation, of its shape.

        Args:
            activation: (B, ...).
            axis: That of the channels.
        """
        z = activation.movedim(axis, -1)
        directions, targets = self.directions.to(z), self.targets.to(z)
        change = (targets - z @ directions.T) @ directions
        if self.threshold is not None:
            places = tuple(range(1, z.dim() - 1))
            pooled = z.amax(places) if places else z
            shows = pooled @ self.gate.to(z) > self.threshold
            change = change * shows.view(-1, *[1] * (z.dim() - 1)).to(z)
        return change.movedim(-1, axis)

    def save(self, path: str | Path) -> Path:
        """Write it to a safetensors file, in one step.

        Args:
            path: Of the file.
        """
        known = {
            "format": _FORMAT,
            "layer": self.layer,
            "label": self.label,
            "threshold": self.threshold,
            "fingerprint": self.fingerprint,
        }
        tensors = {"directions": self.directions, "targets": self.targets, "gate": self.gate}
        return write_tensors(path, tensors, known)

    @classmethod
    def load(cls, path: str | Path, model: nn.Module) -> "Mitigation":
        """Read what `save` wrote; nothing in the file is executed.

        Args:
            path: Of the file.
            model: Will be corrected by it.

        Raises:
            InputError: If the file is no mitigation, or one of another model.
        """
        tensors, known = read_tensors(path, _FORMAT)
        try:
            mitigation = cls(
                layer=str(known["layer"]),
                directions=tensors["directions"],
                targets=tensors["targets"],
                gate=tensors["gate"],
                threshold=None if known["threshold"] is None else float(known["threshold"]),
                label=int(known["label"]),
                fingerprint=str(known["fingerprint"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} is a damaged mitigation: {error}") from error
        check_same_model(model, mitigation.fingerprint, f"mitigation in {path}")
        return mitigation

    def _corrected(self, model: nn.Module, output: Any) -> Any:
        leaves, spec = tree_flatten(output)
        first = next((i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)), None)
        if first is None:
            raise InputError(f"{self.layer} returned no tensor that could be corrected")
        # A block of Vim returns its branch beside the stream: what comes after reads their sum.
        activation = stream_sum(output)
        change = self.corrected(activation, channel_axis(model, self.layer, activation.dim()))
        leaves[first] = leaves[first] + change.to(leaves[first])
        return tree_unflatten(leaves, spec)


def layer_of(model: nn.Module, layer: str) -> nn.Module:
    """A layer of a model by its name.

    Raises:
        InputError: If the model has none of the name.
    """
    modules = dict(model.named_modules())
    if layer not in modules:
        raise InputError(
            f"the model has no layer {layer!r}: if vimlrp rebuilds this official instance, "
            "attach to vimlrp.wrap(model) and run that"
        )
    return modules[layer]


def check_same_model(model: nn.Module, fingerprint: str, what: str) -> None:
    """Refuse a model with other weights.

    Args:
        model: About to be changed.
        fingerprint: Hash of the weights it should have.
        what: Was fitted on those.

    Raises:
        InputError: If the hashes differ.
    """
    own = weights_hash(model)
    if own != fingerprint:
        raise InputError(
            f"the {what} was fitted on a model with weights {fingerprint[:12]}, and this one has "
            f"{own[:12]}: load that model, or fit anew"
        )


def write_tensors(path: str | Path, tensors: dict[str, Tensor], known: dict[str, Any]) -> Path:
    """Write tensors and what is known of them to a safetensors file, in one step."""
    ready = {name: x.detach().cpu().contiguous() for name, x in tensors.items()}
    return atomic_write(path, save(ready, metadata={"vimlrp": json.dumps(known)}))


def read_tensors(path: str | Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_tensors` wrote.

    Args:
        path: Of the file.
        kind: The format it should have.

    Raises:
        InputError: If there is no such file, or it is something else.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist; give the file of a {kind.rpartition(' ')[0]}")
    try:
        with safe_open(path, framework="pt") as file:
            known = json.loads((file.metadata() or {}).get("vimlrp", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, OSError) as error:
        raise InputError(f"{path} is no {kind.rpartition(' ')[0]}: {error}") from error
    if not isinstance(known, dict) or known.get("format") != kind:
        raise InputError(f"{path} is no {kind.rpartition(' ')[0]} of this version of vimlrp")
    if not all(torch.isfinite(x).all() for x in tensors.values()):
        raise InputError(f"{path} holds NaN or infinite numbers; write it anew")
    return tensors, known
