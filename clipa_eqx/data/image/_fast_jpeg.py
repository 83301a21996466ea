"""JPEG files to small pixels with the packages of the extra `fast`: simplejpeg decodes, cykooz-resizer resizes.

Both let other threads run meanwhile. OpenCV's area kernel is no faster than cykooz-resizer, needs boxes of whole pixels
and has neither kernel of the recipes; its bilinear and bicubic kernels do not antialias.
"""

import importlib.util
import math
import threading

import numpy as np
from jaxtyping import UInt8

from ...config import DataConfig, Decoder, Interpolation
from ._crop import Box


JPEG_START = b"\xff\xd8"
_START_OF_SCAN, _EXIF = 0xDA, 0xE1
_PACKAGES = ("simplejpeg", "cykooz_resizer")
_EACH_THREAD = threading.local()


def find_decoder(data: DataConfig) -> Decoder:
    """The decoder that a config asks for; auto is fast where its packages are installed, pillow elsewhere.

    Raises:
        ImportError: fast is asked for, and a package is missing.
    """
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if data.decoder == "fast" and missing:
        raise ImportError(
            f"data.decoder='fast' needs {' and '.join(missing)}: pip install 'clipa_eqx[fast]', or choose pillow."
        )
    if data.decoder == "auto":
        return "pillow" if missing else "fast"
    return data.decoder


def jpeg_size(data: bytes) -> tuple[int, int]:
    """Stored width and height of a JPEG.

    Raises:
        ValueError: the header is broken.
    """
    import simplejpeg

    height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    return int(width), int(height)


def resized_jpeg(
    data: bytes, width: int, height: int, box: Box, *, divisor: int, size: int, kernel: Interpolation
) -> UInt8[np.ndarray, "height width 3"]:
    """Decode a JPEG at a fraction of its size, and resize a box of it.

    Args:
        data: the file.
        width: of the stored picture, in pixels.
        height: of the stored picture, in pixels.
        box: what to resize, in pixels of the stored picture.
        divisor: 1, 2, 4 or 8: the picture is decoded at this part of its size.
        size: side of the result in pixels.
        kernel: antialiased, as Pillow's of the same name.

    Raises:
        ValueError: the file is broken or cut short, however little.
    """
    import simplejpeg
    from cykooz_resizer import CropBox, FilterType, ImageData, PixelType, ResizeAlg, ResizeOptions, Resizer

    pixels = simplejpeg.decode_jpeg(
        data, "RGB", min_height=-(-height // divisor), min_width=-(-width // divisor), strict=True
    )
    left, top, right, bottom = box.shrunk(divisor)
    # Pixels outside the box are not read, as in a crop before the resize.
    first_column, first_row = int(left), int(top)
    part = pixels[first_row : math.ceil(bottom), first_column : math.ceil(right)]
    window = CropBox(left - first_column, top - first_row, right - left, bottom - top)
    source = ImageData(part.shape[1], part.shape[0], PixelType.U8x3, part.tobytes())
    target = ImageData(size, size, PixelType.U8x3)
    filters = {"bilinear": FilterType.bilinear, "bicubic": FilterType.catmull_rom}
    if not hasattr(_EACH_THREAD, "resizer"):
        # It keeps buffers, so no two threads may share one.
        _EACH_THREAD.resizer = Resizer()
    options = ResizeOptions(ResizeAlg.convolution(filters[kernel]), crop_box=window)
    _EACH_THREAD.resizer.resize(source, target, options)
    return np.frombuffer(target.get_buffer(), np.uint8).reshape(size, size, 3).copy()


def has_exif(data: bytes) -> bool:
    """Whether an APP1 segment, which may hold an orientation, stands before the pixels of a JPEG."""
    place = len(JPEG_START)
    while place + 4 <= len(data) and data[place] == 0xFF and data[place + 1] != _START_OF_SCAN:
        if data[place + 1] == _EXIF:
            return True
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return False
