"""Copies, against a search of all pairs."""

import numpy as np
import pytest
from PIL import Image

from vimlrp.audit.gathering import duplicates
from vimlrp.audit.gathering.duplicates import BITS, SHADES, first_copies, perceptual_hash, thumbnail
from vimlrp.errors import MissingDependencyError
from vimlrp.photos import read_photo


def brute_force(digests, hashes, thumbnails):
    """The first of everything that a chain of near pairs leads to."""
    count = len(hashes)
    first = list(range(count))
    changed = True
    while changed:
        changed = False
        for i in range(count):
            for j in range(i):
                same = bytes(digests[i]) == bytes(digests[j])
                bits = (int(hashes[i]) ^ int(hashes[j])).bit_count()
                shades = np.abs(thumbnails[i].astype(int) - thumbnails[j]).mean()
                if (same or (bits <= BITS and shades <= SHADES)) and first[i] != first[j]:
                    first[i] = first[j] = min(first[i], first[j])
                    changed = True
    return first


def random_prints(count, seed):
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 2**64, count, np.uint64)
    digests = rng.integers(0, 256, (count, 32), np.uint8)
    thumbnails = rng.integers(0, 256, (count, 8, 8, 3), np.uint8)
    for i in range(1, count):
        if rng.random() < 0.6:  # near another: a few bits, a few shades away
            of = int(rng.integers(i))
            flips = rng.choice(64, rng.integers(0, BITS + 3), replace=False).astype(np.uint64)
            hashes[i] = hashes[of] ^ np.bitwise_or.reduce(
                np.uint64(1) << flips, initial=np.uint64(0)
            )
            shift = rng.integers(0, 4, (8, 8, 3))
            thumbnails[i] = np.clip(thumbnails[of] + shift, 0, 255)
        if rng.random() < 0.1:
            of = int(rng.integers(i))  # the same file, so the same picture
            for prints in (digests, hashes, thumbnails):
                prints[i] = prints[of]
    return digests, hashes, thumbnails


@pytest.mark.parametrize("seed", range(8))
def test_the_first_copies_are_those_of_a_search_of_all_pairs(seed):
    prints = random_prints(60, seed)
    found = first_copies(*prints)
    assert found.tolist() == brute_force(*prints)
    assert len(set(found.tolist())) < 60


def test_a_long_film_of_one_scene_is_one_picture():
    count = 400
    hashes = np.zeros(count, np.uint64)
    hashes[1::2] = 1
    digests = np.arange(count * 32).reshape(count, 32).astype(np.uint8)
    digests[:, 0], digests[:, 1] = np.divmod(np.arange(count), 256)
    found = first_copies(digests, hashes, np.zeros((count, 8, 8, 3), np.uint8))
    assert (found == 0).all()


def test_one_picture_has_no_copy():
    found = first_copies(
        np.zeros((1, 32), np.uint8), np.zeros(1, np.uint64), np.zeros((1, 8, 8, 3), np.uint8)
    )
    assert found.tolist() == [0]


def scene(seed):
    small = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), np.uint8)
    return Image.fromarray(small).resize((150, 110), Image.Resampling.BICUBIC)


def prints_of(images, folder):
    photos = []
    for i, (image, name, options) in enumerate(images):
        path = folder / f"{i}{name}"
        image.save(path, **options)
        photos.append(read_photo(path))
    digests = np.random.default_rng(0).integers(0, 256, (len(photos), 32), np.uint8)
    return (
        digests,
        np.array([perceptual_hash(p) for p in photos]),
        np.stack(list(map(thumbnail, photos))),
    )


def test_resized_and_compressed_pictures_are_copies_and_others_are_not(tmp_path):
    one, other = scene(0), scene(1)
    images = [
        (one, ".png", {}),
        (other, ".png", {}),
        (one, ".jpg", {"quality": 60}),
        (one.resize((300, 220)), ".webp", {"quality": 80}),
        (other.resize((75, 55)), ".jpg", {"quality": 90}),
        (Image.eval(one, lambda v: 255 - v), ".png", {}),
        (one.transpose(Image.Transpose.FLIP_LEFT_RIGHT), ".png", {}),
    ]
    assert first_copies(*prints_of(images, tmp_path)).tolist() == [0, 1, 0, 0, 1, 5, 6]


def test_plain_pictures_of_other_colours_are_no_copies(tmp_path):
    colours = ["black", "white", "red", "blue", "black"]
    images = [(Image.new("RGB", (40, 40), colour), ".png", {}) for colour in colours]
    assert first_copies(*prints_of(images, tmp_path)).tolist() == [0, 1, 2, 3, 0]


def test_a_missing_imagehash_is_named(monkeypatch, tmp_path):
    def refuse(name):
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr("vimlrp.optional.import_module", refuse)
    with pytest.raises(MissingDependencyError, match=r"vimlrp\[audit\]"):
        duplicates.perceptual_hash(read_photo(scene(0)))
