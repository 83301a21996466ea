"""bfloat16 compute over float32 weights: towers, a short run, and what stays float32."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipa_eqx.config import CLIPConfig, OptimConfig, StageConfig, TextConfig, VisionConfig
from clipa_eqx.models import for_compute, make_clip
from clipa_eqx.sharding import make_mesh, replicate, to_global
from clipa_eqx.train import init_state, make_optimizer, make_schedule, make_train_step


MODEL = CLIPConfig(
    embed=32,
    vision=VisionConfig(image_size=16, patch_size=4, width=32, depth=3, heads=2, hidden=64),
    text=TextConfig(context_length=6, vocab_size=50, width=32, depth=3, heads=2, hidden=64),
)
STAGE = StageConfig(samples=160, batch_size=16, image_size=16, text_length=6, optim=OptimConfig(learning_rate=3e-4))


@pytest.fixture(scope="module")
def model():
    return eqx.filter_jit(make_clip)(MODEL, key=jax.random.key(0))


def test_towers_agree(model):
    rng = np.random.default_rng(0)
    pixels = jnp.asarray(rng.standard_normal((4, 16, 16, 3)), jnp.float32)
    tokens = jnp.asarray(rng.integers(1, 50, (4, 6)))

    @eqx.filter_jit
    def embeds(model):
        return jax.vmap(model.encode_image)(pixels), jax.vmap(model.encode_text)(tokens)

    narrow = embeds(for_compute(model, "bfloat16"))
    for wide, half in zip(embeds(model), narrow, strict=True):
        assert half.dtype == jnp.float32
        assert 0 < np.abs(wide - half).max() < 2e-2


def test_norms_and_temperature_keep_their_type(model):
    narrow = for_compute(model, "bfloat16")
    assert narrow.vision.stack.blocks.mlp_norm.scale.dtype == jnp.float32
    assert narrow.text.norm.bias.dtype == jnp.float32
    assert narrow.logit_scale.dtype == jnp.float32
    assert narrow.vision.stack.blocks.mlp.widen.weight.dtype == jnp.bfloat16
    assert narrow.text.embedding.dtype == jnp.bfloat16


def test_a_short_run_agrees_and_its_state_stays_float32(model):
    rng = np.random.default_rng(0)
    mesh = make_mesh(jax.devices()[:2])
    rows = {
        "pixels": rng.integers(0, 256, (16, 16, 16, 3)).astype(np.uint8),
        "tokens": rng.integers(1, 50, (16, 6)).astype(np.int32),
        "word_class": np.zeros((16, 6), np.uint8),
    }
    losses = {}
    for dtype in ("float32", "bfloat16"):
        stage = dataclasses.replace(STAGE, compute_dtype=dtype)
        schedule = make_schedule(stage.optim, stage.steps)
        optimizer = make_optimizer(stage.optim, schedule, model)
        own = jax.tree.map(jnp.copy, model)
        state = replicate(eqx.filter_jit(init_state)(own, optimizer, key=jax.random.key(1)), mesh)
        step = make_train_step(stage, schedule, optimizer, mesh)
        types = [leaf.dtype for leaf in jax.tree.leaves(state)]
        losses[dtype] = []
        for _ in range(6):
            state, metrics = step(state, to_global(rows, mesh))
            losses[dtype].append(float(metrics["loss"]))
        assert [leaf.dtype for leaf in jax.tree.leaves(state)] == types
        assert jnp.bfloat16 not in types
    assert losses["float32"] != losses["bfloat16"]
    np.testing.assert_allclose(losses["bfloat16"], losses["float32"], atol=2e-2)
    assert losses["bfloat16"][-1] < losses["bfloat16"][0]
