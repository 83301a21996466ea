"""The two peers at the sizes of our models: open_clip, and CLIPA's Flax modules from a checkout."""

import importlib
import sys
import types
from pathlib import Path
from typing import Any

from clipa_eqx.config import CLIPConfig


def open_clip_model(config: CLIPConfig) -> Any:
    """A model of open_clip with the sizes, tokens, pools and GELU of `config`, on random weights."""
    # The tests of the bridges hold the stand-in for torchvision, which open_clip imports.
    sys.path.append(str(Path(__file__).parent.parent / "tests"))
    importlib.import_module("torch_stubs").import_open_clip()
    model = importlib.import_module("open_clip.model")
    vision, text = config.vision, config.text
    form = {"act_kwargs": {"approximate": "tanh"}, "norm_kwargs": {"eps": vision.norm_eps}}
    return model.CLIP(
        config.embed,
        model.CLIPVisionCfg(
            layers=vision.depth,
            width=vision.width,
            head_width=vision.width // vision.heads,
            mlp_ratio=vision.hidden / vision.width,
            patch_size=vision.patch_size,
            image_size=vision.image_size,
            no_ln_pre=True,
            pool_type="tok" if vision.pool == "first" else "avg",
            pos_embed_type="sin_cos_2d",
            **form,
        ),
        model.CLIPTextCfg(
            context_length=text.context_length,
            vocab_size=text.vocab_size,
            width=text.width,
            heads=text.heads,
            layers=text.depth,
            mlp_ratio=text.hidden / text.width,
            no_causal_mask=True,
            pool_type="last",
            **form,
        ),
    )


def flax_model(config: CLIPConfig, checkout: Path, *, remat: str = "none") -> tuple[Any, Any]:
    """CLIPA's two towers and its contrastive loss.

    Args:
        config: sizes.
        checkout: folder `clipa_jax` of a checkout of UCSC-VLAA/CLIPA.
        remat: its `remat_policy` of both towers; none, the fastest that the peer can do where memory suffices.

    Returns:
        The Flax module, and the loss of image embeddings, text embeddings and inverse temperature.
    """
    if not (checkout / "models" / "two_towers.py").is_file():
        raise FileNotFoundError(f"{checkout} is no clipa_jax folder: it has no models/two_towers.py.")
    # Its helpers pull TensorFlow in; the modules use them only to load checkpoints.
    helpers, utils = types.ModuleType("helpers"), types.ModuleType("helpers.utils")
    vars(utils).update(onehot=None)
    vars(helpers).update(utils=utils)
    sys.modules |= {"helpers": helpers, "helpers.utils": utils}
    sys.path.append(str(checkout))
    towers = importlib.import_module("models.two_towers")
    vision, text = config.vision, config.text
    sizes = {
        tower: {"width": t.width, "depth": t.depth, "mlp_dim": t.hidden, "num_heads": t.heads, "remat_policy": remat}
        for tower, t in (("image", vision), ("text", text))
    }
    module = towers.Model(
        image=sizes["image"]
        | {
            "patch_size": (vision.patch_size, vision.patch_size),
            "pool_type": "tok" if vision.pool == "first" else "gap",
            "posemb": "sincos2d",
        },
        text=sizes["text"] | {"pool_type": "last", "vocab_size": text.vocab_size},
        text_model="text_transformer",
        image_model="vit",
        out_dim=config.embed,
        temperature_init=1 / 0.07,
    )
    return module, importlib.import_module("losses.common").bidirectional_contrastive_loss
