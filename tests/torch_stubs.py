"""open_clip and timm without torchvision, which they import and, for what is tested here, hardly use.

`import_open_clip()` puts a stand-in for torchvision into `sys.modules` where the real one is missing, then imports
open_clip. Preprocessing for inference works as torchvision's does on Pillow images; whatever else open_clip or timm
imports of torchvision is a class that cannot be made.
"""

import enum
import functools
import importlib
import importlib.machinery
import importlib.util
import sys
import types
import warnings

import numpy as np
from PIL import Image


class InterpolationMode(enum.Enum):
    """Kernels by name."""

    NEAREST = "nearest"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    BOX = "box"
    HAMMING = "hamming"
    LANCZOS = "lanczos"


class Compose:
    """One transform after the other."""

    def __init__(self, transforms):
        self.transforms = transforms

    def __call__(self, image):
        return functools.reduce(lambda image, transform: transform(image), self.transforms, image)


class Resize:
    """Both sides, or the shorter one, to a size; antialiased, as Pillow does."""

    def __init__(self, size, interpolation=InterpolationMode.BILINEAR):
        self.size, self.kernel = size, Image.Resampling[interpolation.name]

    def __call__(self, image):
        size = self.size
        if isinstance(size, int):
            width, height = image.size
            short, long = size, int(size * max(width, height) / min(width, height))
            size = (long, short) if width <= height else (short, long)
        return image.resize(size[::-1], self.kernel)


class CenterCrop:
    """The middle of an image at least as large."""

    def __init__(self, size):
        self.size = (size, size) if isinstance(size, int) else tuple(size)

    def __call__(self, image):
        (width, height), (rows, cols) = image.size, self.size
        top, left = round((height - rows) / 2), round((width - cols) / 2)
        return image.crop((left, top, left + cols, top + rows))


def to_tensor(image):
    """A Pillow image as (channels, height, width) in [0, 1]."""
    import torch

    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


class ToTensor:
    """`to_tensor` as a transform."""

    def __call__(self, image):
        return to_tensor(image)


class Normalize:
    """Subtract a mean and divide by a deviation, per channel."""

    def __init__(self, mean, std):
        self.mean, self.std = mean, std

    def __call__(self, image):
        mean, std = (image.new_tensor(value)[:, None, None] for value in (self.mean, self.std))
        return (image - mean) / std


class RandomResizedCrop:
    """Made, never used: open_clip builds its training transform along with the other."""

    def __init__(self, size, scale, interpolation):
        self.size, self.scale, self.interpolation = size, scale, interpolation


_REAL = {
    kind.__name__: kind
    for kind in (InterpolationMode, Compose, Resize, CenterCrop, to_tensor, ToTensor, Normalize, RandomResizedCrop)
}


class _Module(types.ModuleType):
    """A module that has every class anyone imports of it."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        kind = _REAL.get(name) or type(name, (), {"__init__": _refuse})
        setattr(self, name, kind)
        return kind


def _refuse(self, *_, **__):
    raise NotImplementedError(f"torchvision's {type(self).__name__} has no stand-in")


class _Finder:
    """Finds torchvision and all that may lie below it."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torchvision":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return _Module(spec.name)

    def exec_module(self, module):
        pass


def import_open_clip():
    """open_clip, with torchvision or a stand-in for it. ImportError where open_clip or torch is not installed."""
    if importlib.util.find_spec("torchvision") is None:
        # transformers remembers whether there is a torchvision; it must not take the stand-in for one.
        if importlib.util.find_spec("transformers"):
            importlib.import_module("transformers").utils.is_torchvision_available()
        sys.meta_path.append(_Finder())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("open_clip")
