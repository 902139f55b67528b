"""The method of `fisher-merging` against naive versions, closed forms, peer libraries, limits and mistakes."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

EXACT = {"rtol": 0.0, "atol": 1e-10}


def random(*shape: int, g: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def positive(*shape: int, g: torch.Generator) -> Tensor:
    return 0.1 + torch.rand(*shape, generator=g, dtype=torch.float64)


def network(widths: list[int], g: torch.Generator) -> list[Tensor]:
    """A ReLU network as the chapter stores it, biases included."""
    return [random(*shape, g=g) for a, b in pairwise(widths) for shape in ((a, b), (1, b))]


def weights(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def jacobian_fisher(chapter, params: list[Tensor], x: Tensor) -> list[Tensor]:
    """Per-example, per-class scores by torch.func, which knows nothing of layers."""

    def log_p(params, x_n):
        return chapter.forward(params, x_n[None])[1][0].log_softmax(-1)

    scores = torch.func.vmap(torch.func.jacrev(log_p), (None, 0))(params, x)
    p = chapter.forward(params, x)[1].softmax(-1)
    return [torch.einsum("nc,nc...->...", p, s**2) / len(x) for s in scores]


def as_module(params: list[Tensor]) -> nn.Sequential:
    """The same network as torch modules, for peer libraries."""
    layers: list[nn.Module] = []
    for weight, bias in zip(params[::2], params[1::2], strict=True):
        linear = nn.Linear(*weight.shape).double()
        with torch.no_grad():
            linear.weight.copy_(weight.T)
            linear.bias.copy_(bias[0])
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


# The merge


def test_the_merge_is_the_weighted_mean_of_each_parameter(chapter, g):
    thetas, fishers, w = random(3, 7, g=g), positive(3, 7, g=g), weights(0.5, 0.3, 0.2)
    for j, merged in enumerate(chapter.fisher_merge(thetas, fishers, w).tolist()):
        precision = [a * f for a, f in zip(w.tolist(), fishers[:, j].tolist(), strict=True)]
        products = [a * t for a, t in zip(precision, thetas[:, j].tolist(), strict=True)]
        assert merged == pytest.approx(sum(products) / sum(precision), abs=1e-12)


def test_equal_fishers_give_the_plain_mean(chapter, g):
    thetas, w = random(3, 2, 5, g=g), weights(0.5, 0.3, 0.2)
    fisher = positive(2, 5, g=g).expand(3, 2, 5)
    assert_close(chapter.fisher_merge(thetas, fisher, w), torch.einsum("m,m...->...", w, thetas))


def test_a_model_without_information_leaves_the_other(chapter, g):
    thetas, fisher = random(2, 9, g=g), positive(9, g=g)
    fishers = torch.stack([torch.zeros(9).double(), fisher])
    assert_close(chapter.fisher_merge(thetas, fishers, weights(0.9, 0.1)), thetas[1])


def test_scaling_all_fishers_or_all_weights_changes_nothing(chapter, g):
    thetas, fishers, w = random(3, 9, g=g), positive(3, 9, g=g), weights(0.5, 0.3, 0.2)
    merged = chapter.fisher_merge(thetas, fishers, w)
    assert_close(chapter.fisher_merge(thetas, 7 * fishers, 3 * w), merged, **EXACT)


def test_a_model_of_weight_zero_is_as_if_not_there(chapter, g):
    thetas, fishers = random(3, 7, g=g), positive(3, 7, g=g)
    merged = chapter.fisher_merge(thetas, fishers, weights(0.4, 0, 0.6))
    assert_close(merged, chapter.fisher_merge(thetas[::2], fishers[::2], weights(0.4, 0.6)), **EXACT)


@pytest.mark.parametrize("full", [False, True])
def test_merging_in_steps_equals_merging_at_once(chapter, g, full):
    thetas, w = random(3, 6, g=g), weights(0.5, 0.3, 0.2)
    root = random(3, 6, 6, g=g)
    fishers = root @ root.mT if full else positive(3, 6, g=g)
    merge = chapter.full_merge if full else chapter.fisher_merge
    precisions = w.view(3, *[1] * (fishers.ndim - 1)) * fishers
    pair = merge(thetas[:2], fishers[:2], w[:2])
    steps = merge(torch.stack([pair, thetas[2]]), torch.stack([precisions[:2].sum(0), precisions[2]]), weights(1, 1))
    assert_close(steps, merge(thetas, fishers, w), **EXACT)


def test_the_full_merge_of_least_squares_fits_is_the_pooled_fit(chapter, g):
    designs = [random(rows, 5, g=g) * (1 + 3 * torch.rand(5, generator=g)) for rows in (20, 70)]
    targets = [random(len(x), 1, g=g) for x in designs]
    fits = [torch.linalg.lstsq(x, y).solution[:, 0] for x, y in zip(designs, targets, strict=True)]
    fishers = torch.stack([x.T @ x / len(x) for x in designs])
    pooled = torch.linalg.lstsq(torch.cat(designs), torch.cat(targets)).solution[:, 0]
    assert_close(chapter.full_merge(torch.stack(fits), fishers, weights(20 / 90, 70 / 90)), pooled, **EXACT)


def test_a_diagonal_full_merge_is_the_diagonal_merge(chapter, g):
    thetas, fishers, w = random(2, 4, 6, g=g), positive(2, 4, 6, g=g), weights(0.3, 0.7)
    assert_close(chapter.full_merge(thetas, torch.diag_embed(fishers), w), chapter.fisher_merge(thetas, fishers, w))


def test_one_parameter_is_the_fixed_effect_of_a_meta_analysis(chapter, g):
    meta = pytest.importorskip("statsmodels.stats.meta_analysis")
    effect, variance = random(5, g=g), positive(5, g=g)
    expected = meta.combine_effects(effect.numpy(), variance.numpy()).mean_effect_fe
    merged = chapter.fisher_merge(effect[:, None], 1 / variance[:, None], torch.ones(5).double())
    assert merged.item() == pytest.approx(expected, abs=1e-12)


def test_the_ends_of_the_curve_are_the_pure_models_even_with_dead_units(chapter, g):
    models = [network([4, 5, 3], g), network([4, 5, 3], g)]
    x = positive(20, 4, g=g)
    models[1][1][..., 0] = -1e3  # a unit that never fires: its donor Fisher is zero
    fishers = chapter.normalise_and_floor([chapter.diagonal_fisher(m, x) for m in models])
    assert (fishers[1][0][:, 0] == 0).all()
    for k, w in enumerate([weights(1, 0), weights(0, 1)]):
        for merged, pure in zip(chapter.merge_networks(models, fishers, w), models[k], strict=True):
            assert_close(merged, pure, rtol=0, atol=0)
    assert all(p.isfinite().all() for p in chapter.merge_networks(models, fishers, weights(0.01, 0.99)))


# The Fisher


def test_the_fisher_equals_per_example_per_class_jacobians(chapter, g):
    params, x = network([6, 5, 4, 3], g), random(50, 6, g=g)
    for ours, oracle in zip(chapter.diagonal_fisher(params, x), jacobian_fisher(chapter, params, x), strict=True):
        assert_close(ours, oracle, **EXACT)


def test_the_fisher_of_softmax_regression_is_the_closed_form(chapter, g):
    params, x = network([4, 3], g), random(50, 4, g=g)
    p = (x @ params[0] + params[1]).softmax(-1)
    expected = torch.einsum("nc,ni->ic", p * (1 - p), x**2) / 50
    assert_close(chapter.diagonal_fisher(params, x)[0], expected, **EXACT)


def test_stacked_runs_do_not_mix(chapter, g):
    runs = [network([6, 5, 3], g) for _ in range(4)]
    x = random(4, 30, 6, g=g)
    stacked = chapter.diagonal_fisher([torch.stack(p) for p in zip(*runs, strict=True)], x)
    for s, params in enumerate(runs):
        for ours, alone in zip(stacked, chapter.diagonal_fisher(params, x[s]), strict=True):
            assert_close(ours[s], alone, **EXACT)


def test_stacked_runs_do_not_mix_at_given_or_drawn_labels(chapter, g):
    runs = [network([6, 5, 3], g) for _ in range(4)]
    params, x = [torch.stack(p) for p in zip(*runs, strict=True)], random(4, 30, 6, g=g)
    p = chapter.forward(params, x)[1].softmax(-1)
    drawn = torch.multinomial(p.view(120, 3), 1, generator=torch.Generator().manual_seed(1)).view(4, 30)
    sampled = chapter.sampled_fisher(params, x, torch.Generator().manual_seed(1))
    for stacked, labels in ((sampled, drawn), (chapter.empirical_fisher(params, x, drawn.flip(1)), drawn.flip(1))):
        for s, alone in enumerate(runs):
            for ours, expected in zip(stacked, chapter.empirical_fisher(alone, x[s], labels[s]), strict=True):
                assert_close(ours[s], expected, **EXACT)


def test_the_fisher_equals_the_diagonal_ggn_of_backpack(chapter, g):
    backpack = pytest.importorskip("backpack")
    extensions = pytest.importorskip("backpack.extensions")
    params, x = network([6, 5, 4], g), random(40, 6, g=g)
    model = backpack.extend(as_module(params))
    loss = backpack.extend(nn.CrossEntropyLoss(reduction="sum"))(
        model(x.requires_grad_()), torch.zeros(40, dtype=torch.long)
    )
    with backpack.backpack(extensions.DiagGGNExact()):
        loss.backward()
    for ours, theirs in zip(chapter.diagonal_fisher(params, x), model.parameters(), strict=True):
        expected = theirs.diag_ggn_exact / 40
        assert_close(ours, expected.T if expected.ndim == 2 else expected[None], **EXACT)


def test_the_fisher_equals_the_diagonal_fisher_of_nngeometry(chapter, g):
    metrics = pytest.importorskip("nngeometry.metrics")
    representations = pytest.importorskip("nngeometry.object.pspace")
    params, x = [p.float() for p in network([6, 5, 4], g)], random(40, 6, g=g).float()  # it works in float32 only
    model = as_module(params).float()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, torch.zeros(40, dtype=torch.long)), 40)
    fisher = metrics.FIM(model, loader, representations.PMatDiag, variant="classif_logits", device="cpu")
    ours = [f.T if f.shape[0] > 1 else f for f in chapter.diagonal_fisher(params, x)]
    assert_close(torch.cat([f.flatten() for f in ours]), fisher.get_diag(), rtol=1e-4, atol=1e-6)


def test_the_empirical_fisher_is_the_squared_gradient_at_the_label(chapter, g):
    params, x = network([6, 5, 3], g), random(12, 6, g=g)
    labels = torch.randint(3, (12,), generator=g)
    total = [torch.zeros_like(p) for p in params]
    for x_n, y_n in zip(x, labels, strict=True):
        leaves = [p.clone().requires_grad_() for p in params]
        F.cross_entropy(chapter.forward(leaves, x_n[None])[1], y_n[None]).backward()
        total = [t + leaf.grad**2 for t, leaf in zip(total, leaves, strict=True)]
    for ours, expected in zip(chapter.empirical_fisher(params, x, labels), total, strict=True):
        assert_close(ours, expected / 12, **EXACT)


def test_the_sampled_fisher_has_the_exact_one_as_its_mean(chapter, g):
    params, x, draws = [p / 3 for p in network([4, 3, 3], g)], random(20, 4, g=g), 4000
    samples = [torch.cat([f.flatten() for f in chapter.sampled_fisher(params, x, g)]) for _ in range(draws)]
    stacked = torch.stack(samples)
    exact = torch.cat([f.flatten() for f in chapter.diagonal_fisher(params, x)])
    standard_error = stacked.std(0) / draws**0.5
    assert ((stacked.mean(0) - exact).abs() <= 5 * standard_error + 1e-12).all()  # 5 sigma over 27 parameters


def test_a_single_class_carries_no_information(chapter, g):
    params, x = network([4, 3, 1], g), random(5, 4, g=g)
    exact, sampled = chapter.diagonal_fisher(params, x), chapter.sampled_fisher(params, x, g)
    for f in (*exact, *sampled, *chapter.empirical_fisher(params, x, torch.zeros(5, dtype=torch.long))):
        assert (f == 0).all()


# Floor and norm


def small_fishers() -> list[list[Tensor]]:
    """Two models with Fishers of norm 5 and 13, each with entries of zero; one run, one layer."""
    return [
        [weights(3, 0).view(1, 1, 2), weights(4, 0).view(1, 1, 2)],
        [weights(5, 0).view(1, 1, 2), weights(12, 0).view(1, 1, 2)],
    ]


def test_each_fisher_is_divided_by_its_norm_and_only_the_target_is_floored(chapter):
    target, donor = chapter.normalise_and_floor(small_fishers(), floor=1e-3)
    assert_close(torch.cat([f.flatten() for f in target]), weights(3, 1e-3, 4, 1e-3) / 5)
    assert_close(torch.cat([f.flatten() for f in donor]), weights(5, 0, 12, 0) / 13)


def test_the_floor_is_a_millionth_unless_told_otherwise(chapter):
    target, _ = chapter.normalise_and_floor(small_fishers())
    assert_close(target[0].flatten(), weights(3, 1e-6) / 5)


def test_the_norm_is_euclidean_over_all_entries_of_all_tensors(chapter):
    fisher = [weights(1, 2).view(1, 1, 2), weights(4, 10).view(1, 1, 2)]
    (ready,) = chapter.normalise_and_floor([fisher])
    assert_close(torch.cat([f.flatten() for f in ready]), weights(1, 2, 4, 10) / 11)


def test_the_symmetric_floor_raises_every_model(chapter):
    _, donor = chapter.normalise_and_floor(small_fishers(), floor=1e-3, everyone=True)
    assert_close(torch.cat([f.flatten() for f in donor]), weights(5, 1e-3, 12, 1e-3) / 13)


def test_a_parameter_without_information_keeps_the_targets_value(chapter):
    models = [[weights(1, 2).view(1, 1, 2)] * 2, [weights(7, 8).view(1, 1, 2)] * 2]
    merged = chapter.merge_networks(models, chapter.normalise_and_floor(small_fishers()), weights(0.2, 0.8))
    assert merged[0][0, 0, 1].item() == pytest.approx(2, abs=1e-12)


def test_runs_are_normalised_one_by_one(chapter):
    fisher = [torch.tensor([[[3.0, 4.0]], [[6.0, 8.0]]]).double()]
    (ready,) = chapter.normalise_and_floor([fisher])
    assert_close(ready[0][0], ready[0][1])


# What is refused


@pytest.mark.parametrize(
    ("shape", "lam", "words"),
    [
        ((2, 4), (0.5, 0.5), "share the shape"),
        ((2, 3), (0.5, 0.3, 0.2), "2 numbers"),
        ((2, 3), (1.5, -0.5), "none negative"),
        ((2, 3), (0.0, 0.0), "not all zero"),
    ],
)
def test_shapes_and_weights_that_make_no_sense_are_refused(chapter, shape, lam, words):
    with pytest.raises(ValueError, match=words):
        chapter.fisher_merge(torch.ones(2, 3).double(), torch.ones(*shape).double(), weights(*lam))


def test_zero_or_negative_information_is_refused(chapter):
    thetas = torch.ones(2, 3).double()
    for fishers in (torch.zeros(2, 3), torch.tensor([[2.0, 1.0, 1.0], [-1.0, 1.0, 1.0]])):
        with pytest.raises(ValueError, match="positive"):
            chapter.fisher_merge(thetas, fishers.double(), weights(0.5, 0.5))
    with pytest.raises(ValueError, match="zero everywhere"):
        chapter.normalise_and_floor([[torch.zeros(1, 2, 2)]])
    with pytest.raises(ValueError, match="floor must be positive"):
        chapter.normalise_and_floor([[torch.ones(1, 2, 2)]], floor=0.0)
    with pytest.raises(ValueError, match=r"\(M, \.\.\., P, P\)"):
        chapter.full_merge(thetas, torch.ones(2, 3).double(), weights(0.5, 0.5))


# Plausible mistakes are caught by the oracles above


def test_the_squared_gradient_of_the_batch_mean_is_not_the_fisher(chapter, g):
    params, x = network([6, 5, 3], g), random(50, 6, g=g)
    activations, logits = chapter.forward(params, x)
    p = logits.softmax(-1)
    mean_gradient = activations[-1].T @ (F.one_hot(p.argmax(-1), 3) - p) / 50
    exact = jacobian_fisher(chapter, params, x)[-2]
    assert (mean_gradient**2 - exact).abs().max() > 0.1 * exact.max()


def test_inverse_fishers_as_weights_miss_the_pooled_fit(chapter, g):
    thetas, fishers, w = random(2, 6, g=g), positive(2, 6, g=g), weights(0.5, 0.5)
    oracle = chapter.full_merge(thetas, torch.diag_embed(fishers), w)
    assert (chapter.fisher_merge(thetas, 1 / fishers, w) - oracle).abs().max() > 1e-2


def test_without_normalisation_the_louder_model_drowns_the_other(chapter, g):
    models = [[random(1, 3, 2, g=g)], [random(1, 3, 2, g=g)]]
    quiet, loud = [positive(1, 3, 2, g=g)], [1e4 * positive(1, 3, 2, g=g)]
    w = weights(0.5, 0.5)
    raw = chapter.merge_networks(models, [quiet, loud], w)[0]
    ready = chapter.merge_networks(models, chapter.normalise_and_floor([quiet, loud]), w)[0]
    assert_close(raw, models[1][0], rtol=0, atol=1e-2)
    assert (ready - models[1][0]).abs().max() > 0.1
