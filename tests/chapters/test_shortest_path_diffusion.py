"""The method of `shortest-path-diffusion` against dense matrices, closed forms, simulation, limits and mistakes."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import integrate, linalg, stats
from torch import Tensor
from torch.testing import assert_close

EXACT = {"rtol": 0.0, "atol": 1e-10}


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def powers(n: int, g: torch.Generator) -> Tensor:
    """Some powers between 0.01 and 100, (n,)."""
    return 10 ** (4 * torch.rand(n, generator=g, dtype=torch.float64) - 2)


# Spectrum and Fourier transform


def test_the_frequencies_are_radial_integers_in_the_order_of_fft2(chapter):
    f = chapter.frequency(8)
    assert f[0, 0] == 0 and f[0, 1] == 1 and f[0, 7] == 1 and f[4, 0] == 4
    assert f[1, 1].item() == pytest.approx(math.sqrt(2)) and f[6, 3].item() == pytest.approx(math.sqrt(13))


def test_the_official_spectrum_is_that_of_the_released_code(chapter):
    f = double(0, 1, 5)
    assert_close(chapter.power_law(f), 1.59 / (0.0086 + f) ** 2)
    assert 2.1e4 < chapter.power_law(double(0.0)).item() < 2.2e4
    assert_close(chapter.power_law(f, 1.5), 1.59 / (0.0086 + f) ** 1.5)


def test_shells_count_every_mode_once(chapter):
    f, counts = chapter.shells(6)
    assert counts.sum() == 36 and (f.diff() > 0).all()
    assert counts[0] == 1 and counts[1] == 4
    assert_close((counts * f**2).sum(), chapter.frequency(6).square().sum())


def test_the_transform_keeps_the_norm_and_comes_back(chapter, g):
    x = torch.randn(3, 1, 6, 6, generator=g, dtype=torch.float64)
    assert_close(chapter.fourier(x).abs().square().sum(), x.square().sum())
    assert_close(chapter.pixels(chapter.fourier(x)), x)


def test_the_estimated_spectrum_is_that_of_the_field(chapter, g):
    lam = chapter.power_law(chapter.frequency(8))
    x = chapter.pixels(lam.sqrt() * chapter.fourier(torch.randn(4000, 2, 8, 8, generator=g, dtype=torch.float64)))
    estimate = chapter.spectrum(x)
    assert (estimate / lam - 1).abs().max() < 0.09  # a shell has at least one mode: 5 × √(2 / 8000)
    f = chapter.frequency(8)
    for radius in f.unique():
        assert estimate[f == radius].std(correction=0) < 1e-9 * estimate.max()
    one = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    one[..., 0, 0] = 4.0  # a single bright pixel: white, |F x|² = 16 / 16
    assert_close(chapter.spectrum(one), torch.ones(4, 4, dtype=torch.float64))


def test_the_spectrum_is_the_mean_over_channels(chapter, g):
    x = torch.randn(5, 3, 4, 4, generator=g, dtype=torch.float64) * double(1, 2, 3)[:, None, None]
    each = [chapter.spectrum(x[:, c : c + 1]) for c in range(3)]
    assert_close(chapter.spectrum(x), sum(each) / 3)


# The corruption


def test_an_evenly_corrupted_image_is_a_weighted_sum_of_image_and_noise(chapter, g):
    x0, eps = torch.randn(2, 3, 2, 6, 6, generator=g, dtype=torch.float64)
    assert_close(chapter.corrupt(x0, eps, double(0.8), double(0.6)), 0.8 * x0 + 0.6 * eps)


def test_the_corrupted_covariance_is_the_fractional_power_of_the_dense_one(chapter):
    lam = chapter.power_law(chapter.frequency(4))
    basis = torch.eye(16, dtype=torch.float64).view(16, 4, 4)
    sigma = chapter.pixels(lam * chapter.fourier(basis)).reshape(16, 16)
    schedule = chapter.shortest(lam, 7)
    for t, tau in enumerate(np.linspace(6 / 7, 1 / 7, 7), 1):
        phi = chapter.corrupt(basis, 0 * basis, schedule.signal[t], schedule.noise[t]).reshape(16, 16)
        rest = chapter.corrupt(0 * basis, basis, schedule.signal[t], schedule.noise[t]).reshape(16, 16)
        dense = torch.from_numpy(linalg.fractional_matrix_power(sigma.numpy(), tau).real)
        assert_close(phi @ sigma @ phi.T + rest @ rest.T, dense, rtol=1e-9, atol=1e-9)


def test_noise_without_the_square_root_misses_the_covariance(chapter, g):
    lam = powers(20, g)
    kept = chapter.alpha_bar(lam, double(0.4))
    assert_close(kept * lam + 1 - kept, lam**0.4)
    for signal, noise in ((kept, (1 - kept) ** 0.5), (kept**0.5, 1 - kept)):  # plausible mistakes
        assert ((signal**2 * lam + noise**2) / lam**0.4 - 1).abs().max() > 0.05


def test_white_images_keep_tau_and_neighbours_of_one_are_smooth(chapter):
    tau = double(0.2, 0.5, 0.9)
    assert_close(chapter.alpha_bar(double(1.0), tau), tau)
    for p in (0.0, -0.5, 1.0):
        near = chapter.alpha_bar(double(1 - 1e-6, 1 + 1e-6), tau[:, None], p)
        assert_close(near, tau[:, None].expand(3, 2), rtol=0, atol=1e-5)


def test_the_power_mean_is_its_formula_and_tends_to_the_geodesic(chapter, g):
    lam, tau = powers(30, g), double(0.1, 0.5, 0.8)[:, None]
    for p in (-0.5, 0.5, 1.0):
        mean = (tau * lam**p + 1 - tau) ** (1 / p)
        assert_close(chapter.alpha_bar(lam, tau, p), (mean - 1) / (lam - 1))
    assert_close(chapter.alpha_bar(lam, tau, 1e-9), chapter.alpha_bar(lam, tau), rtol=1e-6, atol=1e-8)
    several = chapter.alpha_bar(lam, tau[:, None], double(0.0, 0.5)[:, None])  # p may be a tensor that holds 0
    assert_close(several[:, 0], chapter.alpha_bar(lam, tau))
    assert_close(several[:, 1], chapter.alpha_bar(lam, tau, 0.5))
    assert_close(chapter.alpha_bar(lam, tau, 1.0), tau.expand(3, 30))


def test_the_official_grid_is_that_of_the_released_code(chapter):
    tau = chapter.official_tau(10)
    assert_close(tau[[0, -1]], double(0.9, 0.1))
    assert_close(tau, torch.from_numpy((10 - np.linspace(1, 9, 10)) / 10))


def test_clipping_limits_every_step_and_leads_with_the_image(chapter):
    kept = chapter.clipped(double(0.5, 0.4, 1e-9, 0.5e-9))
    assert_close(kept, double(1, 0.5, 0.4, 0.0004, 0.0002))
    schedule = chapter.preserving(double(0.5, 0.4))
    assert_close(schedule.signal**2 + schedule.noise**2, torch.ones(3, dtype=torch.float64))
    assert schedule.signal[0] == 1 and schedule.noise[0] == 0


def test_the_marginal_is_the_power_of_the_corrupted_image(chapter):
    schedule = chapter.Schedule(double(1, 0.5), double(0, 3))
    assert_close(schedule.marginal(double(4.0)), double(4, 10))


def test_the_shortest_schedule_has_the_marginals_of_the_geodesic(chapter, g):
    lam = powers(6, g)
    S = chapter.shortest(lam, 40).marginal(lam)
    assert_close(S[1:], lam ** chapter.official_tau(40)[:, None])
    warped = chapter.shortest(lam, 40, gamma=1.3).marginal(lam)
    assert_close(warped[1:], lam ** chapter.official_tau(40)[:, None] ** 1.3)


def test_linear_and_cosine_are_the_published_schedules(chapter):
    f = double(0, 1)
    kept = chapter.linear(f, 1000).signal ** 2
    beta = np.linspace(1e-4, 0.02, 1000)
    assert_close(kept[1:, 1], torch.from_numpy(np.cumprod(1 - beta)))
    few = chapter.linear(f, 100).signal[:, 0] ** 2
    assert (1 - few[1]).item() == pytest.approx(1e-3) and (1 - few[-1] / few[-2]).item() == pytest.approx(0.2)
    kept = chapter.cosine(f, 50).signal[:, 0] ** 2
    level = np.cos((np.arange(51) / 50 + 0.008) / 1.008 * np.pi / 2) ** 2
    assert_close(kept[:-1], torch.from_numpy(level / level[0])[:-1])
    assert (kept[-1] / kept[-2]).item() == pytest.approx(0.001)


def test_the_blur_damps_like_heat_on_top_of_cosine(chapter):
    f, n, T = double(0, 2, 5), 16, 10
    schedule, base = chapter.blur(f, T, n), chapter.cosine(f, T)
    for t in (1, 2):
        sigma = 20 * 16 / 32 * math.sin(math.pi * t / T / 2) ** 2
        heat = np.exp(-((2 * np.pi * f.numpy() / n) ** 2) * sigma**2 / 2)
        expected = base.signal[t] * torch.from_numpy(0.001 + 0.999 * heat)
        assert_close(schedule.signal[t, :2], expected[:2])
    assert_close(schedule.noise, base.noise)
    assert_close(chapter.blur(f, T, n, 0.0).signal, base.signal)
    assert (schedule.signal[1:, 0] > schedule.signal[1:, 1]).all()


def test_the_last_step_of_the_blur_is_clipped_too(chapter):
    schedule = chapter.blur(double(0, 2, 5), 10, 16)
    steps = (schedule.signal[1:] / schedule.signal[:-1]) ** 2
    assert (steps >= 0.001 - 1e-12).all()
    assert_close(steps[-1, 0], double(0.001)[0])  # the cosine base is 0 at T, whose step the clip decides
    assert (steps[:, 2] < 0.0011).any()  # and where the heat takes nearly all in one step


# The laboratory


def dense_divergence(v: Tensor, lam: Tensor) -> float:
    p, q = (torch.distributions.Normal(0, s.sqrt()) for s in (v, lam))
    return torch.distributions.kl_divergence(p, q).sum().item()


def test_the_divergence_is_that_of_normal_distributions(chapter, g):
    v, lam = powers(12, g), powers(12, g)
    assert chapter.gaussian_kl(v, lam).item() == pytest.approx(dense_divergence(v, lam))
    counts = torch.arange(1, 13)
    expected = dense_divergence(v.repeat_interleave(counts), lam.repeat_interleave(counts))
    assert chapter.gaussian_kl(v, lam, counts).item() == pytest.approx(expected)


def perfect(chapter, schedules, lam):
    T, S = len(schedules.signal) - 1, schedules.marginal(lam)

    def model(x, time):
        t = round(time.flatten()[0].item() * T)
        gain = (schedules.noise[t] / S[t])[:, None, None, None]
        return chapter.pixels(gain * chapter.fourier(x))

    return model


@pytest.mark.parametrize("sampler", ["large", "small", "ddim"])
def test_the_laboratory_predicts_the_power_of_sampled_images(chapter, g, sampler):
    lam, f, N = chapter.power_law(chapter.frequency(6)), chapter.frequency(6), 6000
    tables = [chapter.shortest(lam, 12), chapter.blur(f, 12, 6, 5.0), chapter.linear(f, 12)]
    stacked = chapter.stack(tables)
    start = torch.randn(1, N, 1, 6, 6, generator=g)
    drawn = chapter.sample(perfect(chapter, stacked, lam.float()), stacked, start, g, sampler)
    found = chapter.fourier(drawn.double()).abs().square().mean((1, 2, 3))
    v = torch.stack([chapter.laboratory(t, lam, sampler) for t in tables])
    assert (found / v - 1).abs().max() < 4.8 * (2 / N) ** 0.5  # 108 relative errors of means of at least χ²₁


def test_many_small_steps_reach_the_data_with_every_sampler(chapter, g):
    lam = powers(10, g)
    for sampler in ("large", "small", "ddim"):
        v = chapter.laboratory(chapter.shortest(lam, 4000), lam, sampler)
        assert_close(v, lam, rtol=0.03, atol=0)


def test_one_step_of_the_laboratory_is_the_conditional_mean_and_variance(chapter):
    lam, kept = double(3.0), double(0.6, 0.2)
    schedule = chapter.preserving(kept)
    S1, S2, alpha = 0.6 * 3 + 0.4, 0.2 * 3 + 0.8, 0.2 / 0.6
    back = math.sqrt(alpha) * S1 / S2  # E[u₁ | u₂] = Cov(u₁, u₂) / Var(u₂) u₂
    last = math.sqrt(0.6) * 3 / S1  # E[u₀ | u₁]
    assert chapter.laboratory(schedule, lam).item() == pytest.approx(last**2 * (back**2 + 1 - alpha))
    noisy = chapter.laboratory(schedule, lam, silent_end=False).item()
    assert noisy == pytest.approx(last**2 * (back**2 + 1 - alpha) + 0.4)
    small = (1 - alpha) * 0.4 / 0.8
    assert chapter.laboratory(schedule, lam, "small").item() == pytest.approx(last**2 * (back**2 + small))


def test_the_limit_of_the_official_sampler_is_lambda_log_lambda(chapter, g):
    lam, T = powers(10, g), 4000
    error = T * (chapter.laboratory(chapter.shortest(lam, T), lam) / lam - 1)
    assert_close(error, -lam * lam.log() / (lam - 1), rtol=0.01, atol=0.01)


def test_the_limit_with_a_noisy_end_is_the_integral_over_the_path(chapter):
    T = 8000
    for lam, p in ((5.0, 0.5), (0.05, -0.5), (0.2, 1.0)):

        def speed(tau: float, lam: float = lam, p: float = p) -> float:
            S = (tau * lam**p + 1 - tau) ** (1 / p)
            return (S ** (1 - p) * (lam**p - 1) / p) ** 2 / S**3

        expected = -lam / (lam - 1) * integrate.quad(speed, 0, 1)[0]
        v = chapter.laboratory(chapter.shortest(double(lam), T, p=p), double(lam), silent_end=False)
        assert (T * (v / lam - 1)).item() == pytest.approx(expected, rel=0.02)


def test_ddim_integrates_the_probability_flow(chapter):
    lam = 4.0
    schedule = chapter.shortest(double(lam), 3)
    sigma = (schedule.noise / schedule.signal)[:, 0]  # y = u / √ᾱ obeys dy/dσ = σ y / (λ + σ²): Euler steps
    y = 1 / schedule.signal[3, 0]
    for t in (3, 2, 1):
        y = y * (1 - (sigma[t] - sigma[t - 1]) * sigma[t] / (lam + sigma[t] ** 2))
    assert_close(chapter.laboratory(schedule, double(lam), "ddim")[0], y**2)


# Length


def test_the_length_of_the_geodesic_is_the_norm_of_the_logarithms(chapter, g):
    lam = powers(9, g)
    tau = torch.linspace(1, 0, 3001, dtype=torch.float64)[:, None]
    expected = lam.log().square().sum().div(2).sqrt()
    assert_close(chapter.path_length(lam**tau), expected, rtol=0, atol=1e-4)
    counts = torch.arange(1, 10)
    weighted = (counts * lam.log().square()).sum().div(2).sqrt()
    assert_close(chapter.path_length(lam**tau, counts), weighted, rtol=0, atol=1e-4)


def test_the_length_of_any_path_is_the_integral_of_the_square_root_of_the_divergence(chapter):
    S = torch.stack([torch.linspace(1, 3, 2001), 2 + torch.linspace(0, 4, 2001).sin()], 1).double()
    step = [math.sqrt(dense_divergence(a, b) + dense_divergence(b, a)) for a, b in pairwise(S)]  # KL ≈ ds²/2 each way
    assert chapter.path_length(S).item() == pytest.approx(sum(step), rel=1e-4)


def test_lengths_are_the_same_from_either_end_and_in_any_unit(chapter, g):
    S = torch.rand(50, 4, generator=g, dtype=torch.float64) + 0.5
    assert_close(chapter.path_length(S), chapter.path_length(S.flip(0)))
    assert_close(chapter.path_length(S), chapter.path_length(7 * S))


# Sampling and training


def test_one_official_step_is_the_released_formula(chapter, g):
    kept = double(0.8, 0.5, 0.3)
    schedule = chapter.preserving(kept[:, None].expand(3, 4))
    u, guess, z = torch.randn(3, 4, generator=g, dtype=torch.float64)
    alpha, beta = 0.5 / 0.8, 1 - 0.5 / 0.8
    mean = (u - beta / math.sqrt(0.5) * guess) / math.sqrt(alpha)
    assert_close(chapter.step_back(schedule, 2, u, guess, z), mean + math.sqrt(beta) * z)
    small = mean + math.sqrt(beta * 0.2 / 0.5) * z
    assert_close(chapter.step_back(schedule, 2, u, guess, z, "small"), small)
    x0 = (u - math.sqrt(0.5) * guess) / math.sqrt(0.5)
    ddim = math.sqrt(0.8) * x0 + math.sqrt(0.2) * guess
    assert_close(chapter.step_back(schedule, 2, u, guess, z, "ddim"), ddim)
    last = (u - math.sqrt(0.2) * guess) / math.sqrt(0.8)  # β₁ / √(1 − ᾱ₁) = √0.2; no noise
    for sampler in ("large", "small", "ddim"):
        assert_close(chapter.step_back(schedule, 1, u, guess, z, sampler), last)


def test_tables_are_read_by_frequency_and_time_for_each_schedule(chapter, g):
    tables = [torch.randn(6, 3, 3, generator=g) for _ in range(2)]
    stacked = chapter.stack([chapter.Schedule(t, t) for t in tables])
    t = torch.tensor([[1, 4, 5], [0, 2, 2]])
    found = chapter.at(stacked.signal, t)
    assert found.shape == (2, 2, 3, 1, 3, 3)
    assert_close(found[1, 0, 2, 0], tables[1][5])
    assert_close(found[0, 1, 1, 0], tables[0][2])


def test_a_denoiser_that_knows_the_image_returns_it(chapter, g):
    lam = chapter.power_law(chapter.frequency(4))
    stacked = chapter.stack([chapter.shortest(lam, 9)])
    x0 = torch.rand(2, 5, 3, 4, 4, generator=g) * 2 - 1

    def model(x, time):
        t = round(time.flatten()[0].item() * 9)
        u = chapter.fourier(x) - stacked.signal[t] * chapter.fourier(x0)
        return chapter.pixels(u / stacked.noise[t])

    for clip in (False, True):
        drawn = chapter.sample(model, stacked, torch.randn(x0.shape, generator=g), g, clip=clip)
        assert_close(drawn[0], x0, rtol=0, atol=1e-4)


def test_sampling_starts_from_the_noise_as_it_is(chapter, g):
    f = chapter.frequency(4)
    stacked = chapter.stack([chapter.cosine(f, 6), chapter.linear(f, 6)])
    start = torch.randn(2, 3, 1, 4, 4, generator=g)
    drawn = chapter.sample(lambda x, _: 0 * x, stacked, start, g, "ddim")  # no guess: only the factors are undone
    for k in range(2):
        assert_close(drawn[k], start / stacked.signal[-1, k, 0, 0], rtol=1e-4, atol=1e-4)


def test_clipping_keeps_the_last_image_within_bounds_and_off_does_not(chapter, g):
    lam = chapter.power_law(chapter.frequency(4))
    stacked = chapter.stack([chapter.shortest(lam, 9)])
    start = torch.randn(1, 50, 1, 4, 4, generator=g)
    free, kept = (
        chapter.sample(lambda x, _: 0 * x, stacked, start, torch.Generator().manual_seed(1), clip=c)
        for c in (False, True)
    )
    assert kept.abs().max() <= 1 + 1e-4 and free.abs().max() > 2


def test_training_reaches_the_error_of_the_best_denoiser(chapter, g):
    lam = chapter.power_law(chapter.frequency(4))
    data = chapter.pixels(lam.sqrt() * chapter.fourier(torch.randn(4000, 1, 4, 4, generator=g, dtype=torch.float64)))
    schedules = [chapter.shortest(lam, 10), chapter.linear(chapter.frequency(4), 10)]
    models = chapter.MLPs(2, 1, (1, 4, 4), 64, g)
    _, losses = chapter.train_denoisers(
        models, data.float(), chapter.stack(schedules), seeds=1, steps=500, batch=128, lr=5e-3, decay=0.9, generator=g
    )
    for k, schedule in enumerate(schedules):
        S = schedule.marginal(lam)[1:]
        best = (schedule.signal[1:] ** 2 * lam / S).mean().item()  # E |ε − ε̂|² = ᾱ λ / S
        assert losses[:5, k].mean() > 1.3 * best
        assert best * 0.95 < losses[-50:, k].mean() < best + 0.1


def test_perceptrons_start_with_outputs_of_the_size_of_their_inputs(chapter, g):
    models = chapter.MLPs(2, 3, (1, 4, 4), 400, g)
    for w in models.weights:
        assert w.std().item() == pytest.approx(w.shape[-2] ** -0.5, rel=0.03)
    assert not any(b.any() for b in models.biases)


def test_copies_train_as_if_alone_and_start_alike(chapter):
    lam, f = chapter.power_law(chapter.frequency(4)), chapter.frequency(4)
    data = torch.randn(50, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    tables = [chapter.shortest(lam, 10), chapter.cosine(f, 10)]
    options = {"seeds": 2, "steps": 5, "batch": 8, "lr": 1e-2, "decay": 0.5}

    def run(schedules):
        g = torch.Generator().manual_seed(2)
        models = chapter.MLPs(len(schedules), 2, (1, 4, 4), 8, torch.Generator().manual_seed(3))
        return chapter.train_denoisers(models, data, chapter.stack(schedules), generator=g, **options)[1]

    assert_close(run(tables)[:, 1], run(tables[1:])[:, 0], rtol=1e-4, atol=1e-5)


def test_the_number_of_copies_does_not_change_their_steps_however_faint_the_gradient(chapter):
    class Faint(torch.nn.Module):
        def __init__(self, K):
            super().__init__()
            self.w = torch.nn.Parameter(torch.zeros(K, 2, 1, 1, 1, 1))

        def forward(self, x, _):
            return 1e-8 * self.w * x  # gradients as small as the number that Adam divides by at least

    data = torch.randn(50, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    tables, ends = [chapter.cosine(chapter.frequency(4), 10)] * 3, []
    for K in (1, 3):
        models, g = Faint(K), torch.Generator().manual_seed(2)
        stacked = chapter.stack(tables[:K])
        chapter.train_denoisers(models, data, stacked, seeds=2, steps=5, batch=8, lr=1.0, decay=0.5, generator=g)
        ends.append(models.w[0].detach())
    assert_close(*ends)
    assert (ends[0].abs() > 0.1).all()


def test_the_average_of_the_weights_is_exponential(chapter):
    data = torch.randn(50, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    stacked = chapter.stack([chapter.cosine(chapter.frequency(4), 10)])
    options = {"seeds": 1, "batch": 8, "lr": 1e-2, "decay": 0.75}
    path = []
    for steps in (1, 2, 3):
        models = chapter.MLPs(1, 1, (1, 4, 4), 8, torch.Generator().manual_seed(3))
        g = torch.Generator().manual_seed(2)
        averaged, _ = chapter.train_denoisers(models, data, stacked, steps=steps, generator=g, **options)
        path.append(models.weights[1].detach().clone())
    expected = 0.75 * (0.75 * path[0] + 0.25 * path[1]) + 0.25 * path[2]
    assert_close(averaged.module.weights[1].detach(), expected)


def test_a_perceptron_is_the_plain_network_read_aloud(chapter, g):
    models = chapter.MLPs(2, 2, (1, 3, 3), 5, g)
    x, t = torch.randn(2, 2, 4, 1, 3, 3, generator=g), torch.rand(2, 2, 4, generator=g)
    out = models(x, t)
    assert out.shape == x.shape
    k, s, b = 1, 0, 3
    rates = [math.exp(-math.log(1e4) * i / 15) for i in range(16)]
    angles = [1000 * t[k, s, b].item() * r for r in rates]
    code = torch.tensor([*(math.sin(a) for a in angles), *(math.cos(a) for a in angles)])
    h = torch.cat([x[k, s, b].flatten(), code])
    for layer in range(3):
        h = h @ models.weights[layer][2 * k + s] + models.biases[layer][2 * k + s, 0]
        h = h * h.sigmoid() if layer < 2 else h
    assert_close(out[k, s, b].flatten(), h, rtol=1e-3, atol=1e-4)
    for w in models.weights:
        assert_close(w[:2], w[2:])  # the same starts under both schedules


def test_the_u_nets_share_the_interface_and_depend_on_image_and_time(chapter, g):
    models = chapter.UNets(2, 1, (3, 8, 8), 16, seed=5)
    x, t = torch.randn(2, 1, 2, 3, 8, 8, generator=g), torch.rand(2, 1, 2, generator=g)
    out = models(x, t)
    assert out.shape == x.shape
    first, second = (dict(net.named_parameters()) for net in models.nets)
    assert all(torch.equal(p, second[name]) for name, p in first.items())
    out.square().sum().backward()
    silent = [name for name, p in first.items() if p.grad is None or not p.grad.isfinite().all()]
    assert not silent
    net = models.nets[0]
    torch.nn.init.normal_(net.down[0][0].conv2.weight, std=0.1, generator=g)
    assert (net(x[0, 0], t[0, 0]) - net(x[0, 0], t[0, 0] / 2)).abs().max() > 1e-5
    alone = torch.cat([net(x[0, 0, i : i + 1], t[0, 0, i : i + 1]) for i in range(2)])
    assert_close(net(x[0, 0], t[0, 0]), alone, rtol=1e-4, atol=1e-5)


def test_a_residual_block_scales_and_shifts_its_second_norm_by_the_code(chapter, g):
    block = chapter.Residual(8, 16, 5)
    x, code = torch.randn(2, 8, 4, 4, generator=g), torch.randn(2, 5, generator=g)
    assert_close(block(x, code), block.skip(x) + block.conv2.bias[:, None, None])  # starts as its skip
    torch.nn.init.normal_(block.conv2.weight, generator=g)
    F = torch.nn.functional
    h = block.conv1(F.silu(F.group_norm(x, 8)))
    scale, shift = block.code(code).view(2, 2, 16, 1, 1).unbind(1)
    h = block.conv2(F.silu(F.group_norm(h, 8) * (1 + scale) + shift))
    assert_close(block(x, code), block.skip(x) + h, rtol=1e-4, atol=1e-4)


def test_each_level_going_up_sees_what_the_same_level_saw_going_down(chapter, g):
    net = chapter.UNets(1, 1, (1, 8, 8), 8, seed=5).nets[0]
    seen, given = [], []
    for level in range(3):
        net.down[level][1].register_forward_hook(lambda *a: seen.append(a[2]))
        net.up[level][0].register_forward_pre_hook(lambda _, a: given.append(a[0]))
    net.first.register_forward_hook(lambda *a: a[2] + torch.randn(a[2].shape, generator=g))
    for block in net.middle:
        block.register_forward_hook(lambda *a: a[2] + 1)  # so that the way up differs from the way down
    net(torch.randn(2, 1, 8, 8, generator=g), torch.rand(2, generator=g))
    for down, up in zip(seen[::-1], given, strict=True):
        assert_close(up[:, -down.shape[1] :], down)


def test_attention_is_softmax_attention_over_positions(chapter, g):
    layer = chapter.Attention(8)
    x = torch.randn(1, 8, 2, 3, generator=g)
    q, k, v = layer.qkv(layer.norm(x)).flatten(2)[0].split(8)  # (8, 6) each
    heads = [
        v[2 * h : 2 * h + 2] @ (q[2 * h : 2 * h + 2].T @ k[2 * h : 2 * h + 2] / 2**0.5).softmax(1).T for h in range(4)
    ]
    expected = x + layer.out(torch.cat(heads).view(1, 8, 2, 3))
    assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


# Distances of samples


def test_the_frechet_distance_is_that_of_matrix_square_roots(chapter, g):
    x = torch.randn(200, 5, generator=g, dtype=torch.float64) @ torch.randn(5, 5, generator=g, dtype=torch.float64)
    y = torch.randn(300, 5, generator=g, dtype=torch.float64) + 0.5
    A, B = np.cov(x.numpy().T), np.cov(y.numpy().T)
    mean = ((x.mean(0) - y.mean(0)) ** 2).sum().item()
    expected = mean + np.trace(A + B - 2 * linalg.sqrtm(A @ B).real)
    assert chapter.frechet(x, y) == pytest.approx(expected)
    assert chapter.frechet(x, x) == pytest.approx(0, abs=1e-9)


def test_the_sliced_distance_of_a_line_is_the_wasserstein_distance(chapter, g):
    x, y = torch.randn(400, 1, generator=g), 2 * torch.randn(400, 1, generator=g) + 1
    one = chapter.sliced_wasserstein(x, y, torch.ones(1, 1), 400)
    assert one == pytest.approx((x.sort(0)[0] - y.sort(0)[0]).square().mean().sqrt().item(), rel=0.02)
    assert one >= stats.wasserstein_distance(x[:, 0].numpy(), y[:, 0].numpy()) - 1e-3
    shifted = chapter.sliced_wasserstein(x, x + 3, torch.ones(1, 1))
    assert shifted == pytest.approx(3, abs=1e-4)


def test_quantiles_are_taken_at_the_middle_of_equal_shares(chapter):
    x, y = torch.tensor([[0.0], [4.0]]), torch.tensor([[0.0], [0.0]])
    one = chapter.sliced_wasserstein(x, y, torch.ones(1, 1), 2)  # levels ¼ and ¾: 1 and 3
    assert one == pytest.approx(math.sqrt(5), rel=1e-5)


# What is refused


def test_bad_input_is_refused_in_words(chapter):
    with pytest.raises(ValueError, match="positive powers"):
        chapter.alpha_bar(double(1, 0), double(0.5))
    with pytest.raises(ValueError, match="positive powers"):
        chapter.alpha_bar(double(1, math.nan), double(0.5))
    with pytest.raises(ValueError, match=r"tau must lie in \[0, 1\]"):
        chapter.alpha_bar(double(2.0), double(1.5))
    schedule = chapter.shortest(double(2.0), 3)
    with pytest.raises(ValueError, match="large, small, ddim; got 'ode'"):
        chapter.laboratory(schedule, double(2.0), "ode")
    with pytest.raises(ValueError, match="large, small, ddim; got 'ode'"):
        chapter.step_back(schedule, 1, double(1.0), double(1.0), double(1.0), "ode")
    with pytest.raises(ValueError, match=r"\(N, D\) and \(M, D\)"):
        chapter.frechet(torch.ones(3, 2), torch.ones(3, 4))
