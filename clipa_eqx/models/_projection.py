"""The layer from a tower into the joint space."""

from .._types import Key
from ..config import TextConfig, VisionConfig
from ..nn import Initializer, Linear


def make_projection(
    config: VisionConfig | TextConfig, embed: int | None, init: Initializer, *, key: Key
) -> Linear | None:
    """Draw the projection of a tower; none where `config.projection` is none.

    Args:
        config: the tower.
        embed: width of the joint space.
        init: initialiser of the weight.
        key: randomness of the weight.

    Raises:
        ValueError: the tower has a projection, and no width for it is given.
    """
    if config.projection == "none":
        return None
    if embed is None:
        raise ValueError(
            f"This tower ends in a projection={config.projection!r} and got no width for it: give embed, or set "
            "projection='none' for the pooled vector as it is."
        )
    return Linear(config.width, embed, init, use_bias=config.projection == "linear_bias", key=key)
