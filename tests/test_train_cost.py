"""The compiler's count of a step's operations against a count by hand."""

import dataclasses

import pytest

from clipa_eqx.config import CLIPConfig, DataConfig, OptimConfig, RunConfig, StageConfig, TextConfig, VisionConfig
from clipa_eqx.train import step_flops


def _run(width, image_size, depth=3):
    model = CLIPConfig(
        embed=32,
        vision=VisionConfig(patch_size=8, image_size=image_size, width=width, depth=depth, heads=4, hidden=4 * width),
        text=TextConfig(context_length=8, vocab_size=100, width=32, depth=2, heads=4, hidden=128),
    )
    stage = StageConfig(
        samples=640, batch_size=64, image_size=image_size, text_length=8, optim=OptimConfig(learning_rate=1e-3)
    )
    return RunConfig(model=model, stages=(stage,), data=DataConfig(caption_tokens=8))


def _by_hand(run):
    """Matrix products of both towers and of the logits, three times for forward and backward, two per multiply-add."""
    vision, text, stage = run.model.vision, run.model.text, run.stages[0]
    products = 0
    for tower, tokens in ((vision, vision.patches + 1), (text, stage.text_length)):
        per_block = tokens * (4 * tower.width**2 + 2 * tower.width * tower.hidden) + 2 * tokens**2 * tower.width
        products += tower.depth * per_block + tower.width * run.model.embed
    products += vision.patches * 3 * vision.patch_size**2 * vision.width
    logits = 2 * stage.batch_size * run.model.embed
    return 6 * stage.batch_size * (products + logits)


@pytest.mark.parametrize(("width", "image_size"), [(64, 32), (128, 64)])
def test_count_is_that_of_the_matrix_products_and_a_little_more(width, image_size):
    run = _run(width, image_size)
    ratio = step_flops(run, run.stages[0]) / _by_hand(run)
    # Norms, GELU, softmax and the optimiser come on top; the patch embedding needs no gradient of pixels.
    assert 0.97 < ratio < 1.45


def test_each_block_is_counted():
    two, four = (_run(64, 32, depth) for depth in (2, 4))
    grown = step_flops(four, four.stages[0]) - step_flops(two, two.stages[0])
    assert 0.97 < grown / (_by_hand(four) - _by_hand(two)) < 1.45


def test_fewer_patches_cost_less():
    full = _run(64, 64)
    stage = dataclasses.replace(full.stages[0], image_reduction="random", keep_patches=16)
    few = dataclasses.replace(full, stages=(stage,))
    assert step_flops(few, stage) < 0.5 * step_flops(full, full.stages[0])
