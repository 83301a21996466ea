"""The compiler's count of a step's operations against arithmetic on its matrix products."""

import dataclasses

import jax
import pytest

from clipa_eqx.config import CLIPConfig, DataConfig, OptimConfig, RunConfig, StageConfig, TextConfig, VisionConfig
from clipa_eqx.train import model_flops, step_flops
from clipa_eqx.train._speed import speed_figures


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


@pytest.mark.parametrize(("width", "image_size"), [(64, 32), (128, 64)])
def test_count_is_that_of_the_matrix_products_and_a_little_more(width, image_size):
    run = _run(width, image_size)
    ratio = step_flops(run, run.stages[0]) / model_flops(run, run.stages[0])
    # Norms, GELU, softmax and the optimiser come on top; the patch embedding needs no gradient of pixels.
    assert 0.97 < ratio < 1.45


def test_each_block_is_counted():
    two, four = (_run(64, 32, depth) for depth in (2, 4))
    grown = step_flops(four, four.stages[0]) - step_flops(two, two.stages[0])
    assert 0.97 < grown / (model_flops(four, four.stages[0]) - model_flops(two, two.stages[0])) < 1.45


def test_fewer_patches_cost_less():
    full = _run(64, 64)
    stage = dataclasses.replace(full.stages[0], image_reduction="random", keep_patches=16)
    few = dataclasses.replace(full, stages=(stage,))
    assert step_flops(few, stage) < 0.5 * step_flops(full, full.stages[0])
    assert model_flops(few, stage) < 0.5 * model_flops(full, full.stages[0])


def test_matrix_products_of_a_block_by_hand():
    """A block of 2 tokens of width 4: 2 x (4 x 16 + 2 x 4 x 16) products with weights, 2 x 2 x 2 x 4 of attention."""
    one, two = (_run(4, 8, depth) for depth in (1, 2))
    stage = one.stages[0]
    assert model_flops(two, stage) - model_flops(one, stage) == 6 * 64 * (2 * (4 * 16 + 2 * 4 * 16) + 2 * 2 * 2 * 4)


def test_utilisation_of_a_known_chip(monkeypatch):
    run = _run(64, 32)
    stage = dataclasses.replace(run.stages[0], compute_dtype="bfloat16")
    assert speed_figures(run, stage, 100.0) == {}

    class Chip:
        device_kind = "NVIDIA H200"

        def memory_stats(self):
            return {"peak_bytes_in_use": 3_000_000_000}

    monkeypatch.setattr(jax, "devices", lambda: [Chip(), Chip()])
    monkeypatch.setattr(jax, "local_devices", lambda: [Chip(), Chip()])
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    rate = 2 * 989e12 * 0.5 / (model_flops(run, stage) / stage.batch_size)
    assert speed_figures(run, stage, rate) == pytest.approx({"mfu": 0.5, "memory_gb": 3.0})
