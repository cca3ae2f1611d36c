"""Places of a picture where objects seldom lie and artifacts often do.

Photographers put what they take into the middle. Frames, logos, dates, black triangles of rotated
scans and what a camera writes lie along the border. The places are fixed, so that few are tested.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from vimlrp.errors import InputError

__all__ = ["PLACES", "place_mask", "shares"]

Bools = NDArray[np.bool_]

_CORNER = 4  # legs of a corner's triangle: the side over this
_BAND = 8  # width of a band: the side over this
_RING = 16  # width of the ring
_AT_ONCE = 8192  # maps


def place_mask(place: str, height: int, width: int) -> Bools:
    """The pixels of a place whose centres lie in it, (H, W).

    Args:
        place: A name of `PLACES`.
        height: Of the mask, at least 16, so that no place is empty.
        width: Of the mask, at least 16.

    Raises:
        InputError: If there is no such place, or the mask is smaller.
    """
    if place not in PLACES:
        raise InputError(f"there is no place {place!r}; the places are {', '.join(PLACES)}")
    if min(height, width) < _RING:
        raise InputError(f"the mask is {height} x {width}; give {_RING} x {_RING} or more")
    return PLACES[place](height, width)


def shares(maps: NDArray[np.floating]) -> NDArray[np.float64]:
    """How much of the relevance along the border lies in each place.

    A large object brings relevance to the whole border, so a place is compared with the border
    that it is part of: its share of the positive relevance within an eighth of the side from an
    edge. Of the ring it is the share of all positive relevance in the picture.

    Args:
        maps: Signed relevance of whole pictures, (N, H, W).

    Returns:
        (N, P), in the order of `PLACES`; 0 where the border has no positive relevance, NaN where
        the picture has none, or not only finite values.
    """
    height, width = maps.shape[1:]
    places = [place_mask(place, height, width) for place in PLACES]
    everywhere = np.ones((height, width), dtype=np.bool_)
    border = _border(height, width, _BAND)
    wholes = [everywhere if place == "ring" else border for place in PLACES]
    inside, of = (np.stack(masks).reshape(len(PLACES), -1).T for masks in (places, wholes))
    found = np.empty((len(maps), len(PLACES)))
    for start in range(0, len(maps), _AT_ONCE):
        part = maps[start : start + _AT_ONCE].reshape(-1, height * width).astype(np.float64)
        finite = np.asarray(np.isfinite(part).all(1))
        positive = np.where(finite[:, None], np.maximum(part, 0), 0)
        whole = positive @ of
        share = np.where(whole > 0, positive @ inside / np.where(whole > 0, whole, 1), 0.0)
        usable = finite & (positive.sum(1) > 0)
        found[start : start + _AT_ONCE] = np.where(usable[:, None], share, np.nan)
    return found


def _centres(height: int, width: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Centres of rows and columns in half pixels from the first edge, (H, 1) and (1, W)."""
    return 2 * np.arange(height)[:, None] + 1, 2 * np.arange(width)[None] + 1


def _border(height: int, width: int, part: int) -> Bools:
    """What is nearer to an edge than the side over `part`."""
    rows, columns = _centres(height, width)
    near_row = part * np.minimum(rows, 2 * height - rows) < 2 * height
    near_column = part * np.minimum(columns, 2 * width - columns) < 2 * width
    return np.asarray(near_row | near_column)


def _corners(height: int, width: int) -> Bools:
    rows, columns = _centres(height, width)
    up, left = np.minimum(rows, 2 * height - rows), np.minimum(columns, 2 * width - columns)
    # up / 2H + left / 2W <= 1 / 4, in whole numbers.
    return np.asarray(_CORNER * (up * width + left * height) <= 2 * height * width)


def _corner(upper: bool, left: bool) -> Callable[[int, int], Bools]:
    def mask(height: int, width: int) -> Bools:
        rows, columns = _centres(height, width)
        return _corners(height, width) & ((rows < height) == upper) & ((columns < width) == left)

    return mask


def _ring(height: int, width: int) -> Bools:
    return _border(height, width, _RING)


def _band(axis: int, first: bool) -> Callable[[int, int], Bools]:
    def mask(height: int, width: int) -> Bools:
        centres, side = _centres(height, width)[axis], (height, width)[axis]
        from_edge = centres if first else 2 * side - centres
        return np.broadcast_to(_BAND * from_edge < 2 * side, (height, width)).copy()

    return mask


PLACES: Mapping[str, Callable[[int, int], Bools]] = MappingProxyType(
    {
        "four corners": _corners,
        "upper left corner": _corner(upper=True, left=True),
        "upper right corner": _corner(upper=True, left=False),
        "lower left corner": _corner(upper=False, left=True),
        "lower right corner": _corner(upper=False, left=False),
        "ring": _ring,
        "top": _band(0, first=True),
        "bottom": _band(0, first=False),
        "left": _band(1, first=True),
        "right": _band(1, first=False),
    }
)
"""Masks by name: triangles with legs of a quarter of the side in the corners, a ring of a sixteenth
along all edges, and bands of an eighth along each."""
