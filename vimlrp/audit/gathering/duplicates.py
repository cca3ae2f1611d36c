"""Pictures that are in the data more than once: the same file, or nearly the same picture.

Copies of one picture are no independent samples: a few of them would look like a strategy of the
class, and copies in training and test data make a model look better than it is.
"""

from collections.abc import Iterator
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vimlrp.optional import optional
from vimlrp.photos import Photo

__all__ = ["BITS", "SHADES", "THUMBNAIL", "first_copies", "perceptual_hash", "thumbnail"]

BITS = 4
"""In how many of its 64 bits the perceptual hash of a copy may differ."""

SHADES = 2.0
"""By how many of 255 shades the thumbnails of copies may differ in the mean."""

THUMBNAIL = 8
"""Side of the thumbnails, which tell apart what hashes to the same: plain or dark pictures do."""


def perceptual_hash(photo: Photo) -> np.uint64:
    """The signs of a picture's lowest frequencies, 64 of them, which survive resizing and JPEG.

    Args:
        photo: The picture.

    Raises:
        MissingDependencyError: If imagehash is missing.
    """
    imagehash = optional("imagehash", "imagehash", "audit")
    bits = np.asarray(imagehash.phash(Image.fromarray(photo.pixels)).hash).reshape(64)
    number: np.uint64 = np.packbits(bits).view(">u8").astype(np.uint64)[0]
    return number


def thumbnail(photo: Photo) -> NDArray[np.uint8]:
    """The mean colours of a grid of cells, (THUMBNAIL, THUMBNAIL, 3) uint8.

    Args:
        photo: The picture.
    """
    small = cv2.resize(photo.pixels, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.uint8)


def first_copies(
    digests: NDArray[np.uint8], hashes: NDArray[np.uint64], thumbnails: NDArray[np.uint8]
) -> NDArray[np.int64]:
    """Of each picture, the first one that is a copy of it.

    Copies are files of the same content, and pictures whose hashes differ in `BITS` bits at most
    and whose thumbnails differ by `SHADES` at most. What is a copy of a copy is one too.

    Every pair of hashes that near each other is looked at, and few others: of BITS + 1 bands of the
    64 bits, one at least is the same in both.

    Args:
        digests: SHA-256 of each file, (N, 32).
        hashes: (N,).
        thumbnails: (N, THUMBNAIL, THUMBNAIL, 3).

    Returns:
        Indices, (N,) int64; a picture that is no copy has its own.
    """
    first = _same_content(digests)
    shades = thumbnails.reshape(len(thumbnails), -1).astype(np.int16)
    own = np.flatnonzero(first == np.arange(len(first)))
    for one, other in _neighbours(hashes, own):
        # Groups that are already joined, such as the frames of a film, need no further look.
        apart = first[one] != first[other]
        one, other = one[apart], other[apart]
        differing = np.bitwise_count(hashes[one] ^ hashes[other])
        near = differing <= BITS
        one, other = one[near], other[near]
        near = np.abs(shades[one] - shades[other]).mean(1) <= SHADES
        first = _joined(first, one[near], other[near])
    return first


def _same_content(digests: NDArray[np.uint8]) -> NDArray[np.int64]:
    contents = np.ascontiguousarray(digests).view(f"V{digests.shape[1]}").ravel()
    _, first, which = np.unique(contents, return_index=True, return_inverse=True)
    return first[which].astype(np.int64)


def _neighbours(
    hashes: NDArray[np.uint64], among: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Pairs of pictures that have a band of their hashes in common, many at a time."""
    edges = np.linspace(0, 64, BITS + 2).round().astype(np.uint64)
    for low, high in pairwise(edges):
        band = (hashes[among] >> low) & ((np.uint64(1) << (high - low)) - np.uint64(1))
        order = np.argsort(band, kind="stable")
        sorted_band, sorted_own = band[order], among[order]
        places = np.arange(len(order))
        # Each is compared with the next in its bucket, then with the one after that, and so on.
        for step in range(1, len(order)):
            places = places[places + step < len(order)]
            places = places[sorted_band[places] == sorted_band[places + step]]
            if not len(places):
                break
            yield sorted_own[places], sorted_own[places + step]


def _joined(
    first: NDArray[np.int64], one: NDArray[np.int64], other: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Groups, each named by its first member, after pairs were put together."""
    if not len(one):
        return first
    graphs = optional("scipy.sparse.csgraph", "scipy", "audit")
    sparse = optional("scipy.sparse", "scipy", "audit")
    count = len(first)
    rows = np.concatenate([first[one], np.arange(count)])
    columns = np.concatenate([first[other], first])
    graph = sparse.coo_array((np.ones(len(rows), np.int32), (rows, columns)), (count, count))
    _, group = graphs.connected_components(graph, directed=False)
    smallest = np.full(group.max() + 1, count, dtype=np.int64)
    np.minimum.at(smallest, group, np.arange(count))
    joined: NDArray[np.int64] = smallest[group]
    return joined
