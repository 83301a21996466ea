"""What passes between devices in one step, read from the compiled program."""

import dataclasses
import importlib.util
from pathlib import Path

import equinox as eqx
import jax
import pytest

from clipa_eqx.models import make_clip
from clipa_eqx.sharding import make_mesh
from clipa_eqx.train import lower_step


def _benchmark():
    path = Path(__file__).parent.parent / "benchmarks" / "scaling.py"
    spec = importlib.util.spec_from_file_location("scaling", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("shard", ["none", "all"])
def test_traffic_is_one_pass_over_gradients_or_three_over_weights(shard):
    scaling = _benchmark()
    config = dataclasses.replace(scaling.run_of(8), shard=shard)
    program = lower_step(config, config.stages[0], make_mesh()).compile().as_text()
    found = {kind: sums["bytes"] for kind, sums in scaling.collectives(program, 8).items()}

    leaves = jax.tree.leaves(eqx.filter_eval_shape(make_clip, config.model, key=jax.random.key(0)))
    arrays = 4 * sum(leaf.size for leaf in leaves)
    # Texts go out once, and once more their gradients come home; a number per text and the metrics are small.
    texts = 4 * config.stages[0].batch_size * config.model.embed
    if shard == "none":
        assert found["all-reduce"] == pytest.approx(arrays, rel=1e-3)
        assert texts <= found["all-gather"] < 1.1 * texts
        assert texts <= found["reduce-scatter"] < 1.1 * texts
    else:
        # Forward and backward; of a tower that reads one token, the last block is gathered once.
        assert arrays < found["all-gather"] < 1.01 * 2 * arrays + texts
        assert 0.9 * arrays < found["reduce-scatter"] < 1.01 * arrays + texts
        assert found["all-reduce"] < 0.02 * arrays
