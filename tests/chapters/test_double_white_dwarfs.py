"""The method of `double-white-dwarfs` against time series, closed forms, published curves, limits and mistakes."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

# torch's forward-mode differentiation scripts its own rules at the first call
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

SOURCE = (0.2, 2e-4, 3e-17, 1.1, 0.4, 0.55, 0.7, 2.0)  # ln A, f, fdot, λ, β, cos ι, ψ, φ


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def one() -> Tensor:
    return vector(1.0)


def random_sources(n: int, g: torch.Generator) -> Tensor:
    """Sources of unit amplitude anywhere, none face-on."""
    u = torch.rand(8, n, generator=g, dtype=torch.float64)
    f, c = 1e-3 + 9e-3 * u[1], 1.6 * u[5] - 0.8
    sky = [2 * math.pi * u[3], (2 * u[4] - 1).asin()]
    return torch.stack([u[0], f, 1e-16 * u[2], *sky, c, math.pi * u[6], 2 * math.pi * u[7]], -1)


def correlations(gram: Tensor, like: Tensor) -> Tensor:
    size = like.diagonal(dim1=-2, dim2=-1).sqrt()
    return gram / (size[..., :, None] * size[..., None, :])


def numpy_strain(theta, t, chapter):
    """Real strain of LISA as two L-shaped interferometers, from the tilted plane; no torch, no envelope."""
    ln_a, f, fdot, lam, beta, c, psi, phi = theta
    a = 2 * np.pi * t / chapter.YEAR
    n = np.stack([-np.sqrt(3) / 2 * np.cos(a), -np.sqrt(3) / 2 * np.sin(a), 0.5 + 0 * a])
    x = np.stack([-np.sin(a), np.cos(a), 0 * a])
    y = np.cross(n, x, axis=0)
    k = np.array([np.cos(beta) * np.cos(lam), np.cos(beta) * np.sin(lam), np.sin(beta)])
    u = np.array([-np.sin(lam), np.cos(lam), 0])
    v = np.cross(k, u)
    p, q = np.cos(psi) * u + np.sin(psi) * v, np.cos(psi) * v - np.sin(psi) * u
    late = t + chapter.AU * (k[0] * np.cos(a) + k[1] * np.sin(a)) / chapter.C
    phase = 2 * np.pi * (f * late + fdot * late**2 / 2) + phi
    plus, cross = np.exp(ln_a) * (1 + c**2) / 2 * np.cos(phase), np.exp(ln_a) * c * np.sin(phase)
    px, py, qx, qy = p @ x, p @ y, q @ x, q @ y
    first = plus * (px**2 - py**2 - qx**2 + qy**2) + 2 * cross * (px * qx - py * qy)
    second = 2 * plus * (px * py - qx * qy) + 2 * cross * (px * qy + py * qx)
    return np.sqrt(3) / 4 * np.stack([first, second])


@pytest.fixture(scope="module")
def brute_force(chapter) -> Tensor:
    """Γ for S = 1 over one year of LISA from real strain and central differences."""
    t = (np.arange(200_000) + 0.5) * chapter.YEAR / 200_000
    slopes = []
    for i, h in enumerate((1e-4, 1e-11, 1e-19, 1e-5, 1e-5, 1e-4, 1e-4, 1e-4)):
        ahead, behind = np.array(SOURCE), np.array(SOURCE)
        ahead[i], behind[i] = SOURCE[i] + h, SOURCE[i] - h
        slopes.append((numpy_strain(ahead, t, chapter) - numpy_strain(behind, t, chapter)).ravel() / (2 * h))
    return torch.tensor(2 * np.stack(slopes) @ np.stack(slopes).T * (t[1] - t[0]))


def gram_of(chapter, theta: Tensor, d) -> Tensor:
    rows = chapter.scores(theta, d, torch.ones(len(theta), dtype=torch.float64))
    return rows.mT @ rows


# Source, stars, Galaxy


def test_strain_and_chirp_of_a_known_binary(chapter):
    # two stars of one sun at 1 kpc and f = 1 mHz, worked by hand in SI from G, M and c separately
    big_g, sun, c, kpc = 6.674e-11, 1.98841e30, 2.99792458e8, 3.0857e19
    chirp = 2**-0.2 * sun
    strain = 4 * (big_g * chirp) ** (5 / 3) * (math.pi * 1e-3) ** (2 / 3) / (c**4 * kpc)
    drift = 96 / 5 * math.pi ** (8 / 3) * (big_g * chirp / c**3) ** (5 / 3) * 1e-3 ** (11 / 3)
    a, fdot = chapter.strain_and_chirp(one(), one(), vector(1e-3), one())
    assert a.item() == pytest.approx(strain, rel=1e-3, abs=0) and fdot.item() == pytest.approx(drift, rel=1e-3, abs=0)


def test_the_drift_is_energy_loss_over_energy(chapter):
    # quadrupole power 32/5 G⁴ m1² m2² (m1+m2) / (c⁵ a⁵) against the orbital energy −G m1 m2 / 2a
    m1, m2, f = 0.7, 0.4, 3e-3
    gm = chapter.GM_SUN
    a = (gm * (m1 + m2) / (math.pi * f) ** 2) ** (1 / 3)
    shrink = -64 / 5 * gm**3 * m1 * m2 * (m1 + m2) / (chapter.C**5 * a**3)
    _, fdot = chapter.strain_and_chirp(vector(m1), vector(m2), vector(f), one())
    assert fdot.item() == pytest.approx(-1.5 * f * shrink / a, rel=1e-12, abs=0)
    assert chapter.separation(vector(m1), vector(m2), vector(f)).item() == pytest.approx(a / chapter.R_SUN)


def test_white_dwarfs_have_known_sizes_and_shrink_with_mass(chapter):
    size = chapter.radius(vector(0.2, 0.6, 1.0, 1.3))
    assert (size.diff() < 0).all()
    assert size[1].item() == pytest.approx(0.0125, rel=0.03)  # 0.6 suns: about 8,700 km
    ten_minutes = vector(2 / 600)
    assert bool(chapter.detached(vector(0.6), vector(0.6), ten_minutes))
    assert not bool(chapter.detached(vector(0.6), vector(0.17), vector(2e-2)))


def test_the_drawn_galaxy_follows_its_law(chapter, g):
    galaxy = chapter.draw_galaxy(200_000, g)
    f, w = galaxy.theta[:, 1], galaxy.weight
    touching = ~chapter.detached(galaxy.m1, galaxy.m2, f)
    assert (w[touching] == 0).all() and w.sum().item() == pytest.approx(1)
    share = (w * (f > 2e-4)).sum().item()
    assert share == pytest.approx(2 ** (-8 / 3), rel=0.03)  # ∫ f^(−11/3)
    assert galaxy.theta[:, 5].mean().abs() < 0.01 and galaxy.theta[:, 5].square().mean().item() == pytest.approx(
        1 / 3, rel=0.01
    )
    assert galaxy.bulge.double().mean().item() == pytest.approx(0.3, abs=0.01)


def test_the_bulge_is_where_the_galactic_centre_is(chapter, g):
    galaxy = chapter.draw_galaxy(20_000, g)
    k = chapter.towards(galaxy.theta[:, 3], galaxy.theta[:, 4])[galaxy.bulge].mean(0)
    centre = chapter.towards(vector(math.radians(266.84)), vector(math.radians(-5.54)))[0]
    assert (k / k.norm() @ centre).item() == pytest.approx(1, abs=1e-3)
    rotation = chapter.galactic_to_ecliptic()
    assert_close(rotation.T @ rotation, torch.eye(3, dtype=torch.float64))
    assert torch.linalg.det(rotation).item() == pytest.approx(1)
    pole = chapter.towards(vector(math.radians(180.02)), vector(math.radians(29.81)))[0]
    assert (rotation[:, 2] @ pole).item() == pytest.approx(1, abs=1e-4)


def test_the_galaxy_has_the_stated_shape(chapter, g):
    n = 200_000
    xyz, bulge = chapter.draw_positions(n, g)
    around = xyz - vector(8.2, 0.0, 0.0)
    disc, radius = around[~bulge], around[~bulge][:, :2].norm(dim=1)
    for values, mean in (
        (radius, 5.0),  # Γ(2, 2.5): 2 × 2.5, and 2 × 3 × 2.5²
        (radius**2, 37.5),
        (disc[:, 2].abs(), 0.3 * math.log(2)),  # sech²
        (around[bulge].square().mean(1), 0.25),
        (disc[:, 0] * disc[:, 1], 0.0),
    ):
        assert abs(values.mean() - mean) < 5 * values.std() / len(values) ** 0.5
    assert (xyz.mean(0) - vector(8.2, 0.0, 0.0)).abs().max() < 0.05


def test_masses_ages_and_angles_are_drawn_as_stated(chapter, g):
    galaxy = chapter.draw_galaxy(100_000, g)
    q = galaxy.m2 / galaxy.m1
    above_floor = galaxy.m2 > 0.17
    assert galaxy.m1.mean().item() == pytest.approx(0.55, abs=0.003) and galaxy.m1.std().item() == pytest.approx(
        0.15, abs=0.003
    )
    assert 0.2 <= galaxy.m1.min() and galaxy.m1.max() <= 1.2 and galaxy.m2.min() == 0.17
    assert q[above_floor].min() > 0.4 and q.max() <= 1 and q.mean().item() == pytest.approx(0.7, abs=0.01)
    assert galaxy.ages.mean().item() == pytest.approx(5, abs=0.05) and galaxy.ages.max() < 10
    for column, top in ((6, math.pi), (7, 2 * math.pi)):
        angle = galaxy.theta[:, column]
        assert angle.min() >= 0 and angle.max() < top and angle.mean().item() == pytest.approx(top / 2, rel=0.02)
    a, fdot = chapter.strain_and_chirp(galaxy.m1, galaxy.m2, galaxy.theta[:, 1], galaxy.distance)
    assert_close(galaxy.theta[:, 0].exp(), a)
    assert_close(galaxy.theta[:, 2], fdot, atol=0.0, rtol=1e-12)


@pytest.mark.parametrize(("m1", "m2", "lobe"), [(0.6, 0.6, 0.379), (0.6, 0.2, 0.289), (0.25, 0.5, 0.321)])
def test_a_star_overflows_when_its_roche_lobe_is_full(chapter, m1, m2, lobe):
    # lobe of the lighter, larger star in units of the separation, from Eggleton's formula worked by hand
    a = chapter.radius(vector(min(m1, m2))).item() / lobe * chapter.R_SUN
    f = (chapter.GM_SUN * (m1 + m2) / a**3) ** 0.5 / math.pi
    assert bool(chapter.detached(vector(m1), vector(m2), vector(0.99 * f)))
    assert not bool(chapter.detached(vector(m1), vector(m2), vector(1.01 * f)))


def test_a_nearer_star_is_brighter_and_dust_saturates(chapter, g):
    galaxy = chapter.draw_galaxy(100, g)
    for prescription in ("bolometric", "blackbody", "slow helium"):
        near = galaxy._replace(distance=galaxy.distance / 10, height=0 * galaxy.height)
        far = near._replace(distance=galaxy.distance)
        step = chapter.magnitude(far, prescription) - chapter.magnitude(near, prescription)
        assert_close(step, 5 + 0.8 * 0.9 * galaxy.distance, rtol=1e-4, atol=1e-4)
    high = chapter.extinction(vector(3.0, 6.0), vector(3.0, 6.0))
    assert_close(high, vector(0.08, 0.08), rtol=1e-9, atol=0)  # 0.8 mag/kpc × distance × 0.1 / height
    assert chapter.band_light(one(), one()).item() == pytest.approx(1)  # the Sun


def test_a_pair_at_ten_parsec_shines_as_mestel_says(chapter, g):
    pair = chapter.draw_galaxy(1, g)._replace(m1=vector(0.6), m2=vector(0.4), distance=vector(0.01), height=vector(0.0))
    pair = pair._replace(ages=torch.ones(1, 2).double())
    light = (8.8e6 / 1e9) ** (7 / 5)  # per sun of mass, one Gyr old
    bolometric = 4.74 - 2.5 * math.log10(light) + 0.8 * 0.01
    assert chapter.magnitude(pair, "bolometric").item() == pytest.approx(bolometric, abs=1e-5)
    blackbody = 0.0
    for m, boost in ((0.6, 1), (0.4, 10)):
        size = chapter.radius(vector(m)).item()
        kelvin = 5772 * (boost * m * light / size**2) ** 0.25
        planck = [1 / (math.exp(6.62607e-34 * 2.99792458e8 / (620e-9 * 1.380649e-23 * t)) - 1) for t in (kelvin, 5772)]
        blackbody += size**2 * planck[0] / planck[1]
    expected = 4.65 - 2.5 * math.log10(blackbody) + 0.008
    assert chapter.magnitude(pair, "slow helium").item() == pytest.approx(expected, abs=1e-4)
    assert chapter.magnitude(pair, "blackbody") > chapter.magnitude(pair, "slow helium")


def test_eclipses_are_as_frequent_as_the_stars_are_wide(chapter, g):
    galaxy = chapter.draw_galaxy(100_000, g)
    orbit = 2 / galaxy.theta[:, 1]  # Kepler in years and astronomical units
    a = (galaxy.m1 + galaxy.m2) ** (1 / 3) * (orbit / chapter.YEAR) ** (2 / 3) * chapter.AU / chapter.R_SUN
    chance = ((chapter.radius(galaxy.m1) + chapter.radius(galaxy.m2)) / a).clamp_max(1)
    gap = chapter.eclipses(galaxy).double() - chance
    assert abs(gap.mean()) < 5 * gap.std() / len(gap) ** 0.5


def test_turning_binaries_edge_on_keeps_every_expectation(chapter, g):
    galaxy = chapter.draw_galaxy(200_000, g)
    turned = chapter.edge_on(galaxy)
    assert chapter.eclipses(turned).all()
    kept = [0, 1, 2, 3, 4, 6, 7]
    assert_close(turned.theta[:, kept], galaxy.theta[:, kept])
    for value in (
        lambda x: torch.ones_like(x.weight),
        lambda x: 1e-3 / x.theta[:, 1],
        lambda x: 30 * x.theta[:, 5] ** 2,
    ):
        drawn = value(galaxy) * chapter.eclipses(galaxy)
        expected = value(turned) * turned.weight / galaxy.weight.clamp_min(1e-300)
        gap = (drawn - expected)[galaxy.weight > 0]
        assert abs(gap.mean()) < 5 * gap.std() / len(gap) ** 0.5
        assert expected[galaxy.weight > 0].std() < drawn[galaxy.weight > 0].std()


def test_turning_forgets_neither_the_angle_nor_the_weight(chapter, g):
    galaxy = chapter.draw_galaxy(1000, g)
    chance, turned = chapter.eclipse_chance(galaxy), chapter.edge_on(galaxy)
    assert_close(turned.theta[:, 5], galaxy.theta[:, 5] * chance)
    assert_close(turned.weight, galaxy.weight * chance)
    assert chance.max() <= 1 and (turned.weight < galaxy.weight).any()


# Detectors


def test_noise_curves_equal_those_of_legwork(chapter):
    # legwork 1.0.0: lisa_psd(approximate_R=True) and tianqin_psd, without and with foreground, sky-averaged
    f = vector(3e-4, 1e-3, 3e-3, 1e-2)
    lisa = vector(4.46198896e-36, 1.63410062e-38, 3.04064966e-40, 1.44316948e-40)
    lisa_all = vector(6.21546630e-36, 8.16997006e-38, 3.25575137e-40, 1.44316948e-40)
    tianqin = vector(4.69410785e-35, 3.13796383e-37, 3.74930027e-39, 1.40023518e-40)
    tianqin_all = vector(4.69649212e-35, 3.76892118e-37, 4.55551476e-39, 1.40023518e-40)
    exact = {"rtol": 1e-4, "atol": 0.0}
    assert_close(chapter.lisa_noise(f, foreground=False) * 10 / 3, lisa, **exact)
    assert_close(chapter.lisa_noise(f) * 10 / 3, lisa_all, **exact)
    assert_close(chapter.tianqin_noise(f, foreground=0.0) * 10 / 3, tianqin, **exact)
    assert_close(chapter.tianqin_noise(f) * 10 / 3, tianqin_all, **exact)


def test_channels_are_traceless_orthogonal_and_equally_loud(chapter):
    for d in (chapter.lisa(), chapter.tianqin()):
        first, second = d.D
        for tensor in (first, second):
            assert_close(tensor.diagonal(dim1=1, dim2=2).sum(1), torch.zeros(len(d.t)).double(), rtol=0, atol=1e-12)
            assert_close((tensor**2).sum((1, 2)), torch.full((len(d.t),), 3 / 8).double())
        assert_close((first * second).sum((1, 2)), torch.zeros(len(d.t)).double(), rtol=0, atol=1e-12)


def test_tianqin_faces_its_target_half_of_the_time_and_lisa_is_tilted(chapter):
    tianqin, lisa = chapter.tianqin(), chapter.lisa()
    normal = chapter.towards(*(vector(a) for a in chapter.J0806))[0]
    assert_close(tianqin.D @ normal, torch.zeros(2, len(tianqin.t), 3).double(), rtol=0, atol=1e-12)
    assert tianqin.w.sum().item() == pytest.approx(2.5 * chapter.YEAR)
    phase = tianqin.t / chapter.YEAR % 0.5
    assert phase.max() < 0.25
    a = 2 * math.pi * lisa.t / chapter.YEAR
    tilted = torch.stack([-math.sqrt(0.75) * a.cos(), -math.sqrt(0.75) * a.sin(), torch.full_like(a, 0.5)], -1)
    assert_close((lisa.D @ tilted[..., None])[..., 0], torch.zeros(2, len(a), 3).double(), rtol=0, atol=1e-12)


def test_tianqin_is_where_the_earth_is_twenty_degrees_ahead_of_lisa(chapter):
    assert chapter.J0806 == pytest.approx((math.radians(120.5), math.radians(-4.7)))
    for d, ahead in ((chapter.lisa(), 0.0), (chapter.tianqin(), 20.0)):
        angle = 2 * math.pi * d.t / chapter.YEAR + math.radians(ahead)
        earth = 1.495978707e11 * torch.stack([angle.cos(), angle.sin(), 0 * angle], -1)
        assert_close(d.R, earth, rtol=0, atol=1e3)


def test_the_mean_rho_of_a_binary_is_that_of_legwork(chapter, g):
    # legwork's stationary circular source: ρ² = h₀² T / S_n, h₀ = √(2^(28/3)/5) (Gm)^(5/3) (π f_orb)^(2/3) / (c⁴ d) / 2
    m1, m2, f, kpc = 0.6, 0.4, 3e-3, 8.0
    gm = 6.6743e-11 * 1.98841e30 * (m1 * m2) ** 0.6 / (m1 + m2) ** 0.2
    h0 = (
        (2 ** (28 / 3) / 5) ** 0.5
        * gm ** (5 / 3)
        * (math.pi * f / 2) ** (2 / 3)
        / (299792458.0**4 * kpc * 3.0857e19)
        / 2
    )
    theta = random_sources(100_000, g)
    theta[:, 0] = chapter.strain_and_chirp(vector(m1), vector(m2), vector(f), vector(kpc))[0].log()
    theta[:, 1], theta[:, 5] = f, 2 * torch.rand(100_000, generator=g, dtype=torch.float64) - 1
    for d, sensitivity in ((chapter.lisa(), 3.25575137e-40), (chapter.tianqin(), 4.55551476e-39)):
        rho2 = chapter.snr_squared(theta, d)
        expected = h0**2 * d.w.sum().item() / sensitivity
        assert rho2.mean().item() == pytest.approx(expected, rel=5 * (rho2.std() / rho2.mean()).item() / 100_000**0.5)


def test_turning_a_triangle_in_its_plane_changes_nothing(chapter, g):
    theta = random_sources(5, g)
    coarse = gram_of(chapter, theta, chapter.tianqin())
    fine = gram_of(chapter, theta, chapter.tianqin(n=60))
    assert_close(correlations(coarse, fine), correlations(fine, fine), rtol=0, atol=1e-9)


def test_more_nodes_for_lisa_change_nothing(chapter, g):
    theta = random_sources(5, g)
    coarse, fine = gram_of(chapter, theta, chapter.lisa()), gram_of(chapter, theta, chapter.lisa(n=80))
    assert_close(correlations(coarse, fine), correlations(fine, fine), rtol=0, atol=1e-9)


# The Fisher matrix


def test_gamma_equals_the_real_time_series_by_central_differences(chapter, brute_force):
    gram = gram_of(chapter, vector(*SOURCE)[None], chapter.lisa(years=1))[0]
    assert_close(correlations(gram, brute_force), correlations(brute_force, brute_force), rtol=0, atol=1e-3)


def test_scores_equal_autodiff_of_the_envelope(chapter, g):
    for d in (chapter.lisa(years=2), chapter.tianqin(years=2)):
        theta = random_sources(3, g)

        def pairs(x, carrier, d=d):
            return torch.view_as_real(chapter.envelope(x[None], carrier[None], d))[0]

        auto = torch.func.vmap(torch.func.jacfwd(pairs))(theta, theta[:, 1])  # (N, 2, T, 2, 8)
        weighted = (auto * d.w[:, None, None].sqrt()).flatten(1, 3)
        expected = weighted.mT @ weighted
        ours = gram_of(chapter, theta, d)
        assert_close(correlations(ours, expected), correlations(expected, expected), rtol=0, atol=1e-9)


def test_rho_squared_is_the_information_on_ln_a(chapter, g):
    theta = random_sources(20, g)
    for d in (chapter.lisa(), chapter.tianqin()):
        S = torch.full((20,), 3.0).double()
        H = chapter.envelope(theta, theta[:, 1], d)
        direct = (H.abs().square() * d.w).sum((1, 2)) / S
        assert_close(chapter.snr_squared(theta, d, S), direct)
        assert_close(chapter.scores(theta, d, S)[..., 0].square().sum(1), direct)
    physical = chapter.snr_squared(theta, d)
    assert_close(physical, chapter.snr_squared(theta, d, d.noise(theta[:, 1])))


def still_detector(chapter, years: int = 4):
    d = chapter.lisa(years=years)
    return d._replace(D=d.D[:, :1].expand_as(d.D), R=torch.zeros_like(d.R))


def test_a_sinusoid_has_the_textbook_errors(chapter):
    theta, d = vector(*SOURCE)[None], still_detector(chapter)
    T, rho = 4 * chapter.YEAR, chapter.snr_squared(theta, d, one()).sqrt().item()
    rows = chapter.scores(theta, d, one())
    known = chapter.errors(chapter.root(rows[..., [0, 1, 7]]))[0]
    free = chapter.errors(chapter.root(rows[..., [0, 1, 2, 7]]))[0]
    assert known[0].item() == pytest.approx(1 / rho, rel=1e-9, abs=0)
    assert known[1].item() == pytest.approx(math.sqrt(3) / (math.pi * rho * T), rel=1e-9, abs=0)
    assert free[1].item() == pytest.approx(4 * math.sqrt(3) / (math.pi * rho * T), rel=1e-9, abs=0)
    assert free[2].item() == pytest.approx(6 * math.sqrt(5) / (math.pi * rho * T**2), rel=1e-9, abs=0)


def test_the_mean_over_sky_and_orientation_is_six_twentyfifths(chapter, g):
    theta = random_sources(200_000, g)
    theta[:, 0] = 0
    theta[:, 5] = 2 * torch.rand(200_000, generator=g, dtype=torch.float64) - 1
    for d in (chapter.lisa(), chapter.tianqin()):
        rho2 = chapter.snr_squared(theta, d, torch.ones(200_000).double()) / d.w.sum()
        assert abs(rho2.mean() - 0.24) < 5 * rho2.std() / 200_000**0.5


def test_the_covariance_is_the_inverse_and_stacking_adds(chapter, g):
    theta = random_sources(4, g)
    rows = [chapter.scores(theta, d) for d in (chapter.lisa(), chapter.tianqin())]
    joint = sum(r.mT @ r for r in rows)
    size = joint.diagonal(dim1=1, dim2=2).rsqrt()
    scaled = joint * size[:, :, None] * size[:, None]
    expected = torch.linalg.inv(scaled) * size[:, :, None] * size[:, None]
    ours = chapter.covariance(*(chapter.root(r) for r in rows))
    assert_close(correlations(ours, expected), correlations(expected, expected), rtol=0, atol=1e-6)
    kappa = torch.linalg.cond(scaled)
    assert_close(chapter.condition(chapter.root(torch.cat(rows, 1))), kappa, rtol=1e-4, atol=0)


def test_the_sky_area_is_that_of_an_ellipse_of_one_sigma_twice_over(chapter):
    sigma = torch.eye(8, dtype=torch.float64)[None] * 1e-6
    area = chapter.sky_area(sigma, vector(math.pi / 3))[0].item()
    assert area == pytest.approx(2 * math.pi * 0.5 * 1e-6 * (180 / math.pi) ** 2, rel=1e-9, abs=0)
    sigma[0, 3, 4] = sigma[0, 4, 3] = 0.8e-6
    assert chapter.sky_area(sigma, vector(math.pi / 3))[0].item() == pytest.approx(0.6 * area, rel=1e-9, abs=0)


# Amplitudes and fits


def test_circular_amplitudes_invert_the_physical_ones(chapter, g):
    theta = random_sources(50, g)
    theta[:, 5] = torch.linspace(-0.99, 0.99, 50)
    ln_a, c = chapter.to_amplitude_and_inclination(chapter.to_amplitudes(theta)[:, :4])
    assert_close(ln_a, theta[:, 0])
    assert_close(c, theta[:, 5])


def test_the_linear_model_is_the_same_signal_with_the_same_information(chapter, g):
    theta, d = random_sources(3, g), chapter.lisa(years=2)
    phi = chapter.to_amplitudes(theta)
    H, rows = chapter.linear_model(phi, theta[:, 1], d)
    assert_close(H, chapter.envelope(theta, theta[:, 1], d), rtol=0, atol=1e-9)
    S = torch.ones(3, dtype=torch.float64)
    J = chapter.whiten(rows, d, S)
    change = torch.func.vmap(torch.func.jacfwd(lambda x: chapter.to_amplitudes(x[None])[0]))(theta)  # ∂φ/∂θ
    ours = gram_of(chapter, theta, d)
    assert_close(correlations(change.mT @ (J.mT @ J) @ change, ours), correlations(ours, ours), rtol=0, atol=1e-9)


def noisy(chapter, theta: Tensor, d, S: Tensor, n: int, g: torch.Generator) -> Tensor:
    H = chapter.envelope(theta, theta[:, 1], d)
    noise = torch.randn(n, *H.shape[1:], 2, generator=g, dtype=torch.float64)
    return H + torch.view_as_complex(noise) * (S / d.w).sqrt()


def test_fits_of_a_loud_edge_on_source_scatter_as_fisher_says(chapter, g):
    theta, d, n = vector(0, 5e-3, 4e-16, 1.0, 0.9, 0.1, 0.5, 1.0)[None], chapter.lisa(), 400
    S = chapter.snr_squared(theta, d, one()) / 200**2
    start, carrier = chapter.to_amplitudes(theta).expand(n, 8), theta[:, 1].expand(n)
    phi, last = chapter.fit(noisy(chapter, theta, d, S, n, g), start, carrier, d, S.expand(n))
    assert last.max() < 0.01
    sd = chapter.errors(chapter.root(chapter.scores(theta, d, S)))[0]
    ln_a, c = chapter.to_amplitude_and_inclination(phi[:, :4])
    found = torch.stack([ln_a.std(), *phi[:, 4:].std(0), c.std()])
    ratio = found / sd[[0, 1, 2, 3, 4, 5]]
    assert ((ratio - 1).abs() < 4 / math.sqrt(2 * n)).all()  # 4 sigma of a standard deviation
    assert abs(ln_a.mean()) < 4 * sd[0] / n**0.5


def test_a_fit_without_noise_returns_the_truth_from_a_wrong_start(chapter, g):
    theta, d = vector(0, 5e-3, 4e-16, 1.0, 0.9, 0.3, 0.5, 1.0)[None], chapter.lisa()
    truth = chapter.to_amplitudes(theta)
    S = chapter.snr_squared(theta, d, one()) / 20**2
    sd = chapter.errors(chapter.root(chapter.whiten(chapter.linear_model(truth, theta[:, 1], d)[1], d, S)))
    start = truth + 0.5 * sd * torch.randn(1, 8, generator=g, dtype=torch.float64)
    data = chapter.envelope(theta, theta[:, 1], d)
    phi, last = chapter.fit(data, start, theta[:, 1], d, S, steps=40)
    assert ((phi - truth).abs() < 1e-3 * sd).all() and last.item() < 1e-3


def test_fits_from_far_away_never_climb_and_mostly_arrive(chapter, g):
    n, d, theta = 40, chapter.lisa(), vector(0, 5e-3, 4e-16, 1.0, 0.9, 0.3, 0.5, 1.0)[None]
    S, truth = chapter.snr_squared(theta, d, one()) / 20**2, chapter.to_amplitudes(theta)
    sd = chapter.errors(chapter.root(chapter.whiten(chapter.linear_model(truth, theta[:, 1], d)[1], d, S)))
    start = truth + 2 * sd * torch.randn(n, 8, generator=g, dtype=torch.float64)
    data, carrier = chapter.envelope(theta, theta[:, 1], d).expand(n, -1, -1), theta[:, 1].expand(n)

    def chi2(phi: Tensor) -> Tensor:
        return chapter.whiten((data - chapter.linear_model(phi, carrier, d)[0])[..., None], d, S).square().sum((1, 2))

    path = [chi2(start)]
    for steps in (1, 2, 3, 5, 8, 13, 40):
        path.append(chi2(chapter.fit(data, start, carrier, d, S.expand(n), steps=steps)[0]))
    assert all((late <= early * (1 + 1e-9)).all() for early, late in pairwise(path))
    assert (path[-1] < 1e-3).double().mean() > 0.8


def test_the_fit_equals_scipy_least_squares(chapter, g):
    optimize = pytest.importorskip("scipy.optimize")
    theta, d = vector(0, 5e-3, 4e-16, 1.0, 0.9, 0.3, 0.5, 1.0)[None], chapter.lisa()
    S = chapter.snr_squared(theta, d, one()) / 30**2
    data, truth = noisy(chapter, theta, d, S, 1, g), chapter.to_amplitudes(theta)
    phi, _ = chapter.fit(data, truth, theta[:, 1], d, S, steps=30)
    sd = chapter.errors(chapter.root(chapter.whiten(chapter.linear_model(truth, theta[:, 1], d)[1], d, S)))

    def residual(x):
        H, _ = chapter.linear_model(truth + torch.tensor(x)[None] * sd, theta[:, 1], d)
        r = (data - H) * (d.w / S).sqrt()
        return torch.cat([r.real.flatten(), r.imag.flatten()]).numpy()

    best = optimize.least_squares(residual, np.zeros(8), xtol=1e-12, ftol=1e-12)
    assert_close((phi - truth)[0] / sd[0], torch.tensor(best.x), rtol=0, atol=2e-3)


# Refusals


def test_shapes_windows_and_names_that_make_no_sense_are_refused(chapter, g):
    with pytest.raises(ValueError, match=r"shape \(N, 8\)"):
        chapter.scores(torch.ones(3, 7).double(), chapter.lisa())
    with pytest.raises(ValueError, match="end > start"):
        chapter.quadrature([(1.0, 0.5)], 4)
    with pytest.raises(ValueError, match="n must be positive"):
        chapter.quadrature([(0.0, 0.5)], 0)
    with pytest.raises(ValueError, match="bolometric, blackbody or slow helium"):
        chapter.magnitude(chapter.draw_galaxy(10, g), "hot")


# Plausible mistakes are told apart by the oracles above


def test_forgetting_the_doppler_delay_is_seen_by_the_time_series(chapter, brute_force):
    d = chapter.lisa(years=1)
    gram = gram_of(chapter, vector(*SOURCE)[None], d._replace(R=torch.zeros_like(d.R)))[0]
    assert (correlations(gram, brute_force) - correlations(brute_force, brute_force)).abs().max() > 0.01


def test_half_the_amplitude_or_a_single_channel_is_seen_by_the_time_series(chapter, brute_force):
    theta, d = vector(*SOURCE)[None], chapter.lisa(years=1)
    halved = theta.clone()
    halved[0, 0] -= math.log(2)  # the convention A₀/2
    for wrong in (gram_of(chapter, halved, d)[0], gram_of(chapter, theta, d._replace(D=d.D[:1]))[0]):
        assert (correlations(wrong, brute_force) - correlations(brute_force, brute_force)).abs().max() > 0.2


def test_a_duty_cycle_taken_as_a_shorter_mission_misjudges_frequency(chapter, g):
    theta = random_sources(3, g)
    windows = chapter.tianqin()
    t, w = chapter.quadrature([(k / 4, (k + 1) / 4) for k in range(10)], 8)
    short = windows._replace(t=t, w=w)
    right, wrong = (chapter.errors(chapter.root(chapter.scores(theta, d)[..., [0, 1, 7]])) for d in (windows, short))
    assert (wrong[:, 1] / right[:, 1] > 1.5).all()


def test_the_naive_inverse_of_a_face_on_source_is_noise_where_ours_is_not(chapter):
    theta = vector(0, 1e-3, 1e-18, 1.0, 0.02, 1 - 3e-5, 0.5, 1.0)[None]
    d = chapter.lisa()
    rows = chapter.scores(theta, d)
    phi = chapter.to_amplitudes(theta)
    J = chapter.whiten(chapter.linear_model(phi, theta[:, 1], d)[1], d, d.noise(theta[:, 1]))
    change = torch.func.jacfwd(lambda x: chapter.to_amplitudes(x[None])[0])(theta[0])
    back = torch.linalg.inv(change)
    expected = (back @ chapter.covariance(chapter.root(J))[0] @ back.T).diagonal().sqrt()  # well conditioned inside
    ours = chapter.errors(chapter.root(rows))[0]
    assert_close(ours, expected, rtol=1e-3, atol=0)
    naive = torch.linalg.inv((rows.mT @ rows)[0]).diagonal()
    assert not torch.allclose(naive.abs().sqrt(), expected, rtol=1e-2, atol=0)
