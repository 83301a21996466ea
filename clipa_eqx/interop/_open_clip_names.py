"""open_clip's names of its plain ViT models, for weights that come without a config."""

import re
from typing import Any, NamedTuple

from ..config import IMAGENET_MEAN, IMAGENET_STD


class _Size(NamedTuple):
    """What open_clip's model_configs say of a size, in its plain and in its CLIPA models."""

    width: int
    layers: int
    head_width: int
    mlp_ratio: float
    text_width: int
    text_heads: int
    text_layers: int
    embed: int


_SIZES = {
    "B": _Size(768, 12, 64, 4.0, 512, 8, 12, 512),
    "L": _Size(1024, 24, 64, 4.0, 768, 12, 12, 768),
    "H": _Size(1280, 32, 80, 4.0, 1024, 16, 24, 1024),
    "g": _Size(1408, 40, 88, 4.3637, 1024, 16, 24, 1024),
    "bigG": _Size(1664, 48, 104, 4.9231, 1280, 20, 32, 1280),
}

_NAME = re.compile(r"ViT-(B|L|H|g|bigG)-(\d+)(-CLIPA)?(?:-(\d+))?(-quickgelu)?")


def named_config(name: str) -> dict[str, Any]:
    """`model_cfg` and `preprocess_cfg` of an open_clip model by its name.

    CLIPA's are preprocessed as its released weights are (open_clip, pretrained.py): ImageNet's statistics, squashed,
    bilinear. Others keep open_clip's defaults.

    Args:
        name: `ViT-{B,L,H,g,bigG}-PATCH`, then, each if it applies, `-CLIPA`, the image side and `-quickgelu`.

    Raises:
        ValueError: the name has another form.
    """
    match = _NAME.fullmatch(name)
    if not match or (match[3] and match[5]):
        raise ValueError(
            f"{name!r} is none of open_clip's plain ViT models, as ViT-B-32, ViT-L-14-336, ViT-H-14-quickgelu or "
            "ViT-L-14-CLIPA; give the model's config as a JSON object instead."
        )
    letter, patch, clipa, side, quick = match.groups()
    size = _SIZES[letter]
    model_cfg: dict[str, Any] = {
        "embed_dim": size.embed,
        "vision_cfg": {
            "image_size": int(side or 224),
            "layers": size.layers,
            "width": size.width,
            "head_width": size.head_width,
            "mlp_ratio": size.mlp_ratio,
            "patch_size": int(patch),
        },
        "text_cfg": {
            "context_length": 77,
            "vocab_size": 49408,
            "width": size.text_width,
            "heads": size.text_heads,
            "layers": size.text_layers,
        },
    }
    if quick:
        model_cfg["quick_gelu"] = True
    if not clipa:
        return {"model_cfg": model_cfg}
    model_cfg["vision_cfg"] |= {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True}
    model_cfg["text_cfg"] |= {
        "context_length": 32,
        "vocab_size": 32000,
        "hf_tokenizer_name": "bert-base-uncased",
        "tokenizer_kwargs": {"strip_sep_token": True},
        "pool_type": "last",
        "no_causal_mask": True,
    }
    preprocess = {"mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)}
    return {
        "model_cfg": model_cfg,
        "preprocess_cfg": preprocess | {"interpolation": "bilinear", "resize_mode": "squash"},
    }
