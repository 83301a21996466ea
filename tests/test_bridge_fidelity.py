"""Training against open_clip itself: its models, losses and schedule, torch's AdamW with the groups that it makes."""

import copy
import importlib
import importlib.util
import json
import math

import equinox as eqx
import jax
import numpy as np
import optax
import pytest
import safetensors.numpy

from clipa_eqx.config import OptimConfig, StageConfig
from clipa_eqx.interop import load_open_clip
from clipa_eqx.interop._mapping import export_arrays
from clipa_eqx.interop._open_clip import _rules
from clipa_eqx.interop._positions import with_position
from clipa_eqx.sharding import make_mesh, replicate, to_global
from clipa_eqx.train import init_state, make_optimizer, make_schedule, make_train_step


if any(importlib.util.find_spec(name) is None for name in ("open_clip", "open_clip_train", "torch")):
    pytest.skip("open_clip is not installed", allow_module_level=True)

import torch
from torch_stubs import import_open_clip


open_clip = import_open_clip()
cosine_lr = importlib.import_module("open_clip_train.scheduler").cosine_lr

VISION = {"image_size": 12, "layers": 2, "width": 32, "head_width": 16, "patch_size": 4, "mlp_ratio": 2.0}
TEXT = {"context_length": 6, "vocab_size": 30, "width": 24, "heads": 3, "layers": 2, "mlp_ratio": 2.0}
TANH = {"act_kwargs": {"approximate": "tanh"}, "norm_kwargs": {"eps": 1e-6}}
CLIPA = {
    "embed_dim": 16,
    "vision_cfg": {
        **VISION,
        **TANH,
        "no_ln_pre": True,
        "pool_type": "avg",
        "final_ln_after_pool": True,
        "pos_embed_type": "sin_cos_2d",
    },
    "text_cfg": {**TEXT, **TANH, "pool_type": "last", "no_causal_mask": True},
}
OPENAI = {"embed_dim": 16, "quick_gelu": True, "vision_cfg": VISION, "text_cfg": TEXT}
MODELS = {"softmax": CLIPA, "sigmoid": {**OPENAI, "init_logit_bias": -2}}
STEPS, ROWS = 12, 8


def live_model(model_cfg):
    """A model of open_clip's with every trained number perturbed, biases and norms included."""
    torch.manual_seed(0)
    model = open_clip.CLIP(**copy.deepcopy(model_cfg))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape)
        # The class token's own row of a trained table is folded into the token here, so it must not train apart.
        model.visual.positional_embedding[0] = 0
    if model.visual.positional_embedding.requires_grad:
        rows = torch.ones(len(model.visual.positional_embedding), 1)
        rows[0] = 0
        model.visual.positional_embedding.register_hook(lambda grad: grad * rows)
    return model


def random_batch(seed):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, 29, (ROWS, 6)).astype(np.int32)
    for row, length in enumerate(rng.integers(2, 6, ROWS)):
        tokens[row, length:] = 0
        tokens[row, length] = 29
    pixels = rng.integers(0, 256, (ROWS, 12, 12, 3)).astype(np.uint8)
    return {"pixels": pixels, "tokens": tokens, "word_class": np.zeros_like(tokens, np.uint8)}


def train_theirs(model, optim, loss_name, batches, *, steps=STEPS):
    """Steps of open_clip in float64: the losses, the first gradient, the weights at the end."""
    model = model.double().train()
    excluded = lambda name, p: p.ndim < 2 or any(part in name for part in ("bn", "ln", "bias", "logit_scale"))
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for name, p in named if excluded(name, p)], "weight_decay": 0.0},
            {"params": [p for name, p in named if not excluded(name, p)], "weight_decay": optim.weight_decay},
        ],
        lr=optim.learning_rate,
        betas=(optim.b1, optim.b2),
        eps=optim.eps,
    )
    scheduler = cosine_lr(optimizer, optim.learning_rate, optim.warmup_steps, steps)
    measure = open_clip.loss.ClipLoss() if loss_name == "softmax" else open_clip.loss.SigLipLoss()
    mean, std = (np.array(value) for value in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    losses, gradient = [], {}
    for number, batch in enumerate(batches):
        pixels = torch.from_numpy((batch["pixels"] / 255 - mean) / std).permute(0, 3, 1, 2)
        scheduler(number)
        optimizer.zero_grad()
        outputs = model(pixels, torch.from_numpy(batch["tokens"]).long())
        loss = measure(*outputs)
        loss.backward()
        if not gradient:
            gradient = {name: p.grad.numpy().copy() for name, p in named}
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        losses.append(loss.item())
    return losses, gradient, {name: p.detach().numpy() for name, p in named}


def train_ours(model, optim, loss_name):
    """The same ten steps here."""
    stage = StageConfig(
        samples=STEPS * ROWS,
        batch_size=ROWS,
        image_size=12,
        text_length=6,
        loss=loss_name,
        optim=optim,
        logit_scale_max=100.0,
    )
    mesh = make_mesh(jax.devices()[:1])
    schedule = make_schedule(optim, stage.steps)
    optimizer = make_optimizer(optim, schedule, model)
    state = replicate(eqx.filter_jit(init_state)(model, optimizer, key=jax.random.key(0)), mesh)
    step = make_train_step(stage, schedule, optimizer, mesh)
    losses, gradient = [], {}
    for number in range(10):
        state, metrics = step(state, to_global(random_batch(number), mesh))
        losses.append(float(metrics["loss"]))
        if not gradient:
            # Adam's first moment after one update is the gradient times 1 - b1.
            moment = their_arrays(optax.tree.get(state.opt_state, "mu"))
            gradient = {name: array / (1 - optim.b1) for name, array in moment.items()}
    return losses, gradient, their_arrays(state.model)


def their_arrays(model):
    """Arrays of a model, or of what has its form, by open_clip's names."""
    arrays = export_arrays(_rules(model.config, ""), with_position(model, "frozen"))
    return {name: np.asarray(array, np.float64) for name, array in arrays.items()}


def relative(a, b):
    """Distance of two arrays over the length of the second."""
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.parametrize("loss_name", MODELS)
def test_ten_steps_equal_open_clip(loss_name, tmp_path):
    model_cfg = MODELS[loss_name]
    theirs = live_model(model_cfg)
    arrays = {name: value.numpy().copy() for name, value in theirs.state_dict().items()}
    safetensors.numpy.save_file(arrays, tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg}))
    ours = load_open_clip(tmp_path).model
    # open_clip's rules: decay on what has two dimensions, (step + 1) / warmup, Adam's epsilon for ViTs.
    optim = OptimConfig(
        learning_rate=2e-3, warmup_steps=3, warmup_first="fraction", decay_set="all_but_norms", b2=0.98, eps=1e-6
    )
    losses, gradient, end = train_ours(ours, optim, loss_name)
    their_losses, their_gradient, their_end = train_theirs(theirs, optim, loss_name, map(random_batch, range(10)))
    assert abs(losses[0] - their_losses[0]) <= 1e-6 * their_losses[0]
    np.testing.assert_allclose(losses, their_losses, rtol=1e-5)
    assert len(their_end) > 30
    for name, array in their_end.items():
        # In float64 the gradient that a bias of keys has there is far below Adam's epsilon; here it has none.
        assert relative(gradient[name], their_gradient[name]) <= 1e-4, name
        moved = array - arrays[name]
        # The second part is what float32 resolves of the array itself, and counts where its steps cancelled.
        within = 1e-4 * np.linalg.norm(moved) + 5e-7 * np.linalg.norm(array)
        assert np.linalg.norm(end[name] - array) <= within, name
        assert moved.any()
