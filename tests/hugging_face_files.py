"""Small models in the two forms that Hugging Face has, with tokenizers, for the tests of both directions."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import models, pre_tokenizers

from clipa_eqx.config import CLIPConfig, OPENAI_MEAN, OPENAI_STD, TextConfig, VisionConfig
from clipa_eqx.data import load_tokenizer
from clipa_eqx.interop import Preprocess, Pretrained
from clipa_eqx.models import make_clip


MERGES = [("d", "o"), ("do", "g</w>"), ("r", "u"), ("ru", "n</w>"), ("'", "s</w>")]
VOCAB_SIZE = 2 * 256 + len(MERGES) + 2

CLIP_FORM = CLIPConfig(
    embed=12,
    vision=VisionConfig(
        image_size=24,
        patch_size=8,
        width=16,
        depth=2,
        heads=2,
        hidden=24,
        position="learned",
        pool="first",
        input_norm=True,
        activation="gelu_quick",
        norm_eps=1e-5,
        pixel_mean=OPENAI_MEAN,
        pixel_std=OPENAI_STD,
    ),
    text=TextConfig(
        context_length=9,
        vocab_size=VOCAB_SIZE,
        width=8,
        depth=3,
        heads=4,
        hidden=20,
        pool="end",
        causal=True,
        end_id=VOCAB_SIZE - 1,
        activation="gelu_quick",
        norm_eps=1e-5,
    ),
)
SIGLIP_FORM = CLIPConfig(
    embed=16,
    vision=dataclasses.replace(
        CLIP_FORM.vision,
        class_token=False,
        pool="attention",
        input_norm=False,
        patch_bias=True,
        projection="none",
        activation="gelu_tanh",
        norm_eps=1e-6,
        pixel_mean=(0.5, 0.5, 0.5),
        pixel_std=(0.5, 0.5, 0.5),
    ),
    text=dataclasses.replace(
        CLIP_FORM.text,
        pool="last",
        causal=False,
        end_id=-1,
        projection="linear_bias",
        activation="gelu_tanh",
        norm_eps=1e-6,
    ),
    init_logit_scale=float(np.log(10)),
    init_logit_bias=-10.0,
)


def write_byte_pair(directory):
    """A CLIP vocabulary as OpenAI counts it: byte symbols, word ends, merges, bounds."""
    directory.mkdir(parents=True, exist_ok=True)
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*symbols, *(symbol + "</w>" for symbol in symbols), *("".join(pair) for pair in MERGES)]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    models.BPE(vocab, MERGES, continuing_subword_prefix="", end_of_word_suffix="</w>").save(str(directory))
    return directory


def tiny_pretrained(config, tokenizer_folder, *, resize="crop", seed=0):
    """A model of random weights, none of them zero or one, with all that belongs to it."""
    rng = np.random.default_rng(seed)
    shapes = eqx.filter_eval_shape(make_clip, config, key=jax.random.key(0))
    draw = lambda leaf: jnp.asarray(rng.normal(0.1, 0.3, leaf.shape).astype(np.float32))
    model = jax.tree.map(draw, shapes)
    preprocess = Preprocess(config.vision.image_size, resize, "bicubic")
    return Pretrained(model, config, preprocess, load_tokenizer(tokenizer_folder))


def assert_equal_models(one, other):
    """Equal configs, and arrays equal in every bit."""
    assert one.config == other.config
    jax.tree.map(np.testing.assert_array_equal, one, other)
