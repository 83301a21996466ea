"""A whole run: the model, its stages, its data, what is measured and what is kept."""

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from .._checks import check_at_least, check_between, check_choice
from ._model import CLIPConfig
from ._stage import Interpolation, StageConfig


Layers = Literal["auto", "scan", "unroll"]
EvalResize = Literal["crop", "squash"]
Shard = Literal["none", "optimizer", "all"]
SourceLayout = Literal["auto", "webdataset", "csv", "folder"]


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
    ema: bool = False
    """Measure the averaged weights in training instead of the newest; each stage needs ema_decay."""

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
    shard: Shard = "none"
    """What is split over the devices instead of held by each: none, optimizer (moments and averaged weights), or all
    (parameters and gradients too, gathered layer by layer where used). Same value and gradient."""
    log_every_steps: int = 20
    """Steps between lines of metrics.jsonl."""

    def __post_init__(self) -> None:
        check_between("seed", self.seed, 0, 2**32 - 1)
        check_at_least("log_every_steps", self.log_every_steps, 1)
        check_choice("layers", self.layers, Layers)
        check_choice("shard", self.shard, Shard)


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
