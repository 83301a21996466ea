"""Training: one step, the loop around it, and what it writes."""

from ._augment import augment_colors as augment_colors, jitter_order as jitter_order
from ._checkpoint import (
    Checkpoints as Checkpoints,
    load_checkpoint as load_checkpoint,
    newest_checkpoint as newest_checkpoint,
)
from ._cost import (
    model_flops as model_flops,
    step_flops as step_flops,
    step_memory as step_memory,
    StepMemory as StepMemory,
)
from ._layout import state_shardings as state_shardings
from ._loop import Evaluator as Evaluator, RunResult as RunResult, train as train
from ._optim import (
    check_frozen as check_frozen,
    decay_mask as decay_mask,
    make_optimizer as make_optimizer,
    make_schedule as make_schedule,
    rate_factors as rate_factors,
    trainable_mask as trainable_mask,
)
from ._parts import KeepImage as KeepImage, KeepText as KeepText, Loss as Loss
from ._profile import check_profile as check_profile
from ._records import Records as Records
from ._run_dir import differences as differences, RunDirectory as RunDirectory
from ._stage import lower_step as lower_step
from ._start import check_layout as check_layout, check_vocabulary as check_vocabulary
from ._state import init_state as init_state, run_keys as run_keys, TrainState as TrainState
from ._step import (
    DeviceBatch as DeviceBatch,
    make_train_step as make_train_step,
    StepMetrics as StepMetrics,
    TrainStep as TrainStep,
)
from ._together import together as together
