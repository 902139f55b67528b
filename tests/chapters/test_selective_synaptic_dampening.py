"""The method of `selective-synaptic-dampening` against naive versions, closed forms, peers, limits and mistakes."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from reprolib.fisher import batches, empirical_diagonal_fisher

EXACT = {"rtol": 1e-10, "atol": 1e-14}


def random(*shape: int, g: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def network(widths: list[int], g: torch.Generator, *lead: int) -> list[Tensor]:
    """ReLU networks as the chapter stores them: (out, in) and (out,), leading axes in front."""
    return [random(*lead, *shape, g=g) for a, b in pairwise(widths) for shape in ((b, a), (b,))]


def as_module(params: list[Tensor]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for weight, bias in zip(params[::2], params[1::2], strict=True):
        linear = nn.Linear(weight.shape[1], weight.shape[0]).double()
        linear.load_state_dict({"weight": weight, "bias": bias})
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval()


def data(n: int, g: torch.Generator, classes: int = 4) -> tuple[Tensor, Tensor]:
    return random(n, 6, g=g), torch.randint(classes, (n,), generator=g)


def naive_importance(params: list[Tensor], x: Tensor, y: Tensor, size: int = 1) -> list[Tensor]:
    """Average over minibatches of the squared gradient of the batch-mean loss, by autograd on torch modules."""
    model, parts = as_module(params), list(zip(x.split(size), y.split(size), strict=True))
    total = [torch.zeros_like(p) for p in params]
    for x_b, y_b in parts:
        model.zero_grad()
        F.cross_entropy(model(x_b), y_b).backward()
        total = [t + p.grad**2 for t, p in zip(total, model.parameters(), strict=True)]
    return [t / len(parts) for t in total]


def all_close(ours: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(ours, expected, strict=True):
        assert_close(a, b, **EXACT)


def differ(ours: list[Tensor], others: list[Tensor]) -> bool:
    return any(not torch.allclose(a, b, rtol=1e-3, atol=0) for a, b in zip(ours, others, strict=True))


# Importance


@pytest.mark.parametrize("widths", [[6, 4], [6, 5, 4], [6, 5, 7, 4]])
def test_the_importance_is_the_mean_square_of_gradients_taken_one_by_one(chapter, g, widths):
    params, (x, y) = network(widths, g), data(23, g)
    all_close(chapter.importance(params, x, y), naive_importance(params, x, y))


def test_the_importance_equals_vmap_of_grad_and_the_shared_library(chapter, g):
    params, (x, y) = network([6, 5, 7, 4], g), data(30, g)

    def loss(params, x_n, y_n):
        h = x_n
        for k in range(0, len(params), 2):
            h = params[k] @ (h.relu() if k else h) + params[k + 1]
        return F.cross_entropy(h[None], y_n[None])

    grads = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(params, x, y)
    ours = chapter.importance(params, x, y)
    all_close(ours, [d.square().mean(0) for d in grads])
    all_close(ours, list(empirical_diagonal_fisher(as_module(params), batches(x, y, batch_size=7)).values()))


def test_softmax_regression_has_the_closed_form(chapter, g):
    params, (x, y) = network([6, 4], g), data(40, g)
    residual = F.one_hot(y, 4) - (x @ params[0].T + params[1]).softmax(-1)
    expected = torch.einsum("nc,ni->ci", residual**2, x**2) / 40
    assert_close(chapter.importance(params, x, y)[0], expected, **EXACT)


def test_networks_and_classes_side_by_side_do_not_mix(chapter, g):
    params, x, y = network([6, 5, 4], g, 3), random(3, 20, 6, g=g), torch.randint(4, (3, 20), generator=g)
    stacked = chapter.importance(params, x, y)
    batched = chapter.batched_importance(params, x, y, 8)
    for s in range(3):
        alone = [p[s] for p in params]
        all_close([t[s] for t in stacked], chapter.importance(alone, x[s], y[s]))
        all_close([t[s] for t in batched], naive_importance(alone, x[s], y[s], 8))


@pytest.mark.parametrize("size", [1, 4, 7, 100])
def test_the_released_importance_is_that_of_a_loop_over_batches(chapter, g, size):
    params, (x, y) = network([6, 5, 4], g), data(23, g)
    all_close(chapter.batched_importance(params, x, y, size), naive_importance(params, x, y, size))


def test_importances_of_parts_add_up_by_their_shares(chapter, g):
    params, (x, y) = network([6, 5, 4], g), data(30, g)
    parts = (chapter.importance(params, x[:12], y[:12]), chapter.importance(params, x[12:], y[12:]))
    all_close(chapter.importance(params, x, y), [0.4 * a + 0.6 * b for a, b in zip(*parts, strict=True)])


# The bound


def test_no_ratio_exceeds_one_over_the_share_and_the_bound_is_met(chapter, g):
    params, (x, y) = network([6, 5, 4], g), data(50, g)
    params[0][0], params[1][0] = 0, -1.0
    params[0][0, 0] = 10.0  # unit 0 fires for large first pixels alone: make it that of the forget set
    x[:, 0] = -1.0
    x[:10, 0] = 1.0
    full, forget = chapter.importance(params, x, y), chapter.importance(params, x[:10], y[:10])
    ratio = torch.cat([(f / d).nan_to_num(0).flatten() for f, d in zip(forget, full, strict=True)])
    assert ratio.max() <= 5 * (1 + 1e-12)
    assert_close(ratio.max(), torch.tensor(5.0).double(), rtol=1e-12, atol=0)
    all_close(chapter.dampen(params, full, forget, 5 * (1 + 1e-9)), params)
    assert any(m.any() for m in chapter.selected(full, forget, 4.99))


def test_shuffled_batches_break_the_bound(chapter, g):
    params, x = network([6, 4], g), random(1, 6, g=g).expand(64, 6)
    params[0].zero_()
    params[1].zero_()
    y = torch.arange(4).repeat_interleave(16)
    mixed = torch.arange(64).view(4, 16).T.flatten()  # every batch of four holds all classes: gradients cancel
    full = chapter.batched_importance(params, x[mixed], y[mixed], 4)
    forget = chapter.batched_importance(params, x[:16], y[:16], 4)
    assert (full[1] < 1e-30).all()
    assert (forget[1] > 0.05).all()
    assert chapter.selected(full, forget, 1e6)[1].all()
    pure = chapter.batched_importance(params, x, y, 4)
    assert (forget[1] <= 4 * pure[1] * (1 + 1e-12)).all()


# The edit


def test_four_weights_by_hand(chapter):
    full, forget, theta = ([torch.tensor(v, dtype=torch.float64)] for v in ([4, 1, 1, 0], [4, 2, 4, 0], [8, -8, -8, 8]))
    assert chapter.selected(full, forget, 2)[0].tolist() == [False, False, True, False]
    assert chapter.dampen(theta, full, forget, 2)[0].tolist() == [8, -8, -2, 8]
    assert chapter.dampen(theta, full, forget, 2, 0.5)[0].tolist() == [8, -8, -1, 8]
    assert chapter.dampen(theta, full, forget, 2, 3.0)[0].tolist() == [8, -8, -6, 8]
    assert chapter.dampen(theta, full, forget, 2, 6.0)[0].tolist() == [8, -8, -8, 8]


def naive_edit(theta, full, forget, alpha, lam):
    """The edit of one network, weight by weight, in plain Python."""
    edited = []
    for t, d, f in zip(theta, full, forget, strict=True):
        values = zip(t.flatten().tolist(), d.flatten().tolist(), f.flatten().tolist(), strict=True)
        new = [v * min(lam * a / b, 1) if b > alpha * a else v for v, a, b in values]
        edited.append(torch.tensor(new, dtype=t.dtype).view_as(t))
    return edited


@pytest.mark.parametrize(("alpha", "lam"), [(1, 1.0), (2, 1.0), (1.5, 0.3), (1.2, 4.0)])
def test_the_edit_is_that_of_a_loop_over_weights_for_each_class_and_network(chapter, g, alpha, lam):
    params = network([6, 5, 4], g, 2)
    full, forget = ([random(*lead, *p.shape, g=g) ** 2 for p in params] for lead in ((), (3,)))
    full[0][0, 0, :2] = 0.0
    forget[0][:, 0, 0, :2] = 0.0
    edited = chapter.dampen(params, full, forget, alpha, lam)
    for c in range(3):
        for s in range(2):
            one = naive_edit(*([t[s] for t in v] for v in (params, full, [f[c] for f in forget])), alpha, lam)
            all_close([e[c, s] for e in edited], one)


def test_dead_units_stay_as_they_are_and_nothing_becomes_nan(chapter):
    zero, theta = [torch.zeros(3)], [torch.tensor([1.0, -2.0, 3.0])]
    assert chapter.dampen(theta, zero, zero, 1)[0].tolist() == [1, -2, 3]
    assert chapter.dampen(theta, zero, [torch.tensor([0.0, 1e-12, 1.0])], 1e9)[0].tolist() == [1, 0, 0]


def test_fewer_weights_move_as_alpha_grows_and_less_as_lambda_grows(chapter, g):
    params, (x, y) = network([6, 5, 4], g), data(60, g)
    full, forget = chapter.importance(params, x, y), chapter.importance(params, x[:10], y[:10])
    counts = [sum(int(m.sum()) for m in chapter.selected(full, forget, a)) for a in (1, 1.5, 2, 3, 4, 5)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1]
    moves = [
        sum(
            ((e - p) ** 2).sum().item() for e, p in zip(chapter.dampen(params, full, forget, 1, v), params, strict=True)
        )
        for v in (0.1, 0.5, 1, 2, 10)
    ]
    assert moves == sorted(moves, reverse=True)
    assert moves[0] > moves[2] > moves[-1] == 0


def test_the_edit_does_not_change_its_arguments(chapter, g):
    params = network([6, 4], g)
    full, forget = [torch.ones_like(p) for p in params], [torch.full_like(p, 3) for p in params]
    kept = [p.clone() for p in params]
    chapter.dampen(params, full, forget, 2)
    all_close(params, kept)


# What is refused


def test_settings_that_make_no_sense_are_refused(chapter):
    one = [torch.ones(2)]
    for alpha in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="alpha must be positive"):
            chapter.selected(one, one, alpha)
    with pytest.raises(ValueError, match="lam must be positive"):
        chapter.dampen(one, one, one, 1, 0.0)
    with pytest.raises(ValueError, match="size must be at least 1"):
        chapter.batched_importance([torch.ones(2, 2), torch.ones(2)], torch.ones(3, 2), torch.zeros(3).long(), 0)


def test_importances_that_do_not_fit_are_refused(chapter):
    with pytest.raises(ValueError, match="tensor 0: forget must end in the shape of full"):
        chapter.selected([torch.ones(2, 3)], [torch.ones(3, 2)], 1)
    with pytest.raises(ValueError, match="forget must end"):
        chapter.selected([torch.ones(2, 3)], [torch.ones(3)], 1)
    for bad in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="must not be negative or NaN"):
            chapter.selected([torch.ones(2)], [torch.tensor([1.0, bad])], 1)
        with pytest.raises(ValueError, match="must not be negative or NaN"):
            chapter.selected([torch.tensor([1.0, bad])], [torch.ones(2)], 1)


def test_networks_and_importances_of_unequal_depth_are_refused(chapter):
    one, two = [torch.ones(2)], [torch.ones(2), torch.ones(3)]
    for full, forget in ((one, two), (two, one)):
        with pytest.raises(ValueError, match=r"shorter|longer"):
            chapter.selected(full, forget, 1)
    for theta, importances in ((two, one), (one, two)):  # a tensor left over must not stay as it was in silence
        with pytest.raises(ValueError, match=r"shorter|longer"):
            chapter.dampen(theta, importances, importances, 1)


def test_the_edit_multiplies_towards_zero_and_keeps_signs_and_types(chapter, g):
    params, (x, y) = network([6, 5, 4], g), data(60, g)
    full, forget = chapter.importance(params, x, y), chapter.importance(params, x[:10], y[:10])
    for e, p in zip(chapter.dampen(params, full, forget, 1.2, 0.7), params, strict=True):
        assert (e * p >= 0).all()
        assert (e.abs() <= p.abs()).all()
    single = chapter.dampen(*([t.float() for t in v] for v in (params, full, forget)), 1.2)
    assert {t.dtype for t in single} == {torch.float32}
    assert [t.shape for t in single] == [p.shape for p in params]


def test_labels_that_do_not_fit_are_refused(chapter, g):
    params = network([6, 4], g)
    for x, y in ((random(5, 6, g=g), torch.zeros(4)), (random(0, 6, g=g), torch.zeros(0))):
        with pytest.raises(ValueError, match="y must label each image of x, at least one"):
            chapter.importance(params, x, y.long())


# Plausible mistakes are told apart by the oracles above


def test_the_square_of_the_mean_gradient_is_not_the_importance(chapter, g):
    params, (x, y) = network([6, 5, 4], g), data(30, g)
    assert differ(chapter.batched_importance(params, x, y, 30), naive_importance(params, x, y))


def test_the_exact_fisher_is_not_the_importance(chapter, g):
    params, (x, y) = network([6, 4], g), data(30, g)
    p = (x @ params[0].T + params[1]).softmax(-1)
    exact = torch.einsum("nc,ni->ci", p * (1 - p), x**2) / 30
    assert differ([exact], chapter.importance(params, x, y)[:1])


def test_comparing_with_the_rest_or_swapping_the_sets_selects_other_weights(chapter, g):
    params, (x, y) = network([6, 5, 4], g), data(60, g)
    full, forget, rest = (chapter.importance(params, x[s], y[s]) for s in (slice(None), slice(10), slice(10, None)))
    right = torch.cat([m.flatten() for m in chapter.selected(full, forget, 1.5)])
    against_rest = torch.cat([m.flatten() for m in chapter.selected(rest, forget, 1.5)])
    swapped = torch.cat([m.flatten() for m in chapter.selected(forget, full, 1.5)])
    assert right.any()
    assert (against_rest > right).any()  # the bound does not hold against the rest
    assert not (swapped & right).any()


def test_an_inverted_factor_or_alpha_in_place_of_lambda_fails_the_hand_example(chapter):
    theta, d, f = torch.tensor([8.0]), torch.tensor([1.0]), torch.tensor([4.0])
    right = chapter.dampen([theta], [d], [f], 2)[0]
    assert right.item() == 2.0
    assert ((f / d).clamp_max(1) * theta).item() != right.item()
    assert ((2 * d / f).clamp_max(1) * theta).item() != right.item()
