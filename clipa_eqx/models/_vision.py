"""The image tower."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, Int

from .._types import Key, Pixels
from ..config import VisionConfig
from ..nn import (
    AttentionPool,
    Block,
    BlockInit,
    LayerNorm,
    Linear,
    mean_of_image,
    sincos_2d,
    sincos_2d_mae,
    Stack,
    xavier_uniform,
)
from ._projection import make_projection


class VisionTower(eqx.Module):
    """A vision transformer that embeds one image, or the patches of it that it is given.

    Dropped patches are dropped before the patch embedding, so they cost nothing.
    """

    patch: Linear
    """Patch embedding; rows of its weight are patch pixels row by row, channels last."""
    class_token: Float[Array, " dim"] | None
    """The class token. It has no position of its own: one that a checkpoint holds is added to it."""
    position: Float[Array, "patches dim"] | None
    """The stored position table; none where it is computed."""
    input_norm: LayerNorm | None
    stack: Stack
    norm: LayerNorm
    attention_pool: AttentionPool | None
    projection: Linear | None
    config: VisionConfig = eqx.field(static=True)

    def __call__(
        self, pixels: Pixels, *, kept: Int[Array, " kept"] | None = None, key: Key | None = None
    ) -> Float[Array, " embed"]:
        """Embed one image.

        Args:
            pixels: a normalised image; the patch size divides both sides.
            kept: row-major positions of the patches to look at; none: all.
            key: randomness of stochastic depth; none: no branch is skipped.

        Returns:
            The embedding, not normalised.

        Raises:
            ValueError: the patch size does not divide the image, or a stored position table has another grid.
        """
        x = self._pooled(self._tokens(pixels, kept), key)
        return x if self.projection is None else self.projection(x)

    def features(
        self, pixels: Pixels, *, kept: Int[Array, " kept"] | None = None, key: Key | None = None
    ) -> Float[Array, "tokens dim"]:
        """All tokens after the last norm: the class token, if there is one, then the patches.

        What `__call__` pools and projects, but for pools that take the mean before the norm.

        Args:
            pixels: as in a call.
            kept: as in a call.
            key: as in a call.

        Raises:
            ValueError: as in a call.
        """
        return self.norm(self.stack(self._tokens(pixels, kept), key=key))

    def _tokens(self, pixels: Pixels, kept: Int[Array, " kept"] | None) -> Float[Array, "tokens dim"]:
        """What the blocks take."""
        x, position = self._patches(pixels), self._positions(pixels)
        if kept is not None:
            x, position = jnp.take(x, kept, axis=0), jnp.take(position, kept, axis=0)
        x = self.patch(x) + position
        if self.class_token is not None:
            x = jnp.concatenate([self.class_token[None], x])
        if self.input_norm is not None:
            x = self.input_norm(x)
        return x

    def _patches(self, pixels: Pixels) -> Float[Array, "patches pixels"]:
        side = self.config.patch_size
        if self.config.crop_edge:
            pixels = pixels[: pixels.shape[0] // side * side, : pixels.shape[1] // side * side]
        if pixels.shape[0] % side or pixels.shape[1] % side:
            raise ValueError(
                f"An image of {pixels.shape[0]} x {pixels.shape[1]} px does not split into patches of {side} px; "
                f"resize it to multiples of {side}."
            )
        pixels = pixels.astype(self.patch.weight.dtype)
        return rearrange(pixels, "(rows y) (cols x) channels -> (rows cols) (y x channels)", y=side, x=side)

    def _positions(self, pixels: Pixels) -> Float[Array, "patches dim"]:
        grid = pixels.shape[0] // self.config.patch_size, pixels.shape[1] // self.config.patch_size
        dtype = self.patch.weight.dtype
        if self.position is None:
            return jnp.asarray(computed_positions(self.config, grid), dtype)
        if grid != self.config.grid:
            raise ValueError(
                f"This model stores positions for {self.config.image_size} x {self.config.image_size} px, got "
                f"{pixels.shape[0]} x {pixels.shape[1]} px; resize the image, or move the model with `transfer`."
            )
        return jax.lax.stop_gradient(self.position) if self.config.position == "frozen" else self.position

    def _pooled(self, x: Float[Array, "tokens dim"], key: Key | None) -> Float[Array, " dim"]:
        if self.config.pool == "first":
            return self.norm(self.stack.one(x, 0, key=key))
        x = self.stack(x, key=key)
        if self.attention_pool is not None:
            return self.attention_pool(self.norm(x))
        class_token = self.class_token is not None
        if self.config.pool == "norm_mean":
            return mean_of_image(self.norm(x), self.config.pool, class_token=class_token)
        return self.norm(mean_of_image(x, self.config.pool, class_token=class_token))


def computed_positions(config: VisionConfig, grid: tuple[int, int]) -> Float[np.ndarray, "patches dim"]:
    """The sine-cosine table of `config.position` for a grid; for a stored table, the one that a new model starts with.

    A frozen table starts in MAE's form, the one that the projects with such tables compute.
    """
    table = sincos_2d if config.position == "sincos2d" else sincos_2d_mae
    return table(grid, config.width)


def make_vision(config: VisionConfig, embed: int | None = None, *, key: Key) -> VisionTower:
    """Draw a new image tower.

    Initial values as in CLIPA-JAX (models/vit.py): Xavier-uniform matrices in the blocks, the default of Flax's
    convolution for the patch embedding, class token and biases zero, projection normal(width^-1/2); a learned
    position table normal(width^-1/2).

    Args:
        config: the tower.
        embed: width of the joint space; needed where `config.projection` is not none.
        key: randomness of the weights.

    Raises:
        ValueError: the tower has a projection, and no width for it is given.
    """
    patch_key, position_key, blocks_key, pool_key, projection_key = jax.random.split(key, 5)
    outward = jax.nn.initializers.normal(config.width**-0.5)
    shape = {"activation": config.activation, "norm_eps": config.norm_eps}
    blocks = Block(
        config.width,
        config.heads,
        config.hidden,
        BlockInit(xavier_uniform, xavier_uniform, xavier_uniform, xavier_uniform),
        layer_scale=config.layer_scale,
        stack=(config.depth,),
        key=blocks_key,
        **shape,
    )
    position = None
    if config.position == "learned":
        position = outward(position_key, (config.patches, config.width))
    elif config.position == "frozen":
        position = jnp.asarray(computed_positions(config, config.grid))
    return VisionTower(
        patch=Linear(
            3 * config.patch_size**2,
            config.width,
            jax.nn.initializers.lecun_normal(batch_axis=0),
            use_bias=config.patch_bias,
            key=patch_key,
        ),
        class_token=jnp.zeros((config.width,)) if config.class_token else None,
        position=position,
        input_norm=LayerNorm(config.width, config.norm_eps) if config.input_norm else None,
        stack=Stack(blocks, config.drop_path),
        norm=LayerNorm(config.width, config.norm_eps),
        attention_pool=AttentionPool(config.width, config.heads, config.hidden, xavier_uniform, key=pool_key, **shape)
        if config.pool == "attention"
        else None,
        projection=make_projection(config, embed, outward, key=projection_key),
        config=config,
    )
