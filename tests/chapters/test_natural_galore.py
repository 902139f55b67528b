"""The method of `natural-galore` against dense inverses, a naive loop, closed forms, limits and mistakes.

`galore_torch`, the peer that would train beside us, is not among the book's dependencies; the loop `naive_galore`,
written in numpy and from the paper's equations, takes its place.
"""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

EXACT = {"rtol": 1e-10, "atol": 1e-12}


def double(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def dense(g: Tensor, G: Tensor, damping: float) -> Tensor:
    return torch.linalg.inv(damping * torch.eye(len(g), dtype=g.dtype) + G @ G.T) @ g


# The natural gradient


@pytest.mark.parametrize("s", [1, 5, 20])
@pytest.mark.parametrize("damping", [1e-3, 0.7, 1e3])
def test_the_natural_gradient_is_that_of_the_dense_inverse(chapter, g, s, damping):
    G = double(g, 200, s) / 10
    assert_close(chapter.natural_gradient(G[:, 0], G, damping), dense(G[:, 0], G, damping), rtol=1e-9, atol=1e-9)


def test_the_gradient_need_not_be_a_column_of_the_history(chapter, g):
    now, G = double(g, 30), double(g, 30, 4)
    assert_close(chapter.natural_gradient(now, G, 0.3), dense(now, G, 0.3), **EXACT)


def test_batches_with_dampings_of_their_own_equal_single_calls(chapter, g):
    now, G, damping = double(g, 3, 2, 12), double(g, 3, 2, 12, 5), torch.tensor([[0.1], [1.0], [20.0]])
    together = chapter.natural_gradient(now, G, damping.double())
    for i in range(3):
        for j in range(2):
            assert_close(together[i, j], dense(now[i, j], G[i, j], damping[i].item()), rtol=1e-6, atol=1e-9)


def test_plausible_mistakes_in_the_natural_gradient_are_told_apart(chapter, g):
    G = double(g, 40, 6) + double(g, 40, 1)
    now, lam = G[:, 0], 0.5
    right = chapter.natural_gradient(now, G, lam)
    S, y = torch.eye(6).double() + G.T @ G / lam, G.T @ now
    z = torch.linalg.solve(S, y)
    mistakes = {
        "1/λ for 1/λ²": now / lam - G @ z / lam,
        "plus for minus": now / lam + G @ z / lam**2,
        "S without 1/λ": now / lam - G @ torch.linalg.solve(torch.eye(6).double() + G.T @ G, y) / lam**2,
        "no identity in S": now / lam - G @ torch.linalg.solve(G.T @ G / lam, y) / lam**2,
        "1/s": dense(now, G / math.sqrt(6), lam),
        "current gradient left out": dense(now, G[:, 1:], lam),
        "rescaling only": now / (lam + now @ now),
    }
    for name, wrong in mistakes.items():
        assert (wrong - right).norm() > 0.01 * right.norm(), name


@pytest.mark.parametrize("s", [1, 7])
def test_orthogonal_histories_only_rescale(chapter, g, s):
    G = torch.linalg.qr(double(g, 50, s))[0] * torch.arange(1, s + 1)
    for k in range(s):
        expected = G[:, k] / (0.2 + (k + 1) ** 2)
        assert_close(chapter.natural_gradient(G[:, k], G, 0.2), expected, **EXACT)


def test_a_repeated_gradient_is_divided_by_s_times_its_square(chapter, g):
    now = double(g, 30)
    natural = chapter.natural_gradient(now, now[:, None].expand(30, 20), 0.5)
    assert_close(natural, now / (0.5 + 20 * now @ now), rtol=1e-8, atol=1e-12)


def test_a_large_damping_gives_the_gradient_back(chapter, g):
    G = double(g, 30, 20)
    assert_close(1e8 * chapter.natural_gradient(G[:, 0], G, 1e8), G[:, 0], rtol=0, atol=1e-5)


def test_columns_of_zeros_and_their_order_change_nothing(chapter, g):
    G = double(g, 30, 4)
    padded = torch.cat([torch.zeros(30, 3).double(), G[:, [2, 0, 3, 1]]], 1)
    assert_close(chapter.natural_gradient(G[:, 0], padded, 0.1), chapter.natural_gradient(G[:, 0], G, 0.1), **EXACT)


def test_the_natural_gradient_follows_a_rotation_of_the_coordinates(chapter, g):
    G, Q = double(g, 12, 5), torch.linalg.qr(double(g, 12, 12))[0]
    rotated = chapter.natural_gradient(Q @ G[:, 0], Q @ G, 0.1)
    assert_close(rotated, Q @ chapter.natural_gradient(G[:, 0], G, 0.1), **EXACT)


def test_the_unexplained_part_is_a_ridge_residual_and_gives_the_natural_direction(chapter, g):
    G, lam = double(g, 60, 8) + double(g, 60, 1), 0.4
    now, H = G[:, 0], G[:, 1:]
    longer = np.r_[H.numpy(), math.sqrt(lam) * np.eye(7)]  # ridge as plain least squares
    fitted = H.numpy() @ np.linalg.lstsq(longer, np.r_[now.numpy(), np.zeros(7)])[0]
    e = chapter.unexplained(now, H, lam)
    assert_close(e, now - torch.from_numpy(fitted), rtol=0, atol=1e-9)
    assert_close(chapter.natural_gradient(now, G, lam), e / (lam + now @ e), **EXACT)


# The window


def test_the_window_holds_the_last_s_gradients_with_the_current_one(chapter, g):
    transform, past = chapter.Natural(damping=0.3, s=3), []
    for _ in range(8):
        now = double(g, 4, 5)
        past = [now.flatten(), *past][:3]
        expected = dense(now.flatten(), torch.stack(past, 1), 0.3).view(4, 5)
        assert_close(transform(now), expected, **EXACT)


def test_dividing_by_h_is_a_damping_of_h_lambda_and_a_factor(chapter, g):
    transform, past = chapter.Natural(damping=0.3, s=4, mean=True), []
    for _ in range(7):
        now = double(g, 3, 5)
        past = [now.flatten(), *past][:4]
        h = len(past)
        expected = h * dense(now.flatten(), torch.stack(past, 1), h * 0.3)
        assert_close(transform(now).flatten(), expected, **EXACT)


def test_a_window_that_forgets_starts_anew(chapter, g):
    transform, fresh = chapter.Natural(), chapter.Natural()
    for _ in range(4):
        transform(double(g, 3, 4))
    transform.forget()
    now = double(g, 3, 4)
    assert_close(transform(now), fresh(now))


def test_the_default_window_and_damping_are_the_released_ones(chapter):
    transform = chapter.Natural()
    assert (transform.s, transform.damping, transform.mean) == (20, 1e-3, False)
    assert chapter.Rescale().damping == 1e-3


def test_the_rescaling_is_a_window_of_one(chapter, g):
    now = double(g, 3, 2, 4, 5)  # each matrix by its own norm
    assert_close(chapter.Rescale(0.2)(now), chapter.Natural(0.2, s=1)(now), **EXACT)


# Projection


@pytest.mark.parametrize(("n", "m"), [(4, 9), (9, 4), (6, 6)])
def test_the_projection_is_the_best_approximation_of_its_rank(chapter, g, n, m):
    G_W = double(g, 2, n, m)
    P, sigma, Qh = np.linalg.svd(G_W.numpy(), full_matrices=False)
    best = torch.from_numpy(P[:, :, :3] * sigma[:, None, :3] @ Qh[:, :3])
    for two_sided in (False, True):
        bases = chapter.leading_bases(G_W, 3, two_sided)
        assert_close(chapter.lift(chapter.project(G_W, bases), bases), best, **EXACT)


def test_one_side_is_projected_the_shorter_one_and_both_in_the_released_form(chapter, g):
    wide, tall, square = double(g, 4, 9), double(g, 9, 4), double(g, 5, 5)
    shapes = [chapter.project(G_W, chapter.leading_bases(G_W, 2)).shape for G_W in (wide, tall, square)]
    assert shapes == [(2, 9), (9, 2), (2, 5)]
    assert chapter.project(wide, chapter.leading_bases(wide, 2, True)).shape == (2, 2)


def test_a_lifted_step_stays_in_the_columns_of_the_projection(chapter, g):
    bases = chapter.leading_bases(double(g, 5, 8), 2)
    step = chapter.lift(double(g, 2, 8), bases)
    P = bases.left
    assert_close(P @ P.T @ step, step, **EXACT)
    assert_close(P.T @ P, torch.eye(2).double(), **EXACT)


def test_the_signs_of_a_basis_do_not_depend_on_the_svd(chapter, g):
    G_W, flips = double(g, 5, 8), torch.tensor([1.0, -1, 1, -1, -1]).double()
    P, _, Qh = torch.linalg.svd(G_W, full_matrices=False)
    expected = chapter.leading_bases(G_W, 5, True)
    assert_close(chapter.signed(P * flips), expected.left, **EXACT)
    assert_close(chapter.signed(Qh.mT * flips), expected.right, **EXACT)
    assert (expected.left.amax(0) == expected.left.abs().amax(0)).all()
    assert (expected.right.amax(0) == expected.right.abs().amax(0)).all()


def test_reversed_columns_cancel_within_a_projection_but_not_across_two(chapter, g):
    G_W, ends = [double(g, 4, 6) for _ in range(6)], {}
    for gap, reverse in ((9, None), (9, 0), (3, None), (3, 3)):
        W, m, v = torch.zeros(4, 6).double(), 0.0, 0.0
        for k, gradient in enumerate(G_W):
            if k % gap == 0:
                P = chapter.leading_bases(gradient, 2).left * (-1 if k == reverse else 1)
            small = P.T @ gradient
            m, v = 0.9 * m + 0.1 * small, 0.999 * v + 0.001 * small**2
            W = W - P @ (m / v.sqrt())
        ends[gap, reverse] = W
    assert_close(ends[9, None], ends[9, 0], **EXACT)
    assert (ends[3, None] - ends[3, 3]).norm() > 0.1 * ends[3, None].norm()


# Adam


def test_adam_is_that_of_torch_where_epsilon_is_negligible_and_as_released_where_it_is_not(chapter, g):
    W = torch.zeros(3, 4, dtype=torch.float64, requires_grad=True)
    peer, ours, own = torch.optim.Adam([W], lr=0.1, eps=0.0), torch.zeros(3, 4).double(), chapter.Adam(0.0)
    m, v, released = torch.zeros(3, 4).double(), torch.zeros(3, 4).double(), chapter.Adam()
    for k in range(1, 9):
        grad = double(g, 3, 4) * 1e-6
        W.grad = grad.clone()
        peer.step()
        ours = own.step(ours, grad, 0.1)
        assert_close(ours, W.detach(), **EXACT)
        m, v = 0.9 * m + 0.1 * grad, 0.999 * v + 0.001 * grad**2
        expected = math.sqrt(1 - 0.999**k) / (1 - 0.9**k) * m / (v**0.5 + 1e-6)
        assert_close(released(grad), expected, **EXACT)


# The whole optimizer, against a loop that knows one matrix and one equation at a time


def naive_galore(W, gradients, rank, gap, lr, natural, two_sided=False, reset=False, s=20, damping=1e-3):
    """One matrix in numpy: dense Fisher, explicit lists, moments written out."""
    history, m, v = [], 0.0, 0.0
    for k, G_W in enumerate(gradients):
        if k % gap == 0:
            P, _, Qh = np.linalg.svd(G_W, full_matrices=False)
            left, right = P[:, :rank], Qh[:rank].T
            left, right = (b * [np.sign(max(c, key=abs)) for c in b.T] for b in (left, right))
            if not two_sided and W.shape[0] <= W.shape[1]:
                right = np.eye(W.shape[1])
            elif not two_sided:
                left = np.eye(W.shape[0])
            history = [] if reset else history
        small = left.T @ G_W @ right
        history = [*history, small.ravel()][-s:]
        if natural:
            fisher = damping * np.eye(small.size) + sum(np.outer(h, h) for h in history)
            small = np.linalg.solve(fisher, small.ravel()).reshape(small.shape)
        m, v = 0.9 * m + 0.1 * small, 0.999 * v + 0.001 * small**2
        step = lr * np.sqrt(1 - 0.999 ** (k + 1)) / (1 - 0.9 ** (k + 1))
        W = W - step * 0.25 * left @ (m / (np.sqrt(v) + 1e-6)) @ right.T
    return W


@pytest.mark.parametrize("natural", [False, True])
@pytest.mark.parametrize("options", [{}, {"two_sided": True}, {"reset": True}])
@pytest.mark.parametrize(("n", "m"), [(4, 7), (7, 4), (5, 5)])
def test_training_follows_the_naive_loop(chapter, g, n, m, natural, options):
    if options.get("reset") and not natural:
        options = {}
    common = double(g, n, m)
    G_W = [(common + double(g, n, m)) / 3 for _ in range(9)]
    start = double(g, n, m)
    arm = chapter.GaLore(3, 4, chapter.Natural(s=5) if natural else None, **options)
    W = start.expand(2, 1, n, m)
    lr = torch.tensor([0.1, 0.3]).double()[:, None, None, None]
    for gradient in G_W:
        W = arm.step(W, gradient.expand(2, 1, n, m), lr)
    for i, rate in enumerate((0.1, 0.3)):
        naive = naive_galore(start.numpy(), [t.numpy() for t in G_W], 3, 4, rate, natural, **options, s=5)
        assert_close(W[i, 0], torch.from_numpy(naive), rtol=0, atol=1e-7)


def test_the_window_and_the_moments_outlive_a_new_projection_unless_reset(chapter, g):
    G_W = [double(g, 1, 4, 6) for _ in range(6)]
    ends = []
    for reset in (False, True):
        arm = chapter.GaLore(2, 3, chapter.Natural(), reset=reset)
        W = torch.zeros(1, 4, 6).double()
        for gradient in G_W:
            W = arm.step(W, gradient, 0.1)
        ends.append(W)
        assert arm.transform.seen == (3 if reset else 6)
        assert arm.adam.k == 6
    assert (ends[0] - ends[1]).norm() > 1e-3


def test_at_full_rank_the_natural_step_is_that_of_the_whole_gradient_in_rotated_coordinates(chapter, g):
    arm, past = chapter.GaLore(4, 10, chapter.Natural(0.1)), []
    for _ in range(5):
        G_W = double(g, 4, 6)
        past = [*past, G_W.flatten()]
        arm.step(torch.zeros(4, 6).double(), G_W, 0.1)
        whole = dense(G_W.flatten(), torch.stack(past, 1), 0.1).view(4, 6)
        assert_close(chapter.lift(arm.g_tilde, arm.bases), whole, **EXACT)


def test_the_scale_multiplies_every_step_and_is_a_quarter_unless_given(chapter, g):
    G_W, ends = [double(g, 4, 6) for _ in range(3)], []
    for options in ({}, {"scale": 1.0}):
        arm, W = chapter.GaLore(2, 2, **options), torch.zeros(4, 6).double()
        for gradient in G_W:
            W = arm.step(W, gradient, 0.1)
        ends.append(W)
    assert_close(4 * ends[0], ends[1], **EXACT)


def test_with_a_huge_damping_and_no_epsilon_natural_galore_is_galore(chapter, g):
    arms = [chapter.GaLore(2, 3, t, epsilon=0.0) for t in (None, chapter.Natural(1e8))]
    W = [torch.zeros(4, 6).double()] * 2
    for _ in range(8):
        G_W = double(g, 4, 6)
        W = [arm.step(w, G_W, 0.1) for arm, w in zip(arms, W, strict=True)]
    assert_close(W[0], W[1], rtol=0, atol=1e-6)
    assert W[0].norm() > 0.1


def test_the_scale_of_the_gradient_does_not_matter_to_galore_but_to_natural_galore_at_a_fixed_damping(chapter, g):
    G_W, ends = [double(g, 4, 6) / 100 for _ in range(6)], []
    for transform in (None, chapter.Natural):
        for factor in (1.0, 30.0):
            arm, W = chapter.GaLore(2, 10, transform and transform(), epsilon=0.0), torch.zeros(4, 6).double()
            for gradient in G_W:
                W = arm.step(W, factor * gradient, 0.1)
            ends.append(W)
    assert_close(ends[0], ends[1], rtol=0, atol=1e-10)
    assert (ends[2] - ends[3]).norm() > 0.01


# Factors


@pytest.mark.parametrize("frozen", [True, False])
def test_the_factors_follow_the_gradients_of_autograd(chapter, g, frozen):
    start, target = double(g, 5, 7), double(g, 5, 7)
    arm = chapter.Factors(3, frozen)
    W, (adam_a, adam_b) = arm.start(start), (chapter.Adam(), chapter.Adam())
    A, B = (t.clone().requires_grad_() for t in (arm.A, arm.B))
    fixed, gamma = (start, 32 / 3) if frozen else (0 * start, 1.0)
    for _ in range(6):
        whole = fixed + gamma * B @ A
        assert_close(W, whole.detach(), **EXACT)
        grad_a, grad_b = torch.autograd.grad(((whole - target) ** 2).sum(), (A, B))
        A, B = (t - 0.05 * adam(d) for t, adam, d in ((A, adam_a, grad_a), (B, adam_b, grad_b)))
        W = arm.step(W, 2 * (W - target), 0.05)


def test_lora_starts_at_its_frozen_weights_and_low_rank_at_their_truncation(chapter, g):
    W = double(g, 2, 5, 7)
    lora, low = chapter.Factors(3, True), chapter.Factors(3, False)
    assert_close(lora.start(W), W)
    truncated = low.start(W)
    assert torch.linalg.matrix_rank(truncated).tolist() == [3, 3]
    sigma = torch.linalg.svdvals(W)
    assert_close(torch.linalg.svdvals(truncated)[:, :3], sigma[:, :3])
    assert_close(torch.linalg.matrix_norm(W - truncated), sigma[:, 3:].norm(dim=1))


def test_loras_first_step_moves_b_alone_and_by_the_chain_rule(chapter, g):
    W, G_W = double(g, 5, 7), double(g, 5, 7)
    arm = chapter.Factors(4, True)
    arm.start(W)
    A = arm.A.clone()
    moved = arm.step(W, G_W, 0.01)
    gradient = (32 / 4) * G_W @ A.T  # ∂/∂B of Φ(W₀ + γBA)
    first = gradient / (gradient.abs() + 1e-6 / math.sqrt(1 - 0.999))  # Adam's first step, ε as released
    assert_close(arm.B, -0.01 * first, rtol=1e-9, atol=1e-12)
    assert_close(arm.A, A)
    assert_close(moved, W + (32 / 4) * arm.B @ arm.A, **EXACT)


# Memory


@pytest.mark.parametrize(("n", "m"), [(6, 10), (10, 6), (7, 7)])
@pytest.mark.parametrize("two_sided", [False, True])
@pytest.mark.parametrize("s", [0, 1, 5])
def test_the_count_is_that_of_the_tensors_an_optimizer_holds(chapter, g, n, m, two_sided, s):
    for rank in (1, 3, 6):
        arm = chapter.GaLore(rank, 10, chapter.Natural(s=s) if s else None, two_sided=two_sided)
        arm.step(torch.zeros(n, m).double(), double(g, n, m), 0.1)
        tensors = [*arm.bases, arm.adam.m, arm.adam.v, arm.transform.window if s else None]
        held = sum(t.numel() for t in tensors if t is not None)
        assert chapter.state_numbers(n, m, rank, s, two_sided) == held


def test_the_count_of_a_512_layer_is_that_of_the_paper_worked_by_hand(chapter):
    assert chapter.state_numbers(512, 512, 128) == 196_608
    assert chapter.state_numbers(512, 512, 128, 20) == 1_507_328
    assert chapter.state_numbers(2048, 512, 128) == chapter.state_numbers(512, 2048, 128) == 512 * 128 + 2 * 128 * 2048


# What is refused


def test_what_makes_no_sense_is_refused(chapter, g):
    with pytest.raises(ValueError, match=r"G must be \(\.\.\., d, s\)"):
        chapter.natural_gradient(double(g, 5), double(g, 3, 5), 1.0)
    with pytest.raises(ValueError, match=r"G must be \(\.\.\., d, s\)"):  # a leading axis that would broadcast
        chapter.natural_gradient(double(g, 5), double(g, 2, 5, 3), 1.0)
    for damping in (0.0, -1.0, torch.tensor([1.0, math.nan])):
        with pytest.raises(ValueError, match="damping must be positive"):
            chapter.natural_gradient(double(g, 2, 5), double(g, 2, 5, 3), damping)
    for rank in (0, 5):
        with pytest.raises(ValueError, match=r"rank must lie in 1\.\.4 for a gradient of 4x6"):
            chapter.leading_bases(double(g, 4, 6), rank)
        with pytest.raises(ValueError, match=r"rank must lie in 1\.\.4 and s must not"):
            chapter.state_numbers(4, 6, rank)
    with pytest.raises(ValueError, match="s must not be negative"):
        chapter.state_numbers(4, 6, 2, -1)
    with pytest.raises(ValueError, match="length of the window, must be at least 1"):
        chapter.Natural(s=0)
    with pytest.raises(ValueError, match="gap, the steps between projections, must be at least 1"):
        chapter.GaLore(2, 0)
    with pytest.raises(ValueError, match="there is none"):
        chapter.GaLore(2, 5, reset=True)
