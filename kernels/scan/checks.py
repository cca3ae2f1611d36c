"""What a selective scan accepts, checked once at the edge."""

from collections.abc import Collection

from torch import Tensor

from vimlrp.errors import KernelError
from vimlrp.kernels.scan.order import ScanOrder
from vimlrp.kernels.scan.reference import FACTORS

__all__ = ["check_tensors", "factor_set"]

_LARGEST_STATE = 256


def factor_set(grad: str | Collection[str]) -> str:
    """Spell the factors that the gradient goes through as a string in the order of `FACTORS`.

    Args:
        grad: "input", "full", or a collection of members of `FACTORS`.

    Returns:
        For example "u" or "uABC".

    Raises:
        KernelError: If a member is unknown or there is none.
    """
    named: Collection[str] | None = {"input": ("u",), "full": FACTORS}.get(str(grad))
    chosen = grad if named is None and not isinstance(grad, str) else named
    if not chosen or not set(chosen) <= set(FACTORS):
        raise KernelError(
            f"grad={grad!r} names no set of factors; give 'input' (through u alone), 'full' "
            f"(through all), or a non-empty collection out of {', '.join(map(repr, FACTORS))}. "
            "For no gradient at all, call under torch.no_grad()."
        )
    return "".join(factor for factor in FACTORS if factor in chosen)


def check_tensors(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    order: ScanOrder,
) -> None:
    """Refuse tensors that do not fit together.

    Args:
        u: Input, (B, L, D) or (B, K, L, D).
        dt: Step, (B, K, L, D).
        A: Decay rates, (K, D, N).
        B: Input projection, (B, K, L, N) or (B, K, L, G, N).
        C: Output projection, the shape of B.
        D: Skip weights, (K, D), or None.
        order: The scan order, K directions.

    Raises:
        KernelError: Naming the first argument that does not fit, with what it should be.
    """
    _check_kinds({"u": u, "dt": dt, "A": A, "B": B, "C": C, "D": D})
    if dt.dim() != 4:
        raise KernelError(f"dt has shape {tuple(dt.shape)}; it must be (B, K, L, D), K >= 1.")
    batch, k, length, channels = dt.shape
    _check_order(order, k, length)
    if length < 1 or channels < 1:
        raise KernelError(f"dt has shape {tuple(dt.shape)}; L and D must be at least 1.")
    _check_shape("u", u, (batch, length, channels), (batch, k, length, channels))
    _check_state(A, k, channels)
    _check_projection("B", B, (batch, k, length), channels, A.shape[2])
    _check_shape("C", C, tuple(B.shape))
    if D is not None:
        _check_shape("D", D, (k, channels))


def _check_kinds(tensors: dict[str, Tensor | None]) -> None:
    """All floating point, all on the device of u."""
    device = next(x.device for x in tensors.values() if x is not None)
    for name, x in tensors.items():
        if x is None:
            continue
        if not x.is_floating_point():
            raise KernelError(
                f"{name} has dtype {x.dtype}; give float64, float32, bfloat16 or float16."
            )
        if x.device != device:
            raise KernelError(
                f"{name} lies on {x.device} and u on {device}; move both to one device."
            )


def _check_order(order: ScanOrder, k: int, length: int) -> None:
    if order.directions != k:
        raise KernelError(
            f"The order has {order.directions} direction(s) and dt {k} (its second dimension); "
            "give one step tensor per direction."
        )
    if order.index is not None and order.index.shape[1] != length:
        raise KernelError(
            f"The order's index is for sequences of {order.index.shape[1]} positions and dt has "
            f"{length}; build the order for this length."
        )


def _check_state(A: Tensor, k: int, channels: int) -> None:
    if A.dim() != 3 or not 1 <= A.shape[2] <= _LARGEST_STATE:
        raise KernelError(
            f"A has shape {tuple(A.shape)}; give ({k}, {channels}, N) with N from 1 to "
            f"{_LARGEST_STATE}."
        )
    _check_shape("A", A, (k, channels, A.shape[2]))


def _check_projection(
    name: str, x: Tensor, rows: tuple[int, ...], channels: int, state: int
) -> None:
    if x.dim() == 5 and x.shape[3] > 0 and channels % x.shape[3] == 0:
        return _check_shape(name, x, (*rows, x.shape[3], state))
    if x.dim() == 5:
        raise KernelError(
            f"{name} has {x.shape[3]} group(s), which do not divide the {channels} channels of dt; "
            "D must be a multiple of G."
        )
    return _check_shape(name, x, (*rows, state), (*rows, "G", state))


def _check_shape(name: str, x: Tensor, *accepted: tuple[int | str, ...]) -> None:
    if tuple(x.shape) not in accepted:
        shapes = " or ".join(f"({', '.join(map(str, shape))})" for shape in accepted)
        raise KernelError(
            f"{name} has shape {tuple(x.shape)}; with dt and A as given it must be {shapes}."
        )
