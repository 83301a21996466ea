"""Models by name."""

from ..config import Activation, CLIPConfig, OPENAI_MEAN, OPENAI_STD
from ..sizes import clip_size, Size


def _openai(size: Size, patch_size: int, activation: Activation) -> CLIPConfig:
    """A model of OpenAI's form: class token, byte pairs, causal text pooled at its end."""
    return clip_size(
        f"{size}/{patch_size}",
        vision={
            "position": "learned",
            "pool": "first",
            "input_norm": True,
            "activation": activation,
            "norm_eps": 1e-5,
            "pixel_mean": OPENAI_MEAN,
            "pixel_std": OPENAI_STD,
        },
        text={
            "context_length": 77,
            "vocab_size": 49408,
            "causal": True,
            "pool": "end",
            "end_id": 49407,
            "activation": activation,
            "norm_eps": 1e-5,
        },
    )


presets: dict[str, CLIPConfig] = {
    # No CLIPA recipe has Ti; its embed follows the rule of S, embed = width.
    "clipa-ti16": clip_size("Ti/16", vision={"pool": "first"}),
    # CLIPA v1 (arXiv 2305.07017): clipa_jax configs model_s, model_b, model_l, all with pool tok.
    "clipa-s16": clip_size("S/16", vision={"pool": "first"}),
    "clipa-b16": clip_size("B/16", vision={"pool": "first"}),
    "clipa-l16": clip_size("L/16", vision={"pool": "first"}),
    # CLIPA v2 (arXiv 2306.15658): pool gap. Released as ViT-L-14-CLIPA; no config of this size is published.
    "clipa-l14": clip_size("L/14", vision={"pool": "mean"}),
    # clipa_jax configs model_h/84_8 and 70_8; released as ViT-H-14-CLIPA.
    "clipa-h14": clip_size("H/14", vision={"pool": "mean"}),
    # Branch t5x, config model_g; no weights are released.
    "clipa-g14": clip_size("g/14", vision={"pool": "mean"}),
    # Branch t5x, config model_bigG; released as ViT-bigG-14-CLIPA.
    "clipa-bigg14": clip_size("G/14", vision={"pool": "mean"}),
    # OpenAI's CLIP (arXiv 2103.00020, tables 19 and 20).
    "openai-vit-b-32": _openai("B", 32, "gelu_quick"),
    "openai-vit-b-16": _openai("B", 16, "gelu_quick"),
    "openai-vit-l-14": _openai("L", 14, "gelu_quick"),
    # open_clip model_configs/ViT-H-14.json, trained on LAION-2B.
    "laion-vit-h-14": _openai("H", 14, "gelu"),
}
"""Models by name."""
