"""Sizes of the named models against published counts, and how new weights are drawn."""

import math

import equinox as eqx
import jax
import numpy as np
import pytest

from clipa_eqx.config import CLIPConfig, TextConfig, VisionConfig
from clipa_eqx.models import count_parameters, make_clip, presets
from clipa_eqx.sizes import text_size, vision_size


# Millions of parameters of the image and the text tower. CLIPA: of the released weights, as open_clip counts them, and
# of the size table. OpenAI: 151,277,313 and so on less a class position of `width`, which is part of the class token
# here, and less the temperature.
COUNTS = {
    "clipa-s16": (21.737, 33.742),
    "clipa-b16": (86.040, 54.492),
    "clipa-l14": (303.701, 110.246),
    "clipa-h14": (631.745, 336.161),
    "clipa-bigg14": (1844.476, 672.320),
    "openai-vit-b-32": (87.848, 63.428),
    "openai-vit-b-16": (86.192, 63.428),
    "openai-vit-l-14": (303.965, 123.650),
    "laion-vit-h-14": (632.076, 354.033),
}
TOTALS = {"openai-vit-b-32": 151_277_313, "openai-vit-b-16": 149_620_737, "openai-vit-l-14": 427_616_513}


@pytest.mark.parametrize("name", presets)
def test_parameter_counts(name):
    model = eqx.filter_eval_shape(make_clip, name, key=jax.random.key(0))
    assert model.config == presets[name]
    if name in COUNTS:
        counted = tuple(round(count_parameters(tower) / 1e6, 3) for tower in (model.vision, model.text))
        assert counted == COUNTS[name]
    if name in TOTALS:
        assert count_parameters(model) + presets[name].vision.width == TOTALS[name]
    assert len(jax.tree.leaves(model)) < 40


def test_sizes_by_letter():
    assert vision_size("L", patch_size=14, pool="first") == VisionConfig(
        224, 14, width=1024, depth=24, heads=16, hidden=4096, pool="first"
    )
    assert text_size("H", context_length=8) == TextConfig(8, width=1024, depth=24, heads=16, hidden=4096)
    assert vision_size("e").heads == text_size("e").heads == 16
    with pytest.raises(ValueError, match="There is no preset 'clipa-x'; there are: clipa-ti16"):
        make_clip("clipa-x", key=jax.random.key(0))


def test_new_weights():
    config = CLIPConfig(
        48,
        VisionConfig(32, 8, width=64, depth=6, heads=4, hidden=256, pool="attention", position="learned"),
        TextConfig(16, 500, width=64, depth=6, heads=4, hidden=256),
        init_logit_bias=-10.0,
    )
    model = make_clip(config, key=jax.random.key(1))
    vision, text = model.vision.stack.blocks, model.text.stack.blocks
    uniform = {
        (6 / (64 + 64)) ** 0.5: [vision.attention.qkv, vision.attention.out, model.vision.attention_pool.query],
        (6 / (64 + 256)) ** 0.5: [vision.mlp.widen, vision.mlp.narrow, model.vision.attention_pool.mlp.widen],
    }
    for bound, layers in uniform.items():
        for layer in layers:
            np.testing.assert_allclose(np.abs(layer.weight).max(), bound, rtol=1e-2)
            np.testing.assert_allclose(np.std(layer.weight), bound / math.sqrt(3), rtol=5e-2)
    ending = 64**-0.5 * 12**-0.5
    normal = [
        (text.attention.qkv.weight, 64**-0.5),
        (text.attention.out.weight, ending),
        (text.mlp.widen.weight, 128**-0.5),
        (text.mlp.narrow.weight, ending),
        (text.attention.qkv.weight[3, :, :64], 64**-0.5),
        (model.text.embedding, 0.02),
        (model.text.position, 0.01),
        (model.text.projection.weight, 64**-0.5),
        (model.vision.projection.weight, 64**-0.5),
        (model.vision.position, 64**-0.5),
        (model.vision.patch.weight, 192**-0.5),
    ]
    for weight, deviation in normal:
        np.testing.assert_allclose(np.std(weight), deviation, rtol=0.08)
    zeros = [vision.attention.qkv.bias, text.mlp.narrow.bias, model.vision.class_token, vision.mlp_norm.bias]
    assert not any(np.any(zero) for zero in zeros)
    assert model.vision.patch.bias is None
    assert np.all(np.asarray(vision.attention_norm.scale) == 1)
    np.testing.assert_allclose(model.logit_scale, math.log(1 / 0.07), rtol=1e-6)
    assert float(model.logit_bias) == -10
