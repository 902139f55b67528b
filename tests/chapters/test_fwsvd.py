"""The method of `fwsvd` against naive loops, gradient descent, closed forms, limits and plausible mistakes."""

import numpy as np
import pytest
import scipy.linalg
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from reprolib.fisher import per_example_gradients
from reprolib.lm import GPT, GPTConfig

EXACT = {"rtol": 0.0, "atol": 1e-10}
QUERY, UP = "blocks.0.attention.query", "blocks.0.mlp.up"


def random(*shape: int, g: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def positive(*shape: int, g: torch.Generator) -> Tensor:
    return random(*shape, g=g).exp()


def error(W: Tensor, approximation: Tensor, rows: Tensor) -> Tensor:
    """Σ_i rows_i |W_i − approximation_i|², row by row."""
    return sum(r * ((w - a) ** 2).sum() for r, w, a in zip(rows, W, approximation, strict=True))


def best_error(W: Tensor, rows: Tensor, k: int, g: torch.Generator) -> float:
    """The least row-weighted error that L-BFGS finds from five random starts; it knows no SVD."""
    found = []
    for _ in range(5):
        a, b = random(W.shape[0], k, g=g).requires_grad_(), random(k, W.shape[1], g=g).requires_grad_()
        optimizer = torch.optim.LBFGS([a, b], max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

        def closure(a=a, b=b, optimizer=optimizer):
            optimizer.zero_grad()
            loss = (rows[:, None] * (W - a @ b) ** 2).sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        found.append(error(W, a @ b, rows).item())
    return min(found)


@pytest.fixture
def model(g) -> GPT:
    model = GPT(GPTConfig(7, 5, 1, 2, 8, tied=False), seed=3).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p += 0.2 * random(*p.shape, g=g)
    return model


# The importance


def one_by_one(model: GPT, tokens: Tensor, name: str, over_positions_first: bool = True) -> Tensor:
    """Mean square, example by example, of gradients from automatic differentiation; (inputs, outputs)."""
    weight, total = model.get_submodule(name).weight, 0.0
    for sequence in tokens:
        losses = F.cross_entropy(model(sequence[None, :-1])[0], sequence[1:], reduction="none")
        terms = [losses.sum()] if over_positions_first else losses
        total += sum(torch.autograd.grad(loss, weight, retain_graph=True)[0].T ** 2 for loss in terms)
    return total / len(tokens)


def test_the_importance_is_the_mean_square_of_whole_sequences_gradients(chapter, model, g):
    tokens = torch.randint(7, (70, 6), generator=g)  # more than one batch, the last one short
    found = chapter.importance(model, tokens[:, :-1], tokens[:, 1:], [QUERY, UP])
    assert found[UP].shape == (8, 32)
    for name in (QUERY, UP):
        assert_close(found[name], one_by_one(model, tokens, name), rtol=1e-9, atol=1e-14)


def test_squares_of_single_positions_or_of_the_batch_are_not_the_importance(chapter, model, g):
    tokens = torch.randint(7, (6, 6), generator=g)
    found = chapter.importance(model, tokens[:, :-1], tokens[:, 1:], [UP])[UP]
    single = one_by_one(model, tokens, UP, over_positions_first=False)
    loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum")
    batch = (torch.autograd.grad(loss, model.get_submodule(UP).weight)[0].T / 6) ** 2
    for wrong in (single, batch):
        assert (found - wrong).abs().max() > 0.1 * found.max()


def test_without_weight_sharing_the_importance_is_the_mean_of_squared_outer_products(chapter, g):
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    x, y = random(30, 5, g=g), torch.randint(3, (30,), generator=g)
    hidden = model[:2](x)
    delta = model(x).softmax(-1) - F.one_hot(y, 3)
    found = chapter.importance(model, x, y, ["2"])["2"]
    assert_close(found, torch.einsum("ni,nj->ij", hidden**2, delta**2).detach() / 30, **EXACT)
    peer = per_example_gradients(model, F.cross_entropy, x, y)["0.weight"].square().mean(0).T
    assert_close(chapter.importance(model, x, y, ["0"])["0"], peer, **EXACT)


def test_the_importance_of_a_row_belongs_to_an_input(chapter, g):
    model = nn.Sequential(nn.Linear(5, 4)).double()
    x, y = random(30, 5, g=g), torch.randint(4, (30,), generator=g)
    x[:, 2] = 0  # an input that is never there cannot matter
    rows = chapter.row_importance(chapter.importance(model, x, y, ["0"])["0"])
    assert rows.shape == (5,) and rows[2] == 0 and (rows[[0, 1, 3, 4]] > 0).all()


def test_a_row_matters_as_the_sum_of_its_weights(chapter):
    fisher = torch.tensor([[1.0, 2.0, 4.0], [0.0, 8.0, 0.0]])
    assert chapter.row_importance(fisher).tolist() == [7, 8]
    assert chapter.row_importance(torch.stack([fisher, 2 * fisher])).tolist() == [[7, 8], [14, 16]]  # run by run


# The factorisation


@pytest.mark.parametrize("shape", [(7, 4), (4, 7)])
def test_no_descent_beats_the_closed_form_and_some_attain_it(chapter, g, shape):
    W, rows = random(*shape, g=g), positive(shape[0], g=g)
    A, B = chapter.truncated(chapter.fwsvd(W, rows), 2)
    ours, best = error(W, A @ B, rows).item(), best_error(W, rows, 2, g)
    assert best == pytest.approx(ours, rel=1e-8) and best > ours * (1 - 1e-10)
    assert torch.linalg.matrix_rank(A @ B) == 2


@pytest.mark.parametrize("wrong", ["no root", "not undone", "columns", "root of the root"])
def test_plausible_mistakes_miss_the_minimum(chapter, g, wrong):
    W, rows = random(6, 6, g=g), torch.tensor([9.0, 0.1, 4.0, 0.5, 1.0, 0.02]).double()
    A, B = chapter.truncated(chapter.fwsvd(W, rows), 2)
    scale = {"no root": rows, "root of the root": rows**0.25}.get(wrong, rows.sqrt())[:, None]
    U, S, Vt = torch.linalg.svd(scale * W)
    if wrong == "columns":
        U, S, Vt = torch.linalg.svd(W * scale.T)
    bad = (U[:, :2] * S[:2]) @ Vt[:2]
    bad = bad / scale.T if wrong == "columns" else bad if wrong == "not undone" else bad / scale
    assert error(W, bad, rows) > 1.01 * error(W, A @ B, rows)


def test_the_error_is_what_was_cut_off_and_the_values_descend(chapter, g):
    W, rows = random(3, 6, 5, g=g), positive(3, 6, g=g)
    found = chapter.fwsvd(W, rows)
    assert (found.values.diff(dim=-1) <= 0).all()
    for k in range(1, 6):
        A, B = chapter.truncated(found, k)
        assert A.shape == (3, 6, k) and B.shape == (3, k, 5)
        cut = found.values[:, k:].square().sum(-1)
        assert_close(torch.stack([error(*terms) for terms in zip(W, A @ B, rows, strict=True)]), cut, **EXACT)


def test_b_has_orthonormal_rows_and_a_the_singular_values(chapter, g):
    W, rows = random(6, 5, g=g), positive(6, g=g)
    A, B = chapter.truncated(chapter.fwsvd(W, rows), 3)
    values = scipy.linalg.svdvals((rows.sqrt()[:, None] * W).numpy())[:3]
    assert_close(B @ B.mT, torch.eye(3, dtype=torch.float64), **EXACT)
    assert_close((rows.sqrt()[:, None] * A).norm(dim=0), torch.from_numpy(values.copy()), **EXACT)


def test_constant_importance_gives_scipys_svd_and_full_rank_the_matrix(chapter, g):
    W = random(6, 9, g=g)
    U, S, Vt = scipy.linalg.svd(W.numpy(), full_matrices=False)
    for k in (1, 3, 6):
        A, B = chapter.truncated(chapter.fwsvd(W, torch.full((6,), 7.0).double()), k)
        assert_close(A @ B, torch.from_numpy((U[:, :k] * S[:k]) @ Vt[:k]), **EXACT)
    A, B = chapter.truncated(chapter.fwsvd(W, positive(6, g=g)), 6)
    assert_close(A @ B, W, **EXACT)


def test_only_ratios_of_importances_count(chapter, g):
    W, rows = random(6, 5, g=g), positive(6, g=g)
    one, other = (chapter.truncated(chapter.fwsvd(W, c * rows), 2) for c in (1, 1e6))
    assert_close(one[0] @ one[1], other[0] @ other[1], **EXACT)


def test_rows_are_projected_and_none_moves_further_than_its_length(chapter, g):
    W, rows = random(9, 5, g=g), 10 ** (3 * random(9, g=g))
    A, B = chapter.truncated(chapter.fwsvd(W, rows), 2)
    assert_close(A @ B, W @ B.mT @ B, **EXACT)
    assert ((W - A @ B).norm(dim=1) <= W.norm(dim=1) + 1e-12).all()


def test_a_row_of_overwhelming_importance_is_kept_whole(chapter, g):
    W, rows = random(6, 5, g=g), torch.ones(6, dtype=torch.float64)
    rows[4] = 1e8
    A, B = chapter.truncated(chapter.fwsvd(W, rows), 1)
    assert_close((A @ B)[4], W[4], rtol=0, atol=1e-6)


def test_runs_do_not_mix(chapter, g):
    W, rows = random(3, 6, 5, g=g), positive(3, 6, g=g)
    A, B = chapter.truncated(chapter.fwsvd(W, rows), 2)
    for s in range(3):
        a, b = chapter.truncated(chapter.fwsvd(W[s], rows[s]), 2)
        assert_close((A @ B)[s], a @ b, **EXACT)


def test_zero_importance_is_raised_to_the_floor_run_by_run(chapter):
    rows = torch.tensor([[0.0, 2.0, 1e-12], [0.0, 200.0, 1.0]], dtype=torch.float64)
    floor = [[2e-8, 2.0, 2e-8], [2e-6, 200.0, 1.0]]
    assert_close(chapter.clamped(rows), torch.tensor(floor, dtype=torch.float64))
    assert_close(chapter.clamped(rows, 0.1)[1], torch.tensor([20.0, 200.0, 20.0]).double())
    W = torch.eye(3, dtype=torch.float64)
    A, B = chapter.truncated(chapter.fwsvd(W, rows[0]), 2)
    assert (A @ B).isfinite().all()


# Errors


def test_the_weighted_error_is_the_sum_over_elements(chapter, g):
    W, M, weights = random(3, 4, g=g), random(3, 4, g=g), positive(3, 4, g=g)
    naive = sum(weights[i, j] * (W[i, j] - M[i, j]) ** 2 for i in range(3) for j in range(4))
    assert_close(chapter.weighted_error(W, M, weights), naive)
    assert_close(chapter.weighted_error(W, M, weights[:, :1]), error(W, M, weights[:, 0]))
    stacked = chapter.weighted_error(torch.stack([W, 2 * W]), torch.stack([M, 2 * M]), weights)
    assert_close(stacked, torch.stack([naive, 4 * naive]))


# The layer


def test_the_thin_layers_compute_the_product_and_keep_the_bias(chapter, model, g):
    tokens = torch.randint(7, (4, 5), generator=g)
    factors = {QUERY: (random(8, 3, g=g), random(3, 8, g=g)), UP: (random(8, 2, g=g), random(2, 32, g=g))}
    thin = chapter.factorised(model, factors)
    before = model(tokens)
    with torch.no_grad():
        for name, (A, B) in factors.items():
            model.get_submodule(name).weight.copy_((A @ B).mT)
    assert_close(thin(tokens), model(tokens), rtol=1e-10, atol=1e-10)
    assert (before - model(tokens)).abs().max() > 0.1  # the original was left alone until now


def test_the_thin_layers_hold_k_times_inputs_plus_outputs_weights_and_the_bias(chapter, model, g):
    thin = chapter.factorised(model, {UP: (random(8, 3, g=g), random(3, 32, g=g))})
    count = [sum(p.numel() for p in m.parameters()) for m in (model, thin)]
    assert count[0] - count[1] == 8 * 32 - 3 * (8 + 32)
    first, second = thin.get_submodule(UP)
    assert first.bias is None and (second.bias == model.get_submodule(UP).bias).all()
    assert chapter.low_rank_layer(random(4, 2, g=g), random(2, 3, g=g), None)[1].bias is None


# Ablations


def test_columns_are_rows_of_the_transpose(chapter, g):
    W, columns = random(6, 5, g=g), positive(5, g=g)
    A, B = chapter.truncated(chapter.weigh_columns(W, columns), 2)
    a, b = chapter.truncated(chapter.fwsvd(W.mT, columns), 2)
    assert_close(A @ B, (a @ b).mT, **EXACT)


def test_weighing_both_sides_minimises_the_error_of_the_scaled_matrix(chapter, g):
    W, rows, columns = random(5, 4, g=g), positive(5, g=g), positive(4, g=g)
    found = chapter.weigh_columns(W, columns, rows)
    A, B = chapter.truncated(found, 2)
    values = scipy.linalg.svdvals((rows.sqrt()[:, None] * W * columns.sqrt()).numpy())
    weighted = (rows[:, None] * columns * (W - A @ B) ** 2).sum()
    assert weighted.item() == pytest.approx(np.square(values[2:]).sum(), rel=1e-10)
    A, B = chapter.truncated(found, 4)
    assert_close(A @ B, W, **EXACT)


def test_smoothing_adds_a_share_of_the_mean(chapter):
    rows = torch.tensor([[1.0, 3.0], [0.0, 8.0]])
    assert chapter.smoothed(rows, 0).tolist() == rows.tolist()
    assert chapter.smoothed(rows, 0.5).tolist() == [[2, 4], [2, 10]]


def test_each_row_of_the_regression_is_weighted_least_squares(chapter, g):
    W, B, weights = random(4, 9, g=g), random(3, 9, g=g), positive(4, 9, g=g)
    A = chapter.regress_rows(W, B, weights)
    for i in range(4):
        root = weights[i].sqrt()
        solved = torch.linalg.lstsq((B * root).mT, (W[i] * root)[:, None]).solution[:, 0]
        assert_close(A[i], solved, **EXACT)


def test_the_element_weighted_solver_descends_and_stands_still_at_its_end(chapter, g):
    W, fisher = random(2, 6, 7, g=g), positive(2, 6, 7, g=g)
    B = chapter.truncated(chapter.fwsvd(W, fisher.sum(-1)), 2)[1]
    errors = []
    for rounds in (1, 3, 10, 300):
        a, b = chapter.weigh_elements(W, fisher, B, rounds)
        errors.append((fisher * (W - a @ b) ** 2).sum().item())
    assert errors[0] > errors[1] > errors[2] >= errors[3]
    a, b = a.clone().requires_grad_(), b.clone().requires_grad_()
    slopes = torch.autograd.grad((fisher * (W - a @ b) ** 2).sum(), (a, b))
    assert max(s.abs().max().item() for s in slopes) < 1e-6


def test_with_rank_one_weights_the_element_solver_and_both_sides_agree(chapter, g):
    W, rows, columns = random(5, 6, g=g), positive(5, g=g), positive(6, g=g)
    A, B = chapter.truncated(chapter.weigh_columns(W, columns, rows), 2)
    a, b = chapter.weigh_elements(W, rows[:, None] * columns, random(2, 6, g=g), 500)
    assert_close(a @ b, A @ B, rtol=0, atol=1e-6)


# The language


def test_the_next_token_follows_the_mean_of_the_rows_of_the_last_two(chapter, g):
    P = (2 * random(4, 4, g=g)).softmax(-1)
    tokens = chapter.sample(P, 40_000, 4, g)
    assert tokens.shape == (40_000, 4)
    for before in ((0, 1), (2, 3), (3, 3)):
        chosen = tokens[(tokens[:, 1] == before[0]) & (tokens[:, 2] == before[1]), 3]
        law = P[list(before)].mean(0)
        assert len(chosen) > 300
        shares = chosen.bincount(minlength=4) / len(chosen)
        assert ((shares - law).abs() < 4.5 * (law * (1 - law) / len(chosen)).sqrt()).all()
    second = tokens[tokens[:, 0] == 1, 1].bincount(minlength=4)  # after one token there is one row
    assert ((second / second.sum() - P[1]).abs() < 4.5 * (P[1] / second.sum()).sqrt()).all()


def test_the_entropy_is_the_mean_surprise_under_the_law(chapter, g):
    P = (2 * random(5, 5, g=g)).softmax(-1)
    tokens = torch.randint(5, (7, 4), generator=g)
    total = 0.0
    for t in tokens.tolist():
        total -= P[t[0], t[1]].log()
        for i in (2, 3):
            total -= ((P[t[i - 1], t[i]] + P[t[i - 2], t[i]]) / 2).log()
    assert_close(chapter.entropy(P, tokens), total / 21)


# The second order


def test_the_predicted_rise_is_half_the_element_weighted_error_of_all_maps(chapter, g):
    W, fisher, maps = ({n: positive(2, 3, 4, g=g) for n in "ab"} for _ in range(3))
    for s in range(2):
        naive = 0.0
        for n in "ab":
            for i in range(3):
                for j in range(4):
                    naive += fisher[n][s, i, j] * (W[n][s, i, j] - maps[n][s, i, j]) ** 2 / 2
        assert chapter.predicted(W, fisher, maps)[s].item() == pytest.approx(naive.item(), rel=1e-12)


@pytest.mark.parametrize("t", [0.05, 0.5])
def test_second_differences_give_the_quadratic_form_with_the_correlations_between_maps(chapter, g, t):
    W, maps = ({n: random(2, 3, 2, g=g) for n in "ab"} for _ in range(2))
    root, slope = random(2, 12, 12, g=g), random(2, 12, g=g)
    hessian = root @ root.mT

    def joined(m):
        return torch.cat([m["a"].flatten(1), m["b"].flatten(1)], 1)

    def loss_at(m):  # slope, quadratic and cubic: the first and the last must cancel
        step = joined(m) - joined(W)
        cubic = 5 * (step * slope).sum(1) ** 3
        return 3 + (slope * step).sum(1) + torch.einsum("si,sij,sj->s", step, hessian, step) / 2 + cubic

    step = joined(maps) - joined(W)
    want = torch.stack([v @ h @ v for v, h in zip(step, hessian, strict=True)]) / 2
    assert_close(chapter.quadratic(loss_at, W, maps, t), want, rtol=1e-8, atol=0)


def test_the_default_step_is_small_enough_for_a_quartic(chapter):
    zero, one = {"a": torch.zeros(1, 1, 1).double()}, {"a": torch.ones(1, 1, 1).double()}
    found = chapter.quadratic(lambda m: m["a"].sum() ** 2 + m["a"].sum() ** 4, zero, one)
    assert found.item() == pytest.approx(1, abs=0.01)


# Groups, moments, savings


def test_a_deleted_group_takes_its_own_singular_triples_and_the_first_the_largest(chapter, g):
    W = random(2, 8, 10, g=g)
    factors = chapter.fwsvd(W, torch.ones(2, 8).double())
    gone = [W - chapter.without_group(factors, group, 4) for group in range(4)]
    assert_close(sum(gone), W, **EXACT)
    for s in range(2):
        values = scipy.linalg.svdvals(W[s].numpy())
        for group in range(4):
            found = scipy.linalg.svdvals(gone[group][s].numpy())
            assert found[:2] == pytest.approx(values[2 * group : 2 * group + 2], rel=1e-9)
            assert np.abs(found[2:]).max() < 1e-10
    rows = positive(2, 8, g=g)
    weighted = chapter.without_group(chapter.fwsvd(W, rows), 3, 4)
    A, B = chapter.truncated(chapter.fwsvd(W, rows), 6)
    assert_close(weighted, A @ B, **EXACT)  # without the last group: the first six terms


@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
def test_moments_keep_the_layers_output_as_the_svd_of_the_output_does(chapter, g, shape):
    W, x = random(*shape, g=g), random(200, shape[0], g=g) @ random(shape[0], shape[0], g=g)
    factors = chapter.by_moments(W, x.mT @ x / 200)
    U, S, Vt = scipy.linalg.svd((x @ W).numpy(), full_matrices=False)
    for k in (1, 3):
        A, B = chapter.truncated(factors, k)
        assert_close(x @ A @ B, torch.from_numpy((U[:, :k] * S[:k]) @ Vt[:k]), rtol=0, atol=1e-8)
    A, B = chapter.truncated(factors, shape[1])
    assert_close(A @ B, W, **EXACT)


def test_diagonal_moments_weigh_rows(chapter, g):
    W, moments = random(6, 4, g=g), positive(6, g=g)
    A, B = chapter.truncated(chapter.by_moments(W, moments.diag()), 2)
    a, b = chapter.truncated(chapter.fwsvd(W, moments), 2)
    assert_close(A @ B, a @ b, **EXACT)


def test_the_saving_is_the_largest_share_within_reach_arm_by_arm_and_run_by_run(chapter):
    losses = torch.tensor([[[1.5, 2.5], [1.01, 2.01]], [[1.019, 2.03], [0.5, 2.5]], [[0.9, 1.9], [1.5, 2.0]]])
    found = chapter.largest_saving(losses.double(), torch.tensor([1.0, 2.0]).double(), [0.4, 0.2, 0.1])
    assert_close(found, torch.tensor([[0.2, 0.1], [0.4, 0.4]]).double())
    none = chapter.largest_saving(losses.double(), torch.tensor([0.0, 0.0]).double(), [0.4, 0.2, 0.1])
    assert (none == 0).all()


# What is refused


def test_importances_that_make_no_sense_are_refused(chapter, g):
    W = random(3, 4, g=g)
    for bad in ([0.0, 0.0, 0.0], [1.0, -1.0, 1.0], [1.0, float("nan"), 1.0], [1.0, float("inf"), 1.0]):
        with pytest.raises(ValueError, match="finite, not negative and not all zero"):
            chapter.fwsvd(W, torch.tensor(bad).double())
    with pytest.raises(ValueError, match=r"one importance a row of W, \(3,\); got \(4,\)"):
        chapter.fwsvd(W, torch.ones(4).double())
    with pytest.raises(ValueError, match=r"one importance a row of W, \(2, 3\); got \(3,\)"):
        chapter.fwsvd(torch.stack([W, W]), torch.ones(3).double())  # of each run


def test_ranks_outside_the_matrix_are_refused(chapter, g):
    found = chapter.fwsvd(random(3, 4, g=g), positive(3, g=g))
    for k in (0, 4):
        with pytest.raises(ValueError, match=r"k must lie in 1\.\.3"):
            chapter.truncated(found, k)


def test_factors_that_do_not_fit_the_layer_are_refused(chapter, model, g):
    for name, A, B in ((UP, random(8, 2, g=g), random(2, 8, g=g)), ("norm", random(8, 2, g=g), random(2, 8, g=g))):
        with pytest.raises(ValueError, match=f"{name} must be a Linear from A's rows"):
            chapter.factorised(model, {name: (A, B)})
