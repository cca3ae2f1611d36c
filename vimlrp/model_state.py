"""What a pass through a model depends on besides its weights' values, to be compared later."""

import operator
from dataclasses import dataclass

from torch import Tensor, nn

__all__ = ["ModelState"]

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(frozen=True)
class ModelState:
    """A model as it was.

    Attributes:
        objects: Every attribute of every module, every parameter and buffer, and the code of every
            forward; compared by identity. They are kept alive, so that none is taken for another.
        tensors: The parameters and buffers once more.
        places: Where those lay in memory.
    """

    objects: list[object]
    tensors: list[Tensor]
    places: list[int]

    @classmethod
    def of(cls, model: nn.Module) -> "ModelState | None":
        """Take it down, in a fraction of a millisecond; None if a module has hooks."""
        objects: list[object] = []
        tensors: list[Tensor] = []
        kinds: dict[type[nn.Module], None] = {}
        waiting = [model]
        while waiting:
            module = waiting.pop()
            own = module.__dict__
            if any(map(own.get, _HOOKS)):
                return None
            kinds[type(module)] = None
            objects.extend(own.values())
            tensors.extend(x for x in own["_parameters"].values() if x is not None)
            tensors.extend(x for x in own["_buffers"].values() if x is not None)
            waiting.extend(child for child in own["_modules"].values() if child is not None)
        objects.extend(kind.forward for kind in kinds)
        objects.extend(tensors)
        objects.extend(x.dtype for x in tensors)
        return cls(objects, tensors, _places(tensors))

    def is_in_place(self) -> bool:
        """Whether the tensors still lie where they lay; others may have taken their place."""
        return _places(self.tensors) == self.places

    def same(self, other: "ModelState | None") -> bool:
        """Whether a pass through the model is what it was."""
        if other is None or len(self.objects) != len(other.objects):
            return False
        return self.places == other.places and all(map(operator.is_, self.objects, other.objects))


def _places(tensors: list[Tensor]) -> list[int]:
    return [x.data_ptr() for x in tensors]
