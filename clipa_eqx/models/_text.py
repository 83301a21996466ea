"""The text tower."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .._types import Key, TokenIds
from ..config import TextConfig
from ..nn import Block, BlockInit, LayerNorm, Linear, mean_of_text, read_position, sincos_1d, Stack
from ._projection import make_projection


class TextTower(eqx.Module):
    """A transformer that embeds one text."""

    embedding: Float[Array, "vocab dim"]
    position: Float[Array, "context dim"] | None
    """The learned position table; none where it is computed."""
    stack: Stack
    norm: LayerNorm
    projection: Linear | None
    config: TextConfig = eqx.field(static=True)

    def __call__(self, tokens: TokenIds, *, key: Key | None = None) -> Float[Array, " embed"]:
        """Embed one text.

        Args:
            tokens: token ids; a learned position table must have a row for each.
            key: randomness of stochastic depth; none: no branch is skipped.

        Returns:
            The embedding, not normalised.

        Raises:
            ValueError: the text is longer than the learned position table.
        """
        x = self._pooled(self._tokens(tokens), tokens, key)
        return x if self.projection is None else self.projection(x)

    def features(self, tokens: TokenIds, *, key: Key | None = None) -> Float[Array, "length dim"]:
        """All tokens after the last norm, padding among them.

        Args:
            tokens: as in a call.
            key: as in a call.

        Raises:
            ValueError: as in a call.
        """
        return self.norm(self.stack(self._tokens(tokens), self._mask(tokens), key=key))

    def _tokens(self, tokens: TokenIds) -> Float[Array, "length dim"]:
        """What the blocks take."""
        return jnp.take(self.embedding, tokens, axis=0) + self._positions(tokens.size)

    def _positions(self, length: int) -> Float[Array, "length dim"]:
        if self.position is None:
            return jnp.asarray(sincos_1d(length, self.config.width), self.embedding.dtype)
        if length > self.position.shape[0]:
            raise ValueError(
                f"A text of {length} tokens is longer than this model's context_length={self.position.shape[0]}; "
                "shorten it, or move the model with `transfer`."
            )
        return self.position[:length]

    def _pooled(self, x: Float[Array, "length dim"], tokens: TokenIds, key: Key | None) -> Float[Array, " dim"]:
        mask, config = self._mask(tokens), self.config
        at = read_position(tokens, config.pool, pad_id=config.pad_id, end_id=config.end_id)
        if at is not None:
            return self.norm(self.stack.one(x, at, mask, key=key))
        return mean_of_text(self.norm(self.stack(x, mask, key=key)), tokens, config.pad_id)

    def _mask(self, tokens: TokenIds) -> Bool[Array, "length length"] | None:
        mask = None
        if self.config.causal:
            mask = jnp.tri(tokens.size, dtype=bool)
        if self.config.mask_padding:
            real = jnp.broadcast_to((tokens != self.config.pad_id)[None], (tokens.size, tokens.size))
            mask = real if mask is None else mask & real
        return mask


def make_text(config: TextConfig, embed: int | None = None, *, key: Key) -> TextTower:
    """Draw a new text tower.

    Initial values as in CLIPA-JAX (models/text_transformer.py), which follows OpenAI's CLIP: normal with deviation
    w^-1/2 for queries, keys and values, (2w)^-1/2 for the widening weight, w^-1/2 (2 depth)^-1/2 for the two weights
    that end a branch, 0.02 for the embedding and 0.01 for positions; biases zero.

    Args:
        config: the tower.
        embed: width of the joint space; needed where `config.projection` is not none.
        key: randomness of the weights.

    Raises:
        ValueError: the tower has a projection, and no width for it is given.
    """
    embedding_key, position_key, blocks_key, projection_key = jax.random.split(key, 4)
    normal = jax.nn.initializers.normal
    width = config.width
    ending = normal((2 * width * config.depth) ** -0.5)
    init = BlockInit(qkv=normal(width**-0.5), out=ending, widen=normal((2 * width) ** -0.5), narrow=ending)
    blocks = Block(
        width,
        config.heads,
        config.hidden,
        init,
        activation=config.activation,
        norm_eps=config.norm_eps,
        layer_scale=config.layer_scale,
        stack=(config.depth,),
        key=blocks_key,
    )
    return TextTower(
        embedding=normal(0.02)(embedding_key, (config.vocab_size, width)),
        position=normal(0.01)(position_key, (config.context_length, width)) if config.position == "learned" else None,
        stack=Stack(blocks, config.drop_path),
        norm=LayerNorm(width, config.norm_eps),
        projection=make_projection(config, embed, normal(width**-0.5), key=projection_key),
        config=config,
    )
