"""The parts of the script for a GPU that run open_clip, rehearsed on the CPU at tiny sizes."""

import importlib.util

import pytest
from test_on_gpu import run


pytest.importorskip("torch")
if importlib.util.find_spec("open_clip") is None:
    pytest.skip("open_clip is not installed", allow_module_level=True)


def test_steps_and_embeddings_beside_open_clip(tmp_path):
    names = ["b16_open_clip", "embed_ours", "embed_open_clip"]
    done, records = run(tmp_path, "--tiny", "--only", *names)
    assert done.returncode == 0, done.stderr
    assert set(records) == {"check", *names}
    step = records["b16_open_clip"]
    assert step["last_loss"] < step["first_loss"]
    for peer in ("ours", "open_clip"):
        assert records[f"embed_{peer}"]["images_per_s"] > 0
        assert records[f"embed_{peer}"]["images_per_s_on_device"] > 0
