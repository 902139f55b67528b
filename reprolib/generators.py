"""Data made by rule, so that the truth behind them is known: glyphs, textures, graphs; each from a numpy Generator."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import scipy.sparse as sp
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.font_manager import FontProperties
from matplotlib.path import Path as Outline
from matplotlib.textpath import TextPath
from matplotlib.transforms import Affine2D
from numpy.typing import NDArray

Array = NDArray[np.float64]
Indices = NDArray[np.int64]
FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSansMono", "DejaVuSans-Oblique")
CAPITAL = 0.729  # height of their capitals, in units of the font size


class Glyphs(NamedTuple):
    """What each of N images shows, one entry an image; to hold a factor fixed or to vary it alone, ``_replace`` it."""

    character: NDArray[np.str_]
    font: Indices  # index into FONTS
    shift: Array  # (N, 2) right and up, as fractions of the image
    rotation: Array  # degrees, counter-clockwise
    scale: Array  # height of a capital, as a fraction of the image
    jitter: Array  # standard deviation of the outline's points, as a fraction of a capital's height
    background: Array  # grey level behind the glyph, in [0, 1); the glyph is 1


def sample_glyphs(n: int, rng: np.random.Generator, characters: str = "0123456789", level: float = 1.0) -> Glyphs:
    """Factors of n images, independent and uniform; ``level`` scales the nuisance (0: upright, centred, clean).

    At level 1: shift ±0.1, rotation ±20 degrees, scale 0.5 to 0.7, jitter up to 0.02, background up to 0.3.

    Raises:
        ValueError: No image, no character, or a level outside [0, 3].
    """
    if n < 1 or not characters or not 0 <= level <= 3:
        raise ValueError(f"n and characters must not be empty, level in [0, 3]; got {n}, {characters!r}, {level}.")
    character, font = rng.choice(list(characters), n), rng.integers(len(FONTS), size=n)
    u, s = level * rng.uniform(-1, 1, (n, 4)), level * rng.uniform(0, 1, (n, 2))
    return Glyphs(character, font, 0.1 * u[:, :2], 20 * u[:, 2], 0.6 + 0.1 * u[:, 3], 0.02 * s[:, 0], 0.3 * s[:, 1])


def draw_glyphs(factors: Glyphs, size: int = 28, seed: int = 0) -> NDArray[np.float32]:
    """Grey images (N, size, size) in [0, 1], anti-aliased: the share of each pixel that the glyph covers.

    One factor changes nothing else: the directions of the jitter come from ``seed`` and the place n alone.

    Raises:
        ValueError: The size is below 4, or a background outside [0, 1).
    """
    if size < 4 or not ((factors.background >= 0) & (factors.background < 1)).all():
        raise ValueError(f"size must be at least 4 and background in [0, 1); got {size}, {factors.background}.")
    images = np.empty((len(factors.font), size, size), np.float32)
    for i, (character, font, shift, rotation, scale, jitter, background) in enumerate(zip(*factors, strict=True)):
        points = letter(str(character), FONTS[font])
        noise = jitter * np.random.default_rng([seed, i]).standard_normal(np.shape(points.vertices))
        place = Affine2D().rotate_deg(rotation).scale(scale * size).translate(*(size * (0.5 + shift)))
        outline = Outline(place.transform(points.vertices + noise), points.codes)
        images[i] = background + (1 - background) * _coverage(outline, size)
    return images


@cache
def letter(character: str, font: str) -> Outline:
    """The outline of a character of one of FONTS, centred on the origin, where a capital has height 1."""
    file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{font}.ttf"
    path = TextPath((0, 0), character, size=1, prop=FontProperties(fname=str(file)))
    box = path.get_extents()
    return Outline((path.vertices - (box.p0 + box.p1) / 2) / CAPITAL, path.codes)


def _coverage(outline: Outline, size: int) -> Array:
    renderer = RendererAgg(size, size, 72)
    gc = renderer.new_gc()
    gc.set_linewidth(0)
    renderer.draw_path(gc, outline, Affine2D(), (1.0, 1.0, 1.0))
    return np.asarray(renderer.buffer_rgba())[..., 3] / 255


def power_law(size: int, alpha: float) -> Array:
    """Power spectrum (size, size) proportional to 1/f^alpha, f the radial frequency; nothing at f = 0; sum 1."""
    f = frequencies(size)
    power = np.where(f > 0, np.maximum(f, 1 / size) ** -alpha, 0.0)
    return power / power.sum()


def band_pass(size: int, low: float, high: float) -> Array:
    """Power spectrum (size, size), flat where low <= f <= high (cycles a pixel), nothing elsewhere and at 0; sum 1.

    Raises:
        ValueError: No frequency lies in the band.
    """
    f = frequencies(size)
    inside = (f >= low) & (f <= high) & (f > 0)
    if not inside.any():
        raise ValueError(f"low..high must hold a frequency of a {size}x{size} image; got {low}..{high}.")
    return inside / inside.sum()


def frequencies(size: int) -> Array:
    """Radial frequency (size, size) in cycles a pixel, in the order of ``numpy.fft``."""
    f = np.fft.fftfreq(size)
    return np.hypot(f[:, None], f[None, :])


def textures(spectrum: Array, n: int, rng: np.random.Generator) -> Array:
    r"""Random-phase textures (n, S, S), each with exactly the given power spectrum.

    .. math:: |\hat x_k|^2 = S^4 P_k, \quad \text{so that the mean of } x^2 \text{ is } \textstyle\sum_k P_k

    Args:
        spectrum: P (S, S) in the order of ``numpy.fft``, not negative, with P_k = P_{-k}; as of :func:`power_law`.

    Raises:
        ValueError: It is none.

    Source: Galerne, Gousseau and Morel (2011), Random phase textures.
    """
    square = spectrum.ndim == 2 and len(set(spectrum.shape)) == 1
    if not square or (spectrum < 0).any() or not np.allclose(spectrum, np.roll(spectrum[::-1, ::-1], 1, (0, 1))):
        raise ValueError(f"spectrum must be (S, S), not negative, with P_k = P_-k; this {spectrum.shape} is not.")
    noise = np.fft.fft2(rng.standard_normal((n, *spectrum.shape)))  # its phases have the symmetry of a real image
    return np.fft.ifft2(noise / np.abs(noise) * np.sqrt(spectrum) * len(spectrum) ** 2).real


class Graph(NamedTuple):
    """An undirected graph without loops: number of nodes, edges (E, 2) with u < v in order, a label a node."""

    n: int
    edges: Indices
    labels: Indices

    def adjacency(self) -> sp.csr_array:
        """(n, n), symmetric, of zeros and ones."""
        u, v = np.concatenate([self.edges, self.edges[:, ::-1]]).T
        return sp.csr_array((np.ones(len(u)), (u, v)), shape=(self.n, self.n))


def _graph(joined: NDArray[np.bool_], labels: Indices | None = None) -> Graph:
    return Graph(len(joined), np.argwhere(np.triu(joined, 1)), np.zeros(len(joined), int) if labels is None else labels)


def stochastic_blocks(sizes: list[int], probabilities: Array, rng: np.random.Generator) -> Graph:
    """Stochastic block model (Holland et al. 1983): blocks a and b, the labels, are joined with probability (a, b).

    Raises:
        ValueError: ``probabilities`` is not symmetric (K, K) in [0, 1] for K sizes. Memory O(n²), as for all here.
    """
    p, k = np.asarray(probabilities, dtype=float), len(sizes)
    if p.shape != (k, k) or not ((p >= 0) & (p <= 1)).all() or not (p == p.T).all():
        raise ValueError(f"probabilities must be symmetric ({k}, {k}) in [0, 1] for {k} sizes; got {p.tolist()}.")
    labels = np.repeat(np.arange(k), sizes)
    return _graph(rng.random((len(labels), len(labels))) < p[labels[:, None], labels], labels)


def small_world(n: int, k: int, rewire: float, rng: np.random.Generator) -> Graph:
    """Watts and Strogatz (1998): a ring, k neighbours on either side, the far end of an edge moved with a probability.

    Raises:
        ValueError: k outside 1..(n-1)/2, or ``rewire`` outside [0, 1].
    """
    if not 1 <= k <= (n - 1) // 2 or not 0 <= rewire <= 1:
        raise ValueError(f"k must lie in 1..{(n - 1) // 2} and rewire in [0, 1]; got {k} and {rewire}.")
    steps = np.abs(np.arange(n)[:, None] - np.arange(n))
    joined = np.minimum(steps, n - steps) <= k  # a node counts as joined to itself until the end: it is never chosen
    for d in range(1, k + 1):
        for u in np.flatnonzero(rng.random(n) < rewire):
            if len(free := np.flatnonzero(~joined[u])):
                old, new = (u + d) % n, rng.choice(free)
                joined[u, old] = joined[old, u] = False
                joined[u, new] = joined[new, u] = True
    return _graph(joined)


def preferential_attachment(n: int, m: int, rng: np.random.Generator) -> Graph:
    """Barabasi and Albert (1999): m + 1 joined nodes, then each joins m earlier ones in proportion to their degree.

    Raises:
        ValueError: m outside 1..n-1.
    """
    if not 1 <= m < n:
        raise ValueError(f"m must lie in 1..{n - 1}; got {m}.")
    joined = np.zeros((n, n), bool)
    joined[: m + 1, : m + 1] = ~np.eye(m + 1, dtype=bool)
    degree = joined.sum(0).astype(float)
    for v in range(m + 1, n):
        chosen = rng.choice(v, m, replace=False, p=degree[:v] / degree[:v].sum())
        joined[v, chosen] = joined[chosen, v] = True
        degree[chosen] += 1
        degree[v] = m
    return _graph(joined)
