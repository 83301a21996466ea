"""Live timm vision transformers: the same pooled features from the image tower that took their weights."""

import dataclasses
import importlib.util

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from torch_stubs import import_open_clip

from clipa_eqx.config import CLIPConfig, TextConfig, VisionConfig
from clipa_eqx.interop import load_image_tower
from clipa_eqx.models import make_clip


torch = pytest.importorskip("torch")
if importlib.util.find_spec("open_clip") is None:
    pytest.skip("needs open_clip, which brings timm", allow_module_level=True)

FORMS = {
    "token": ({"global_pool": "token"}, {"pool": "first"}),
    "avg": ({"global_pool": "avg"}, {"pool": "mean"}),
    "no class row": ({"global_pool": "token", "no_embed_class": True}, {"pool": "first"}),
    "norm_pre": (
        {"global_pool": "token", "pre_norm": True, "init_values": 0.1},
        {"pool": "first", "input_norm": True, "layer_scale": 0.1, "patch_bias": False},
    ),
    "map": ({"global_pool": "map", "class_token": False}, {"pool": "attention", "class_token": False}),
}


def make_live(image_size=24, **options):
    import_open_clip()
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    sizes = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "mlp_ratio": 3}
    model = VisionTransformer(img_size=image_size, num_classes=0, **sizes, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def make_model(**fields):
    """A model of zeros that has no image projection, so that its image embedding is the pooled feature."""
    vision = VisionConfig(image_size=24, patch_size=8, width=32, depth=2, heads=4, hidden=96, activation="gelu")
    vision = dataclasses.replace(vision, **{"position": "learned", "patch_bias": True, "projection": "none", **fields})
    text = TextConfig(context_length=4, vocab_size=8, width=8, depth=1, heads=1, hidden=8)
    config = CLIPConfig(embed=32, vision=vision, text=text)
    shapes = eqx.filter_eval_shape(make_clip, config, key=jax.random.key(0))
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes)


def assert_same_features(model, live):
    pixels = np.random.default_rng(0).normal(size=(3, 24, 24, 3)).astype(np.float32)
    with torch.inference_mode():
        theirs = live(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())).numpy()
    ours = jax.jit(jax.vmap(model.encode_image))(pixels)
    np.testing.assert_allclose(ours, theirs / np.linalg.norm(theirs, axis=1, keepdims=True), rtol=0, atol=2e-6)


@pytest.mark.parametrize("form", FORMS)
def test_timm_features(tmp_path, form):
    options, fields = FORMS[form]
    live = make_live(**options)
    safetensors.numpy.save_file(
        {name: t.numpy() for name, t in live.state_dict().items()}, tmp_path / "vit.safetensors"
    )
    start = load_image_tower(tmp_path / "vit.safetensors", make_model(**fields))
    assert (start.kept, start.ignored) == ((), ())
    assert_same_features(start.model, live)


def test_mae_checkpoint_features(tmp_path):
    """MAE saves its state under `model`, with the decoder, and with a table that nothing trains."""
    live = make_live(global_pool="token")
    live.pos_embed.requires_grad_(False)
    decoder = {"mask_token": torch.ones(1, 1, 8), "decoder_pred.weight": torch.ones(4, 8)}
    torch.save({"model": live.state_dict() | decoder, "epoch": 3}, tmp_path / "mae.pth")
    start = load_image_tower(tmp_path / "mae.pth", make_model(pool="first"))
    assert set(start.ignored) == set(decoder)
    assert_same_features(start.model, live)


def test_resampled_positions_are_those_of_torch(tmp_path):
    live = make_live(image_size=40, global_pool="token")
    torch.save(live.state_dict(), tmp_path / "vit.pth")
    start = load_image_tower(tmp_path / "vit.pth", make_model(pool="first"))
    grid = live.pos_embed.detach()[:, 1:].reshape(1, 5, 5, 32).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(grid, (3, 3), mode="bicubic", antialias=True, align_corners=False)
    expected = resized.permute(0, 2, 3, 1).reshape(9, 32).numpy()
    np.testing.assert_allclose(start.model.vision.position, expected, atol=1e-5)
    assert jnp.array_equal(
        start.model.vision.class_token, live.cls_token[0, 0].detach().numpy() + live.pos_embed[0, 0].detach().numpy()
    )
