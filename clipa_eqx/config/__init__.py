"""What a run is, as data: frozen dataclasses with range checks, JSON out and in. Standard library only.

The string under each field is its documentation and its `--help`. A single field out of range raises at
construction; faults that need two or more fields are collected by `check_run`, which reports all of them together
before anything compiles.
"""

from ._check_run import check_run as check_run
from ._filter import Comparison as Comparison, FilterConfig as FilterConfig
from ._json import (
    config_from_json as config_from_json,
    config_to_json as config_to_json,
    load_run_config as load_run_config,
    override as override,
)
from ._model import (
    Activation as Activation,
    CLIPConfig as CLIPConfig,
    IMAGENET_MEAN as IMAGENET_MEAN,
    IMAGENET_STD as IMAGENET_STD,
    ImagePool as ImagePool,
    OPENAI_MEAN as OPENAI_MEAN,
    OPENAI_STD as OPENAI_STD,
    PixelTriple as PixelTriple,
    Projection as Projection,
    TextConfig as TextConfig,
    TextPool as TextPool,
    TextPosition as TextPosition,
    VisionConfig as VisionConfig,
    VisionPosition as VisionPosition,
)
from ._remote import RemoteConfig as RemoteConfig
from ._run import (
    AttentionKernel as AttentionKernel,
    CheckpointConfig as CheckpointConfig,
    DataConfig as DataConfig,
    Decoder as Decoder,
    DecoderChoice as DecoderChoice,
    EvalConfig as EvalConfig,
    EvalResize as EvalResize,
    Layers as Layers,
    RunConfig as RunConfig,
    Shard as Shard,
    SourceLayout as SourceLayout,
    stage_model as stage_model,
    WordClassBy as WordClassBy,
)
from ._stage import (
    ArgumentConfig as ArgumentConfig,
    AugmentConfig as AugmentConfig,
    DecaySet as DecaySet,
    FloatType as FloatType,
    ImageReduction as ImageReduction,
    Interpolation as Interpolation,
    OptimConfig as OptimConfig,
    PositionTransfer as PositionTransfer,
    RateConfig as RateConfig,
    Remat as Remat,
    Schedule as Schedule,
    StageConfig as StageConfig,
    TextReduction as TextReduction,
)
