"""Computed position tables.

They are made with NumPy while a call is traced, so a compiled call holds them as constants.
"""

import numpy as np
from jaxtyping import Float


def sincos_1d(length: int, width: int) -> Float[np.ndarray, "length dim"]:
    """Sine-cosine table of a sequence: `[sin, cos]` with frequencies `10000^(-i / (width/2 - 1))`.

    As big_vision's and CLIPA-JAX's text towers; Vaswani et al. (arXiv 1706.03762) interleave the two halves.

    Args:
        length: rows.
        width: features, at least 4; the last one is 0 where the width is odd.
    """
    half = width // 2
    angles = np.arange(length)[:, None] * 10000.0 ** -(np.arange(half) / (half - 1))[None, :]
    table = np.zeros((length, width), np.float32)
    table[:, : 2 * half] = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    return table


def sincos_2d(grid: tuple[int, int], width: int) -> Float[np.ndarray, "patches dim"]:
    """Sine-cosine table of a grid, frequencies `10000^(-i / (width/4 - 1))`: big_vision's and CLIPA-JAX's form.

    Positions are whole patches counted from the top left, so a larger grid continues the table of a smaller one.

    Args:
        grid: rows and columns.
        width: features, divisible by 4 and at least 8; a row is `[sin x, cos x, sin y, cos y]`.

    Returns:
        One row per patch, row-major.
    """
    quarter = width // 4
    return _sincos_grid(grid, 10000.0 ** -(np.arange(quarter) / (quarter - 1)))


def sincos_2d_mae(grid: tuple[int, int], width: int) -> Float[np.ndarray, "patches dim"]:
    """As `sincos_2d` with frequencies `10000^(-i / (width/4))`: the form of MAE (arXiv 2111.06377) and open_clip."""
    quarter = width // 4
    return _sincos_grid(grid, 10000.0 ** -(np.arange(quarter) / quarter))


def _sincos_grid(grid: tuple[int, int], omega: Float[np.ndarray, " quarter"]) -> Float[np.ndarray, "patches dim"]:
    rows, cols = np.indices(grid)
    x, y = (position.reshape(-1, 1) * omega[None, :] for position in (cols, rows))
    return np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1).astype(np.float32)
