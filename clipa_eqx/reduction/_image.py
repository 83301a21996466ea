"""Image token reduction: smaller images, or a part of the patches.

The four ways of CLIPA (arXiv 2305.07017, section 3.1): resize, and keep patches at random, one per cell of a grid,
or in one block. Each `*_keep` function returns patch positions, ascending and distinct, counted row by row; grid and
count are static, so the result has a fixed length under jit.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._checks import check_at_least, check_choice
from .._types import Key
from ..config import ImageReduction, Interpolation


def random_keep(grid: tuple[int, int], keep: int, *, key: Key) -> Int[Array, " keep"]:
    """Positions of `keep` patches, every set of that size equally likely.

    The random masking of FLIP (Li et al., arXiv 2212.00794). Positions come out in order, so a tower that looks at
    neighbouring tokens sees them as they lie in the image.

    Args:
        grid: rows and columns of patches, each at least 1.
        keep: number of patches to keep, 1 to rows * cols.
        key: randomness.

    Returns:
        Ascending positions, row-major.

    Raises:
        ValueError: the grid is empty or does not hold `keep` patches.
    """
    _check_keep(grid, keep)
    rows, cols = grid
    return jnp.sort(jax.random.permutation(key, rows * cols)[:keep])


def grid_keep(grid: tuple[int, int], keep: int, *, key: Key) -> Int[Array, " keep"]:
    """Positions of `keep` patches spread evenly: the image is cut into cells and each gives the same number.

    A quarter of an even grid is one patch drawn from each 2x2 cell, the grid masking of CLIPA. Larger shares draw
    more from each 2x2 cell; smaller ones draw one from each of fewer, larger cells, as near square as the count
    allows. Where the number cannot be the same, cells chosen at random give one more. Where cells cannot be of one
    size along a side, the cut is shifted around that side by a random offset (one cell then wraps), so that
    every patch has the same chance on any grid.

    Args:
        grid: rows and columns of patches, each at least 1.
        keep: number of patches to keep, 1 to rows * cols.
        key: randomness.

    Returns:
        Ascending positions, row-major.

    Raises:
        ValueError: the grid is empty or does not hold `keep` patches.
    """
    _check_keep(grid, keep)
    rows, cols = grid
    row_bands, col_bands = _cell_counts(grid, keep)
    shift_key, patch_key, cell_key = jax.random.split(key, 3)
    num_shifts = [side if side % bands else 1 for side, bands in ((rows, row_bands), (cols, col_bands))]
    row_shift, col_shift = jax.random.randint(shift_key, (2,), 0, jnp.array(num_shifts))
    row_band = (jnp.arange(rows) + row_shift) % rows * row_bands // rows
    col_band = (jnp.arange(cols) + col_shift) % cols * col_bands // cols
    cell = (row_band[:, None] * col_bands + col_band[None, :]).reshape(-1)

    # Sorted by cell, then at random, slot i of the order has a cell and a rank in it that depend on sizes alone.
    by_cell = jnp.lexsort((jax.random.bits(patch_key, cell.shape), cell))
    cell_sizes = np.outer(_band_sizes(rows, row_bands), _band_sizes(cols, col_bands)).reshape(-1)
    cell_of_slot = np.repeat(np.arange(cell_sizes.size), cell_sizes)
    rank_of_slot = np.concatenate([np.arange(size) for size in cell_sizes])
    # Every cell gives its first patch before any gives its second; the last round goes through the cells at random.
    lot = jax.random.bits(cell_key, cell_sizes.shape)
    turn = jnp.lexsort((lot[cell_of_slot], rank_of_slot))
    return jnp.sort(by_cell[turn[:keep]])


def block_keep(grid: tuple[int, int], keep: int, *, key: Key) -> Int[Array, " keep"]:
    """Positions of `keep` patches that form one rectangle, placed uniformly over all places where it fits.

    The block masking of CLIPA keeps one window of the image. The window is the squarest rectangle of exactly `keep`
    patches, if one with its longer side at most twice the shorter fits the grid; otherwise the squarest whose last row
    is cut short, at its left, its right or both, at random.

    Args:
        grid: rows and columns of patches, each at least 1.
        keep: number of patches to keep, 1 to rows * cols.
        key: randomness.

    Returns:
        Ascending positions, row-major.

    Raises:
        ValueError: the grid is empty or does not hold `keep` patches.
    """
    _check_keep(grid, keep)
    rows, cols = grid
    height, width = _window(grid, keep)
    last_row = keep - (height - 1) * width
    num_places = jnp.array([rows - height + 1, cols - width + 1, width - last_row + 1])
    top, left, cut = jax.random.randint(key, (3,), 0, num_places)
    row, col = np.divmod(np.arange(keep), width)
    return (top + row) * cols + left + col + jnp.where(row == height - 1, cut, 0)


def keep_patches(name: ImageReduction, grid: tuple[int, int], keep: int, *, key: Key) -> Int[Array, " keep"] | None:
    """Positions kept by the reduction of that name; None for `"none"`, which keeps every patch and ignores `keep`.

    Args:
        name: the reduction.
        grid: rows and columns of patches, each at least 1.
        keep: number of patches to keep, 1 to rows * cols.
        key: randomness.

    Returns:
        Ascending positions, row-major, or None.

    Raises:
        ValueError: an unknown name, an empty grid, or one that does not hold `keep` patches.
    """
    check_choice("image reduction", name, ImageReduction)
    if name == "none":
        return None
    return {"random": random_keep, "grid": grid_keep, "block": block_keep}[name](grid, keep, key=key)


def take_patches(patches: Float[Array, "patches dim"], kept: Int[Array, " kept"]) -> Float[Array, "kept dim"]:
    """The patches at the kept positions, in the order of `kept`.

    Args:
        patches: all patches of one image, or their embeddings with positions added.
        kept: positions, each below the number of patches.

    Returns:
        One row per kept position.
    """
    return patches[kept]


def resize_image(
    pixels: Float[Array, "height width channels"], size: int | tuple[int, int], *, method: Interpolation = "bilinear"
) -> Float[Array, "new_height new_width channels"]:
    """Resize one image, low-pass filtered when it shrinks.

    Resizing is the reduction that CLIPA found best for images. The aspect is not kept. Bicubic values may leave the
    range of the input; they are not clipped.

    Args:
        pixels: the image, channels last, on any scale.
        size: new side in pixels, or new height and width; each at least 1.
        method: interpolation kernel.

    Returns:
        The image at the new size, in the input's dtype.

    Raises:
        ValueError: a size below 1, or an unknown method.
    """
    height, width = (size, size) if isinstance(size, int) else size
    check_at_least("image height", height, 1)
    check_at_least("image width", width, 1)
    check_choice("method", method, Interpolation)
    return jax.image.resize(pixels, (height, width, pixels.shape[2]), method, antialias=True)


def _check_keep(grid: tuple[int, int], keep: int) -> None:
    rows, cols = grid
    check_at_least("rows of the patch grid", rows, 1)
    check_at_least("cols of the patch grid", cols, 1)
    check_at_least("keep", keep, 1)
    if keep > rows * cols:
        raise ValueError(
            f"keep={keep} is more than the {rows * cols} patches of a {rows}x{cols} grid; keep at most {rows * cols}."
        )


def _cell_counts(grid: tuple[int, int], keep: int) -> tuple[int, int]:
    """Cells along each side: at most `keep` in all, near square, none below 2x2 where the grid has 2."""
    most = tuple(max(1, side // 2) for side in grid)
    cell_side = math.sqrt(grid[0] * grid[1] / keep)
    candidates: list[tuple[int, int]] = []
    for axis, other in ((0, 1), (1, 0)):
        for count in (math.floor(grid[axis] / cell_side), math.ceil(grid[axis] / cell_side)):
            along = min(max(count, 1), most[axis], keep)
            across = min(keep // along, most[other])
            candidates.append((along, across) if axis == 0 else (across, along))
    return min(candidates, key=lambda n: (-n[0] * n[1], _elongation(grid[0] * n[1], grid[1] * n[0])))


def _band_sizes(side: int, num_bands: int) -> np.ndarray:
    """How many rows (or columns) each band has when a side is cut into near-equal bands."""
    return np.bincount(np.arange(side) * num_bands // side, minlength=num_bands)


def _window(grid: tuple[int, int], keep: int) -> tuple[int, int]:
    """Height and width of the rectangle that holds `keep` patches; only its last row may be partly empty."""
    rows, cols = grid
    windows = [(height, -(-keep // height)) for height in range(1, min(rows, keep) + 1)]
    fitting = [(height, width) for height, width in windows if width <= cols and (height - 1) * width < keep]

    def cost(window: tuple[int, int]) -> tuple[bool, float]:
        height, width = window
        is_full = height * width == keep and _elongation(height, width) <= 2
        return not is_full, _elongation(height, width)

    return min(fitting, key=cost)


def _elongation(height: int, width: int) -> float:
    return max(height, width) / min(height, width)
