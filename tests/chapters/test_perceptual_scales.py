"""The method of `perceptual-scales` against quadrature, closed forms, a peer's regression, limits and mistakes."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, special, stats
from torch import Tensor
from torch.testing import assert_close

EXACT = {"rtol": 0.0, "atol": 1e-10}


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def covariance(d: int, g: torch.Generator) -> Tensor:
    x = torch.randn(d, 3 * d, generator=g, dtype=torch.float64)
    return x @ x.mT / (3 * d)


def score_by_hand(log_density, s: float, low: float, high: float, center: float) -> float:
    """∫ (∂_s ln p)² p dx by SciPy's adaptive quadrature and a plain central difference."""
    h = 1e-5 * s

    def integrand(x):
        return ((log_density(x, s + h) - log_density(x, s - h)) / (2 * h)) ** 2 * math.exp(log_density(x, s))

    return integrate.quad(integrand, low, high, points=[center], limit=400, epsrel=1e-9)[0]


# Fisher information


@pytest.mark.parametrize("b", [0.3, 1.1, 3.0])
def test_both_lognormal_informations_are_those_of_the_density(chapter, b):
    def density(z0, octaves):
        s = octaves * math.sqrt(math.log(2) / 8)
        return lambda z: stats.lognorm.logpdf(z, s, scale=z0 * math.exp(s**2))

    s, z0 = b * math.sqrt(math.log(2) / 8), 2.5
    low, high = (z0 * math.exp(s**2 + k * s) for k in (-9, 9))
    frequency = score_by_hand(lambda z, v: density(v, b)(z), z0, low, high, z0)
    bandwidth = score_by_hand(lambda z, v: density(z0, v)(z), b, low, high, z0)
    assert chapter.information_frequency(double(z0), b).item() == pytest.approx(frequency, rel=1e-5)
    assert chapter.information_bandwidth(double(b)).item() == pytest.approx(bandwidth, rel=1e-5)


@pytest.mark.parametrize("degrees", [1.5, 6.0, 13.5, 40.0])
def test_the_orientation_information_is_that_of_the_doubled_von_mises(chapter, degrees):
    def log_density(theta, s):
        return stats.vonmises.logpdf(2 * theta, 1 / (4 * s**2)) + math.log(2)

    s = math.radians(degrees)
    reach = min(math.pi / 2, 12 * s)
    expected = score_by_hand(log_density, s, -reach, reach, 0)
    assert chapter.information_orientation(double(s)).item() == pytest.approx(expected, rel=1e-5)


def test_narrow_orientations_have_the_information_of_a_normal(chapter):
    s = double(math.radians(0.5))
    assert chapter.information_orientation(s).item() == pytest.approx(2 / s.item() ** 2, rel=2e-3)


def test_forgetting_that_the_mean_moves_is_told_apart(chapter):
    b = double(3.0)
    sigma = b * chapter.OCTAVE
    spread_only = 2 / sigma**2 * chapter.OCTAVE**2  # a plausible mistake: the 4 is missing
    assert (chapter.information_bandwidth(b) / spread_only).item() > 2
    levels = chapter.BANDWIDTH.levels()
    pure_log = (levels / levels[0]).log() / (levels[-1] / levels[0]).log()
    assert (chapter.bandwidth_scale(levels) - pure_log).abs().max() > 0.05


# Scales


def test_the_frequency_scale_is_the_logarithm(chapter):
    levels = chapter.FREQUENCY.levels()
    assert_close(chapter.FREQUENCY.scale(), (levels / 0.5).log() / math.log(7), **EXACT)


def test_the_bandwidth_scale_is_its_quadrature(chapter):
    levels = chapter.BANDWIDTH.levels()
    lengths = [
        integrate.quad(lambda b: math.sqrt(1 + 4 / (b * b * math.log(2))), 0.25, v, epsabs=1e-12)[0] for v in levels
    ]
    expected = torch.tensor(lengths, dtype=torch.float64) / lengths[-1]
    assert_close(chapter.bandwidth_scale(levels), expected, **EXACT)
    assert_close(chapter.BANDWIDTH.scale(), expected, **EXACT)


def test_constant_information_gives_a_straight_scale_whatever_its_size(chapter):
    levels = torch.linspace(2, 9, 13, dtype=torch.float64)
    for size in (1e-6, 7.0):
        psi = chapter.arc_length(lambda s, size=size: torch.full_like(s, size), levels)
        assert_close(psi, torch.linspace(0, 1, 13, dtype=torch.float64), **EXACT)


def test_unequal_steps_keep_their_lengths(chapter):
    levels = double(0.5, 0.6, 1.0, 3.5)
    expected = (levels / 0.5).log() / math.log(7)
    assert_close(chapter.arc_length(chapter.information_frequency, levels), expected, **EXACT)


def test_a_running_sum_without_its_zero_is_told_apart(chapter):
    s = chapter.FREQUENCY.levels()
    root = chapter.information_frequency(s).sqrt()
    shifted = root.cumsum(0) / root.sum()  # the mistake: no leading 0
    assert (shifted - chapter.FREQUENCY.scale()).abs().max() > 0.05


def test_the_ranges_are_those_of_the_analysis(chapter):
    for condition, low, high in (
        (chapter.FREQUENCY, 0.5, 3.5),
        (chapter.BANDWIDTH, 0.25, 3.25),
        (chapter.ORIENTATION, math.pi / 120, 13.5 * math.pi / 180),
    ):
        assert_close(condition.levels()[[0, -1]], double(low, high))
        assert len(condition.levels()) == 13


# Stimulus


def test_the_kernel_is_a_lognormal_ring_with_its_mode_over_the_plane_at_z0(chapter):
    z0, b, n = 2.5, 1.1, 512
    P = chapter.kernel(n, double(z0)[0], double(b)[0], double(50.0)[0])  # σ_θ huge: isotropic
    assert P.sum().item() == pytest.approx(1)
    radius = torch.arange(1, 200, dtype=torch.float64)
    density = (P[0, 1:200] * radius**2).numpy()  # exp(−ln²(R/ρ)/2σ²)
    sigma = b * math.sqrt(math.log(2) / 8)
    rho = z0 * chapter.WIDTH * math.exp(sigma**2)
    expected = np.exp(-(np.log(radius.numpy() / rho) ** 2) / (2 * sigma**2))
    assert_close(density / density.max(), expected / expected.max(), rtol=1e-6, atol=1e-9)
    planar = expected / radius.numpy()  # the density of R itself
    assert abs(radius[planar.argmax()].item() - z0 * chapter.WIDTH) <= 0.5


def test_an_image_is_as_wide_as_the_generator_makes_it_and_has_its_default_bandwidth(chapter):
    assert chapter.WIDTH == pytest.approx(7.8769, abs=1e-4)
    sigma = 1.1 * math.sqrt(math.log(2) / 8)
    assert chapter.information_frequency(double(2.0)).item() == pytest.approx(1 / (2 * sigma) ** 2)


def test_features_are_the_moments_over_pixels(chapter, g):
    image = 5 + 3 * torch.randn(8, 8, generator=g, dtype=torch.float64)
    mu, cov = chapter.features(image)
    assert_close(mu, image.mean()[None], **EXACT)
    assert_close(cov, image.var()[None, None] + 1e-6, **EXACT)


def test_the_kernel_prefers_one_orientation_and_both_directions(chapter):
    P = chapter.kernel(64, double(2.0)[0], double(1.0)[0], double(math.radians(5))[0])
    assert P[0, 16] > 1e6 * P[16, 0]
    assert_close(P[0, 16], P[0, -16])


def test_along_a_circle_the_kernel_is_the_doubled_von_mises(chapter):
    spread = 0.4
    P = chapter.kernel(64, double(2.0)[0], double(1.0)[0], double(spread)[0])
    for x, y in ((4, 3), (3, 4), (0, 5), (-4, 3), (5, 0)):  # all five cycles per image
        angle = math.atan2(y, x)
        expected = math.exp((math.cos(2 * angle) - 1) / (4 * spread**2))
        assert (P[y, x] / P[0, 5]).item() == pytest.approx(expected, rel=1e-9)


def test_a_bandwidth_is_the_full_width_at_half_height_in_octaves(chapter):
    b = 1.4
    R = torch.arange(1, 400, dtype=torch.float64)
    ring = chapter.kernel(1024, double(2.5)[0], double(b)[0], double(50.0)[0])[0, 1:400] * R**2
    above = R[ring > ring.max() / 2]
    assert math.log2(above[-1] / above[0]) == pytest.approx(b, abs=0.1)  # whole cycles only


def test_each_texture_of_a_batch_has_its_own_mean_and_variance(chapter, g):
    noise = torch.randn(3, 8, 8, generator=g, dtype=torch.float64) * double(1, 2, 3)[:, None, None]
    images = chapter.draw(torch.ones(8, 8, dtype=torch.float64), noise)  # power at the zero frequency too
    assert_close(images.mean((1, 2)), torch.zeros(3).double(), **EXACT)
    assert_close(images.var((1, 2), correction=0), torch.ones(3).double(), **EXACT)


def test_drawn_textures_have_the_spectrum_asked_for(chapter, g):
    P = chapter.kernel(32, double(2.0)[0], double(1.0)[0], double(0.5)[0])
    images = chapter.draw(P, torch.randn(3000, 32, 32, generator=g, dtype=torch.float64))
    assert_close(images.mean((1, 2)), torch.zeros(3000, dtype=torch.float64), **EXACT)
    assert_close(images.var((1, 2), correction=0), torch.ones(3000, dtype=torch.float64), **EXACT)
    found = torch.fft.fft2(images).abs().square().mean(0)
    strong = P > 0.2 * P.max()
    ratio = (found / found.sum())[strong] / P[strong]
    assert ratio.log().abs().max() < 0.35  # 5 standard errors of a mean of 3,000 exponentials, and the scaling


# Difference scaling


def test_there_are_81_triads_with_gaps_of_one_to_three(chapter):
    by_hand = {
        (i, j, k) for i in range(13) for j in range(i + 1, 13) for k in range(j + 1, 13) if j - i <= 3 and k - j <= 3
    }
    assert len(chapter.TRIADS) == len(by_hand) == 81 and set(chapter.TRIADS) == by_hand
    for row, (i, j, k) in zip(chapter.contrasts(), chapter.TRIADS, strict=True):
        assert row[i] == row[k] == 1 and row[j] == -2 and row.abs().sum() == 4


def test_one_means_that_the_second_gap_is_felt_smaller(chapter):
    psi = double(*np.linspace(0, 1, 13) ** 0.3)  # concave: of equal gaps the second is smaller
    p = chapter.response_probability(psi, double(0.1)[0])
    equal = [t for t, (i, j, k) in enumerate(chapter.TRIADS) if j - i == k - j]
    assert (p[equal] > 0.5).all()
    t = chapter.TRIADS.index((0, 1, 2))
    expected = special.ndtr(-(psi[2] - 2 * psi[1] + psi[0]).item() / 0.1)
    assert p[t].item() == pytest.approx(expected, abs=1e-12)


def test_responses_have_their_probability(chapter, g):
    psi = chapter.ORIENTATION.scale()
    p = chapter.response_probability(psi, double(0.25)[0])
    share = chapter.respond(psi.expand(4000, 13), torch.full((4000,), 0.25).double(), 5, g).mean(0) / 5
    assert ((share - p).abs() < 5 * (p * (1 - p) / 20_000).sqrt() + 1e-4).all()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_fit_is_the_probit_regression_of_statsmodels_where_no_increment_is_at_zero(chapter, g):
    sm = pytest.importorskip("statsmodels.api")
    psi = double(*np.linspace(0, 1, 13) ** 0.8)
    k = chapter.respond(psi[None], double(0.15), 400, g)
    found = chapter.fit_scale(k, 400)
    assert (found.psi.diff() > 0.005).all()
    X = -chapter.contrasts()[:, 1:].numpy()
    counts = np.stack([k[0].numpy(), 400 - k[0].numpy()], 1)
    f = sm.GLM(counts, X, family=sm.families.Binomial(sm.families.links.Probit())).fit().params
    assert found.sigma.item() == pytest.approx(1 / f[-1], rel=1e-5)
    assert_close(found.psi[0, 1:], torch.from_numpy(f / f[-1]), rtol=0, atol=1e-6)


def test_the_fit_meets_the_optimality_conditions_with_active_constraints(chapter, g):
    psi = double(*[0, 0, 0, 0.2, 0.2, 0.2, 0.6, 0.6, 0.6, 0.8, 0.8, 1, 1])
    k = chapter.respond(psi.expand(20, 13), torch.full((20,), 0.2).double(), 5, g)
    found = chapter.fit_scale(k, 5)
    d = found.psi.diff(dim=1) / found.sigma[:, None]
    assert (d >= 0).all() and (d == 0).any()
    eta = (d @ chapter.design().T).requires_grad_()
    loss = (k * torch.special.log_ndtr(eta) + (5 - k) * torch.special.log_ndtr(-eta)).sum()
    slope = torch.autograd.grad(loss, eta)[0] @ chapter.design()
    assert slope.max() < 1e-6 and (slope * d).abs().max() < 1e-6


def test_slope_and_curvature_are_the_derivatives_of_the_likelihood(chapter, g):
    X, d = chapter.design(), torch.rand(12, generator=g, dtype=torch.float64)
    k = torch.randint(0, 6, (81,), generator=g).double()
    slope, curvature = chapter.slope_and_curvature(X, d, k, 5)

    def value(d: Tensor) -> Tensor:
        return chapter.log_likelihood(X, d, k, 5)

    assert_close(slope, torch.autograd.functional.jacobian(value, d), rtol=1e-8, atol=1e-8)
    hessian = torch.autograd.functional.hessian(value, d)
    assert_close(curvature, -hessian, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("estimator", ["fit_scale", "fit_official"])
def test_without_sampling_noise_both_estimators_return_the_truth(chapter, estimator):
    psi = chapter.BANDWIDTH.scale()
    k = 1e6 * chapter.response_probability(psi, double(0.25)[0])[None]
    found = getattr(chapter, estimator)(k, 1e6)
    assert_close(found.psi[0], psi, rtol=0, atol=1e-6)
    assert found.sigma.item() == pytest.approx(0.25, abs=1e-6)


@pytest.mark.parametrize("variable", ["FREQUENCY", "BANDWIDTH", "ORIENTATION"])
def test_the_fit_stops_at_the_maximum_itself_and_not_where_rounding_hides_the_ascent(chapter, variable):
    psi, sigma = getattr(chapter, variable).scale(), torch.linspace(0.1, 0.4, 31, dtype=torch.float64)
    found = chapter.fit_scale(1000 * chapter.response_probability(psi.expand(31, 13), sigma), 1000)
    assert_close(found.psi, psi.expand(31, 13), rtol=0, atol=1e-12)
    assert_close(found.sigma, sigma, rtol=1e-12, atol=0)


def test_answers_without_a_contradiction_have_no_most_likely_noise(chapter):
    sure = 5.0 * (chapter.response_probability(chapter.FREQUENCY.scale()[None], double(0.1)) > 0.5)
    with pytest.raises(ValueError, match=r"No convergence in 60 Newton steps .*: separable data\?"):
        chapter.fit_scale(sure, 5)


def test_the_official_fit_clips_and_stays_increasing(chapter, g):
    psi = chapter.FREQUENCY.scale()
    k = chapter.respond(psi.expand(5, 13), torch.full((5,), 0.1).double(), 5, g)
    found = chapter.fit_official(k, 5)
    assert (found.psi.diff(dim=1) >= 0).all()
    p = (k[0] / 5).clamp(1e-3, 1 - 1e-3)
    f = found.psi[0] / found.sigma[0]
    residual = chapter.contrasts() @ f - torch.special.ndtri(1 - p)
    slope = residual @ (chapter.contrasts()[:, 1:] @ torch.ones(12, 12).double().tril())
    assert slope.min() > -1e-6 and (slope * f.diff()).abs().max() < 1e-6  # Kuhn–Tucker of least squares


def test_counting_the_answers_the_wrong_way_round_bends_the_scale_wrongly(chapter, g):
    psi = chapter.FREQUENCY.scale()
    k = chapter.respond(psi[None], double(0.2), 100, g)
    w = torch.linspace(0, 1, 13, dtype=torch.float64)
    assert (chapter.fit_scale(k, 100).psi[0] - psi).abs().max() < 0.05
    assert (chapter.fit_scale(100 - k, 100).psi[0] - w)[6] < 0  # the mistake: 1 taken for "second larger"


def test_the_noise_of_a_given_scale_is_the_best_on_a_grid(chapter, g):
    psi = chapter.FREQUENCY.scale()
    k = chapter.respond(psi[None], double(0.25), 5, g)
    best = chapter.fit_noise(psi, k, 5).item()
    p = chapter.response_probability(psi.expand(2001, 13), torch.linspace(0.1, 0.6, 2001, dtype=torch.float64))
    grid = (k * p.log() + (5 - k) * (1 - p).log()).sum(1)
    assert grid.max() <= best + 1e-9 and best == pytest.approx(grid.max().item(), abs=1e-3)


def test_the_matching_score_is_one_zero_and_negative_where_it_should(chapter):
    w = torch.linspace(0, 1, 13, dtype=torch.float64)
    psi = w**0.5
    assert chapter.matching_score(psi, psi).item() == pytest.approx(1)
    assert chapter.matching_score(psi, w).item() == pytest.approx(0)
    assert chapter.matching_score(psi, w**2).item() < 0
    assert chapter.matching_score(w**2, w**2).item() == pytest.approx(1)  # a convex scale counts as well
    assert chapter.matching_score(psi, w + 3 * (psi - w)).item() == pytest.approx(3)  # not bounded by one


def test_the_matching_score_of_a_crossing_curve_and_of_a_batch(chapter):
    w = torch.linspace(0, 1, 13, dtype=torch.float64)
    wave = w + 0.1 * (2 * math.pi * w).sin()  # above the diagonal, then below: signed areas cancel
    psi = torch.stack([wave, w**0.5])
    by_hand = []
    for m, t in zip(psi.tolist(), psi.flip(0).tolist(), strict=True):
        area = sum(abs(a - v) for a, v in zip(m, w.tolist(), strict=True))
        side = sum((b - v) * np.sign(round(a - v, 12)) for a, b, v in zip(m, t, w.tolist(), strict=True))
        by_hand.append(side / area)
    assert_close(chapter.matching_score(psi, psi.flip(0)), double(*by_hand), rtol=0, atol=1e-9)
    assert chapter.matching_score(psi, psi).tolist() == pytest.approx([1, 1])


# Between textures


def test_the_path_is_the_geodesic_of_the_transport_map(chapter, g):
    A, B = covariance(4, g), covariance(4, g)
    zero = torch.zeros(4, dtype=torch.float64)
    t = double(0, 0.35, 1)
    found, _ = chapter.path(chapter.Gaussian(zero, A), chapter.Gaussian(zero, B), t)
    from scipy.linalg import sqrtm

    ra = sqrtm(A.numpy()).real
    T = np.linalg.inv(ra) @ sqrtm(ra @ B.numpy() @ ra).real @ np.linalg.inv(ra)  # optimal map from A to B
    for v, cov in zip(t.tolist(), found, strict=True):
        push = (1 - v) * np.eye(4) + v * T
        assert_close(cov, torch.from_numpy(push @ A.numpy() @ push), rtol=0, atol=1e-8)


def test_the_transposed_product_does_not_start_at_a(chapter, g):
    A, B = covariance(4, g), covariance(4, g)
    SB = chapter.root(B)
    Q = torch.linalg.solve(SB, chapter.root(SB @ A @ SB))
    assert_close(Q @ Q.mT, A, **EXACT)
    assert (Q.mT @ Q - A).abs().max() > 0.05  # the mistake of the released code


def test_the_rate_is_the_derivative_of_the_path(chapter, g):
    zero = torch.zeros(3, dtype=torch.float64)
    A, B = (chapter.Gaussian(zero, covariance(3, g)) for _ in range(2))
    t, h = double(0.0, 0.4, 0.9), 1e-5
    _, rate = chapter.path(A, B, t)
    expected = (chapter.path(A, B, t + h)[0] - chapter.path(A, B, t - h)[0]) / (2 * h)
    assert_close(rate, expected, rtol=1e-6, atol=1e-8)


def test_the_information_is_the_curvature_of_the_kl_divergence(chapter, g):
    A, B = (chapter.Gaussian(torch.randn(3, generator=g, dtype=torch.float64), covariance(3, g)) for _ in range(2))

    def normal(t: float) -> torch.distributions.MultivariateNormal:
        cov = chapter.path(A, B, double(t))[0][0]
        return torch.distributions.MultivariateNormal((1 - t) * A.mu + t * B.mu, cov)

    h = 1e-3
    kl = sum(torch.distributions.kl_divergence(normal(0.4), normal(0.4 + s * h)) for s in (-1, 1))
    assert chapter.information_path(A, B)(double(0.4)).item() == pytest.approx((kl / h**2).item(), rel=1e-4)


def test_commuting_covariances_give_the_spectrums_formula(chapter, g):
    PA, PB = torch.rand(2, 3, 4, generator=g, dtype=torch.float64) + 0.1
    zero, t = torch.zeros(11, dtype=torch.float64), double(0, 0.2, 0.8)
    pair = (chapter.Gaussian(zero, torch.diag(P.flatten()[1:])) for P in (PA, PB))
    assert_close(chapter.information_path(*pair)(t), chapter.information_spectrum(PA, PB)(t), **EXACT)


def test_grey_values_of_equal_mean_follow_the_logarithm_of_their_spread(chapter):
    A, B = (chapter.Gaussian(torch.zeros(1).double(), double(v)[:, None]) for v in (400.0, 2500.0))
    w = torch.linspace(0, 1, 13, dtype=torch.float64)
    psi = chapter.arc_length(chapter.information_path(A, B), w)
    assert_close(psi, ((20 + 30 * w) / 20).log() / math.log(2.5), **EXACT)


def test_the_filters_tile_the_frequencies_and_leave_images_real(chapter, g):
    H = chapter.filters(32, 3, 4)
    assert H.shape == (14, 32, 32)
    assert_close(H.square().sum(0), torch.ones(32, 32, dtype=torch.float64), **EXACT)
    spectrum = torch.fft.fft2(torch.randn(32, 32, generator=g, dtype=torch.float64))
    spectrum[16], spectrum[:, 16] = 0, 0  # the highest frequency has no partner of opposite sign
    image = torch.fft.ifft2(spectrum).real
    assert torch.fft.ifft2(spectrum * H).imag.abs().max() < 1e-12
    energy = chapter.features(image, H).cov.diagonal() - 1e-6
    assert (energy.sum() * (1023 / 1024)).item() == pytest.approx(image.var(correction=0).item(), rel=1e-6)


def test_bands_lie_an_octave_apart_with_cubed_cosines_in_orientation(chapter):
    n = 64
    H = chapter.filters(n, 3, 4)
    turn = [abs(math.cos(math.pi * o / 4)) ** 3 for o in range(4)]
    expected = double(*turn) / math.sqrt(sum(v * v for v in turn))
    for scale, x in enumerate((n // 4, n // 8, n // 16)):  # centres: 1/4, 1/8, 1/16 cycles a pixel
        assert_close(H[1 + 4 * scale : 5 + 4 * scale, 0, x], expected, **EXACT)


def test_the_periodogram_keeps_the_variance_and_drops_the_mean(chapter, g):
    image = 127 + torch.randn(16, 16, generator=g, dtype=torch.float64)
    P = chapter.periodogram(image)
    assert P.mean().item() == pytest.approx(image.var(correction=0).item() + 1e-6)
    assert P[0, 0].item() == pytest.approx(1e-6, abs=1e-9)


def test_the_image_information_of_a_scaled_spectrum_counts_the_modes(chapter):
    shape = torch.rand(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 0.5
    information = chapter.information_image(lambda s: s * shape, 1e-2)  # ∂ ln(P + n) = 1/s: the floor follows P
    assert_close(information(double(0.5, 2.0)), 32 / double(0.5, 2.0) ** 2, rtol=1e-6, atol=0)


# What is refused


def test_bad_input_is_refused_in_words(chapter):
    with pytest.raises(ValueError, match="increasing row"):
        chapter.arc_length(torch.ones_like, double(1, 3, 2))
    with pytest.raises(ValueError, match="zero along the whole path"):
        chapter.arc_length(torch.zeros_like, double(1, 2, 3))
    with pytest.raises(ValueError, match="radians"):
        chapter.information_orientation(double(5.0))
    with pytest.raises(ValueError, match="between 0 and n"):
        chapter.fit_scale(torch.full((1, 81), 6.0).double(), 5)
    for fit in (chapter.fit_official, chapter.fit_scale):
        with pytest.raises(ValueError, match="no increment"):  # coins fallen evenly hold no scale
            fit(torch.full((1, 81), 2.5).double(), 5)
    with pytest.raises(ValueError, match="positive definite"):
        chapter.root(torch.diag(double(1, -1)))
    with pytest.raises(ValueError, match="floor must be positive"):
        chapter.information_image(torch.ones_like, 0.0)
    with pytest.raises(ValueError, match="No convergence in 1 Newton"):
        k = chapter.respond(chapter.FREQUENCY.scale()[None], double(0.2), 5, torch.Generator().manual_seed(0))
        chapter.fit_probit(chapter.design(), k, 5, torch.full((12,), 0.5).double(), steps=1)
