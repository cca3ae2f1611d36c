"""What a JPEG file tells about the compression it went through."""

from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin

__all__ = ["chroma_share", "quality"]

# Table K.1 of ITU-T T.81, for brightness at quality 50.
_LUMA = (
    *(16, 11, 10, 16, 24, 40, 51, 61),
    *(12, 12, 14, 19, 26, 58, 60, 55),
    *(14, 13, 16, 24, 40, 57, 69, 56),
    *(14, 17, 22, 29, 51, 87, 80, 62),
    *(18, 22, 37, 56, 68, 109, 103, 77),
    *(24, 35, 55, 64, 81, 104, 113, 92),
    *(49, 64, 78, 87, 103, 121, 120, 101),
    *(72, 92, 95, 98, 112, 100, 103, 99),
)


def quality(image: Image.Image) -> float:
    """The setting of libjpeg, 1 to 100, whose table for brightness is nearest to the file's.

    Args:
        image: As opened; NaN comes back where it is no JPEG.
    """
    if not isinstance(image, JpegImagePlugin.JpegImageFile):
        return float("nan")
    tables: dict[int, list[int]] = image.quantization
    if not tables:
        return float("nan")
    own = np.array(tables[min(tables)], dtype=np.float64)
    # Relative to the step: at high qualities steps are small, and so are their differences.
    distance = np.abs(np.log(_tables() / np.maximum(own, 1))).sum(1)
    return float(distance.argmin() + 1)


def chroma_share(image: Image.Image) -> float:
    """Samples of a colour to those of brightness: 1 for 4:4:4, 1/2 for 4:2:2, 1/4 for 4:2:0.

    Args:
        image: As opened; NaN comes back where it is no JPEG in colour, or of another pattern.
    """
    if not isinstance(image, JpegImagePlugin.JpegImageFile) or image.layers != 3:
        return float("nan")
    return {0: 1.0, 1: 0.5, 2: 0.25}.get(JpegImagePlugin.get_sampling(image), float("nan"))


@cache
def _tables() -> NDArray[np.float64]:
    """The table of each quality, (100, 64), as libjpeg's `jpeg_quality_scaling` makes them."""
    setting = np.arange(1, 101)
    scale = np.where(setting < 50, 5000 // setting, 200 - 2 * setting)[:, None]
    scaled: NDArray[np.float64] = np.clip((np.array(_LUMA) * scale + 50) // 100, 1, 255) * 1.0
    return scaled
