"""Generated data have the properties they are made for: coverage, spectra, edge counts and densities."""

import numpy as np
import pytest
from matplotlib.transforms import Affine2D
from numpy.testing import assert_allclose, assert_array_equal

from reprolib.generators import (
    FONTS,
    Graph,
    band_pass,
    draw_glyphs,
    frequencies,
    letter,
    power_law,
    preferential_attachment,
    sample_glyphs,
    small_world,
    stochastic_blocks,
    textures,
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def area(character: str, font: str) -> float:
    """Of the glyph, by the shoelace formula over its outline at high resolution; holes turn the other way round."""
    polygons = letter(character, font).transformed(Affine2D().scale(2000)).to_polygons(closed_only=True)
    cross = (np.sum(p[:-1, 0] * p[1:, 1] - p[1:, 0] * p[:-1, 1]) / 2 for p in polygons)
    return abs(sum(cross)) / 2000**2


@pytest.mark.parametrize("character", "1Bg8")
def test_a_glyph_covers_its_area_whatever_its_place_and_turn(character):
    factors = sample_glyphs(24, rng(), character)._replace(jitter=np.zeros(24), background=np.zeros(24))
    found = draw_glyphs(factors, 64).mean((1, 2))
    expected = np.array([area(character, FONTS[f]) * s**2 for f, s in zip(factors.font, factors.scale, strict=True)])
    assert_allclose(found, expected, rtol=0.01)  # grey levels are rounded to 1/255, curves drawn as short chords


def test_a_capital_is_as_high_as_its_scale_and_stands_where_it_is_put():
    factors = sample_glyphs(2, rng(), "H", level=0)._replace(scale=np.array([0.5, 0.75]), font=np.array([0, 0]))
    factors = factors._replace(shift=np.array([[0, 0], [0.125, -0.0625]]))
    x = draw_glyphs(factors, 64)
    rows, columns = (np.flatnonzero(x[0].max(axis) > 0.5) for axis in (1, 0))
    assert (len(rows), rows.mean(), columns.mean()) == (32, 31.5, 31.5)
    rows, columns = (np.flatnonzero(x[1].max(axis) > 0.5) for axis in (1, 0))
    assert (len(rows), rows.mean(), columns.mean()) == (48, 31.5 + 4, 31.5 + 8)  # right, and down as -0.0625 is up


def test_turning_by_ninety_degrees_is_turning_the_image_counter_clockwise():
    upright = sample_glyphs(3, rng(1), "G", level=0)
    turned = upright._replace(rotation=np.full(3, 90.0))
    assert_allclose(draw_glyphs(turned), np.rot90(draw_glyphs(upright), axes=(1, 2)), atol=2 / 255)


def test_one_factor_changes_nothing_else():
    factors = sample_glyphs(8, rng(2), "ABC")
    images = draw_glyphs(factors)
    lighter = draw_glyphs(factors._replace(background=factors.background + 0.1))
    glyph = (images - factors.background[:, None, None]) / (1 - factors.background[:, None, None])
    again = (lighter - factors.background[:, None, None] - 0.1) / (0.9 - factors.background[:, None, None])
    assert_allclose(again, glyph, atol=1e-6)
    other = factors._replace(character=np.array(["B", *factors.character[1:]]))
    assert_array_equal(draw_glyphs(other)[1:], images[1:])
    assert not np.array_equal(draw_glyphs(factors, seed=1), images)
    assert images.dtype == np.float32 and images.shape == (8, 28, 28) and images.min() >= 0 and images.max() <= 1


def test_sampled_factors_fill_their_ranges_independently():
    f = sample_glyphs(4000, rng(3))
    table = np.column_stack([f.font, f.shift, f.rotation, f.scale, f.jitter, f.background])
    ends = np.array([[0, 5], [-0.1, 0.1], [-0.1, 0.1], [-20, 20], [0.5, 0.7], [0, 0.02], [0, 0.3]])
    assert (table >= ends[:, 0]).all() and (table <= ends[:, 1]).all()
    assert_allclose(table.mean(0), ends.mean(1), atol=5 * 0.3 / 4000**0.5 * np.ptp(ends, axis=1).max())
    off = np.corrcoef(table.T)[~np.eye(7, dtype=bool)]
    assert np.abs(off).max() < 5 / 4000**0.5  # five standard errors of a correlation
    assert set(f.character) == set("0123456789")
    assert (sample_glyphs(5, rng(), level=0).rotation == 0).all()


@pytest.mark.parametrize("size", [32, 33])
@pytest.mark.parametrize("alpha", [0.0, 1.0, 2.0, 3.5])
def test_a_texture_has_exactly_its_power_spectrum_and_so_its_slope(size, alpha):
    x = textures(power_law(size, alpha), 3, rng(4))
    assert_allclose(x.mean((1, 2)), 0, atol=1e-14)
    assert_allclose(x.var((1, 2)), 1, rtol=1e-12)  # Parseval: the powers sum to 1
    power, f = np.abs(np.fft.fft2(x)) ** 2, frequencies(size)
    slope = [np.polyfit(np.log(f[f > 0]), np.log(p[f > 0]), 1)[0] for p in power]
    assert_allclose(slope, -alpha, atol=1e-9)
    assert np.isrealobj(x) and not np.allclose(x[0], x[1])


def test_a_band_holds_all_the_power_and_equally():
    x = textures(band_pass(40, 0.1, 0.2), 1, rng(5))[0]
    power, f = np.abs(np.fft.fft2(x)) ** 2, frequencies(40)
    inside = (f >= 0.1) & (f <= 0.2)
    assert_allclose(power[inside], 40**4 / inside.sum(), rtol=1e-10)
    assert power[~inside].max() < 1e-16 * 40**4


def plain(graph: Graph) -> np.ndarray:
    """The adjacency matrix from the edges one by one, with what every graph must satisfy."""
    matrix = np.zeros((graph.n, graph.n))
    for u, v in graph.edges:
        assert 0 <= u < v < graph.n and matrix[u, v] == 0
        matrix[u, v] = matrix[v, u] = 1
    assert_array_equal(graph.adjacency().toarray(), matrix)
    assert len(graph.labels) == graph.n
    return matrix


def test_blocks_are_as_dense_as_their_probabilities():
    sizes, p = [60, 90], np.array([[0.3, 0.05], [0.05, 0.6]])
    graph = stochastic_blocks(sizes, p, rng(6))
    a, inside = plain(graph), np.repeat([0, 1], sizes)
    assert_array_equal(graph.labels, inside)
    for i, j, pairs in ((0, 0, 60 * 59 / 2), (0, 1, 60 * 90), (1, 1, 90 * 89 / 2)):
        found = a[inside == i][:, inside == j].sum() / (2 if i == j else 1)
        assert abs(found - pairs * p[i, j]) < 5 * (pairs * p[i, j] * (1 - p[i, j])) ** 0.5  # binomial


def test_certain_and_impossible_edges():
    a = plain(stochastic_blocks([3, 2], np.eye(2), rng()))
    assert_array_equal(a, np.kron(np.eye(2), np.ones((3, 3)))[:5, :5] - np.eye(5))


def clustering(a: np.ndarray) -> float:
    """Mean over nodes of the share of pairs of neighbours that are joined."""
    degree = a.sum(0)
    return float(np.mean(np.diag(a @ a @ a) / (degree * (degree - 1))))


def test_a_small_world_lies_between_the_ring_and_chance():
    n, k = 200, 4
    ring, moved, chance = (plain(small_world(n, k, p, rng(7))) for p in (0.0, 0.1, 1.0))
    assert {a.sum() for a in (ring, moved, chance)} == {2 * n * k}  # an edge moves, none is lost
    assert (ring.sum(0) == 2 * k).all()
    assert clustering(ring) == pytest.approx(3 * (2 * k - 2) / (4 * (2 * k - 1)), abs=1e-12)  # closed form
    changed = (ring > moved).sum() / 2
    assert abs(changed - 0.1 * n * k) < 5 * (n * k * 0.1 * 0.9) ** 0.5
    assert clustering(ring) > clustering(moved) > clustering(chance)
    assert abs(clustering(moved) / clustering(ring) - 0.9**3) < 0.06  # Barrat and Weigt (2000)
    assert chance.sum(0).min() >= k  # the near end of an edge stays


def test_the_smallest_ring_of_all_pairs_has_nowhere_to_move_to():
    assert_array_equal(plain(small_world(5, 2, 1.0, rng())), 1 - np.eye(5))


def test_preferential_attachment_has_its_edge_count_and_degree_law():
    n, m = 2000, 2
    graph = preferential_attachment(n, m, rng(8))
    degree = plain(graph).sum(0)
    assert len(graph.edges) == m * (m + 1) / 2 + m * (n - m - 1) and degree.min() == m
    share = [(degree == k).mean() for k in (2, 3, 4)]
    expected = [2 * m * (m + 1) / (k * (k + 1) * (k + 2)) for k in (2, 3, 4)]  # Bollobás et al. (2001)
    assert_allclose(share, expected, atol=5 * (0.25 / n) ** 0.5)
    assert degree.max() > 10 * degree.mean()  # hubs, which chance alone does not make


def test_the_same_generator_gives_the_same_data():
    for make in (
        lambda r: draw_glyphs(sample_glyphs(2, r)),
        lambda r: textures(power_law(8, 1), 2, r),
        lambda r: stochastic_blocks([9, 9], np.full((2, 2), 0.5), r).edges,
        lambda r: small_world(12, 2, 0.5, r).edges,
        lambda r: preferential_attachment(20, 2, r).edges,
    ):
        assert_array_equal(make(rng(9)), make(rng(9)))
        assert not np.array_equal(make(rng(9)), make(rng(10)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sample_glyphs(0, rng()), "n and characters must not be empty.*got 0"),
        (lambda: sample_glyphs(1, rng(), ""), "must not be empty.*''"),
        (lambda: sample_glyphs(1, rng(), level=4), r"level in \[0, 3\]; got .*4"),
        (lambda: draw_glyphs(sample_glyphs(1, rng()), 3), "size must be at least 4.*got 3"),
        (lambda: draw_glyphs(sample_glyphs(1, rng())._replace(background=np.ones(1))), r"background in \[0, 1\)"),
        (lambda: band_pass(8, 0.3, 0.2), "low..high must hold a frequency of a 8x8 image; got 0.3..0.2"),
        (lambda: textures(np.ones((2, 3)), 1, rng()), r"spectrum must be \(S, S\).*\(2, 3\) is not"),
        (lambda: textures(-np.ones((2, 2)), 1, rng()), "not negative"),
        (lambda: textures(np.arange(9.0).reshape(3, 3), 1, rng()), "P_k = P_-k"),
        (lambda: stochastic_blocks([2, 2], np.eye(3), rng()), r"symmetric \(2, 2\) in \[0, 1\] for 2 sizes"),
        (lambda: stochastic_blocks([2, 2], np.array([[0, 1], [0.5, 0]]), rng()), "must be symmetric"),
        (lambda: stochastic_blocks([2], np.array([[2.0]]), rng()), r"in \[0, 1\] for 1 sizes; got \[\[2.0\]\]"),
        (lambda: small_world(6, 3, 0.5, rng()), r"k must lie in 1\.\.2 and rewire in \[0, 1\]; got 3 and 0.5"),
        (lambda: small_world(6, 1, 1.5, rng()), "got 1 and 1.5"),
        (lambda: preferential_attachment(3, 3, rng()), r"m must lie in 1\.\.2; got 3"),
    ],
)
def test_what_makes_no_sense_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
