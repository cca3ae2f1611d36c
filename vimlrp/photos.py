"""Read a photo from a file, a PIL image or an array into upright 8-bit RGB, or say why not."""

import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from vimlrp.errors import InputError

__all__ = ["PHOTO_SUFFIXES", "Photo", "find_photos", "read_photo"]

PHOTO_SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
"""What `find_photos` takes for a photo when it looks through a folder, in lower case."""

_CHANNELS = (1, 3, 4)
_ACCEPTED = (
    "a path, a PIL image, or a numpy array of shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) "
    "that is uint8, uint16, bool, or floating point within [0, 1]"
)

# What Pillow's decoders raise on damaged data: the parsing of a header fails as itself.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    ArithmeticError,
    NotImplementedError,
    struct.error,
    zlib.error,
)


@dataclass(frozen=True, eq=False)
class Photo:
    """A photo as it looks to a viewer.

    Attributes:
        pixels: The upright picture in RGB, # (H, W, 3) of uint8.
        name: What messages and captions call it: the file's name, or for example "image 0".
        path: The file it was read from, if any.
    """

    pixels: NDArray[np.uint8]
    name: str
    path: Path | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width, _ = self.pixels.shape
        return height, width


def read_photo(source: Any, name: str | None = None) -> Photo:
    """Read one photo the way an image viewer would show it.

    A photo taken sideways is turned upright by its EXIF tag; transparency is laid over white;
    grey, palette and CMYK become RGB; 16 bits are scaled to 8; of an animation the first frame
    is taken (of a PIL image, its current one). Colour profiles are not applied, as they are not
    when image classifiers are trained.

    Example:
        >>> read_photo(np.zeros((4, 6), np.uint8)).pixels.shape
        (4, 6, 3)

    Args:
        source: A path, a PIL image, a numpy array of shape (H, W), (H, W, 1), (H, W, 3) or
            (H, W, 4) that is uint8, uint16, bool, or floating point within [0, 1]; or a `Photo`,
            which is returned as it is.
        name: What to call it in messages and captions; the file's name by default.

    Raises:
        InputError: Not such a source, no such file, not an image, a damaged one, or one with
            more pixels than `PIL.Image.MAX_IMAGE_PIXELS`. The message names the photo.
    """
    if isinstance(source, Photo):
        return source
    if isinstance(source, str | Path):
        path = Path(source)
        return Photo(_pixels_of_file(path), name or path.name, path)
    if isinstance(source, Image.Image):
        name = name or Path(getattr(source, "filename", "")).name or "image 0"
        return Photo(_pixels_of_image(source, name), name)
    name = name or "image 0"
    if isinstance(source, np.ndarray):
        return Photo(_pixels_of_array(source, name), name)
    raise InputError(f"{name} is a {type(source).__name__}, not a photo; give {_ACCEPTED}.")


def find_photos(paths: Iterable[str | Path]) -> list[Path]:
    """List the photos in files and folders, in the order given, each file once.

    A file counts whatever its suffix. A folder counts as all files in it and below it whose
    suffix is in `PHOTO_SUFFIXES`, sorted; hidden files and folders are left out.

    Raises:
        InputError: A path does not exist, or a folder holds no photo.
    """
    found = (photo for path in paths for photo in _photos_at(Path(path)))
    return list(dict.fromkeys(found))


def _photos_at(path: Path) -> list[Path]:
    if not _exists(path):
        raise InputError(f"{path} does not exist; give image files or folders of them.")
    if not path.is_dir():
        return [path]
    photos = sorted(_photos_below(path))
    if not photos:
        endings = " ".join(sorted(PHOTO_SUFFIXES))
        raise InputError(f"The folder {path} holds no photo, that is no file ending in {endings}.")
    return photos


def _exists(path: Path) -> bool:
    try:
        path.stat()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    return True


def _photos_below(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() in PHOTO_SUFFIXES and not hidden and path.is_file():
            yield path


def _pixels_of_file(path: Path) -> NDArray[np.uint8]:
    _check_file(path)
    try:
        with Image.open(path) as image:
            _check_pixel_count(image, path)
            return _pixels_of_image(image, str(path))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"{path} has too many pixels: {error}. Make it smaller first.") from error
    except UnidentifiedImageError as error:
        raise InputError(
            f"{path} is not an image that Pillow can read; convert it to PNG or JPEG."
        ) from error
    except InputError:
        raise
    except _DECODER_ERRORS as error:
        raise InputError(f"{path} cannot be read: {error}. Is the file damaged?") from error


def _check_file(path: Path) -> None:
    if not _exists(path):
        raise InputError(f"{path} does not exist; give the path of an image file.")
    if path.is_dir():
        raise InputError(f"{path} is a folder; give an image file, or list it with find_photos.")
    if path.is_file() and path.stat().st_size == 0:
        raise InputError(f"{path} is empty (0 bytes); give an image file.")


def _check_pixel_count(image: Image.Image, path: Path) -> None:
    # Pillow itself only warns up to twice its limit.
    limit, count = Image.MAX_IMAGE_PIXELS, image.width * image.height
    if limit is not None and count > limit:
        raise InputError(
            f"{path} has {image.width} x {image.height} = {count} pixels, more than the {limit} "
            "that Pillow holds to be safe; make it smaller, or raise PIL.Image.MAX_IMAGE_PIXELS "
            "if you trust the file."
        )


def _pixels_of_image(image: Image.Image, name: str) -> NDArray[np.uint8]:
    try:
        image.load()
        upright = ImageOps.exif_transpose(image)
        if _is_deep(upright):
            return _pixels_of_array(_deep_values(upright, image.format, name), name)
        return np.array(_flatten(upright), dtype=np.uint8)  # (H, W, 3)
    except InputError:
        raise
    except _DECODER_ERRORS as error:
        raise InputError(f"{name} cannot be read: {error}. Is the file damaged?") from error


def _is_deep(image: Image.Image) -> bool:
    return image.mode.startswith("I") or image.mode == "F"


def _deep_values(image: Image.Image, file_format: str | None, name: str) -> NDArray[Any]:
    values = np.asarray(image)
    if image.mode != "I":
        return values
    # Pillow holds the 16-bit greys of these in 32-bit integers, which else have no agreed white.
    if file_format not in ("PNG", "PPM"):
        raise InputError(
            f"{name} has 32-bit integer pixels, which have no agreed white; convert it to "
            "8 or 16 bits per channel."
        )
    return values.astype(np.uint16)


def _flatten(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB")
    over = image.convert("RGBA")
    white = Image.new("RGBA", over.size, "white")
    return Image.alpha_composite(white, over).convert("RGB")


def _pixels_of_array(array: NDArray[Any], name: str) -> NDArray[np.uint8]:
    _check_shape(array, name)
    pixels = _eight_bits(array, name)
    pixels = pixels.reshape(*pixels.shape[:2], -1)  # (H, W, 1, 3 or 4)
    if pixels.shape[2] == 1:
        return np.repeat(pixels, 3, axis=2)
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return np.array(_flatten(image), dtype=np.uint8)


def _check_shape(array: NDArray[Any], name: str) -> None:
    grey, colour = array.ndim == 2, array.ndim == 3 and array.shape[2] in _CHANNELS
    if (grey or colour) and array.size > 0:
        return
    hint = ""
    if array.ndim == 3 and array.shape[0] in _CHANNELS:
        hint = " Its channels come first: give array.transpose(1, 2, 0)."
    if array.ndim == 4:
        hint = " It looks like a batch: give its images one by one."
    raise InputError(f"{name} is an array of shape {array.shape}; give {_ACCEPTED}.{hint}")


def _eight_bits(array: NDArray[Any], name: str) -> NDArray[np.uint8]:
    kind, size = array.dtype.kind, array.dtype.itemsize
    if kind == "u" and size == 1:
        return np.array(array, dtype=np.uint8)
    if kind == "u" and size == 2:
        return _scale(array, 255 / 65535)
    if kind == "b":
        return _scale(array, 255)
    if kind == "f":
        _check_unit_range(array, name)
        return _scale(array, 255)
    raise InputError(
        f"{name} is an array of {array.dtype}; give {_ACCEPTED}. "
        "If its values are within 0 and 255, give array.astype(np.uint8)."
    )


def _check_unit_range(array: NDArray[Any], name: str) -> None:
    if not np.isfinite(array).all():
        raise InputError(f"{name} has pixels that are NaN or infinite; give finite ones in [0, 1].")
    low, high = array.min(), array.max()
    if low < 0 or high > 1:
        raise InputError(
            f"{name} has floating point pixels from {low:.4g} to {high:.4g}; they must be within "
            "[0, 1]. Divide by the value of white (255 for 8 bits), tone-map a high dynamic range "
            "photo, or give a normalised picture as a tensor of shape (B, 3, H, W)."
        )


def _scale(array: NDArray[Any], factor: float) -> NDArray[np.uint8]:
    scaled: NDArray[np.uint8] = np.rint(array.astype(np.float32) * factor).astype(np.uint8)
    return scaled
