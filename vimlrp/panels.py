"""Pictures for people: maps side by side, with captions and the scale of their colours."""

import unicodedata
from collections.abc import Sequence

import cv2
import numpy as np

from vimlrp.errors import InputError
from vimlrp.heatmaps import Picture, check_picture, colourise

__all__ = ["legend", "panel"]

_INK = (40, 40, 40)
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def legend(limit: float, *, width: int = 360, caption: str = "relevance") -> Picture:
    """Draw the colour scale with its limits.

    Args:
        limit: The |relevance| in full colour, as given to the pictures it belongs to.
        width: Of the picture, at least 160 pixels.
        caption: What the colours measure.

    Returns:
        # (height, width, 3) in RGB on white; the height follows the text.

    Raises:
        InputError: The limit is negative or not finite, or the width is too small.
    """
    if width < 160:
        raise InputError(f"The legend is {width} pixels wide; give 160 or more.")
    if not 0 <= limit < float("inf"):
        raise InputError(f"The limit of the legend is {limit}; give 0 or more, and finite.")
    steps = np.linspace(-limit, limit, width - 48, dtype=np.float32)
    canvas = _white(72, width)
    canvas[26:40, 24 : width - 24] = colourise(steps[None].repeat(14, axis=0), limit)
    cv2.rectangle(canvas, (24, 26), (width - 25, 39), _INK, 1)
    _write(canvas, caption, centre=width / 2, baseline=17)
    for value, x in ((-limit, 24.0), (0.0, width / 2), (limit, width - 24.0)):
        _write(canvas, f"{value:+.3g}" if value else "0", centre=x, baseline=58, size=0.42)
    return canvas


def panel(
    images: Sequence[Picture],
    captions: Sequence[str] | None = None,
    *,
    height: int = 320,
    limit: float | None = None,
    caption: str = "relevance",
) -> Picture:
    """Lay pictures side by side on white, at one height, each over its caption.

    Args:
        images: # (H, W, 3) each, in RGB, of any sizes.
        captions: One a picture; more lines are parted by a newline.
        height: Of every picture, in pixels.
        limit: If given, the `legend` of this scale comes below.
        caption: The caption of the legend.

    Raises:
        InputError: No pictures, not such pictures, or not one caption each.
    """
    captions = [""] * len(images) if captions is None else captions
    if not images or len(images) != len(captions):
        raise InputError(
            f"The panel got {len(images)} images and {len(captions)} captions; give one or more "
            "images and as many captions."
        )
    lines = max(len(text.splitlines()) for text in captions)
    tiles = [
        _tile(image, text, height, lines) for image, text in zip(images, captions, strict=True)
    ]
    margin = ((12, 0), (6, 6), (0, 0))
    row = np.concatenate([np.pad(tile, margin, constant_values=255) for tile in tiles], axis=1)
    if limit is None:
        return row
    return _stacked(row, legend(limit, width=min(420, max(160, row.shape[1])), caption=caption))


def _white(height: int, width: int) -> Picture:
    return np.full((height, width, 3), 255, np.uint8)


def _write(canvas: Picture, text: str, *, centre: float, baseline: int, size: float = 0.48) -> None:
    # OpenCV's own fonts have ASCII alone, so accents are dropped and the rest is marked.
    plain = unicodedata.normalize("NFKD", text)
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    plain = plain.encode("ascii", "replace").decode()
    while _text_width(plain, size) > canvas.shape[1] and len(plain) > 3:
        plain = plain.removesuffix("...")[:-1] + "..."
    left = round(centre - _text_width(plain, size) / 2)
    left = max(0, min(left, canvas.shape[1] - _text_width(plain, size)))
    cv2.putText(canvas, plain, (left, baseline), _FONT, size, _INK, 1, cv2.LINE_AA)


def _text_width(text: str, size: float) -> int:
    return cv2.getTextSize(text, _FONT, size, 1)[0][0]


def _tile(image: Picture, text: str, height: int, lines: int) -> Picture:
    check_picture(image)
    factor = height / image.shape[0]
    # What is enlarged that much is a map of cells, whose edges should stay.
    enlarging = cv2.INTER_NEAREST if factor >= 4 else cv2.INTER_CUBIC
    size = (max(1, round(image.shape[1] * factor)), height)
    resized = cv2.resize(
        image, size, interpolation=cv2.INTER_AREA if factor < 1 else enlarging
    ).astype(np.uint8, copy=False)
    below = _white(20 * lines + 12, size[0])
    for number, line in enumerate(text.splitlines()):
        _write(below, line, centre=size[0] / 2, baseline=20 * (number + 1))
    return np.concatenate([resized, below])


def _stacked(above: Picture, below: Picture) -> Picture:
    width = max(above.shape[1], below.shape[1])
    rows = []
    for image in (above, below):
        spare = width - image.shape[1]
        sides = ((0, 0), (spare // 2, spare - spare // 2), (0, 0))
        rows.append(np.pad(image, sides, constant_values=255))
    return np.concatenate(rows)
