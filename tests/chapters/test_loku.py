"""The method of `loku` against naive loops, closed forms, other decompositions, torch's optimiser and mistakes."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call
from torch.testing import assert_close

from reprolib.fisher import batches, empirical_diagonal_fisher
from reprolib.lm import GPT, GPTConfig

EXACT = {"rtol": 0.0, "atol": 1e-10}
V = 12


def random(*shape: int, g: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def positive(*shape: int, g: torch.Generator) -> Tensor:
    return 0.2 + torch.rand(*shape, generator=g, dtype=torch.float64)


def labels(*shape: int, g: torch.Generator, top: int = V) -> Tensor:
    return torch.randint(top, shape, generator=g)


def language_model(seed: int = 0) -> GPT:
    """Double precision, with weights large enough that no gradient is negligible."""
    model = GPT(GPTConfig(V, 7, 1, 2, 8, hidden=6, bias=False), seed=seed).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2:
                p.mul_(10)
    return model


def weights_of(model: GPT) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def matrices(weights: dict[str, Tensor]) -> list[str]:
    return [n for n in weights if "attention" in n or "mlp" in n]


def value_loss(model: GPT, facts: Tensor) -> Tensor:
    """Mean cross-entropy of the values, by masking the whole sequence: independent of the chapter's slices."""
    targets = facts[:, 1:].clone()
    targets[:, 0] = -100
    return F.cross_entropy(model(facts[:, :-1]).flatten(0, 1), targets.flatten(), ignore_index=-100)


def naive_hinge(z: list[float], t: int) -> float:
    total = sum(math.exp(v) for v in z)
    p = [math.exp(v) / total for v in z]
    return 1 + p[t] - max(q for i, q in enumerate(p) if i != t)


# The losses


def test_the_hinge_of_three_tokens_by_hand(chapter):
    z = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64).log().expand(3, 3)
    assert_close(chapter.inverted_hinge(z, torch.arange(3)), torch.tensor([1.5, 0.5, 0.4]).double())


def test_of_two_tokens_the_other_one_is_the_rival(chapter):
    z = torch.tensor([0.7, 0.3], dtype=torch.float64).log().expand(2, 2)
    assert_close(chapter.inverted_hinge(z, torch.arange(2)), torch.tensor([1.4, 0.6]).double())


def test_the_hinge_is_that_of_a_loop_over_places(chapter, g):
    z, t = 3 * random(4, 5, V, g=g), labels(4, 5, g=g)
    found = chapter.inverted_hinge(z, t)
    for i in range(4):
        for j in range(5):
            assert found[i, j].item() == pytest.approx(naive_hinge(z[i, j].tolist(), int(t[i, j])), abs=1e-12)


def test_the_hinge_reaches_both_of_its_bounds(chapter):
    z = torch.tensor([[1e3, 0.0, 0.0], [0.0, 1e3, 0.0]]).double()
    assert chapter.inverted_hinge(z, torch.tensor([0, 0])).tolist() == [2.0, 0.0]


def test_the_gradient_of_the_hinge_is_the_closed_form(chapter, g):
    z, t = (3 * random(50, V, g=g)).requires_grad_(), labels(50, g=g)
    (found,) = torch.autograd.grad(chapter.inverted_hinge(z, t).sum(), z)
    for n in range(50):
        p = z[n].detach().softmax(0)
        k = max((v for v in range(V) if v != t[n]), key=lambda v, p=p: p[v])
        want = p * (p[k] - p[t[n]])
        want[t[n]] = p[t[n]] * (1 - p[t[n]] + p[k])
        want[k] = -p[k] * (1 - p[k] + p[t[n]])
        assert_close(found[n], want, rtol=0, atol=1e-12)


def test_the_gradient_of_ascent_is_one_minus_p_at_the_token_and_minus_p_elsewhere(chapter, g):
    z, t = random(1, 1, V, g=g).requires_grad_(), labels(1, 1, g=g)
    (found,) = torch.autograd.grad(chapter.ascent(z, t), z)
    assert_close(found, F.one_hot(t, V) - z.detach().softmax(-1), **EXACT)


def test_every_loss_averages_the_places_of_each_run_apart(chapter, g):
    z, t = random(3, 4, 5, V, g=g), labels(3, 4, 5, g=g)
    logp = -F.cross_entropy(z.flatten(0, 2), t.flatten(), reduction="none").view(3, 4, 5)
    assert_close(chapter.log_likelihood(z, t), logp, **EXACT)
    for s in range(3):
        assert_close(chapter.ascent(z, t)[s], logp[s].mean(), **EXACT)
        assert_close(chapter.probability(z, t)[s], logp[s].exp().mean(), **EXACT)
        assert_close(chapter.hinge(z, t)[s], chapter.inverted_hinge(z[s], t[s]).mean(), **EXACT)


def test_npo_is_the_formula_on_whole_sequences(chapter, g):
    z, t, reference = random(2, 3, 4, V, g=g), labels(2, 3, 4, g=g), 5 * random(2, 3, g=g)
    found = chapter.npo(z, t, reference)
    for s in range(2):
        terms = []
        for n in range(3):
            logp = sum(z[s, n, i].log_softmax(0)[t[s, n, i]].item() for i in range(4))
            ratio = logp - reference[s, n].item()
            terms.append(2 / 0.1 * math.log(1 + math.exp(0.1 * ratio)))
        assert found[s].item() == pytest.approx(sum(terms) / 3, abs=1e-10)


def test_npo_takes_one_run_or_a_grid_of_runs(chapter, g):
    z, t, reference = random(2, 2, 3, 4, V, g=g), labels(2, 2, 3, 4, g=g), random(2, 2, 3, g=g)
    grid = chapter.npo(z, t, reference)
    for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
        assert_close(grid[i, j], chapter.npo(z[i, j], t[i, j], reference[i, j]), **EXACT)


def test_npo_starts_with_the_gradient_of_ascent_on_sequences(chapter, g):
    z, t = random(1, 3, 4, V, g=g).requires_grad_(), labels(1, 3, 4, g=g)
    reference = chapter.log_likelihood(z, t).sum(-1).detach()
    (found,) = torch.autograd.grad(chapter.npo(z, t, reference).sum(), z)
    (want,) = torch.autograd.grad(4 * chapter.ascent(z, t).sum(), z)
    assert_close(found, want, **EXACT)


# The adapters


def test_plain_lora_starts_as_the_matrix_itself(chapter, g):
    W = random(2, 5, 16, g=g)
    adapter = chapter.lora(W, 3, g)
    assert_close(adapter.weight(), W, rtol=0, atol=0)
    assert adapter.B.shape == (2, 5, 3)
    assert adapter.A.shape == (2, 3, 16)
    assert not adapter.B.any()
    assert adapter.A.dtype == W.dtype
    assert 0.2 < adapter.A.abs().max() <= 0.25
    assert adapter.A.min() < -0.2
    again = [chapter.lora(W, 3, torch.Generator().manual_seed(4)).A for _ in range(2)]
    assert_close(*again, rtol=0, atol=0)


def test_the_adapted_weight_is_the_frozen_part_plus_s_times_b_a(chapter, g):
    frozen, B, A = random(2, 4, 6, g=g), random(2, 4, 3, g=g), random(2, 3, 6, g=g)
    adapter = chapter.Adapter(frozen, B, A)
    for s, scale in ((2.0, {}), (0.5, {"s": 0.5})):
        for run in range(2):
            want = frozen[run] + s * sum(torch.outer(B[run][:, i], A[run][i]) for i in range(3))
            assert_close(adapter.weight(**scale)[run], want, **EXACT)


@pytest.mark.parametrize(("shape", "rank", "s"), [((9, 5), 2, 2.0), ((4, 11), 3, 0.5), ((6, 6), 6, 1.0)])
def test_the_split_keeps_the_matrix_and_leaves_the_least_weighted_error(chapter, g, shape, rank, s):
    W, w = random(*shape, g=g), positive(shape[0], g=g) ** 3
    adapter = chapter.split(W, w, rank, s)
    assert_close(adapter.weight(s), W, **EXACT)
    eigenvalues = np.linalg.eigvalsh((W.T @ (w[:, None] ** 2 * W)).numpy())[::-1]
    error = (w[:, None] * adapter.frozen).square().sum().item()
    assert error == pytest.approx(eigenvalues[rank:].clip(min=0).sum(), abs=1e-9)
    S = torch.linalg.svdvals(w[:, None] * W)[:rank]
    assert_close(adapter.A @ adapter.A.T, torch.diag(S / s), **EXACT)
    scaled = w[:, None] * adapter.B
    assert_close(scaled.T @ scaled, torch.diag(S / s), **EXACT)


def test_no_step_of_gradient_descent_improves_on_the_split(chapter, g):
    W, w = random(7, 6, g=g), positive(7, g=g) ** 2
    adapter = chapter.split(W, w, 2)
    B, A = (t.clone().requires_grad_() for t in adapter[1:])
    error = (w[:, None] * (W - 2 * B @ A)).square().sum()
    for gradient in torch.autograd.grad(error, (B, A)):
        assert_close(gradient, torch.zeros_like(gradient), **EXACT)
    assert error.item() == pytest.approx((w[:, None] * adapter.frozen).square().sum().item(), abs=1e-10)


def test_stacked_matrices_are_split_one_by_one(chapter, g):
    W, w = random(3, 5, 4, g=g), positive(3, 5, g=g)
    for balance in (False, True):
        stacked = chapter.split(W, w, 2, balance=balance)
        for run in range(3):
            alone = chapter.split(W[run], w[run], 2, balance=balance)
            assert_close(stacked.frozen[run], alone.frozen, **EXACT)
            assert_close(stacked.B[run].norm(dim=0), alone.B.norm(dim=0), **EXACT)
            assert_close(stacked.A[run].norm(dim=1), alone.A.norm(dim=1), **EXACT)


def test_uniform_weights_give_the_principal_part(chapter, g):
    W = random(6, 5, g=g)
    U, S, Vt = np.linalg.svd(W.numpy())
    adapter = chapter.split(W, torch.ones(6).double(), 2, 2.0)
    assert_close(2 * adapter.B @ adapter.A, torch.from_numpy(U[:, :2] * S[:2] @ Vt[:2]), **EXACT)
    assert_close(adapter.B.norm(dim=0), adapter.A.norm(dim=1), **EXACT)


def test_the_unit_of_the_weights_moves_length_from_b_to_a_and_balance_undoes_it(chapter, g):
    W, w = random(6, 5, g=g), positive(6, g=g)
    one, many = chapter.split(W, w, 2), chapter.split(W, 25 * w, 2)
    assert_close(many.frozen, one.frozen, **EXACT)
    assert_close(many.A.norm(dim=1), 5 * one.A.norm(dim=1), **EXACT)
    assert_close(many.B.norm(dim=0), one.B.norm(dim=0) / 5, **EXACT)
    even = chapter.split(W, 25 * w, 2, balance=True)
    assert_close(even.weight(), W, **EXACT)
    assert_close(even.B @ even.A, one.B @ one.A, **EXACT)
    assert_close(even.A.norm(dim=1), even.B.norm(dim=0), **EXACT)


# Importance and row weights


def naive_importance(model: GPT, facts: Tensor, size: int) -> dict[str, Tensor]:
    total: dict[str, Tensor] = {}
    parts = facts.split(size)
    for part in parts:
        model.zero_grad()
        value_loss(model, part).backward()
        for n, p in model.named_parameters():
            total[n] = total.get(n, 0) + p.grad**2 / len(parts)
    return total


@pytest.mark.parametrize(("size", "chunk"), [(1, 16), (2, 2), (3, 1)])
def test_the_importance_is_that_of_a_loop_over_batches(chapter, g, size, chunk):
    model, facts = language_model(), labels(6, 8, g=g)
    weights = weights_of(model)
    found = chapter.importance(model, weights, matrices(weights), facts, size, chunk)
    assert list(found) == matrices(weights)
    for n, want in naive_importance(model, facts, size).items():
        if n in found:
            assert want.max() > 1e-6
            assert_close(found[n], want, **EXACT)


def test_the_importance_is_the_shared_empirical_fisher_of_mean_losses(chapter, g):
    model, facts = language_model(), labels(5, 8, g=g)
    weights, mask = weights_of(model), torch.ones(5, 7, dtype=torch.bool)
    mask[:, 0] = False
    shared = empirical_diagonal_fisher(model, batches(facts[:, :-1], facts[:, 1:], mask))
    for n, found in chapter.importance(model, weights, matrices(weights), facts).items():
        assert_close(found, shared[n] / 36, **EXACT)  # a mean over six tokens, squared


def test_the_values_are_predicted_from_the_tokens_before_them(chapter, g):
    model, facts = language_model(), labels(4, 8, g=g)
    found = chapter.value_logits(model, weights_of(model), facts)
    assert found.shape == (4, 6, V)
    for i in range(6):
        assert_close(found[:, i], model(facts[:, : 2 + i])[:, -1], **EXACT)


def test_row_weights_are_roots_of_sums_of_ratios_over_a_row(chapter, g):
    forget, retain = positive(3, 4, g=g), positive(3, 4, g=g)
    for constant in (None, 0.3):
        c = 0.01 * retain.mean().item() if constant is None else constant
        want = [math.sqrt(sum(forget[i, j].item() / (retain[i, j].item() + c) for j in range(4))) for i in range(3)]
        assert chapter.row_weights(forget, retain, constant).tolist() == pytest.approx(want, abs=1e-12)


def test_the_scaled_constant_ignores_the_unit_of_the_loss_and_the_released_one_does_not(chapter, g):
    forget, retain = positive(2, 3, 4, g=g), positive(2, 3, 4, g=g)
    assert_close(chapter.row_weights(1e-7 * forget, 1e-7 * retain), chapter.row_weights(forget, retain), **EXACT)
    tiny = chapter.row_weights(1e-7 * forget, 1e-7 * retain, 1e-5)
    assert_close(tiny, (forget.sum(-1) * 1e-2).sqrt(), rtol=0.02, atol=0)  # the forget set alone


def test_each_stacked_matrix_gets_its_own_constant(chapter, g):
    forget, retain = positive(2, 3, 4, g=g), positive(2, 3, 4, g=g)
    retain[1] *= 100
    for run in range(2):
        want = chapter.row_weights(forget[run], retain[run])
        assert_close(chapter.row_weights(forget, retain)[run], want, **EXACT)


def test_a_row_without_importance_gets_a_thousandth_of_the_largest_weight(chapter):
    forget, retain = torch.ones(2, 3, 4).double(), torch.ones(2, 3, 4).double()
    forget[0, 1] = 0
    w = chapter.row_weights(forget, retain)
    assert w[0, 1].item() == pytest.approx(1e-3 * w[0, 0].item())
    assert_close(w[1], w[1, :1].expand(3))
    forget[0] *= 1e8  # the largest weight of the same matrix: another one in the stack does not count
    assert_close(chapter.row_weights(forget, retain)[1], w[1])


# Unlearning


class Case:
    """Two tiny runs with rank-2 adapters."""

    def __init__(self, chapter, g):
        self.model = language_model()
        runs = [weights_of(language_model(seed)) for seed in (1, 2)]
        self.base = {n: torch.stack([r[n] for r in runs]) for n in runs[0]}
        self.names = matrices(self.base)
        ones = {n: torch.ones_like(self.base[n][..., 0]) for n in self.names}
        self.adapters = {n: chapter.split(self.base[n], ones[n], 2) for n in self.names}
        self.forget, self.batches = labels(2, 3, 8, g=g), labels(4, 2, 5, 8, g=g)

    def path(self, chapter, loss=None, **options) -> list:
        args = self.model, self.base, self.adapters, self.forget, self.batches, loss or chapter.hinge
        return list(chapter.unlearning(*args, **options))


def run_alone(chapter, case: Case, run: int, objective, retain: float, lr: float) -> dict[str, Tensor]:
    """The last weights of one run: torch's AdamW on A and B, the loss from whole sequences."""
    factors = {n: [t[run].clone().requires_grad_() for t in a[1:]] for n, a in case.adapters.items()}
    frozen = {n: a.frozen[run] for n, a in case.adapters.items()}
    optimizer = torch.optim.AdamW([t for pair in factors.values() for t in pair], lr=lr, weight_decay=0.01)

    def merged() -> dict[str, Tensor]:
        return {n: p[run] for n, p in case.base.items()} | {
            n: frozen[n] + 2 * pair[0] @ pair[1] for n, pair in factors.items()
        }

    for batch in case.batches:
        facts = case.forget[run]
        logits = functional_call(case.model, merged(), (facts[:, :-1],))[:, 1:]
        kept = batch[run]
        keep = functional_call(case.model, merged(), (kept[:, :-1],))[:, 1:]
        loss = objective(logits, facts[:, 2:]) + retain * F.cross_entropy(keep.flatten(0, 1), kept[:, 2:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {n: W.detach() for n, W in merged().items()}


@pytest.mark.parametrize(("name", "retain"), [("hinge", 1.0), ("ascent", 1.0), ("ascent", 0.0), ("probability", 0.3)])
def test_each_run_is_trained_as_it_would_be_alone(chapter, g, name, retain):
    case = Case(chapter, g)

    def objective(logits, targets):
        logp = -F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        hinges = [naive_graph_hinge(z, t) for z, t in zip(logits.flatten(0, 1), targets.flatten(), strict=True)]
        return {"ascent": logp.mean(), "probability": logp.exp().mean(), "hinge": torch.stack(hinges).mean()}[name]

    last, _ = case.path(chapter, getattr(chapter, name), retain=retain, lr=1e-2)[-1]
    for run in range(2):
        for n, want in run_alone(chapter, case, run, objective, retain, 1e-2).items():
            assert_close(last[n][run], want, rtol=0, atol=1e-8)


def test_the_rate_is_three_thousandths_unless_told_otherwise(chapter, g):
    case = Case(chapter, g)
    told, plain = case.path(chapter, lr=3e-3)[-1][0], case.path(chapter)[-1][0]
    for n in case.names:
        assert_close(plain[n], told[n], rtol=0, atol=0)


def naive_graph_hinge(z: Tensor, t: Tensor) -> Tensor:
    p = z.softmax(0)
    return 1 + p[t] - torch.cat([p[:t], p[t + 1 :]]).max()


def test_the_path_starts_at_the_base_has_one_state_more_than_steps_and_shows_forget_logits(chapter, g):
    case = Case(chapter, g)
    path = case.path(chapter)
    assert len(path) == 5
    weights, logits = path[0]
    for n, W in case.base.items():
        assert_close(weights[n], W, **EXACT)
    for weights, logits in (path[0], path[-1]):
        assert logits.shape == (2, 3, 6, V)
        assert not logits.requires_grad
        for run in range(2):
            alone = functional_call(case.model, {n: W[run] for n, W in weights.items()}, (case.forget[run][:, :-1],))
            assert_close(logits[run], alone[:, 1:], **EXACT)


def test_only_the_adapted_matrices_move_and_no_argument_is_changed(chapter, g):
    case = Case(chapter, g)
    kept = {n: [t.clone() for t in a] for n, a in case.adapters.items()}
    last, _ = case.path(chapter, lr=1e-2)[-1]
    for n, W in case.base.items():
        assert (last[n] - W).abs().max() > 1e-3 if n in case.names else torch.equal(last[n], W)
    for n, a in case.adapters.items():
        for t, before in zip(a, kept[n], strict=True):
            assert torch.equal(t, before)


def test_full_training_moves_the_matrix_by_a_signed_step_of_the_rate(chapter, g):
    case = Case(chapter, g)
    case.batches = case.batches[:1]
    case.adapters = {n: chapter.lora(case.base[n], 1, g) for n in case.names}
    last, _ = case.path(chapter, lr=1e-3, full=True)[-1]
    for n in case.names:
        moved = last[n] - case.base[n] * (1 - 1e-5)  # after the decay, lr times 0.01
        assert_close(moved.abs(), torch.full_like(moved, 1e-3), rtol=0, atol=1e-5)  # Adam's first step
        assert torch.linalg.matrix_rank(moved[0]) > 2  # no adapter of rank 1 could do that


def test_the_losses_forget_and_the_second_term_keeps(chapter, g):
    case = Case(chapter, g)
    case.batches = case.batches[:1].expand(40, -1, -1, -1)
    targets, kept = case.forget[..., 2:], case.batches[0]

    def known(weights) -> Tensor:
        logits = torch.stack(
            [chapter.value_logits(case.model, {n: W[run] for n, W in weights.items()}, kept[run]) for run in range(2)]
        )
        return chapter.log_likelihood(logits, kept[..., 2:]).mean((1, 2))

    path = case.path(chapter, lr=1e-2)
    before, after = (chapter.hinge(logits, targets) for _, logits in (path[0], path[-1]))
    assert (after < before - 0.05).all()
    assert (known(path[-1][0]) > known(path[0][0]) + 0.5).all()
    path = case.path(chapter, chapter.ascent, retain=0.0, lr=1e-2)
    before, after = (chapter.log_likelihood(logits, targets).mean((1, 2)) for _, logits in (path[0], path[-1]))
    assert (after < before - 0.5).all()


# What is refused


def test_logits_and_targets_that_do_not_fit_are_refused(chapter, g):
    for z, t in ((random(3, V, g=g), labels(4, g=g)), (random(3, 1, g=g), torch.zeros(3).long())):
        with pytest.raises(ValueError, match=r"logits \(\.\.\., V\), V above 1"):
            chapter.inverted_hinge(z, t)


def test_splits_that_make_no_sense_are_refused(chapter, g):
    W = random(5, 4, g=g)
    bad = torch.ones(5).double()
    bad[2] = 0
    for w in (torch.ones(4).double(), bad, torch.full((5,), torch.nan).double()):
        with pytest.raises(ValueError, match=r"w must be positive, \(5,\)"):
            chapter.split(W, w, 2)
    for rank in (0, 5):
        with pytest.raises(ValueError, match=r"rank must lie in 1\.\.4"):
            chapter.split(W, torch.ones(5).double(), rank)


def test_importances_that_make_no_sense_are_refused(chapter, g):
    model, facts = language_model(), labels(5, 8, g=g)
    for size, x in ((2, facts), (0, facts), (1, facts[:0])):
        with pytest.raises(ValueError, match="size must divide the number of facts"):
            chapter.importance(model, weights_of(model), [], x, size)
    for forget in (torch.ones(2, 3), -torch.ones(3, 2), torch.full((3, 2), torch.nan)):
        with pytest.raises(ValueError, match="share a shape and hold means of squares"):
            chapter.row_weights(forget, torch.ones(3, 2))


# Plausible mistakes are told apart by the oracles above


def test_a_rival_that_may_be_the_token_itself_or_a_hinge_on_logits_fails_the_hand_example(chapter):
    z = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64).log()[None]
    right = chapter.inverted_hinge(z, torch.tensor([0])).item()
    p = z.softmax(-1)
    assert abs(right - (1 + p[0, 0] - p.max()).item()) > 0.1
    assert abs(right - (1 + z[0, 0] - z[0, 1:].max()).item()) > 0.1


def test_weighted_columns_missing_inverses_and_missing_scales_miss_the_minimum_or_the_matrix(chapter, g):
    W, w, s = random(6, 6, g=g), positive(6, g=g) ** 3, 2.0
    right = (w[:, None] * chapter.split(W, w, 2, s).frozen).square().sum()
    U, S, Vt = torch.linalg.svd(W * w)  # weights on inputs
    columns = (U[:, :2] * S[:2] @ Vt[:2]) / w
    assert (w[:, None] * (W - columns)).square().sum() > 1.05 * right
    U, S, Vt = torch.linalg.svd(w[:, None] * W)
    no_inverse = U[:, :2] * S[:2] @ Vt[:2]
    assert (w[:, None] * (W - no_inverse)).square().sum() > 1.05 * right
    no_scale = (U[:, :2] / w[:, None] * S[:2] @ Vt[:2]) * s
    assert (w[:, None] * (W - no_scale)).square().sum() > 1.05 * right


def test_inverted_ratios_and_sums_over_columns_give_other_weights(chapter, g):
    forget, retain = positive(4, 4, g=g) ** 2, positive(4, 4, g=g) ** 2
    right = chapter.row_weights(forget, retain)
    assert (chapter.row_weights(retain, forget) - right).abs().max() > 0.1
    rho = forget / (retain + 0.01 * retain.mean())
    assert_close(right, rho.sum(1).sqrt(), **EXACT)
    assert (rho.sum(0).sqrt() - right).abs().max() > 0.1
    assert (rho.sum(1) - right).abs().max() > 0.1


def test_squaring_the_mean_gradient_or_counting_the_prompt_is_another_importance(chapter, g):
    model, facts = language_model(), labels(6, 8, g=g)
    weights = weights_of(model)
    name = matrices(weights)[0]
    right = chapter.importance(model, weights, [name], facts)[name]
    squared = naive_importance(model, facts, 6)[name]
    assert (squared - right).abs().max() > 0.1 * right.max()
    prompt = torch.zeros_like(right)
    for fact in facts:
        model.zero_grad()
        F.cross_entropy(model(fact[None, :-1])[0], fact[1:]).backward()
        prompt += dict(model.named_parameters())[name].grad ** 2 / 6
    assert (prompt - right).abs().max() > 0.05 * right.max()
