"""What a run is, as data: frozen dataclasses with range checks, JSON out and in. Standard library only.

The string under each field is its documentation and its ``--help``. A single field out of range raises at
construction; faults that need two or more fields are collected by [`check_run`][clipa_eqx.config.check_run],
which reports all of them together before anything compiles.
"""

import dataclasses
import json
import math
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from ._checks import check_at_least, check_between, check_choice


Activation = Literal["gelu", "gelu_tanh", "gelu_quick"]
VisionPosition = Literal["learned", "frozen", "sincos2d", "sincos2d_mae"]
TextPosition = Literal["learned", "sincos1d"]
ImagePool = Literal["first", "mean", "mean_all", "norm_mean", "attention"]
TextPool = Literal["last", "end", "last_real", "mean_real"]
Projection = Literal["linear", "linear_bias", "none"]
Remat = Literal["none", "full", "dots", "dots_no_batch"]
Layers = Literal["auto", "scan", "unroll"]
ImageReduction = Literal["none", "random", "grid", "block"]
TextReduction = Literal["truncate", "random", "block", "syntax"]
Interpolation = Literal["bilinear", "bicubic"]
Schedule = Literal["cosine", "constant", "rsqrt"]
DecaySet = Literal["matrices", "all_but_norms"]
FloatType = Literal["float32", "bfloat16"]
EvalResize = Literal["crop", "squash"]
PositionTransfer = Literal["remake", "resample"]
SourceLayout = Literal["auto", "webdataset", "csv", "folder"]

PixelTriple = tuple[float, float, float]

IMAGENET_MEAN: PixelTriple = (0.485, 0.456, 0.406)
"""Mean of ImageNet's training pixels in [0, 1], red, green, blue (big_vision, CLIPA-JAX)."""
IMAGENET_STD: PixelTriple = (0.229, 0.224, 0.225)
"""Standard deviation that goes with it."""
OPENAI_MEAN: PixelTriple = (0.48145466, 0.4578275, 0.40821073)
"""Mean of the training pixels of OpenAI's CLIP; open_clip's default."""
OPENAI_STD: PixelTriple = (0.26862954, 0.26130258, 0.27577711)
"""Standard deviation that goes with it."""

_C = TypeVar("_C")


@dataclass(frozen=True)
class VisionConfig:
    """A vision transformer over square patches (Dosovitskiy et al., arXiv 2010.11929)."""

    image_size: int = 224
    """Side of the square image in pixels for which a stored position table is made."""
    patch_size: int = 16
    """Side of a patch in pixels; divides `image_size`."""
    width: int = 768
    """Features per token; divisible by `heads`, and by 4 with a sine-cosine table."""
    depth: int = 12
    """Number of transformer blocks."""
    heads: int = 12
    """Attention heads per block."""
    hidden: int = 3072
    """Features inside the MLP of a block."""
    position: VisionPosition = "sincos2d"
    """learned: a trained table. frozen: a stored table that is not trained (converted weights). sincos2d: computed,
    frequencies i/(width/4 - 1) as big_vision and CLIPA-JAX. sincos2d_mae: i/(width/4) as MAE and open_clip."""
    class_token: bool = True
    """Prepend a learned class token. CLIPA keeps one even when it pools by the mean of patches."""
    pool: ImagePool = "mean"
    """first: the class token. mean: mean of patches, norm after (CLIPA v2). mean_all: mean with the class token, norm
    after (CLIPA v1 in torch). norm_mean: norm, then mean of patches (SigLIP). attention: norm, then a probe attends."""
    input_norm: bool = False
    """A layer norm before the first block (OpenAI and LAION models: yes; CLIPA: no)."""
    patch_bias: bool = False
    """A bias in the patch embedding."""
    activation: Activation = "gelu_tanh"
    """gelu: exact (erf). gelu_tanh: tanh form (CLIPA as trained). gelu_quick: x * sigmoid(1.702 x) (OpenAI)."""
    norm_eps: float = 1e-6
    """Epsilon of every layer norm: 1e-6 as CLIPA trained, 1e-5 as torch's default."""
    drop_path: float = 0.0
    """Stochastic depth: chance to skip a residual branch in the last block; rises linearly from 0 at the first."""
    layer_scale: float = 0.0
    """Initial value of a learned per-feature scale on each residual branch; 0 leaves it out."""
    projection: Projection = "linear"
    """How the pooled vector reaches the joint space; none needs width == embed."""
    pixel_mean: PixelTriple = IMAGENET_MEAN
    """Subtracted from pixels in [0, 1], per channel: ImageNet's (CLIPA) or OpenAI's (open_clip)."""
    pixel_std: PixelTriple = IMAGENET_STD
    """What they are then divided by."""

    def __post_init__(self) -> None:
        _check_tower(self)
        for value in self.pixel_std:
            check_between("pixel_std", value, 0.0, math.inf, low_open=True)
        check_at_least("patch_size", self.patch_size, 1)
        check_at_least("image_size", self.image_size, self.patch_size)
        check_choice("position", self.position, VisionPosition)
        check_choice("pool", self.pool, ImagePool)
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size={self.image_size} is not a multiple of patch_size={self.patch_size}; "
                f"nearest sizes that are: {_nearest_multiples(self.image_size, self.patch_size)}."
            )
        if self.position.startswith("sincos") and self.width % 4:
            raise ValueError(f"position={self.position!r} needs a width divisible by 4, got width={self.width}.")
        if self.pool in ("first", "mean_all") and not self.class_token:
            raise ValueError(f"pool={self.pool!r} reads the class token: set class_token=True or pool='mean'.")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches at `image_size`."""
        side = self.image_size // self.patch_size
        return side, side

    @property
    def patches(self) -> int:
        """Number of patches at `image_size`."""
        return self.grid[0] * self.grid[1]


@dataclass(frozen=True)
class TextConfig:
    """A text transformer over token ids."""

    context_length: int = 32
    """Most tokens that the position table holds; shorter sequences use its first rows."""
    vocab_size: int = 32000
    """Rows of the embedding table. CLIPA keeps 32000 rows for BERT's 30522 word pieces."""
    width: int = 512
    """Features per token; divisible by `heads`."""
    depth: int = 12
    """Number of transformer blocks."""
    heads: int = 8
    """Attention heads per block."""
    hidden: int = 2048
    """Features inside the MLP of a block."""
    position: TextPosition = "learned"
    """learned: a trained table. sincos1d: computed."""
    pool: TextPool = "last"
    """last: the last slot, padding or not (CLIPA). end: the first end-of-text token (OpenAI). last_real: the last token
    that is not padding. mean_real: mean over tokens that are not padding."""
    causal: bool = False
    """Tokens attend only to themselves and earlier ones (OpenAI and LAION: yes; CLIPA: no)."""
    mask_padding: bool = False
    """Hide padding from attention. CLIPA does not: the slot it pools is usually padding."""
    pad_id: int = 0
    """Token id of padding."""
    end_id: int = -1
    """Token id that ends a text; needed by pool='end'. -1: the vocabulary has none."""
    activation: Activation = "gelu_tanh"
    """gelu: exact (erf). gelu_tanh: tanh form. gelu_quick: x * sigmoid(1.702 x)."""
    norm_eps: float = 1e-6
    """Epsilon of every layer norm."""
    drop_path: float = 0.0
    """Stochastic depth, as in the vision tower."""
    layer_scale: float = 0.0
    """Initial value of a learned per-feature scale on each residual branch; 0 leaves it out."""
    projection: Projection = "linear"
    """How the pooled vector reaches the joint space; none needs width == embed."""

    def __post_init__(self) -> None:
        _check_tower(self)
        check_at_least("context_length", self.context_length, 1)
        check_at_least("vocab_size", self.vocab_size, 1)
        check_choice("position", self.position, TextPosition)
        check_choice("pool", self.pool, TextPool)
        if self.pool == "end" and self.end_id < 0:
            raise ValueError("pool='end' reads the end-of-text token: set end_id to its id in the vocabulary.")
        for name, value in (("pad_id", self.pad_id), ("end_id", self.end_id)):
            if value >= self.vocab_size:
                raise ValueError(f"{name}={value} lies outside a vocabulary of {self.vocab_size} ids.")


@dataclass(frozen=True)
class CLIPConfig:
    """Two towers and the joint space."""

    embed: int = 512
    """Width of the joint embedding space."""
    vision: VisionConfig = field(default_factory=VisionConfig)
    """The image tower."""
    text: TextConfig = field(default_factory=TextConfig)
    """The text tower."""
    init_logit_scale: float = math.log(1 / 0.07)
    """Natural logarithm of the initial inverse temperature (OpenAI, CLIPA: ln(1/0.07) = 2.659; SigLIP: ln 10)."""
    init_logit_bias: float | None = None
    """Initial bias of the sigmoid loss (SigLIP: -10); none for the softmax loss."""

    def __post_init__(self) -> None:
        check_at_least("embed", self.embed, 1)
        for name, tower in (("vision", self.vision), ("text", self.text)):
            if tower.projection == "none" and tower.width != self.embed:
                raise ValueError(
                    f"{name}.projection='none' hands the pooled vector on as it is, so {name}.width={tower.width} "
                    f"must equal embed={self.embed}; set {name}.projection='linear'."
                )


@dataclass(frozen=True)
class AugmentConfig:
    """What is done to a training image."""

    crop_area_min: float = 0.4
    """Smallest share of the image's area that the random crop may take (CLIPA: 0.4)."""
    crop_aspect_max: float = 4 / 3
    """Widest aspect ratio of the crop; the narrowest is its inverse (CLIPA: 3/4 to 4/3)."""
    interpolation: Interpolation = "bilinear"
    """Kernel of the antialiased resize: bilinear (CLIPA-JAX) or bicubic (CLIPA-torch, open_clip)."""
    mirror: bool = False
    """Flip left and right with chance 1/2 (FLIP: yes; CLIPA: no)."""
    jitter: float = 0.0
    """Strength s of colour jitter: 0.8 s for brightness, contrast and saturation, 0.2 s for hue (CLIPA v2: 0.4)."""
    jitter_chance: float = 0.8
    """Chance that an image is jittered, when `jitter` is above 0."""
    gray_chance: float = 0.2
    """Chance that an image turns gray, when `jitter` is above 0."""

    def __post_init__(self) -> None:
        check_between("crop_area_min", self.crop_area_min, 0.0, 1.0, low_open=True)
        check_at_least("crop_aspect_max", self.crop_aspect_max, 1.0)
        check_choice("interpolation", self.interpolation, Interpolation)
        check_between("jitter", self.jitter, 0.0, 1.0)
        check_between("jitter_chance", self.jitter_chance, 0.0, 1.0)
        check_between("gray_chance", self.gray_chance, 0.0, 1.0)


@dataclass(frozen=True)
class OptimConfig:
    """AdamW with warmup, as optax composes it."""

    learning_rate: float = 1e-3
    """Peak learning rate, already multiplied by batch/256 where a recipe has that rule."""
    warmup_steps: int = 0
    """Steps of linear warmup from 0."""
    warmup_first: Literal["zero", "fraction"] = "zero"
    """Rate of the first update: zero (CLIPA-JAX: step/warmup) or fraction ((step+1)/warmup, CLIPA-torch, open_clip)."""
    schedule: Schedule = "cosine"
    """cosine: to 0 at the last step. constant: flat, then a linear cooldown. rsqrt: reciprocal square root, then a
    linear cooldown."""
    cooldown_steps: int = 0
    """Steps of the linear cooldown to 0 that ends schedule constant and rsqrt."""
    rsqrt_timescale: int = 10000
    """Steps after which schedule rsqrt begins to fall, as big_vision's timescale."""
    weight_decay: float = 0.2
    """Decoupled weight decay, multiplied by the learning rate."""
    decay_set: DecaySet = "matrices"
    """matrices: weights of linear layers only, no embeddings or tables (CLIPA-JAX). all_but_norms: every array of two
    or more dimensions, embeddings and learned tables included (open_clip, CLIPA-torch)."""
    b1: float = 0.9
    """Decay of Adam's first moment."""
    b2: float = 0.95
    """Decay of Adam's second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    moment_dtype: FloatType = "float32"
    """Type in which the first moment is stored."""
    clip_norm: float = 0.0
    """Largest global norm of the gradient; 0 leaves gradients as they are."""

    def __post_init__(self) -> None:
        check_between("learning_rate", self.learning_rate, 0.0, math.inf, low_open=True)
        for name in ("warmup_steps", "cooldown_steps"):
            check_at_least(name, getattr(self, name), 0)
        check_at_least("rsqrt_timescale", self.rsqrt_timescale, 1)
        for name in ("weight_decay", "clip_norm"):
            check_between(name, getattr(self, name), 0.0, math.inf)
        check_between("eps", self.eps, 0.0, 1.0, low_open=True)
        for name in ("b1", "b2"):
            check_between(name, getattr(self, name), 0.0, 1.0, high_open=True)
        check_choice("warmup_first", self.warmup_first, Literal["zero", "fraction"])
        check_choice("schedule", self.schedule, Schedule)
        check_choice("decay_set", self.decay_set, DecaySet)
        check_choice("moment_dtype", self.moment_dtype, FloatType)


@dataclass(frozen=True)
class StageConfig:
    """One stretch of training at one sequence length: its tokens, its batch, its optimiser."""

    name: str = "train"
    """Name of the stage and of its folder in the run directory."""
    samples: int = 0
    """Image-text pairs to train on; rounded up to whole batches."""
    batch_size: int = 1024
    """Pairs per step over all devices."""
    image_size: int = 224
    """Side in pixels to which training images are cropped and resized: the resize reduction."""
    image_reduction: ImageReduction = "none"
    """Which patches the tower sees: none (all), random, grid or block."""
    keep_patches: int = 0
    """Patches kept by `image_reduction`; 0 with image_reduction='none'."""
    text_length: int = 32
    """Tokens kept of each caption, the class or start token included."""
    text_reduction: TextReduction = "truncate"
    """Which tokens are kept: truncate, random, block, or syntax (nouns, then adjectives, verbs, the rest)."""
    loss: Literal["softmax", "sigmoid"] = "softmax"
    """Contrastive loss; sigmoid needs a model with a logit bias."""
    loss_tile: int = 0
    """Columns of the logit matrix held at once; 0 holds the whole matrix. Same value and gradient."""
    logit_scale_max: float = 0.0
    """Largest inverse temperature, at least 1 (open_clip: 100); 0 leaves it free (CLIPA-JAX)."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """What is done to a training image."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """The optimiser, started afresh in each stage."""
    position_transfer: PositionTransfer = "remake"
    """Image positions at the start of a later stage: remake (sine-cosine coordinates of the new grid, CLIPA-JAX) or
    resample (the earlier table, bicubic, CLIPA-torch)."""
    remat_image: Remat = "none"
    """What the image tower recomputes in the backward pass."""
    remat_text: Remat = "none"
    """What the text tower recomputes in the backward pass."""

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name or self.name.startswith("."):
            raise ValueError(f"A stage name is a folder name, got {self.name!r}.")
        check_at_least("samples", self.samples, 0)
        check_at_least("batch_size", self.batch_size, 1)
        check_at_least("image_size", self.image_size, 1)
        check_at_least("keep_patches", self.keep_patches, 0)
        check_at_least("text_length", self.text_length, 1)
        check_at_least("loss_tile", self.loss_tile, 0)
        if self.logit_scale_max:
            check_at_least("logit_scale_max", self.logit_scale_max, 1.0)
        check_choice("image_reduction", self.image_reduction, ImageReduction)
        check_choice("text_reduction", self.text_reduction, TextReduction)
        check_choice("loss", self.loss, Literal["softmax", "sigmoid"])
        check_choice("position_transfer", self.position_transfer, PositionTransfer)
        check_choice("remat_image", self.remat_image, Remat)
        check_choice("remat_text", self.remat_text, Remat)
        if (self.image_reduction == "none") != (self.keep_patches == 0):
            raise ValueError(
                f"image_reduction={self.image_reduction!r} and keep_patches={self.keep_patches} disagree: "
                "give both a reduction and a count above 0, or image_reduction='none' and keep_patches=0."
            )

    @property
    def steps(self) -> int:
        """Optimiser steps: `samples` over `batch_size`, rounded up."""
        return -(-self.samples // self.batch_size)


@dataclass(frozen=True)
class DataConfig:
    """Where pairs of image and caption come from."""

    train: str = ""
    """Training pairs: a folder or glob of webdataset tars, a .csv/.tsv file, or a folder of image and .txt files."""
    layout: SourceLayout = "auto"
    """How `train` is laid out; auto looks."""
    tokenizer: str = ""
    """Vocabulary: a BERT vocab.txt, a tokenizer.json, or a folder with one of them or vocab.json and merges.txt."""
    caption_tokens: int = 64
    """Tokens of a caption read before text reduction, the class or start token included."""
    csv_separator: str = ","
    """Field separator of a .csv file; .tsv files always use a tab."""
    csv_image: str = "filepath"
    """Column of the image path, relative to the file's folder (open_clip: filepath)."""
    csv_caption: str = "title"
    """Column of the caption (open_clip: title)."""
    threads: int = 2
    """Reader threads per process."""
    prefetch: int = 4
    """Batches held ready per process."""
    max_pixels: int = 89_478_485
    """Largest picture that is decoded, in pixels; a larger one is skipped (Pillow's own warning limit)."""

    def __post_init__(self) -> None:
        check_choice("layout", self.layout, SourceLayout)
        check_at_least("caption_tokens", self.caption_tokens, 1)
        check_at_least("threads", self.threads, 1)
        check_at_least("prefetch", self.prefetch, 1)
        check_at_least("max_pixels", self.max_pixels, 1)


@dataclass(frozen=True)
class EvalConfig:
    """What is measured, how, and how often."""

    classification: str = ""
    """Zero-shot set: a folder in CLIP_benchmark's webdataset form, or with one folder per class; empty: none."""
    retrieval: str = ""
    """Retrieval set: a folder of webdataset tar shards with captions; empty: none."""
    every_steps: int = 0
    """Evaluate each so many steps; 0: only at the end of a stage."""
    batch_size: int = 256
    """Images or texts embedded at once."""
    resize: EvalResize = "crop"
    """crop: shortest side to the size, then the centre square. squash: both sides, aspect ignored (CLIPA v2 tuning)."""
    interpolation: Interpolation = "bilinear"
    """Kernel of the antialiased resize."""
    text_reduction: Literal["truncate", "syntax"] = "truncate"
    """How a prompt longer than the model's context is cut (CLIPA's 8-token models: syntax)."""
    canonicalize: bool = False
    """Lower-case prompts and strip punctuation before tokenising (CLIPA-JAX: yes; open_clip, CLIPA-torch: no)."""

    def __post_init__(self) -> None:
        check_at_least("every_steps", self.every_steps, 0)
        check_at_least("batch_size", self.batch_size, 1)
        check_choice("resize", self.resize, EvalResize)
        check_choice("text_reduction", self.text_reduction, Literal["truncate", "syntax"])
        check_choice("interpolation", self.interpolation, Interpolation)


@dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are written and which are kept."""

    every_steps: int = 1000
    """Steps between checkpoints; one is also written at the end of each stage."""
    keep_last: int = 2
    """Newest checkpoints kept."""
    keep_every: int = 0
    """Also keep each checkpoint whose step is a multiple of this; 0: none."""

    def __post_init__(self) -> None:
        check_at_least("every_steps", self.every_steps, 1)
        check_at_least("keep_last", self.keep_last, 1)
        check_at_least("keep_every", self.keep_every, 0)


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run; written to `config.json` of its directory."""

    model: CLIPConfig = field(default_factory=CLIPConfig)
    """The model that the last stage ends with."""
    stages: tuple[StageConfig, ...] = (StageConfig(),)
    """Stages in order; each starts from the weights of the one before."""
    data: DataConfig = field(default_factory=DataConfig)
    """Where pairs come from."""
    evaluation: EvalConfig = field(default_factory=EvalConfig)
    """What is measured."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """When checkpoints are written."""
    recipe: str = "custom"
    """Name of the recipe that this run came from."""
    seed: int = 0
    """The one seed; split by name into the model, data and step streams."""
    layers: Layers = "auto"
    """Blocks as one scanned body or written out; auto: scanned, the fastest measured."""
    log_every_steps: int = 20
    """Steps between lines of metrics.jsonl."""

    def __post_init__(self) -> None:
        check_between("seed", self.seed, 0, 2**32 - 1)
        check_at_least("log_every_steps", self.log_every_steps, 1)
        check_choice("layers", self.layers, Layers)


def stage_model(config: RunConfig, stage: StageConfig) -> CLIPConfig:
    """The model as one stage trains it: the run's model with that stage's image size and text length.

    Only position tables depend on the two sizes, so every other weight carries over from stage to stage.

    Raises:
        ValueError: the patch does not divide the stage's image size.
    """
    model = config.model
    return dataclasses.replace(
        model,
        vision=dataclasses.replace(model.vision, image_size=stage.image_size),
        text=dataclasses.replace(model.text, context_length=stage.text_length),
    )


def check_run(config: RunConfig, *, num_devices: int, num_processes: int = 1) -> None:
    """Check what no single field can know: how stages, model, devices and processes fit together.

    Args:
        config: the run.
        num_devices: devices over all processes, at least 1.
        num_processes: processes, at least 1.

    Raises:
        ValueError: with every fault found, one per line.
    """
    faults: list[str] = []
    if not config.stages:
        faults.append("stages is empty: a run needs at least one stage.")
    names = [stage.name for stage in config.stages]
    for name in sorted({name for name in names if names.count(name) > 1}):
        faults.append(f"stage name {name!r} is used {names.count(name)} times; each stage needs a name of its own.")
    if num_devices % num_processes:
        faults.append(f"{num_devices} devices do not split over {num_processes} processes.")
    for stage in config.stages:
        faults += [f"stage {stage.name!r}: {fault}" for fault in _stage_faults(config, stage, num_devices)]
    if faults:
        raise ValueError("This run cannot start:\n" + "\n".join(f"  - {fault}" for fault in faults))


def _stage_faults(config: RunConfig, stage: StageConfig, num_devices: int) -> list[str]:
    faults: list[str] = []
    patch = config.model.vision.patch_size
    if stage.image_size % patch:
        faults.append(
            f"image_size={stage.image_size} is not a multiple of the model's patch_size={patch}; "
            f"nearest sizes that are: {_nearest_multiples(stage.image_size, patch)}."
        )
    else:
        patches = (stage.image_size // patch) ** 2
        if stage.keep_patches > patches:
            faults.append(
                f"keep_patches={stage.keep_patches} is more than the {patches} patches of a "
                f"{stage.image_size} px image; keep at most {patches}."
            )
    if stage.samples < 1:
        faults.append("samples=0: give the number of image-text pairs to train on.")
    if stage.batch_size % num_devices:
        faults.append(
            f"batch_size={stage.batch_size} does not split over {num_devices} devices; "
            f"nearest sizes that do: {_nearest_multiples(stage.batch_size, num_devices)}."
        )
    if stage.batch_size < 2:
        faults.append("batch_size=1 has no negatives; a contrastive loss needs at least 2 pairs.")
    if stage.text_length > config.data.caption_tokens:
        faults.append(
            f"text_length={stage.text_length} keeps more tokens than data.caption_tokens="
            f"{config.data.caption_tokens} are read of a caption; raise caption_tokens or shorten text_length."
        )
    if stage.loss == "sigmoid" and config.model.init_logit_bias is None:
        faults.append("loss='sigmoid' needs model.init_logit_bias (SigLIP: -10).")
    schedule_steps = stage.optim.warmup_steps + stage.optim.cooldown_steps
    if stage.samples >= 1 and schedule_steps > stage.steps:
        faults.append(
            f"warmup_steps + cooldown_steps = {schedule_steps} is more than the {stage.steps} steps that "
            f"{stage.samples} samples give at batch_size={stage.batch_size}."
        )
    return faults


def config_to_json(config: Any) -> dict[str, Any]:
    """A config dataclass as plain JSON values; `config_from_json` reads it back."""
    return dataclasses.asdict(config)


def config_from_json(kind: type[_C], values: dict[str, Any], *, where: str = "") -> _C:
    """Build a config dataclass from JSON values; fields left out take their defaults.

    Args:
        kind: the dataclass to build.
        values: a JSON object.
        where: dotted path of the object, for messages.

    Raises:
        ValueError: an unknown field, or a value of another type than the field's.
    """
    place = where or kind.__name__
    if not isinstance(values, dict):
        raise ValueError(f"{place} must be a JSON object, got {type(values).__name__}.")
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise ValueError(f"{place} has no field {', '.join(unknown)}; it has: {', '.join(hints)}.")
    prefix = f"{where}." if where else ""
    arguments = {name: _value_from_json(hints[name], value, prefix + name) for name, value in values.items()}
    return kind(**arguments)


def override(config: RunConfig, assignments: Sequence[str]) -> RunConfig:
    """Change single fields of a run by dotted path.

    Args:
        config: the run to start from.
        assignments: `path=value` each, as `stages.0.batch_size=64`, `stages.tune.optim.learning_rate=1e-4` (a stage by
            its place or its name) or `model.vision.pool=first`; values are JSON, or plain words for strings.

    Raises:
        ValueError: no such field, or a value of the wrong type or out of range.
    """
    values = config_to_json(config)
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise ValueError(f"An override is written path=value, got {assignment!r}.")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        *parents, name = path.split(".")
        place: Any = values
        for parent in parents:
            place = _child(place, parent, path)
        if not isinstance(place, dict) or name not in place:
            raise ValueError(f"{path} is not a field of a run; {_fields_there(place)}.")
        place[name] = value
    return config_from_json(RunConfig, values)


def _child(place: Any, name: str, path: str) -> Any:
    if isinstance(place, list | tuple):
        for index, item in enumerate(place):
            if name in (str(index), item.get("name")):
                return item
    elif isinstance(place, dict) and name in place:
        return place[name]
    raise ValueError(f"{path}: there is no {name!r}; {_fields_there(place)}.")


def _fields_there(place: Any) -> str:
    if isinstance(place, dict):
        return f"there are {', '.join(place)}"
    if isinstance(place, list | tuple):
        return f"there are {', '.join(item['name'] for item in place)}, or their places from 0"
    return "it is a single value"


def load_run_config(path: Path) -> RunConfig:
    """Read a `config.json`, written by a run or by hand.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON, or not a run config.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a JSON file: {error}.") from error
    return config_from_json(RunConfig, values)


def _value_from_json(hint: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if dataclasses.is_dataclass(hint):
        return config_from_json(typing.cast(type[Any], hint), value, where=where)
    if origin is tuple:
        item, *rest = typing.get_args(hint)
        length = None if rest == [Ellipsis] else 1 + len(rest)
        if not isinstance(value, list | tuple) or length not in (None, len(value)):
            raise ValueError(f"{where} must be a list{f' of {length}' if length else ''}, got {value!r}.")
        return tuple(_value_from_json(item, entry, f"{where}.{i}") for i, entry in enumerate(value))
    if origin is types.UnionType:
        if value is None and type(None) in typing.get_args(hint):
            return None
        (hint,) = (option for option in typing.get_args(hint) if option is not type(None))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if typing.get_origin(hint) is Literal:
        return value  # the dataclass checks its own choices
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ValueError(f"{where} must be {hint.__name__}, got {value!r}.")
    return value


def _check_tower(tower: VisionConfig | TextConfig) -> None:
    for name in ("width", "depth", "heads", "hidden"):
        check_at_least(name, getattr(tower, name), 1)
    check_between("norm_eps", tower.norm_eps, 0.0, 1.0, low_open=True)
    check_between("drop_path", tower.drop_path, 0.0, 1.0, high_open=True)
    check_between("layer_scale", tower.layer_scale, 0.0, math.inf)
    check_choice("activation", tower.activation, Activation)
    check_choice("projection", tower.projection, Projection)
    if tower.width % tower.heads:
        raise ValueError(f"width={tower.width} does not split over heads={tower.heads}.")


def _nearest_multiples(value: int, unit: int) -> str:
    below, above = value // unit * unit, -(-value // unit) * unit
    return f"{below} and {above}" if below else f"{above}"
