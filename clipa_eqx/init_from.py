"""Weights to start a run from, whatever form they have: what `RunConfig.init_from` names becomes a model."""

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path

import equinox as eqx
import jax

from .config import CLIPConfig, config_to_json, load_run_config, RunConfig, stage_model
from .data import load_tokenizer, Tokenizer
from .interop import (
    load_big_vision,
    load_clipa_jax,
    load_image_tower,
    load_openai,
    load_pretrained,
    open_arrays,
    Preprocess,
    Pretrained,
    read_image_tower,
)
from .models import CLIP, load_weights, make_clip
from .sizes import Size, text_size, vision_size
from .train import check_frozen, differences, load_checkpoint, newest_checkpoint


_HUB_PREFIX = "hf-hub:"


@dataclass(frozen=True)
class ImageTower:
    """A file that holds an image tower alone; the text side is drawn."""

    path: Path


def open_start(name: str) -> Pretrained | ImageTower:
    """Open what `init_from` names.

    Args:
        name: a run directory, finished or not; a checkpoint folder of a run; a directory of open_clip or Hugging Face;
            hf-hub:org/name; a file of OpenAI's, CLIPA-JAX's or big_vision's weights, or of a timm or MAE image tower;
            a `checkpoint_N` folder of CLIPA's branch t5x; a `model.safetensors` of a run.

    Returns:
        The model with what came beside it, or the tower's file.

    Raises:
        FileNotFoundError: there is nothing of that name, or a part of it is missing.
        ValueError: it holds no weights that are known here, or they are damaged.
        ImportError: an extra is needed and not installed.
    """
    path = Path(name)
    if name.startswith(_HUB_PREFIX):
        return load_pretrained(name)
    if not path.exists():
        raise FileNotFoundError(f"There are no weights at {name}: give a path, or hf-hub:org/name.")
    return _directory(path) if path.is_dir() else _file(path)


def starting_model(config: RunConfig) -> CLIP:
    """The model that the first stage of a run starts from.

    Args:
        config: with `init_from`.

    Raises:
        FileNotFoundError: there are no such weights.
        ValueError: they are damaged, or a pattern of `rates` freezes arrays that are drawn.
    """
    start = open_start(config.init_from)
    if isinstance(start, Pretrained):
        return start.model
    model_key, _ = jax.random.split(jax.random.key(config.seed))
    drawn = eqx.filter_jit(make_clip)(stage_model(config, config.stages[0]), key=model_key)
    found = load_image_tower(start.path, drawn)
    loaded = lambda name: name.startswith("vision.") and not name.startswith(found.kept)
    name_of = lambda path: jax.tree_util.keystr(path, simple=True, separator=".")
    remaining = jax.tree_util.tree_map_with_path(lambda path, leaf: None if loaded(name_of(path)) else leaf, drawn)
    for stage in config.stages:
        check_frozen(stage.optim, drawn=remaining)
    return found.model


def tower_model(start: ImageTower, tokenizer: Tokenizer, *, context_length: int = 32) -> CLIPConfig:
    """A model around an image tower: a text tower of the same size letter, which ends in the space of the image tower.

    The image side has no projection, as in LiT: all of it comes from the file.

    Args:
        start: the tower's file.
        tokenizer: vocabulary of the text side.
        context_length: tokens of a text.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no tower that is known here.
    """
    vision = read_image_tower(start.path)
    letters: tuple[Size, ...] = ("Ti", "S", "M", "B", "L", "H", "G")
    # The smallest for towers smaller still.
    fitting: list[Size] = ["Ti", *(letter for letter in letters if vision_size(letter).width <= vision.width)]
    text = text_size(
        fitting[-1],
        context_length=context_length,
        vocab_size=tokenizer.vocab_size,
        pad_id=tokenizer.pad_id,
    )
    return CLIPConfig(embed=vision.width, vision=vision, text=text)


# What comes with the weights, whatever a recipe says: how pixels are normalised, and how the model computes.
_OF_WEIGHTS = (
    "pixel_mean",
    "pixel_std",
    "activation",
    "norm_eps",
    "image_size",
    "position",
    "context_length",
    "drop_path",
)


def check_same_model(found: CLIPConfig, wanted: CLIPConfig) -> None:
    """Make sure that weights are of the model that a recipe trains, but for sizes and what comes with them.

    Raises:
        ValueError: with every field in which they differ.
    """
    before, after = config_to_json(found), config_to_json(wanted)
    faults = [
        fault
        for fault in differences(before, after)
        if fault.split(":")[0].split(".")[-1] not in (*_OF_WEIGHTS, "pad_id", "end_id", "init_logit_scale")
        and ".pixel_" not in fault
    ]
    if faults:
        listed = "\n".join(f"  - {fault}" for fault in faults).replace(" there,", " in the weights,")
        raise ValueError(
            f"These weights are of another model than the recipe's:\n{listed.replace(' here', ' in the recipe')}\n"
            "Leave the recipe out to fine-tune them as they are, or name one of their size."
        )


def checkpoint_pretrained(folder: Path) -> Pretrained:
    """The model of one checkpoint of a run, `RUN/checkpoints/STAGE/STEP`, with the run's preprocessing and tokenizer.

    Raises:
        FileNotFoundError: the run's config is missing.
        ValueError: the checkpoint is damaged, or its stage is none of the run's.
    """
    root, stage_name = folder.parents[2], folder.parent.name
    if not (root / "config.json").is_file():
        raise FileNotFoundError(f"{folder} lies in no run directory: {root} has no config.json.")
    run = load_run_config(root / "config.json")
    if stage_name not in (stage.name for stage in run.stages):
        raise ValueError(f"{folder}: the run at {root} has no stage {stage_name!r}.")
    model = load_checkpoint(folder, run, stage_name)
    tokenizer = root / "tokenizer"
    return Pretrained(
        model,
        model.config,
        Preprocess(model.config.vision.image_size, run.evaluation.resize, run.evaluation.interpolation),
        load_tokenizer(tokenizer) if tokenizer.is_dir() else None,
    )


def _directory(path: Path) -> Pretrained:
    if path.name.isdecimal() and path.parent.parent.name == "checkpoints":
        return checkpoint_pretrained(path)
    if re.fullmatch(r"checkpoint_\d+", path.name):
        return _alone(load_clipa_jax(path))
    if (path / "checkpoints").is_dir() and not (path / "model.safetensors").is_file():
        newest = newest_checkpoint(path)
        if newest is None:
            raise FileNotFoundError(f"The run at {path} has neither finished nor written a checkpoint yet.")
        return checkpoint_pretrained(newest)
    return load_pretrained(path)


def _file(path: Path) -> Pretrained | ImageTower:
    if path.suffix == ".json":
        raise ValueError(f"{path} is a config, not weights: give the directory {path.parent} or a weight file.")
    names = set(open_arrays(path))
    has = lambda *pieces: any(name.startswith(pieces) for name in names)
    if path.suffix == ".npz":
        if has("params/txt/Encoder_0", "txt/Encoder_0"):
            return _alone(load_big_vision(path))
        if any("txt/" in name for name in names):
            return _alone(load_clipa_jax(path))
        raise ValueError(
            f"{path} has no text tower (txt/...): a run starts from pairs of towers of CLIPA-JAX and big_vision, or "
            "from an image tower of timm or MAE."
        )
    if "logit_scale" in names and has("vision.stack."):
        root, model = path.parent, load_weights(path)
        beside = load_pretrained(root) if (root / "config.json").is_file() else None
        return dataclasses.replace(beside, model=model, config=model.config) if beside else _alone(model)
    if has("visual."):
        return load_openai(path)
    if has("patch_embed.", "blocks.", "model.patch_embed."):
        return ImageTower(path)
    raise ValueError(
        f"{path} holds no weights that a run can start from; its arrays are as {', '.join(sorted(names)[:3])}. For "
        "open_clip or Hugging Face give the directory with their config."
    )


def _alone(model: CLIP) -> Pretrained:
    """A model that came with nothing but its weights."""
    return Pretrained(model, model.config, Preprocess(model.config.vision.image_size, "crop", "bilinear"), None)
