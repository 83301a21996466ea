"""The search for switches that make a stage fit, against memory whose growth is known."""

import dataclasses

import pytest

from clipa_eqx.config import DataConfig
from clipa_eqx.planning import find_fit
from clipa_eqx.recipes import get_recipe, run_config, scale_recipe
from clipa_eqx.train import StepMemory


CONFIG = run_config(get_recipe("clipa-b16-112"), data=DataConfig())
STAGE = CONFIG.stages[0]
DEVICES = 8
LEAN = {"remat_image": "full", "remat_text": "full"}


def memory(config, stage):
    """Like a step's: state by layout, logits by tile, activations by micro-batch and remat."""
    state = {"none": 800, "optimizer": 350, "all": 100}[config.shard]
    logits = 500 if stage.loss_tile else 8000
    per_pair = 0.1 if stage.remat_image == "full" else 1.0
    pairs = (stage.micro_batch or stage.batch_size) // DEVICES
    return StepMemory(state=state, batch=50, temporary=logits + int(per_pair * pairs))


def fit(memory_bytes, config=CONFIG):
    return find_fit(config, STAGE, num_devices=DEVICES, memory_bytes=memory_bytes, measure=memory)


@pytest.mark.parametrize(
    ("memory_bytes", "switches"),
    [
        (20000, {}),
        (6000, {"loss_tile": "1024"}),
        # 1350 fixed, and a byte for each pair of a device: 4096 whole, 2048 in halves.
        (4000, {"loss_tile": "1024", "micro_batch": "16384"}),
        (1400, {"loss_tile": "1024", "micro_batch": "256"}),
        (1355, {"loss_tile": "1024", "micro_batch": "256", **LEAN}),
        (1000, {"loss_tile": "1024", "micro_batch": "4096", **LEAN, "shard": "optimizer"}),
        (700, {"loss_tile": "1024", "micro_batch": "2048", **LEAN, "shard": "all"}),
    ],
)
def test_the_cheapest_switches_that_fit_are_named(memory_bytes, switches):
    found = fit(memory_bytes)
    assert found.fits
    assert found.memory.total <= memory_bytes
    assert found.switches == switches
    assert memory(found.config, found.stage) == found.memory


def test_what_cannot_fit_is_told_with_the_leanest_form():
    found = fit(600)
    assert not found.fits
    assert found.switches["shard"] == "all"


def test_a_layout_that_is_chosen_is_kept():
    assert "shard" not in fit(5000, dataclasses.replace(CONFIG, shard="all")).switches


def test_hours_belong_to_the_whole_recipe():
    recipe = get_recipe("clipa-v2-h14-84")
    assert [(entry.stage, entry.gpu_hours) for entry in recipe.published_hours] == [
        ("tune-224", 7776),
        ("tune-336", 8640),
    ]
    assert not scale_recipe(recipe, 1 / 4).published_hours
