"""One stretch of training: its tokens, its batch, its optimiser, its augmentation."""

import math
from dataclasses import dataclass, field
from typing import Literal

from .._checks import check_at_least, check_between, check_choice


Remat = Literal["none", "full", "dots", "dots_no_batch"]
ImageReduction = Literal["none", "random", "grid", "block"]
TextReduction = Literal["truncate", "random", "block", "syntax"]
Interpolation = Literal["bilinear", "bicubic"]
Schedule = Literal["cosine", "constant", "rsqrt"]
DecaySet = Literal["matrices", "all_but_norms"]
FloatType = Literal["float32", "bfloat16"]
PositionTransfer = Literal["remake", "resample"]


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
class RateConfig:
    """A learning rate of its own for some arrays."""

    pattern: str = "*"
    """Which arrays: a shell pattern over dotted names, as vision.* or vision.stack.blocks.mlp.* or *.bias."""
    factor: float = 1.0
    """What their learning rate is multiplied by; 0 freezes them: no gradient, no optimiser state, no decay."""

    def __post_init__(self) -> None:
        check_between("factor", self.factor, 0.0, math.inf, high_open=True)


@dataclass(frozen=True)
class ArgumentConfig:
    """A number that an optimiser of optax takes by name."""

    name: str = ""
    """Name of the argument, as optax has it."""
    value: float = 0.0
    """Its value; whole where optax takes a whole number, 0 or 1 for no and yes."""


@dataclass(frozen=True)
class OptimConfig:
    """An optimiser of optax with warmup, AdamW if nothing is said."""

    name: str = "adamw"
    """adamw, lion, adafactor (big_vision's form: factored second moment, momentum in bfloat16), muon (matrices; AdamW
    for the rest), or any other of optax's optimisers by its name."""
    arguments: tuple[ArgumentConfig, ...] = ()
    """What else the optimiser takes, by optax's names: [{"name": "ns_steps", "value": 5}]."""
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
    """Decay of the first moment, where the optimiser takes b1."""
    b2: float = 0.95
    """Decay of the second moment, where it takes b2."""
    eps: float = 1e-8
    """Added to the root of the second moment, where it takes eps."""
    moment_dtype: FloatType = "float32"
    """Type in which the first moment is stored."""
    clip_norm: float = 0.0
    """Largest global norm of the gradient; 0 leaves gradients as they are."""
    rates: tuple[RateConfig, ...] = ()
    """Learning rates by name of the array; the first pattern that matches decides. A frozen image tower (LiT):
    [{"pattern": "vision.*", "factor": 0}]."""
    image_layer_decay: float = 1.0
    """The image tower's learning rate falls by this factor from each layer to the one below it: 1 after the last block,
    to the power of depth + 1 for patches and positions (BEiT, timm; fine-tuning: 0.65 to 0.9); 1: equal rates."""
    text_layer_decay: float = 1.0
    """The same for the text tower."""

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
        for name in ("image_layer_decay", "text_layer_decay"):
            check_between(name, getattr(self, name), 0.0, 1.0, low_open=True)
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
    micro_batch: int = 0
    """Pairs embedded at once over all devices, divides batch_size: memory for less, each pair embedded twice, negatives
    from the whole batch still. Same value and gradient. 0: the whole batch."""
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
    loss_ring: bool = False
    """Pass texts from device to device instead of gathering all on each: less memory, a third more traffic. Same value
    and gradient."""
    logit_scale_max: float = 0.0
    """Largest inverse temperature, at least 1 (open_clip: 100); 0 leaves it free (CLIPA-JAX)."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """What is done to a training image."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """The optimiser, started afresh in each stage."""
    ema_decay: float = 0.0
    """Also keep an average of the weights, of which each step keeps this share (0.999 to 0.9999); 0: none."""
    compute_dtype: FloatType = "float32"
    """Type of matrix products and activations. Weights, norms, softmax, pooled vectors and loss stay float32."""
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
        check_at_least("micro_batch", self.micro_batch, 0)
        check_between("ema_decay", self.ema_decay, 0.0, 1.0, high_open=True)
        check_at_least("image_size", self.image_size, 1)
        check_at_least("keep_patches", self.keep_patches, 0)
        check_at_least("text_length", self.text_length, 1)
        check_at_least("loss_tile", self.loss_tile, 0)
        if self.logit_scale_max:
            check_at_least("logit_scale_max", self.logit_scale_max, 1.0)
        check_choice("image_reduction", self.image_reduction, ImageReduction)
        check_choice("text_reduction", self.text_reduction, TextReduction)
        check_choice("loss", self.loss, Literal["softmax", "sigmoid"])
        check_choice("compute_dtype", self.compute_dtype, FloatType)
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
