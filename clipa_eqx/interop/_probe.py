"""Stored inputs with the embeddings that a model gave for them, to check it by wherever it is loaded."""

import importlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jaxtyping import Array, Float, Int

from ..config import CLIPConfig
from ..models import CLIP
from ._arrays import open_arrays
from ._open_clip import CONFIG_FILE, export_open_clip
from ._pretrained import Pretrained


PROBE_FILE = "probe.safetensors"
_EXAMPLES = 2


@dataclass(frozen=True)
class Difference:
    """How far apart two sets of normalised embeddings are, over all their numbers."""

    largest: float
    mean: float


@dataclass(frozen=True)
class Probe:
    """Inputs and reference embeddings."""

    pixels: Float[np.ndarray, "batch height width 3"]
    tokens: Int[np.ndarray, "batch length"]
    image_embed: Float[np.ndarray, "batch embed"]
    text_embed: Float[np.ndarray, "batch embed"]


def write_probe(model: CLIP, directory: Path | str) -> None:
    """Write `probe.safetensors`: noise pictures, random texts, and what the model makes of them."""
    probe = _probe(model, *_inputs(model.config))
    arrays = {name: np.ascontiguousarray(getattr(probe, name)) for name in Probe.__dataclass_fields__}
    safetensors.numpy.save_file(arrays, Path(directory) / PROBE_FILE)


def compare_to_probe(model: CLIP, directory: Path | str) -> dict[str, Difference]:
    """Differences of a model to the embeddings stored beside its weights, for `image` and `text`.

    Raises:
        FileNotFoundError: there is no probe.
        ValueError: the probe is damaged or belongs to another model.
    """
    path = Path(directory) / PROBE_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{directory} has no {PROBE_FILE}; `clipa export` writes one beside the weights.")
    stored = open_arrays(path)
    expected = _probe_shapes(model.config)
    shapes = {name: stored.shape(name) for name in stored}
    if shapes != expected:
        raise ValueError(f"{path} belongs to another model: it holds {shapes}, this model needs {expected}.")
    reference = Probe(**{name: stored[name] for name in stored})
    return _differences(_probe(model, reference.pixels, reference.tokens), reference)


def compare_to_open_clip(pretrained: Pretrained, directory: Path | str) -> dict[str, Difference]:
    """Differences of a model to the PyTorch model that open_clip makes, for `image` and `text`.

    Args:
        pretrained: the model.
        directory: an open_clip directory of the same weights. Where there is no such directory, the model is exported
            to a temporary one.

    Raises:
        ImportError: open_clip is not installed.
        ValueError: open_clip cannot compute this model.
    """
    if (Path(directory) / CONFIG_FILE).is_file():
        return _differences(*_both(pretrained.model, Path(directory)))
    with tempfile.TemporaryDirectory() as exported:
        export_open_clip(pretrained, exported)
        return _differences(*_both(pretrained.model, Path(exported)))


def _both(model: CLIP, directory: Path) -> tuple[Probe, Probe]:
    torch, open_clip = _import("torch"), _import("open_clip")
    probe = _probe(model, *_inputs(model.config))
    theirs = open_clip.create_model(f"local-dir:{directory}").eval()
    with torch.no_grad():
        pixels = torch.from_numpy(probe.pixels).permute(0, 3, 1, 2)
        image = theirs.encode_image(pixels, normalize=True).numpy()
        text = theirs.encode_text(torch.from_numpy(probe.tokens).long(), normalize=True).numpy()
    return probe, Probe(probe.pixels, probe.tokens, image, text)


def _inputs(config: CLIPConfig) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    side, text = config.vision.image_size, config.text
    pixels = rng.standard_normal((_EXAMPLES, side, side, 3), dtype=np.float32)
    tokens = rng.integers(1, text.vocab_size, (_EXAMPLES, text.context_length)).astype(np.int32)
    # The second text is padded, and both have an end where one is looked for.
    half = text.context_length // 2
    tokens[1, half + 1 :] = text.pad_id
    if text.pool == "end":
        tokens[0, -1] = tokens[1, half] = text.end_id
    return pixels, tokens


def _probe(model: CLIP, pixels: np.ndarray, tokens: np.ndarray) -> Probe:
    image, text = _embed(model, jnp.asarray(pixels), jnp.asarray(tokens))
    return Probe(pixels, tokens, np.asarray(image), np.asarray(text))


@eqx.filter_jit
def _embed(model: CLIP, pixels: Array, tokens: Array) -> tuple[Array, Array]:
    return jax.vmap(model.encode_image)(pixels), jax.vmap(model.encode_text)(tokens)


def _probe_shapes(config: CLIPConfig) -> dict[str, tuple[int, ...]]:
    side = config.vision.image_size
    return {
        "image_embed": (_EXAMPLES, config.embed),
        "pixels": (_EXAMPLES, side, side, 3),
        "text_embed": (_EXAMPLES, config.embed),
        "tokens": (_EXAMPLES, config.text.context_length),
    }


def _differences(ours: Probe, theirs: Probe) -> dict[str, Difference]:
    pairs = {
        "image": (ours.image_embed, theirs.image_embed),
        "text": (ours.text_embed, theirs.text_embed),
    }
    apart = {name: np.abs(one - other) for name, (one, other) in pairs.items()}
    return {name: Difference(float(np.max(values)), float(np.mean(values))) for name, values in apart.items()}


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError("A comparison with open_clip needs it: pip install open_clip_torch.") from error
