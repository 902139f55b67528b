"""The method of `m-fac` against dense algebra, closed forms, peer libraries, limits and mistakes."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

EXACT = {"rtol": 1e-9, "atol": 1e-9}


def random(*shape: int, g: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def dense(gradients: Tensor, damping: float) -> Tensor:
    """The damped Fisher, one entry at a time from its definition."""
    m, d = gradients.shape
    fisher = torch.zeros(d, d, dtype=torch.float64)
    for row in gradients:
        fisher += row[:, None] * row[None, :]
    return fisher / m + damping * torch.eye(d, dtype=torch.float64)


def window_of(g: torch.Generator, m: int = 6, d: int = 11) -> Tensor:
    return random(m, d, g=g) * (0.5 + torch.arange(d) / 4)


# The static algorithm


@pytest.mark.parametrize("m", [1, 5, 11, 30])
@pytest.mark.parametrize("damping", [0.05, 2.0])
@pytest.mark.parametrize("name", ["static_recursion", "static_fast"])
def test_static_products_diagonal_and_entries_are_those_of_the_dense_inverse(chapter, g, m, damping, name):
    G, x = window_of(g, m), random(11, g=g)
    inverse, static = torch.linalg.inv(dense(G, damping)), getattr(chapter, name)(G, damping)
    assert_close(chapter.static_product(static, x), inverse @ x, **EXACT)
    assert_close(chapter.static_diagonal(static), inverse.diagonal(), **EXACT)
    i, k = (t.flatten() for t in torch.meshgrid(torch.arange(11), torch.arange(11), indexing="ij"))
    assert_close(chapter.static_entries(static, i, k), inverse[i, k], **EXACT)


def test_v_and_q_are_products_with_the_fisher_of_the_earlier_gradients(chapter, g):
    G, damping = window_of(g), 0.3
    for static in (chapter.static_recursion(G, damping), chapter.static_fast(G, damping)):
        for i, row in enumerate(G):
            earlier = damping * torch.eye(11, dtype=torch.float64) + G[:i].T @ G[:i] / len(G)  # over m, not over i
            v = torch.linalg.solve(earlier, row)
            assert_close(static.v[i], v, **EXACT)
            assert_close(static.q[i], len(G) + row @ v, **EXACT)


def test_networks_and_blocks_side_by_side_do_not_mix(chapter, g):
    G, x = random(2, 3, 5, 8, g=g), random(2, 3, 8, g=g)
    for make in (chapter.static_recursion, chapter.static_fast):
        together = chapter.static_product(make(G, 0.1), x)
        for a in range(2):
            for b in range(3):
                assert_close(together[a, b], torch.linalg.solve(dense(G[a, b], 0.1), x[a, b]), **EXACT)


def test_the_order_of_the_gradients_does_not_matter(chapter, g):
    G, x = window_of(g), random(11, g=g)
    ours = chapter.static_product(chapter.static_fast(G, 0.1), x)
    assert_close(chapter.static_product(chapter.static_fast(G.flip(0), 0.1), x), ours, **EXACT)


@pytest.mark.parametrize("block", [1, 3, 4, 6, 7, 10, 11, 50, None])
def test_blocks_are_the_inverse_of_the_block_diagonal_fisher(chapter, g, block):
    G, x = torch.stack([window_of(g), window_of(g)]), random(2, 11, g=g)
    inverse = chapter.inverse(G, 0.2, block)
    at = torch.arange(11) // (block or 11)
    for s in range(2):
        oracle = torch.linalg.inv(dense(G[s], 0.2) * (at[:, None] == at))
        assert_close(inverse.product(x)[s], oracle @ x[s], **EXACT)
        assert_close(inverse.diagonal[s], oracle.diagonal(), **EXACT)


def test_blocks_of_one_are_the_reciprocal_of_damped_mean_squares(chapter, g):
    G = window_of(g)
    assert_close(chapter.inverse(G, 0.2, block=1).diagonal, 1 / (0.2 + (G**2).mean(0)), **EXACT)


# The dynamic algorithm


def test_the_tables_are_what_their_names_say(chapter, g):
    G, damping = window_of(g), 0.3
    t = chapter.tables(G @ G.T, damping)
    for i in range(6):
        earlier = damping * torch.eye(11, dtype=torch.float64) + G[:i].T @ G[:i] / 6
        for j in range(6):
            expected = G[i] @ torch.linalg.solve(earlier, G[j]) if j >= i else torch.zeros(()).double()
            assert_close(t.D[i, j], expected, **EXACT)
        assert_close(t.B[i] @ G, torch.linalg.solve(earlier, G[i]), **EXACT)
    assert_close(t.q, 6 + t.D.diagonal(), **EXACT)
    assert (t.B.triu(1) == 0).all()


def test_the_factor_holds_the_tables_of_an_lu_factorisation_without_pivots(chapter, g):
    G, damping = window_of(g), 0.3
    c, t = chapter.factor(G @ G.T, damping), chapter.tables(G @ G.T, damping)
    upper = c.diagonal()[:, None] * c.T
    assert_close(upper, t.D + 6 * torch.eye(6).double(), **EXACT)
    unit = c / c.diagonal()
    assert_close(torch.linalg.inv(unit) / damping, t.B, **EXACT)


@pytest.mark.parametrize("m", [1, 4, 11, 20])
def test_a_window_stays_exact_when_gradients_are_replaced(chapter, g, m):
    rows, x = window_of(g, 4 * m + 3), random(11, g=g)
    window = chapter.Window(rows[:m], 0.05)
    for n, row in enumerate(rows[m:], m + 1):
        window.replace(row[None])
        oracle = torch.linalg.solve(dense(rows[n - m : n], 0.05), x)
        assert_close(window.product(x), oracle, **EXACT)
        t = chapter.tables(window.gram, 0.05)
        assert_close(chapter.dynamic_product(window.gradients, t, 0.05, x), oracle, **EXACT)


def test_several_gradients_enter_at_once_for_the_oldest_and_each_run_has_its_own_damping(chapter, g):
    rows, x = random(2, 14, 9, g=g), random(2, 9, g=g)
    lam = torch.tensor([0.1, 3.0], dtype=torch.float64)
    window = chapter.Window(rows[:, :5], lam)
    for k in range(3):
        at = window.replace(rows[:, 5 + 3 * k : 8 + 3 * k])
        assert_close(window.gradients[:, at], rows[:, 5 + 3 * k : 8 + 3 * k])
    for s in range(2):
        oracle = torch.linalg.solve(dense(rows[s, -5:], lam[s].item()), x[s])
        assert_close(window.product(x)[s], oracle, **EXACT)


def test_a_window_does_not_change_the_gradients_it_was_given(chapter, g):
    G = window_of(g)
    before = G.clone()
    chapter.Window(G, 0.1).replace(random(1, 11, g=g))
    assert_close(G, before, rtol=0, atol=0)


def test_single_precision_windows_keep_their_tables_in_double(chapter, g):
    window = chapter.Window(window_of(g).float(), 1e-5)
    window.replace(random(1, 11, g=g).float())
    assert window.gram.dtype == torch.float64 and window.product(torch.ones(11)).dtype == torch.float32


def test_damping_is_kept_in_double_precision(chapter, g):
    G, x = window_of(g, 20), random(11, g=g)  # λ rounded to float32 is off by 1e-8, which 1/λ blows up
    assert_close(chapter.Window(G, 1e-5).product(x), torch.linalg.solve(dense(G, 1e-5), x), rtol=1e-7, atol=1e-9)


# The optimiser


def test_a_direction_is_the_inverse_fisher_times_a_mixture_of_the_window(chapter, g):
    G, a = torch.stack([window_of(g), window_of(g)]), random(2, 6, g=g)
    u = chapter.direction(chapter.Window(G, 0.2), a)
    for s in range(2):
        assert_close(u[s], torch.linalg.solve(dense(G[s], 0.2), G[s].T @ a[s]), **EXACT)


def quadratic(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return 0.5 * ((x @ w - y) ** 2).mean()


@pytest.mark.parametrize("per_example", [False, True])
def test_training_is_the_published_loop_with_dense_algebra(chapter, g, per_example):
    runs, m, d, b, steps = 2, 8, 5, 2, 9
    x, y, w = random(steps, runs, b, d, g=g), random(steps, runs, b, g=g), random(runs, d, g=g)
    lam, lr, momentum, decay = [0.1, 2.0], [0.05, 0.2], 0.6, 0.03
    ours, losses = chapter.mfac(
        quadratic, w, zip(x, y, strict=True), m, *map(torch.DoubleTensor, (lam, lr)), momentum, decay, per_example
    )
    for s in range(runs):
        weights, v, rows = w[s].clone(), torch.zeros(d).double(), [torch.zeros(d).double()] * m
        for t in range(steps):
            residual = x[t, s] @ weights - y[t, s]
            assert losses[s, t].item() == pytest.approx(0.5 * (residual**2).mean().item(), abs=1e-10)
            each = residual[:, None] * x[t, s] + decay * weights
            rows = rows[b:] + list(each) if per_example else [*rows[1:], each.mean(0)]
            u = torch.linalg.solve(dense(torch.stack(rows), lam[s]), each.mean(0))
            v = momentum * v + (1 - momentum) * u
            weights = weights - lr[s] * v
        assert_close(ours[s], weights, **EXACT)


def test_the_first_step_divides_the_gradient_by_damping_plus_its_square_over_m(chapter, g):
    x, y, w = random(1, 4, 5, g=g), random(1, 4, g=g), random(1, 5, g=g)
    new, _ = chapter.mfac(quadratic, w, [(x, y)], m=7, damping=0.3, lr=1.0)
    slope = torch.func.grad(quadratic)(w[0], x[0], y[0])
    assert_close(w[0] - new[0], slope / (0.3 + slope @ slope / 7), **EXACT)


def test_steps_lie_in_the_span_of_the_last_m_gradients(chapter, g):
    window = chapter.Window(window_of(g, 3), 0.1)
    u = chapter.direction(window, random(3, g=g))
    rest = u - window.gradients.T @ torch.linalg.lstsq(window.gradients.T, u[:, None]).solution[:, 0]
    assert rest.norm() < 1e-9 * u.norm()


def test_a_run_that_diverges_leaves_the_others_alone(chapter, g):
    x, y, w = random(6, 2, 4, 5, g=g), random(6, 2, 4, g=g), random(2, 5, g=g)
    x[2, 0] = torch.inf
    together, losses = chapter.mfac(quadratic, w, zip(x, y, strict=True), 3, 0.1, 0.1)
    alone, _ = chapter.mfac(quadratic, w[1:], zip(x[:, 1:], y[:, 1:], strict=True), 3, 0.1, 0.1)
    assert_close(together[1:], alone, **EXACT)
    assert not losses[0, -1].isfinite()


def test_turning_the_inputs_turns_every_step_and_changes_no_loss(chapter, g):
    x, y, w = random(5, 1, 4, 6, g=g), random(5, 1, 4, g=g), random(1, 6, g=g)
    turn = torch.linalg.qr(random(6, 6, g=g)).Q
    plain, losses = chapter.mfac(quadratic, w, zip(x, y, strict=True), 3, 0.1, 0.3)
    turned, same = chapter.mfac(quadratic, w @ turn, zip(x @ turn, y, strict=True), 3, 0.1, 0.3)
    assert_close(turned, plain @ turn, **EXACT)
    assert_close(same, losses, **EXACT)


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
def test_the_fisher_is_the_empirical_fisher_of_curvlinops(chapter, g):
    curvlinops = pytest.importorskip("curvlinops")
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3)).double()
    x, y = random(9, 4, g=g), torch.randint(3, (9,), generator=g)
    params = [p for p in model.parameters() if p.requires_grad]
    theirs = curvlinops.EFLinearOperator(model, nn.CrossEntropyLoss(), params, [(x, y)], check_deterministic=False)
    rows = []
    for x_n, y_n in zip(x, y, strict=True):
        parts = torch.autograd.grad(F.cross_entropy(model(x_n[None]), y_n[None]), params)
        rows.append(torch.cat([p.flatten() for p in parts]))
    u = random(len(rows[0]), g=g)
    v = chapter.inverse(torch.stack(rows), 0.01).product(u)
    assert_close(theirs @ v + 0.01 * v, u, **EXACT)  # F̂ (F̂⁻¹ u) = u with their F̂


# Pruning


def test_one_deleted_weight_costs_its_price_and_the_others_move_to_the_minimum(chapter, g):
    G, w = window_of(g), random(11, g=g)
    fisher, inverse = dense(G, 0.2), chapter.inverse(G, 0.2)
    for i in range(11):
        others = torch.arange(11) != i
        delta = torch.empty(11, dtype=torch.float64)
        delta[i] = -w[i]
        delta[others] = torch.linalg.solve(fisher[others][:, others], fisher[others, i] * w[i])
        new, gone = chapter.remove(w, inverse, price=others.double(), count=1)
        assert_close(new, w + delta, **EXACT)
        assert gone.tolist() == (~others).tolist()
        assert_close(w[i] ** 2 / (2 * inverse.diagonal[i]), delta @ fisher @ delta / 2, **EXACT)


def test_removing_no_weight_changes_none(chapter, g):
    w = random(2, 11, g=g)
    new, gone = chapter.remove(w, chapter.inverse(window_of(g), 0.1), w.abs(), count=0)
    assert_close(new, w, **EXACT)
    assert not gone.any()


def test_the_surgeon_deletes_the_cheapest_and_adds_single_corrections(chapter, g):
    G, w = torch.stack([window_of(g), window_of(g)]), random(2, 11, g=g)
    new, gone = chapter.surgeon(w, lambda: G, 4, damping=0.2)
    for s in range(2):
        inverse = torch.linalg.inv(dense(G[s], 0.2))
        price = w[s] ** 2 / (2 * inverse.diagonal())
        expected = w[s].clone()
        for i in price.argsort()[:4].tolist():
            expected -= w[s, i] / inverse[i, i] * inverse[:, i]
        expected[price.argsort()[:4]] = 0
        assert_close(new[s], expected, **EXACT)
        assert gone[s].nonzero()[:, 0].tolist() == sorted(price.argsort()[:4].tolist())


def test_the_surgeon_has_the_released_damping_and_keeps_to_its_blocks(chapter, g):
    G, w = torch.stack([window_of(g), window_of(g)]), random(2, 11, g=g)
    default, _ = chapter.surgeon(w, lambda: G, 4)
    assert_close(default, chapter.surgeon(w, lambda: G, 4, damping=1e-5)[0], rtol=0, atol=0)
    new, gone = chapter.surgeon(w, lambda: G, 3, damping=0.2, block=1)  # no correlation, no correction
    assert_close(new, w.masked_fill(gone, 0), **EXACT)
    price = w**2 * (0.2 + (G**2).mean(1))
    for s in range(2):
        assert gone[s].nonzero()[:, 0].tolist() == sorted(price[s].argsort()[:3].tolist())


def test_the_price_is_not_the_weight_alone(chapter):
    G = torch.tensor([[100.0, 0.0], [0.0, 0.1]], dtype=torch.float64)
    _, gone = chapter.surgeon(torch.tensor([[1.0, 2.0]]).double(), lambda: G[None], 1, damping=1e-3)
    assert gone.tolist() == [[False, True]]  # larger, and yet of no consequence


def test_pruning_falls_by_one_factor_sees_only_what_is_left_and_never_revives(chapter, g):
    seen, w = [], random(2, 30, g=g)
    prunable = torch.arange(30)[torch.arange(30) % 3 > 0]  # 20 of 30

    def gradients(w):
        return random(2, 5, 30, g=g)

    def rule(left, window, count):
        assert window().shape == (2, 5, left.shape[1])
        seen.append((left.shape[1], count))
        assert (left != 0).all()
        return chapter.surgeon(left, window, count, damping=0.1)

    new = chapter.prune(w, prunable, gradients, rule, sparsity=0.9, steps=3)
    keep = [20, *(round(20 * 0.1 ** (k / 3)) for k in (1, 2, 3))]
    assert seen == [(a, a - b) for a, b in pairwise(keep)]
    assert ((new[:, prunable] == 0).sum(1) == 18).all()
    fixed = torch.arange(30) % 3 == 0
    assert_close(new[:, fixed], w[:, fixed], rtol=0, atol=0)


def test_pruning_in_one_step_is_the_rule_once(chapter, g):
    w, G = random(2, 10, g=g), random(2, 5, 10, g=g)
    rule = chapter.surgeon
    new = chapter.prune(w, torch.arange(10), lambda _: G, rule, sparsity=0.6, steps=1)
    assert_close(new, rule(w, lambda: G, 6)[0], rtol=0, atol=0)
    assert ((new == 0).sum(1) == 6).all()


def test_windows_are_taken_at_the_weights_that_earlier_steps_left_and_in_their_columns(chapter, g):
    w, asked = random(1, 6, g=g), []

    def gradients(w):
        asked.append(w.clone())
        return torch.arange(6.0).double().expand(1, 2, 6)

    def rule(left, window, count):
        columns = window()[0, 0]
        assert_close(asked[-1][0, columns.long()], left[0])
        gone = torch.zeros_like(left, dtype=torch.bool)
        gone[:, :count] = True
        return (2 * left).masked_fill(gone, 0), gone

    new = chapter.prune(w, torch.arange(6), gradients, rule, sparsity=0.75, steps=2)
    assert_close(asked[1], torch.cat([torch.zeros(1, 3).double(), 2 * w[:, 3:]], 1))
    assert (new != 0).sum() == 2


# What is refused


@pytest.mark.parametrize(
    ("gradients", "damping", "words"),
    [
        (torch.ones(3), 0.1, r"\(\.\.\., m, d\), not empty; got \(3,\)"),
        (torch.ones(0, 3), 0.1, "not empty"),
        (torch.tensor([[1.0, torch.nan]]), 0.1, "finite; 1 are not"),
        (torch.ones(2, 3), 0.0, "damping must be positive"),
        (torch.ones(2, 3), -1.0, "damping must be positive"),
    ],
)
def test_windows_that_define_no_inverse_are_refused(chapter, gradients, damping, words):
    for make in (chapter.static_recursion, chapter.static_fast, chapter.inverse, chapter.Window):
        with pytest.raises(ValueError, match=words):
            make(gradients, damping)


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
def test_one_gradient_that_is_not_finite_is_found_and_large_ones_are_not_refused(chapter, bad):
    rows = torch.full((2, 3), 1e308, dtype=torch.float64)  # finite, though their sum is not
    chapter.require_window(rows, 0.1)
    rows[1, 2] = bad
    with pytest.raises(ValueError, match="finite; 1 are not"):
        chapter.require_window(rows, 0.1)


def test_other_impossible_requests_are_refused(chapter, g):
    G, w = window_of(g), random(11, g=g)
    with pytest.raises(ValueError, match="block must be at least 1; got 0"):
        chapter.inverse(G, 0.1, block=0)
    for new in (random(7, 11, g=g), random(1, 10, g=g), random(0, 11, g=g)):
        with pytest.raises(ValueError, match=r"\(\.\.\., k, 11\) with k in 1\.\.6"):
            chapter.Window(G, 0.1).replace(new)
    with pytest.raises(ValueError, match=r"count must lie in 0\.\.10; got 11"):
        chapter.remove(w, chapter.inverse(G, 0.1), w, 11)
    for sparsity, steps in ((1.0, 2), (-0.1, 2), (0.5, 0)):
        with pytest.raises(ValueError, match="sparsity must lie in"):
            chapter.prune(w[None], torch.arange(11), None, None, sparsity, steps)


# Plausible mistakes are told apart by the oracles above


def test_dividing_by_the_number_seen_so_far_is_another_matrix(chapter, g):
    G, x = window_of(g), random(11, g=g)
    inverse = torch.eye(11).double() / 0.3
    for i, row in enumerate(G, 1):  # i in place of m
        v = inverse @ row
        inverse -= torch.outer(v, v) / (i + row @ v)
    exact = torch.linalg.solve(dense(G, 0.3), x)
    assert (inverse @ x - exact).norm() > 0.01 * exact.norm()
    assert_close(chapter.static_product(chapter.static_recursion(G, 0.3), x), exact, **EXACT)


def test_damping_of_the_small_matrix_without_m_is_another_matrix(chapter, g):
    G, x = window_of(g), random(11, g=g)
    wrong = (x - G.T @ torch.linalg.solve(0.3 * torch.eye(6).double() + G @ G.T, G @ x)) / 0.3
    assert (wrong - chapter.Window(G, 0.3).product(x)).norm() > 0.01 * wrong.norm()


def test_a_transposed_table_gives_another_product(chapter, g):
    G, x = window_of(g), random(11, g=g)
    t = chapter.tables(G @ G.T, 0.3)
    wrong = chapter.dynamic_product(G, t._replace(B=t.B.T), 0.3, x)
    assert (wrong - chapter.dynamic_product(G, t, 0.3, x)).norm() > 0.01 * wrong.norm()


def test_the_fisher_of_mean_gradients_is_not_that_of_single_ones(chapter, g):
    rows, x = random(24, 5, g=g), random(5, g=g)
    single = chapter.inverse(rows, 0.1).product(x)
    means = chapter.inverse(rows.view(6, 4, 5).mean(1), 0.1).product(x)
    assert (single - means).norm() > 0.3 * single.norm()
