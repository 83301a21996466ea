"""The weights that OpenAI released, under their own names."""

import math
import zipfile
from pathlib import Path
from typing import Any

from ._arrays import Arrays, open_arrays
from ._open_clip import load_open_clip
from ._pretrained import Pretrained


def load_openai(path: Path | str) -> Pretrained:
    """Load one of OpenAI's vision transformers from its state dict; the file holds no tokenizer.

    Sizes are read off the arrays, as OpenAI's own code does: heads of 64 features, quick GELU. Half precision becomes
    float32.

    Args:
        path: the state dict as `.pt` or `.safetensors`. The files as released are TorchScript archives, which hold a
            program beside the weights and are not opened.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, a TorchScript archive, or holds another model.
        ImportError: a PyTorch file, and PyTorch is not installed.
    """
    path = Path(path)
    if _is_torch_script(path):
        raise ValueError(
            f"{path} is a TorchScript archive: it holds a program, and this package runs none. Where you trust the "
            f"file, convert it once in Python: torch.save(torch.jit.load({path.name!r}, map_location='cpu')"
            f".state_dict(), 'weights.pt'); then load weights.pt."
        )
    return load_open_clip(path, model=_read_sizes(open_arrays(path), path))


def _is_torch_script(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as file:
            return any(name.endswith("/constants.pkl") for name in file.namelist())
    except zipfile.BadZipFile:
        return False


def _read_sizes(arrays: Arrays, path: Path) -> dict[str, Any]:
    """The config that open_clip has for a state dict of OpenAI's."""
    if any(name.startswith("visual.layer1.") for name in arrays):
        raise ValueError(f"{path} holds a ResNet as image tower; only vision transformers are supported.")
    shapes = {}
    for name, axes in _AXES.items():
        if name not in arrays or len(arrays.shape(name)) != axes:
            raise ValueError(f"{path} is no state dict of OpenAI's CLIP: it has no {name} of {axes} axes.")
        shapes[name] = arrays.shape(name)
    width, _, patch_size, _ = shapes["visual.conv1.weight"]
    positions, _ = shapes["visual.positional_embedding"]
    vocab_size, text_width = shapes["token_embedding.weight"]
    return {
        "embed_dim": shapes["text_projection"][1],
        "quick_gelu": True,
        "vision_cfg": {
            "image_size": math.isqrt(max(positions - 1, 0)) * patch_size,
            "patch_size": patch_size,
            "width": width,
            "layers": _count_blocks(arrays, "visual.transformer"),
        },
        "text_cfg": {
            "context_length": shapes["positional_embedding"][0],
            "vocab_size": vocab_size,
            "width": text_width,
            "heads": text_width // 64,
            "layers": _count_blocks(arrays, "transformer"),
        },
    }


_AXES = {
    "visual.conv1.weight": 4,
    "visual.positional_embedding": 2,
    "token_embedding.weight": 2,
    "positional_embedding": 2,
    "text_projection": 2,
}


def _count_blocks(arrays: Arrays, tower: str) -> int:
    return sum(name.startswith(f"{tower}.resblocks.") and name.endswith(".ln_1.weight") for name in arrays)
