"""Image files to square uint8 pixels, at the smallest scale that suffices."""

import contextlib
import io
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from .._checks import check_at_least, check_choice
from ..config import AugmentConfig, EvalResize, Interpolation


FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
"""What is decoded, whatever a file is called; other decoders of Pillow are never reached."""

CROP_TRIES = 10
DRAWS = 2 * CROP_TRIES + 3
"""Random numbers that one training image uses."""

_KERNELS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What sets a picture upright, by its EXIF orientation."""


class ImageError(ValueError):
    """A picture that cannot be used; its message is the reason."""


class Box(NamedTuple):
    """A rectangle of a picture, in its pixels."""

    left: int
    top: int
    width: int
    height: int


def training_image(
    data: bytes, size: int, augment: AugmentConfig, *, draws: Sequence[float], max_pixels: int
) -> UInt8[np.ndarray, "height width 3"]:
    """Decode, crop at random and resize one training image.

    The crop is drawn before decoding, from the size in the header, so that a JPEG is decoded at the smallest of 1, 1/2,
    1/4, 1/8 of its size at which the crop still has `size` pixels a side. The result differs from a full decode by
    about one level of 255.

    Args:
        data: an image file.
        size: side of the result in pixels, at least 1.
        augment: crop, mirror and kernel.
        draws: `DRAWS` uniform numbers in [0, 1) that decide the crop and the mirror.
        max_pixels: a larger picture is refused before it is decoded.

    Raises:
        ImageError: the picture is broken, cut short, too large, or no picture.
    """
    check_at_least("size", size, 1)
    picture = _open(data, max_pixels)
    # Areas, aspects and places are as likely in the stored as in the upright picture, so the box is drawn in the
    # stored one, and the small result is turned.
    box = draw_crop(picture.width, picture.height, augment, draws)
    right, bottom = box.left + box.width, box.top + box.height
    with _naming_faults():
        scale = _shrink_on_load(picture, box, size)
        orientation = _orientation(picture)
        window = (box.left / scale, box.top / scale, right / scale, bottom / scale)
        picture = _to_rgb(picture).resize((size, size), _KERNELS[augment.interpolation], box=window)
    picture = _turn(picture, orientation)
    if augment.mirror and draws[-1] < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.array(picture)


def eval_image(
    data: bytes, size: int, *, resize: EvalResize, interpolation: Interpolation, max_pixels: int
) -> UInt8[np.ndarray, "height width 3"]:
    """Decode one image in full and resize it without chance, for evaluation.

    Args:
        data: an image file.
        size: side of the result in pixels, at least 1.
        resize: crop: the shorter side becomes `size` and the longer one, rounded down, is cut to it around the centre,
            as torchvision's Resize and CenterCrop do; squash: both sides become `size`.
        interpolation: kernel of the antialiased resize.
        max_pixels: a larger picture is refused before it is decoded.

    Raises:
        ImageError: the picture is broken, cut short, too large, or no picture.
    """
    check_at_least("size", size, 1)
    check_choice("resize", resize, EvalResize)
    check_choice("interpolation", interpolation, Interpolation)
    picture = _open(data, max_pixels)
    with _naming_faults():
        orientation = _orientation(picture)
        picture = _turn(_to_rgb(picture), orientation)
    window = (0.0, 0.0, float(picture.width), float(picture.height))
    if resize == "crop":
        window = _centre_window(picture.width, picture.height, size)
    return np.array(picture.resize((size, size), _KERNELS[interpolation], box=window))


def draw_crop(width: int, height: int, augment: AugmentConfig, draws: Sequence[float]) -> Box:
    """Draw the box of a random resized crop (Szegedy et al., arXiv 1409.4842, section 6).

    The area is uniform in [crop_area_min, 1] of the picture's, the aspect log-uniform in [1/crop_aspect_max,
    crop_aspect_max], the place uniform. After ten boxes that do not fit it is the largest centred one with an allowed
    aspect, as in torchvision's RandomResizedCrop. TensorFlow draws the aspect uniformly instead.

    Args:
        width: of the picture, in pixels.
        height: of the picture, in pixels.
        augment: smallest area and widest aspect.
        draws: uniform numbers in [0, 1): two for each try, then two for the place.
    """
    widest = augment.crop_aspect_max
    for attempt in range(CROP_TRIES):
        area = width * height * (augment.crop_area_min + draws[2 * attempt] * (1 - augment.crop_area_min))
        aspect = widest ** (2 * draws[2 * attempt + 1] - 1)
        box_width, box_height = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if 0 < box_width <= width and 0 < box_height <= height:
            left = int(draws[2 * CROP_TRIES] * (width - box_width + 1))
            top = int(draws[2 * CROP_TRIES + 1] * (height - box_height + 1))
            return Box(left, top, box_width, box_height)
    box_width = min(width, max(1, round(height * widest)))
    box_height = min(height, max(1, round(width * widest)))
    return Box((width - box_width) // 2, (height - box_height) // 2, box_width, box_height)


def _open(data: bytes, max_pixels: int) -> Image.Image:
    """Read the header only."""
    if not data:
        raise ImageError("empty file")
    with _naming_faults():
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
    if picture.width * picture.height > max_pixels:
        raise ImageError(f"{picture.width} x {picture.height} pixels are more than max_pixels={max_pixels}")
    if picture.width < 1 or picture.height < 1:
        raise ImageError(f"size {picture.width} x {picture.height}")
    return picture


def _shrink_on_load(picture: Image.Image, box: Box, size: int) -> int:
    """Set a JPEG to be decoded at 1/2, 1/4 or 1/8 where the box stays large enough; returns the divisor."""
    for divisor in (8, 4, 2):
        if min(box.width, box.height) >= size * divisor:
            target = (max(1, picture.width // divisor), max(1, picture.height // divisor))
            # Decoders that cannot shrink return None.
            return divisor if picture.draft("RGB", target) is not None else 1
    return 1


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I;16"):
        # Pillow's own conversion cuts off at 255.
        levels = np.asarray(picture).astype(np.uint32)
        picture = Image.fromarray(((levels * 255 + 32767) // 65535).astype(np.uint8))
    # Alpha is dropped; Pillow warns of some transparent palettes when it drops theirs.
    picture.load()
    picture.info.pop("transparency", None)
    return picture.convert("RGB")


def _orientation(picture: Image.Image) -> int:
    """EXIF orientation; 1, upright, where there is none that can be read."""
    if "exif" not in picture.info:
        return 1
    try:
        return int(picture.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # a damaged EXIF block says nothing about the pixels
        return 1


def _turn(picture: Image.Image, orientation: int) -> Image.Image:
    return picture.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else picture


def _centre_window(width: int, height: int, size: int) -> tuple[float, float, float, float]:
    """The part of the picture that remains after a resize of the shorter side and a central crop.

    Only this part is resized, so an extremely long picture does not become a huge one first.
    """
    short = min(width, height)
    new_width, new_height = size * width // short, size * height // short
    left, top = round((new_width - size) / 2), round((new_height - size) / 2)
    across, down = width / new_width, height / new_height
    right, bottom = min((left + size) * across, width), min((top + size) * down, height)
    return left * across, top * down, float(right), float(bottom)


@contextlib.contextmanager
def _naming_faults() -> Iterator[None]:
    """Turn what Pillow raises into an ImageError with a reason that is the same in every run."""
    try:
        yield
    except UnidentifiedImageError as error:
        # Pillow's message holds a memory address.
        raise ImageError(f"not a picture of a known format ({', '.join(FORMATS)})") from error
    except Exception as error:  # a broken file makes the decoders raise whatever they stumble over
        raise ImageError(f"{type(error).__name__}: {error}"[:200]) from error
