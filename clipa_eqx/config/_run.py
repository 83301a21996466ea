"""A whole run: the model, its stages, its data, what is measured and what is kept."""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Literal

from .._checks import check_at_least, check_between, check_choice
from ._filter import FilterConfig
from ._model import CLIPConfig
from ._remote import RemoteConfig
from ._stage import Interpolation, StageConfig


Layers = Literal["auto", "scan", "unroll"]
AttentionKernel = Literal["auto", "xla", "cudnn"]
EvalResize = Literal["crop", "squash"]
Shard = Literal["none", "optimizer", "all"]
Decoder = Literal["pillow", "fast"]
DecoderChoice = Literal["auto", "pillow", "fast"]
WordClassBy = Literal["word", "piece", "nltk"]
SourceLayout = Literal["auto", "webdataset", "tfrecord", "array-record", "parquet", "arrow", "csv", "folder"]


@dataclass(frozen=True)
class DataConfig:
    """Where pairs of image and caption come from."""

    train: str = ""
    """Training pairs: a folder or glob of shards (tar, TFRecord, ArrayRecord, Parquet, Arrow), a .csv/.tsv file, or a
    folder of image and .txt files."""
    mixture: tuple[str, ...] = ()
    """Several sets of training pairs instead of `train`, each written as there."""
    mixture_weights: tuple[float, ...] = ()
    """Share of samples of each set of the mixture, in any unit; empty: in proportion to their sizes."""
    layout: SourceLayout = "auto"
    """How the pairs are laid out; auto looks."""
    tokenizer: str = ""
    """Vocabulary: a BERT vocab.txt, a tokenizer.json, or a folder with one of them or vocab.json and merges.txt."""
    caption_tokens: int = 64
    """Tokens of a caption read before text reduction, the class or start token included."""
    word_class: WordClassBy = "word"
    """How syntax reduction ranks the pieces of a word: all by the usual class of the word, each piece by itself
    (CLIPA-JAX), or by NLTK's tagger in the context (extra `nltk`; slow: keep texts with `clipa data index` first)."""
    csv_separator: str = ","
    """Field separator of a .csv file; .tsv files always use a tab."""
    image_field: str = ""
    """Column or feature of the image; of a .csv file, its path relative to that file. Empty: the first usual name that
    is there, such as jpg, image or filepath."""
    caption_field: str = ""
    """Column or feature of the caption; several, with commas between, give an image several captions. Empty: the first
    usual name that is there, such as txt, caption, text or title."""
    filter: FilterConfig = field(default_factory=FilterConfig)
    """Which pairs are used."""
    remote: RemoteConfig = field(default_factory=RemoteConfig)
    """How shards behind a network are read."""
    threads: int = 2
    """Reader threads of each training process."""
    processes: int = 0
    """Reader processes of each training process, instead of threads; 0: none. They help where Pillow decodes on many
    cores, or a source is slow in Python."""
    prefetch: int = 4
    """Batches that each training process reads ahead."""
    stall_timeout_s: float = 600.0
    """Seconds without a picture read after which the run ends with an error that says where its readers are."""
    decoder: DecoderChoice = "auto"
    """What reads training JPEGs: pillow, or fast (extra `fast`). auto: fast where that is installed; a run goes on with
    what it began with."""
    max_pixels: int = 89_478_485
    """Largest picture that is decoded, in pixels; a larger one is skipped (Pillow's own warning limit)."""

    def __post_init__(self) -> None:
        check_choice("layout", self.layout, SourceLayout)
        if self.train and self.mixture:
            raise ValueError("data.train and data.mixture are both given: name all sets in data.mixture.")
        if len(set(self.mixture)) < len(self.mixture):
            raise ValueError(f"data.mixture names a set twice: {', '.join(self.mixture)}; give it one larger weight.")
        if self.mixture_weights and len(self.mixture_weights) != len(self.mixture):
            raise ValueError(
                f"data.mixture_weights has {len(self.mixture_weights)} numbers for {len(self.mixture)} sets in "
                "data.mixture: give one for each, or none."
            )
        for weight in self.mixture_weights:
            check_between("each of data.mixture_weights", weight, 0, math.inf, low_open=True, high_open=True)
        check_at_least("caption_tokens", self.caption_tokens, 1)
        check_choice("word_class", self.word_class, WordClassBy)
        check_at_least("threads", self.threads, 1)
        check_at_least("processes", self.processes, 0)
        check_between("stall_timeout_s", self.stall_timeout_s, 0.0, math.inf, low_open=True)
        check_at_least("prefetch", self.prefetch, 1)
        check_choice("decoder", self.decoder, DecoderChoice)
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
    word_class: WordClassBy = "word"
    """How the words of a prompt get their classes for syntax; as data.word_class in training."""
    canonicalize: bool = False
    """Lower-case prompts and strip punctuation before tokenising (CLIPA-JAX: yes; open_clip, CLIPA-torch: no)."""
    ema: bool = False
    """Measure the averaged weights in training instead of the newest; each stage needs ema_decay."""

    def __post_init__(self) -> None:
        check_at_least("every_steps", self.every_steps, 0)
        check_at_least("batch_size", self.batch_size, 1)
        check_choice("resize", self.resize, EvalResize)
        check_choice("text_reduction", self.text_reduction, Literal["truncate", "syntax"])
        check_choice("word_class", self.word_class, WordClassBy)
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
    init_from: str = ""
    """Weights that the first stage starts from: a run directory, one of its checkpoints, a directory or file of
    open_clip, Hugging Face, OpenAI, CLIPA-JAX or big_vision, a timm or MAE image tower, or hf-hub:org/name. Empty: they
    are drawn."""
    init_digest: str = ""
    """SHA-256 of those weights, which a run writes when it starts."""
    given: tuple[str, ...] = ()
    """What `train` was given as values, as loss=module:function; a run writes it, and is not resumed without them."""
    recipe: str = "custom"
    """Name of the recipe that this run came from."""
    seed: int = 0
    """The one seed; split by name into the model, data and step streams."""
    layers: Layers = "auto"
    """Blocks as one scanned body or written out, which takes longer to compile; auto: written out on a CPU up to 12
    blocks, on other devices in stages long enough to make up for the compiler's time, else scanned."""
    attention: AttentionKernel = "auto"
    """What computes attention: xla (plain products), or cudnn (NVIDIA's fused kernel; bfloat16 without a mask, else
    xla); auto: cudnn on NVIDIA GPUs."""
    shard: Shard = "none"
    """What is split over the devices instead of held by each: none, optimizer (moments and averaged weights), or all
    (parameters and gradients too, gathered layer by layer where used). Same value and gradient."""
    log_every_steps: int = 20
    """Steps between lines of metrics.jsonl."""

    def __post_init__(self) -> None:
        check_between("seed", self.seed, 0, 2**32 - 1)
        check_at_least("log_every_steps", self.log_every_steps, 1)
        check_choice("layers", self.layers, Layers)
        check_choice("attention", self.attention, AttentionKernel)
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
