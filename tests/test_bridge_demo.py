"""A model trained on the built-in world is as accurate in the hands of open_clip: not a picture's difference."""

import dataclasses
import importlib.util
import io
import json

import numpy as np
import pytest
from PIL import Image

from clipa_eqx.cli import main
from clipa_eqx.cli._demo import Demo, make_data
from clipa_eqx.config import OptimConfig
from clipa_eqx.data import open_classification
from clipa_eqx.train import train


if importlib.util.find_spec("open_clip") is None or importlib.util.find_spec("torch") is None:
    pytest.skip("open_clip is not installed", allow_module_level=True)

import torch
from torch_stubs import import_open_clip


open_clip = import_open_clip()


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """`clipa demo`'s own data and run, but for its length: 2,000 pairs, 60 + 20 steps of 64 pairs."""
    demo = Demo(tmp_path_factory.mktemp("demo"), pairs=2_000)
    make_data(demo.directory, demo.pairs, demo.seed)
    config = demo.configure()
    stages = tuple(
        dataclasses.replace(
            stage, samples=steps * 64, batch_size=64, optim=OptimConfig(learning_rate=2e-3, warmup_steps=5)
        )
        for stage, steps in zip(config.stages, (60, 20), strict=True)
    )
    evaluation = dataclasses.replace(config.evaluation, every_steps=0)
    train(dataclasses.replace(config, stages=stages, evaluation=evaluation), demo.directory / "run")
    return demo


def test_open_clip_gets_the_same_pictures_right(demo, capsys):
    exported, images = demo.directory / "exported", demo.directory / "world" / "classification"
    assert main(["export", str(demo.directory / "run"), "--to", "open_clip", "--out", str(exported)]) == 0
    assert main(["evaluate", str(demo.directory / "run"), "--classification", str(images), "--json"]) == 0
    ours = json.loads(capsys.readouterr().out.splitlines()[-1])
    right = their_right(exported, open_classification(images))
    assert len(right) == 1200
    # Well above chance (10 of 1200), so that agreement means something.
    assert right.sum() > 40
    assert right.sum() == round(1200 * ours["classification"]["top1"])


def their_right(exported, images):
    """Which pictures open_clip classifies rightly, by its own preprocessing, tokenizer and model."""
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{exported}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{exported}")
    model.eval()
    prompts = [template.replace("{c}", name) for name in images.class_names for template in images.templates]
    with torch.no_grad():
        classes = model.encode_text(tokenizer(prompts), normalize=True)
        classes = classes.reshape(len(images.class_names), len(images.templates), -1).mean(1)
        pictures = [preprocess(Image.open(io.BytesIO(images.read(index)))) for index in range(len(images))]
        embeds = torch.cat([model.encode_image(torch.stack(pictures[i : i + 100])) for i in range(0, 1200, 100)])
        guesses = (embeds @ torch.nn.functional.normalize(classes, dim=-1).T).argmax(-1).numpy()
    return guesses == np.array([images.label(index) for index in range(len(images))])
