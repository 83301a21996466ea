"""Image token reduction: properties over many grids, counts and keys, and how often each patch is kept."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipa_eqx.reduction import block_keep, grid_keep, keep_patches, random_keep, resize_image, take_patches
from clipa_eqx.reduction._image import _cell_counts, _window


# A strip, an uneven grid, one more than three in four, and all patches.
CASES = [((1, 9), 4), ((5, 4), 16), ((4, 4), 16)]
STRATEGIES = {"random": random_keep, "grid": grid_keep, "block": block_keep}


def draw(strategy, grid, keep, *, draws, seed=0):
    """Positions of many draws, one row each."""
    keys = jax.random.split(jax.random.key(seed), draws)
    return np.asarray(jax.jit(jax.vmap(lambda key: strategy(grid, keep, key=key)))(keys))


@pytest.mark.parametrize("name", STRATEGIES)
def test_positions_are_distinct_ascending_and_inside(name):
    def draw_all(key):
        return [STRATEGIES[name](grid, keep, key=key) for grid, keep in CASES]

    results = jax.jit(jax.vmap(draw_all))(jax.random.split(jax.random.key(1), 64))
    for (grid, keep), kept in zip(CASES, results, strict=True):
        assert kept.shape == (64, keep)
        assert jnp.issubdtype(kept.dtype, jnp.integer)
        assert np.all(np.diff(kept, axis=1) > 0)
        assert kept.min() >= 0
        assert kept.max() < grid[0] * grid[1]


def assert_uniform(kept, patches):
    """Each patch is kept equally often: the largest of the normal deviates stays below 5."""
    draws, keep = kept.shape
    chance = keep / patches
    counts = np.bincount(kept.reshape(-1), minlength=patches)
    deviates = (counts - draws * chance) / np.sqrt(draws * chance * (1 - chance))
    assert np.abs(deviates).max() < 5, deviates


@pytest.mark.parametrize(
    ("strategy", "grid", "keep"),
    [(random_keep, (4, 5), 7), (grid_keep, (7, 7), 25), (grid_keep, (5, 3), 4)],
)
def test_every_patch_has_the_same_chance(strategy, grid, keep):
    assert_uniform(draw(strategy, grid, keep, draws=10_000), grid[0] * grid[1])


@pytest.mark.parametrize("keep", [49, 110])
def test_grid_draws_alike_from_each_2x2_cell(keep):
    kept = draw(grid_keep, (14, 14), keep, draws=200)
    cells = kept // 14 // 2 * 7 + kept % 14 // 2
    counts = np.stack([np.bincount(row, minlength=49) for row in cells])
    assert counts.min() == keep // 49
    assert counts.max() == -(-keep // 49)
    # Which patches of the cells, and which cells give one more, changes from draw to draw.
    assert len({row.tobytes() for row in kept}) == 200
    if keep % 49:
        assert np.all(counts.mean(axis=0) > keep // 49)


def test_grid_with_few_patches_draws_one_from_each_larger_cell():
    kept = draw(grid_keep, (12, 12), 16, draws=100)
    cells = np.sort(kept // 12 // 3 * 4 + kept % 12 // 3, axis=1)
    np.testing.assert_array_equal(cells, np.broadcast_to(np.arange(16), cells.shape))


@pytest.mark.parametrize(
    ("grid", "keep", "height", "width"),
    [((14, 14), 98, 7, 14), ((7, 8), 25, 5, 5)],
)
def test_block_is_a_full_rectangle_at_every_start(grid, keep, height, width):
    kept = draw(block_keep, grid, keep, draws=4000)
    top, left = kept[:, 0] // grid[1], kept[:, 0] % grid[1]
    inside = np.add.outer(np.arange(height) * grid[1], np.arange(width)).reshape(-1)
    np.testing.assert_array_equal(kept, (top * grid[1] + left)[:, None] + inside)
    starts = grid[0] - height + 1, grid[1] - width + 1
    assert_uniform((top * starts[1] + left)[:, None], starts[0] * starts[1])


def test_block_without_exact_rectangle_is_short_in_its_last_row_only():
    kept = draw(block_keep, (5, 6), 13, draws=4000)
    row, col = kept // 6, kept % 6
    heights = row.max(axis=1) - row.min(axis=1) + 1
    widths = col.max(axis=1) - col.min(axis=1) + 1
    assert set(heights) == {4}
    assert set(widths) == {4}
    for i in range(4):
        in_row = np.sum(row == row.min(axis=1, keepdims=True) + i, axis=1)
        assert set(in_row) == {4 if i < 3 else 1}
    assert set(kept.reshape(-1)) == set(range(30))


def test_cells_and_windows_suit_every_grid_and_count():
    sides = (1, 2, 5, 8)
    for rows, cols in itertools.product(sides, sides):
        for keep in range(1, rows * cols + 1):
            row_bands, col_bands = _cell_counts((rows, cols), keep)
            assert 1 <= row_bands <= max(1, rows // 2)
            assert 1 <= col_bands <= max(1, cols // 2)
            assert row_bands * col_bands <= keep
            height, width = _window((rows, cols), keep)
            assert height <= rows
            assert width <= cols
            assert (height - 1) * width < keep <= height * width
    cells = [(keep, _cell_counts((14, 14), keep)) for keep in (1, 9, 20, 49, 98)]
    assert cells == [(1, (1, 1)), (9, (3, 3)), (20, (4, 5)), (49, (7, 7)), (98, (7, 7))]
    assert _cell_counts((1, 20), 5) == (1, 5)
    windows = [(keep, _window((14, 14), keep)) for keep in (1, 12, 13, 49, 98, 196)]
    assert windows == [(1, (1, 1)), (12, (3, 4)), (13, (4, 4)), (49, (7, 7)), (98, (7, 14)), (196, (14, 14))]
    assert _window((2, 30), 40) == (2, 20)


def test_keep_patches_follows_the_name():
    assert keep_patches("none", (4, 4), 0, key=jax.random.key(3)) is None

    @jax.jit
    def both(key):
        return [
            (keep_patches(name, (4, 4), 5, key=key), strategy((4, 4), 5, key=key))
            for name, strategy in STRATEGIES.items()
        ]

    for by_name, expected in both(jax.random.key(3)):
        np.testing.assert_array_equal(by_name, expected)


@pytest.mark.parametrize("strategy", STRATEGIES.values())
@pytest.mark.parametrize(
    ("grid", "keep", "message"),
    [
        ((4, 5), 21, "keep=21 is more than the 20 patches of a 4x5 grid"),
        ((4, 5), 0, "keep must be at least 1, got 0"),
        ((0, 5), 1, "rows of the patch grid must be at least 1, got 0"),
        ((4, -1), 1, "cols of the patch grid must be at least 1, got -1"),
    ],
)
def test_impossible_counts_are_named(strategy, grid, keep, message):
    with pytest.raises(ValueError, match=message):
        strategy(grid, keep, key=jax.random.key(0))


def test_take_patches_and_its_gradient():
    patches = jnp.arange(12.0).reshape(6, 2)
    kept = jnp.array([1, 4])
    np.testing.assert_array_equal(take_patches(patches, kept), [[2.0, 3.0], [8.0, 9.0]])
    gradient = jax.grad(lambda patches: take_patches(patches, kept).sum())(patches)
    np.testing.assert_array_equal(gradient[:, 0], [0, 1, 0, 0, 1, 0])


def test_resize_averages_when_it_shrinks():
    # A checkerboard of single pixels: with a low-pass filter it becomes even grey, without one it would alias.
    board = jnp.asarray(np.indices((16, 16, 3))[:2].sum(axis=0) % 2, jnp.float32)
    small = resize_image(board, 4)
    assert small.shape == (4, 4, 3)
    np.testing.assert_allclose(small[1:-1, 1:-1], 0.5, atol=1e-5)
    # By hand: the triangle filter of a halving weighs four pixels 1, 3, 3, 1; at the border three remain.
    ramp = jnp.broadcast_to(jnp.array([0.0, 8.0, 16.0, 80.0])[None, :, None], (2, 4, 3))
    np.testing.assert_allclose(
        resize_image(ramp, (2, 2))[0, :, 0], [(0 * 3 + 8 * 3 + 16) / 7, (8 + 16 * 3 + 80 * 3) / 7]
    )


def test_resize_keeps_size_dtype_and_refuses_nonsense():
    pixels = jax.random.normal(jax.random.key(0), (6, 6, 3))
    for method in ("bilinear", "bicubic"):
        np.testing.assert_allclose(resize_image(pixels, 6, method=method), pixels, atol=1e-6)
    assert resize_image(pixels.astype(jnp.bfloat16), (3, 5), method="bicubic").dtype == jnp.bfloat16
    assert not np.allclose(resize_image(pixels, 3), resize_image(pixels, 3, method="bicubic"), atol=1e-3)
    with pytest.raises(ValueError, match="image width must be at least 1, got 0"):
        resize_image(pixels, (3, 0))


def test_resize_then_mask():
    """Reductions compose: a smaller image, cut into patches, of which a quarter is kept."""

    def reduce(pixels, key):
        small = resize_image(pixels, 8)
        patches = small.reshape(4, 2, 4, 2, 3).swapaxes(1, 2).reshape(16, 12)
        kept = random_keep((4, 4), 4, key=key)
        return patches, kept, take_patches(patches, kept)

    pixels = jax.random.uniform(jax.random.key(0), (5, 16, 16, 3))
    patches, kept, reduced = jax.jit(jax.vmap(reduce))(pixels, jax.random.split(jax.random.key(1), 5))
    assert reduced.shape == (5, 4, 12)
    np.testing.assert_array_equal(reduced, np.take_along_axis(np.asarray(patches), np.asarray(kept)[..., None], axis=1))
