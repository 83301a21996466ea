"""Image files to square uint8 pixels, at the smallest scale that suffices."""

import contextlib
import io
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from ..._checks import check_at_least, check_choice
from ...config import AugmentConfig, Decoder, EvalResize, Interpolation
from ._crop import Box, draw_crop
from ._fast_jpeg import has_exif, jpeg_size, JPEG_START, resized_jpeg


_Pixels = UInt8[np.ndarray, "height width 3"]


FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
"""What is decoded, whatever a file is called; other decoders of Pillow are never reached."""

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


def training_image(
    data: bytes,
    size: int,
    augment: AugmentConfig,
    *,
    draws: Sequence[float],
    max_pixels: int,
    decoder: Decoder = "pillow",
) -> UInt8[np.ndarray, "height width 3"]:
    """Decode, crop at random and resize one training image.

    The crop is drawn before decoding, from the size in the header, so that a JPEG is decoded at the smallest of 1, 1/2,
    1/4, 1/8 of its size at which the crop still has `size` pixels a side. The result differs from a full decode by
    about one level of 255. Transparency is dropped, as open_clip and CLIPA drop it.

    Args:
        data: an image file.
        size: side of the result in pixels, at least 1.
        augment: crop, mirror and kernel.
        draws: `DRAWS` uniform numbers in [0, 1) that decide the crop and the mirror.
        max_pixels: a larger picture is refused before it is decoded.
        decoder: what reads JPEGs; the pixels of the two differ by rounding.

    Raises:
        ImageError: the picture is broken, cut short, too large, or no picture.
        ImportError: `decoder` is fast, and its packages are not installed.
    """
    check_at_least("size", size, 1)
    check_choice("decoder", decoder, Decoder)
    if not data:
        raise ImageError("empty file")
    if decoder == "fast" and data.startswith(JPEG_START):
        pixels = _read_jpeg(data, size, augment, draws, max_pixels)
    else:
        pixels = _read_picture(data, size, augment, draws, max_pixels)
    return np.ascontiguousarray(pixels[:, ::-1]) if augment.mirror and draws[-1] < 0.5 else pixels


def _read_picture(data: bytes, size: int, augment: AugmentConfig, draws: Sequence[float], max_pixels: int) -> _Pixels:
    """With Pillow, whatever the format."""
    picture = _open(data, max_pixels)
    # Areas, aspects and places are as likely in the stored as in the upright picture, so the box is drawn in the
    # stored one, and the small result is turned.
    box = draw_crop(picture.width, picture.height, augment, draws)
    with _naming_faults():
        scale = _shrink_on_load(picture, box, size)
        orientation = _orientation(picture)
        small = _to_rgb(picture).resize((size, size), _KERNELS[augment.interpolation], box=box.shrunk(scale))
    return np.array(_turn(small, orientation))


def _read_jpeg(data: bytes, size: int, augment: AugmentConfig, draws: Sequence[float], max_pixels: int) -> _Pixels:
    """With libjpeg-turbo and SIMD; a fault is final, for Pillow returns garbage where this decoder says so."""
    with _naming_faults():
        width, height = jpeg_size(data)
    _check_size(width, height, max_pixels)
    box = draw_crop(width, height, augment, draws)
    with _naming_faults():
        pixels = resized_jpeg(
            data, width, height, box, divisor=box.divisor(size), size=size, kernel=augment.interpolation
        )
    if not has_exif(data):
        return pixels
    try:
        orientation = _orientation(_open(data, max_pixels))
    except ImageError:
        return pixels
    return np.array(_turn(Image.fromarray(pixels), orientation))


def eval_image(
    data: bytes | Image.Image, size: int, *, resize: EvalResize, interpolation: Interpolation, max_pixels: int
) -> UInt8[np.ndarray, "height width 3"]:
    """Decode one image in full and resize it without chance, for evaluation.

    Args:
        data: an image file, or a picture that Pillow has opened or made, which is left as it is.
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
    if isinstance(data, Image.Image):
        _check_size(data.width, data.height, max_pixels)
        with _naming_faults():
            picture = data.copy()
    else:
        picture = _open(data, max_pixels)
    with _naming_faults():
        orientation = _orientation(picture)
        picture = _turn(_to_rgb(picture), orientation)
    window = (0.0, 0.0, float(picture.width), float(picture.height))
    if resize == "crop":
        window = _centre_window(picture.width, picture.height, size)
    return np.array(picture.resize((size, size), _KERNELS[interpolation], box=window))


def _open(data: bytes, max_pixels: int) -> Image.Image:
    """Read the header only."""
    if not data:
        raise ImageError("empty file")
    with _naming_faults():
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
    _check_size(picture.width, picture.height, max_pixels)
    return picture


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ImageError(f"{width} x {height} pixels are more than max_pixels={max_pixels}")
    if width < 1 or height < 1:
        raise ImageError(f"size {width} x {height}")


def _shrink_on_load(picture: Image.Image, box: Box, size: int) -> int:
    """Set a JPEG to be decoded at 1/2, 1/4 or 1/8 where the box stays large enough; returns the divisor."""
    divisor = box.divisor(size)
    if divisor == 1:
        return 1
    target = (max(1, picture.width // divisor), max(1, picture.height // divisor))
    # Decoders that cannot shrink return None.
    return divisor if picture.draft("RGB", target) is not None else 1


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
