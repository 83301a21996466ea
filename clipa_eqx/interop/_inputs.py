"""Pictures and texts to what the towers take."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32, UInt8
from PIL import Image

from ..config import DataConfig, EvalResize, Interpolation, PixelTriple
from ..data import eval_image, ImageError, Tokenizer


Picture = Image.Image | Path | str | bytes
"""A picture: opened, the path of an image file, or what such a file holds."""


@dataclass(frozen=True)
class Preprocess:
    """How a picture becomes the model's input, but for the pixel statistics, which are the image tower's own."""

    image_size: int
    """Side in pixels."""
    resize: EvalResize
    """crop: shortest side, then centre square. squash: both sides, aspect ignored."""
    interpolation: Interpolation
    """Kernel of the antialiased resize."""


@dataclass(frozen=True)
class ImageReader(Preprocess):
    """Turns a picture into what the image tower takes."""

    pixel_mean: PixelTriple
    """Subtracted from pixels in [0, 1], red, green, blue."""
    pixel_std: PixelTriple
    """Pixels are divided by it."""

    def __call__(self, image: Picture) -> Float32[np.ndarray, "height width 3"]:
        """Decode, resize and normalise one picture, as `clipa evaluate` does.

        Args:
            image: a picture; transparency is dropped, EXIF orientation applied, of an animation the first counts.

        Raises:
            FileNotFoundError: there is no such file.
            ImageError: the file is broken, cut short, too large, or no picture.
            ValueError: `image` is something else.
        """
        pixels = self.decode(image).astype(np.float32) / np.float32(255)
        mean, std = (np.asarray(value, np.float32) for value in (self.pixel_mean, self.pixel_std))
        return (pixels - mean) / std

    def decode(self, image: Picture) -> UInt8[np.ndarray, "height width 3"]:
        """The same before it is normalised: as bytes, a quarter of the memory.

        Args:
            image: as in a call.

        Raises:
            FileNotFoundError: as in a call.
            ImageError: as in a call.
            ValueError: as in a call.
        """
        if not isinstance(image, Picture):
            raise ValueError(
                f"An image must be a PIL.Image, a path or the bytes of a file, got {type(image).__name__}; "
                "PIL.Image.fromarray makes one of uint8 pixels."
            )
        try:
            return eval_image(
                Path(image).read_bytes() if isinstance(image, str | Path) else image,
                self.image_size,
                resize=self.resize,
                interpolation=self.interpolation,
                max_pixels=DataConfig.max_pixels,
            )
        except ImageError as error:
            named = f" {image}" if isinstance(image, str | Path) else ""
            raise ImageError(f"The picture{named} cannot be used: {error}.") from error


@dataclass(frozen=True)
class TextTokenizer(Tokenizer):
    """A tokenizer that knows the model's context, so that it can be called."""

    context_length: int = 0
    """Ids of a text."""

    def __call__(self, texts: str | Iterable[str]) -> Int32[np.ndarray, "texts length"]:
        """Token ids as the text tower takes them: a longer text keeps its first pieces, a shorter one is padded.

        What a protocol of `clipa evaluate` does to texts besides (`canonicalize`, `text_reduction`) is not done here.

        Args:
            texts: one text, which makes one row, or several.
        """
        return self.encode_batch(list(listed(texts)), self.context_length)


def listed(items: Any) -> Iterable[Any]:
    """Several items, also where one is given alone."""
    return [items] if isinstance(items, Picture) else items
