"""Tiles and scaling, against sums and matrices written out in float64."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdae.errors import InputError
from jaxdae.tiling import (
    WINDOW_PIXELS,
    Blend,
    Grid,
    crop,
    cut,
    fit,
    pad,
    resize,
    tiled,
    unfit,
    windows,
)

sides = st.integers(1, 40)
tiles = st.integers(1, 12)


def draw(n, height, width, channels, seed=0):
    return np.random.default_rng(seed).random((n, height, width, channels), np.float32)


def overlaps(tile):
    return st.none() | st.tuples(*(st.integers(0, t - 1) for t in tile))


@given(sides, sides, tiles, tiles, st.integers(1, 3), st.data())
def test_a_network_that_changes_nothing_changes_nothing(height, width, th, tw, channels, data):
    images = draw(2, height, width, channels)
    overlap = data.draw(overlaps((th, tw)))
    restored = tiled(lambda tiles: tiles, images, (th, tw), overlap)
    assert restored.dtype == np.float32
    np.testing.assert_allclose(restored, images, atol=1e-6)


@given(sides, sides, tiles, tiles, st.data())
def test_weights_cover_every_pixel_with_one(height, width, th, tw, data):
    height, width = max(height, th), max(width, tw)
    overlap = data.draw(overlaps((th, tw)))
    grid = Grid((height, width), (th, tw), overlap)
    total = np.zeros((height, width))
    for top, down in zip(grid.rows, grid.weights[0], strict=True):
        for left, along in zip(grid.columns, grid.weights[1], strict=True):
            total[top : top + th, left : left + tw] += np.outer(down, along)
    np.testing.assert_allclose(total, 1, atol=1e-12)
    least = (th // 2, tw // 2) if overlap is None else overlap
    for starts, tile, side, shared in zip(
        (grid.rows, grid.columns), (th, tw), (height, width), least, strict=True
    ):
        assert starts[0] == 0 and starts[-1] == side - tile
        assert (np.diff(starts) <= tile - shared).all() and (np.diff(starts) > 0).all()


@given(st.integers(3, 30), st.integers(3, 30), st.integers(2, 9), st.integers(2, 9))
def test_any_network_is_blended_as_in_float64(height, width, th, tw):
    """A network that does something else to every tile: all of it by hand."""
    images = draw(2, height, width, 2)
    kernel = np.random.default_rng(1).random((th, tw, 2))

    def apply(tiles):
        return (tiles * kernel).astype(np.float32)[..., ::-1]

    padded = pad(images, (th, tw)).astype(np.float64)
    assert padded.shape[1] >= th and padded.shape[2] >= tw
    grid = Grid(padded.shape[1:3], (th, tw))
    total, weight = np.zeros_like(padded), np.zeros_like(padded)
    window = np.outer(*(np.sin(np.pi * (np.arange(t) + 0.5) / t) ** 2 for t in (th, tw)))
    for top in grid.rows:
        for left in grid.columns:
            at = np.s_[:, top : top + th, left : left + tw]
            total[at] += window[..., None] * (padded[at] * kernel)[..., ::-1]
            weight[at] += window[..., None]
    expected = crop(total / weight, (height, width))
    np.testing.assert_allclose(tiled(apply, images, (th, tw)), expected, atol=1e-6)


def test_rows_are_complete_one_after_the_other():
    """What a large image needs at once is a few rows of tiles."""
    images = draw(1, 50, 20, 1)
    grid = Grid((50, 20), (8, 8))
    blend, seen = Blend(grid), 0
    for row in range(len(grid.rows)):
        rows = blend.add(cut(images, grid, row))
        assert 0 < rows.shape[1] <= 8
        np.testing.assert_allclose(rows, images[:, seen : seen + rows.shape[1]], atol=1e-6)
        seen += rows.shape[1]
    assert seen == 50


def test_seams_are_smooth():
    """Two tiles that differ by 1 meet without a step larger than the window's steepest."""
    levels = iter(range(100))
    image = tiled(
        lambda tiles: np.stack([np.full((16, 16, 1), next(levels), np.float32) for _ in tiles]),
        np.zeros((1, 16, 64, 1), np.float32),
        (16, 16),
    )
    steps = np.diff(image[0, 0, :, 0])
    assert steps.min() >= 0 and steps.max() < 0.25
    assert image[0, 0, 0, 0] == 0 and image[0, 0, -1, 0] == image.max() == 6


def test_short_sides_are_reflected():
    image = np.arange(3, dtype=np.float32).reshape(1, 1, 3, 1)
    padded = pad(image, (2, 9))
    np.testing.assert_array_equal(padded[0, 0, :, 0], [1, 2, 1, 0, 1, 2, 1, 0, 1])
    np.testing.assert_array_equal(padded[0, 0], padded[0, 1])
    np.testing.assert_array_equal(crop(padded, (1, 3)), image)
    large = draw(1, 5, 6, 1)
    assert pad(large, (5, 3)) is large


@pytest.mark.parametrize("overlap", [(4, 0), (-1, 0), (0, 9)])
def test_overlaps_that_cover_nothing_are_refused(overlap):
    with pytest.raises(InputError, match="choose an overlap"):
        tiled(lambda tiles: tiles, draw(1, 8, 8, 1), (4, 4), overlap)


@pytest.mark.parametrize(
    ("old", "new"), [((7, 9), (3, 20)), ((1, 1), (4, 3)), ((30, 5), (1, 5)), ((4, 6), (4, 6))]
)
def test_scaling_is_jaxs(old, new):
    images = draw(2, *old, 3)
    expected = jax.image.resize(images, (2, *new, 3), "linear", precision="highest")
    np.testing.assert_allclose(resize(images, new), expected, atol=1e-5)
    rows = slice(1, 3)
    np.testing.assert_allclose(resize(images, new, rows), expected[:, rows], atol=1e-5)


@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 20), st.integers(1, 20))
def test_what_fits_comes_back_whole(height, width, h, w):
    """A plain image stays as it is, to its size and colour, and the network sees nothing else."""
    images = np.full((2, height, width, 3), (0.25, 0.5, 0.75), np.float32)
    fitted = fit(images, (h, w))
    assert fitted.shape == (2, h, w, 3)
    np.testing.assert_allclose(fitted, np.broadcast_to(images[:, :1, :1], fitted.shape), atol=1e-6)
    back = unfit(fitted, (height, width))
    np.testing.assert_allclose(back, images, atol=1e-6)


def test_an_image_of_the_right_size_on_one_side_is_moved_and_no_more():
    images = draw(1, 8, 5, 1)
    fitted = fit(images, (8, 9))
    np.testing.assert_array_equal(fitted[:, :, 2:7], images)
    edge = np.concatenate([images[0, [0, -1]].ravel(), images[0, :, [0, -1]].ravel()])
    np.testing.assert_array_equal(fitted[0, :, [0, 1, 7, 8]], np.float32(np.median(edge)))
    np.testing.assert_array_equal(unfit(fitted, (8, 5)), images)


def test_the_ratio_of_the_sides_is_kept():
    """A disc in a wide image stays one."""
    y, x = np.mgrid[:60, :120]
    disc = ((y - 29.5) ** 2 + (x - 59.5) ** 2 < 20**2).astype(np.float32)[None, ..., None]
    fitted = fit(disc, (28, 28))[0, ..., 0]
    down, along = (fitted.max(axis) > 0.5 for axis in (1, 0))
    assert down.sum() == along.sum() == pytest.approx(40 * 28 / 120, abs=1)
    assert fitted[:7].max() == fitted[-7:].max() == 0  # the border's colour
    np.testing.assert_allclose(
        unfit(fitted[None, ..., None], (60, 120)).mean(), disc.mean(), rtol=0.1
    )


@given(sides, sides, st.integers(0, 3), st.integers(1, 4), st.integers(1, 600))
def test_windows_keep_each_pixel_once_and_far_from_their_edges(height, width, reach, stride, most):
    size = (3 * height, 2 * width)
    found = windows(size, reach, stride, most)
    kept = np.zeros(size, int)
    for read, inner, inside in found:
        kept[inner] += 1
        for side, r, k, i in zip(size, read, inner, inside, strict=True):
            assert r.start % stride == 0 and (r.stop - side) % stride == 0
            assert k.start - r.start == i.start and k.stop - r.start == i.stop
            assert r.start == 0 or k.start - r.start >= reach
            assert r.stop == side or r.stop - k.stop >= reach
    assert (kept == 1).all()
    shapes = {tuple(r.stop - r.start for r in window.read) for window in found}
    assert len(shapes) == 1
    # A side of four times the reach is always possible.
    least = [min(side, 4 * reach + 3 * stride) for side in size]
    assert np.prod(shapes.pop()) <= max(most, np.prod(least))


def test_windows_of_large_images_read_little_more_than_the_image():
    for size in ((3000, 4000), (2848, 4272), (6000, 8000), (10000, 10000), (800, 200000)):
        found = windows(size, 121, 8)
        area = [np.prod([side.stop - side.start for side in window.read]) for window in found]
        assert max(area) <= WINDOW_PIXELS and sum(area) < 1.3 * np.prod(size)
    assert len(windows((1000, 1500), 121, 8)) == 1
