"""The axis words used in annotations, docstrings and locals, and the few array aliases.

batch
:   examples
height, width, channels
:   of an image in pixels; as a feature size, `dim` is used instead of width
rows, cols
:   of the patch grid
patches, kept, tokens
:   all patches; after reduction; kept plus class token
length, vocab
:   of a text, of a vocabulary
dim, heads, head_dim, hidden
:   features per token, attention heads, features per head, features inside the MLP
embed
:   the joint image-text space
classes, templates
:   of zero-shot classification

Functions take ONE example unless they say `batch`; callers use `jax.vmap`.
"""

from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8


Pixels = Float[Array, "height width 3"]
"""One normalised image, channels last."""

RawPixels = UInt8[Array, "height width 3"]
"""One image as decoded, 0 to 255."""

TokenIds = Int[Array, " length"]
"""Token ids of one text, padded."""

Key = PRNGKeyArray
"""A typed key from `jax.random.key`."""

Position = int | Int[Array, ""]
"""Which token of a sequence."""

Scalar = Float[Array, ""]
"""A floating-point scalar array."""
