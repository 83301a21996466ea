"""Loading by path or name, whatever form the weights have."""

import importlib
from pathlib import Path
from typing import Any

from ._hugging_face import is_hugging_face, load_hugging_face
from ._open_clip import CONFIG_FILE, load_open_clip, WEIGHT_FILES
from ._open_clip_config import Numerics
from ._pretrained import load_run, move_pretrained, Pretrained


_HUB_PREFIX = "hf-hub:"
_HUB_TEXTS = ["*.json", "*.txt", "*.txt.gz", "spiece.model"]
# Weights in several files, as Hugging Face splits them.
_HUB_SHARDS = ("model-*-of-*.safetensors", "pytorch_model-*-of-*.bin")


def load_pretrained(
    path: Path | str,
    *,
    numerics: Numerics = "open_clip",
    ema: bool = False,
    image_size: int | None = None,
    context_length: int | None = None,
) -> Pretrained:
    """Load a model from what a directory holds: a finished run, an open_clip model, or a Hugging Face model.

    Args:
        path: the directory, or `hf-hub:org/name` for one of the hub's, which needs the extra `hub`.
        numerics: for open_clip directories: `open_clip` computes as open_clip does, `as_trained` as CLIPA's and
            SigLIP's own code did (tanh GELU, epsilon 1e-6, CLIPA's tokens).
        ema: for a run that kept an average of its weights: load that.
        image_size: side in pixels to move the model to, its image positions resampled as open_clip's
            `force_image_size` does; none: its own.
        context_length: tokens to move the model to, its text positions resampled likewise; none: its own.

    Raises:
        FileNotFoundError: the directory or one of its files is missing.
        ValueError: a file is damaged, does not fit the others, or describes a model that this package lacks; or the
            model cannot have that size.
        ImportError: an extra is needed and not installed.
    """
    name = str(path)
    root = _download(name.removeprefix(_HUB_PREFIX)) if name.startswith(_HUB_PREFIX) else Path(path)
    foreign = (root / CONFIG_FILE).is_file() or is_hugging_face(root)
    if ema and foreign:
        raise ValueError(f"{root} is no run directory and holds no averaged weights; leave ema out.")
    if (root / CONFIG_FILE).is_file():
        pretrained = load_open_clip(root, numerics=numerics)
    else:
        pretrained = load_hugging_face(root) if foreign else load_run(root, ema=ema)
    return move_pretrained(pretrained, image_size=image_size, context_length=context_length)


def _download(name: str) -> Path:
    """Fetch a model of the hub: its small files and one form of its weights."""
    hub = _hub()
    weights = (*WEIGHT_FILES, *_HUB_SHARDS)
    safe = [pattern for pattern in weights if pattern.endswith(".safetensors")]
    root = Path(hub.snapshot_download(name, allow_patterns=[*_HUB_TEXTS, *safe]))
    if not any(any(root.glob(pattern)) for pattern in safe):
        root = Path(hub.snapshot_download(name, allow_patterns=[*_HUB_TEXTS, *weights]))
    return root


def _hub() -> Any:
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise ImportError("Names of the hub need huggingface_hub: pip install 'clipa_eqx[hub]'.") from error
