"""Train CLIP models with far fewer image and text tokens.

Names load on first use, so that importing the package, or asking the command line for help, does not start JAX.
"""

import importlib
from typing import Any, TYPE_CHECKING


__version__ = "0.1.0"

if TYPE_CHECKING:
    from .config import CLIPConfig as CLIPConfig, TextConfig as TextConfig, VisionConfig as VisionConfig
    from .interop import load_pretrained as load_pretrained, Pretrained as Pretrained
    from .models import CLIP as CLIP, make_clip as make_clip, presets as presets, transfer as transfer

_HOME = {
    "CLIPConfig": "config",
    "TextConfig": "config",
    "VisionConfig": "config",
    "load_pretrained": "interop",
    "Pretrained": "interop",
    "CLIP": "models",
    "make_clip": "models",
    "presets": "models",
    "transfer": "models",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
