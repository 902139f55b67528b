"""The Fisher information in all its forms against closed forms, enumeration and naive loops, in double precision."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from reprolib import fisher
from reprolib.fisher import (
    Batch,
    batches,
    block_fisher,
    diagonal_fisher,
    empirical_block_fisher,
    empirical_diagonal_fisher,
    empirical_full_fisher,
    fisher_product,
    fisher_solve,
    full_fisher,
    per_example_gradients,
    sampled_block_fisher,
    sampled_diagonal_fisher,
    sampled_full_fisher,
    scores,
)

N, D, C, T = 20, 4, 3, 3
EXACT = {"rtol": 1e-10, "atol": 1e-14}


class Sequence(nn.Module):
    """Every kind of layer that the fast formulas know and do not know; one is called twice; outputs (N, T, C)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(5, 4), nn.LayerNorm(4)
        self.up, self.again, self.out = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, C, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        h = torch.tanh(self.up(self.norm(h + 0.5 * h.cumsum(1))))
        return self.out(torch.tanh(self.again(torch.tanh_(self.again(h)))))


class Tied(nn.Module):
    """An embedding whose matrix is the head as well, and attention."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)[:, None]
        return self.head(F.scaled_dot_product_attention(h, h, h, is_causal=True)[:, 0])


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, stride=2, padding=1, dilation=2),
        nn.ReLU(inplace=True),
        nn.Conv2d(3, 3, 1, groups=3),
        nn.Conv2d(3, 2, 2, bias=False),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(8, C),
    )


def dense() -> nn.Module:
    return nn.Sequential(nn.Linear(D, 5), nn.Tanh(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, C))


def make(kind: str) -> tuple[nn.Module, Tensor]:
    """A model in double precision and six inputs for it."""
    torch.manual_seed(5)
    model = {"dense": dense, "convolutional": convolutional, "sequence": Sequence, "tied": Tied}[kind]().double()
    shape = {"dense": (6, D), "convolutional": (6, 2, 8, 8)}.get(kind)
    return model, torch.randn(shape).double() if shape else torch.randint(0, 5, (6, T))


KINDS = ("dense", "convolutional", "sequence", "tied")


@pytest.fixture
def model() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(D, C).double()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(N, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def seeded(seed: int = 4) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def flat(tensors) -> Tensor:
    return torch.cat([t.flatten() for t in tensors])


def closed_form(model: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """mean_n (diag p_n - p_n p_n^T) ⊗ z_n z_n^T with z = (x, 1), in the order weight (C, D), bias (C)."""
    p = model(x).softmax(-1).detach()
    z = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    middle = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    blocks = torch.einsum("ncd,ni,nj->cidj", middle, z, z) / len(x)  # (C, D+1, C, D+1)
    order = [c * (D + 1) + i for c in range(C) for i in range(D)] + [c * (D + 1) + D for c in range(C)]
    return blocks.reshape(C * (D + 1), -1)[order][:, order]


def score(model: nn.Module, log_likelihood: Tensor) -> Tensor:
    return flat(torch.autograd.grad(log_likelihood, list(model.parameters()), retain_graph=True))


def enumerated(model: nn.Module, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """The definition read aloud: all label sequences of every example, their probabilities and scores."""
    total: Tensor | float = 0.0
    for n in range(len(x)):
        log_p = model(x[n : n + 1])[0].log_softmax(-1)
        log_p = log_p[None] if log_p.ndim == 1 else log_p  # (T, C)
        kept = [t for t in range(len(log_p)) if mask is None or mask[n, t]]
        for labels in itertools.product(range(log_p.shape[1]), repeat=len(kept)):
            if kept:
                log_likelihood = sum(log_p[t, y] for t, y in zip(kept, labels, strict=True))
                s = score(model, log_likelihood)
                total = total + log_likelihood.exp().detach() * torch.outer(s, s) / len(x)
    return total


def jacobian_gram(model: nn.Module, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """mean_n J_nᵀ J_n over kept outputs: the Fisher information of means with unit variance."""
    f = model(x)
    f = f if mask is None else f[mask]
    rows = torch.stack([score(model, value) for value in f.flatten()])
    return rows.T @ rows / len(x)


MASK = torch.tensor([[1, 1, 0], [0, 0, 0], [1, 1, 1], [0, 1, 0], [0, 1, 1], [1, 0, 1]], dtype=torch.bool)


# Scores and per-example gradients


def test_scores_are_the_gradients_of_the_log_probabilities(model, x):
    p, s = scores(model, x)
    assert p.shape == (N, C) and s["weight"].shape == (N, C, C, D) and s["bias"].shape == (N, C, C)
    assert_close(p, model(x).softmax(-1).detach())
    log_p = model(x[5:6]).log_softmax(-1)[0, 2]
    expected = torch.autograd.grad(log_p, model.weight)[0]
    assert_close(s["weight"][5, 2], expected)


def test_the_mean_score_under_the_model_is_zero(model, x):
    p, s = scores(model, x)
    assert_close(torch.einsum("nc,nck->nk", p, s["bias"]), torch.zeros(N, C, dtype=torch.float64), atol=1e-14, rtol=0)


def test_per_example_gradients_are_those_of_one_example_at_a_time():
    model, x = make("sequence")
    y = torch.randint(0, C, (6, T))

    def loss(f: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(f.flatten(0, 1), y.flatten(), reduction="sum")

    found = per_example_gradients(model, loss, x, y)
    for n in range(6):
        alone = torch.autograd.grad(loss(model(x[n : n + 1]), y[n : n + 1]), list(model.parameters()))
        assert_close([g[n] for g in found.values()], list(alone), **EXACT)
    assert not any(g.requires_grad for g in found.values())


# The exact Fisher information


def test_full_fisher_of_a_linear_softmax_model_is_the_closed_form(model, x):
    assert_close(full_fisher(model, x), closed_form(model, x), **EXACT)


def test_diagonal_fisher_of_a_linear_softmax_model_is_the_closed_form(model, x):
    found = diagonal_fisher(model, x)
    p = model(x).softmax(-1).detach()
    assert_close(found["weight"], torch.einsum("nc,ni->ci", p * (1 - p), x**2) / N, **EXACT)
    assert_close(found["bias"], (p * (1 - p)).mean(0), **EXACT)


def test_full_fisher_of_a_linear_gaussian_model_is_the_closed_form(x):
    linear = nn.Linear(D, 2, bias=False).double()
    assert_close(full_fisher(linear, x, "gaussian"), torch.kron(torch.eye(2).double(), x.T @ x / N), **EXACT)
    assert_close(diagonal_fisher(linear, x, "gaussian")["weight"], x.square().mean(0).expand(2, D), **EXACT)


@pytest.mark.parametrize("kind", KINDS)
def test_full_fisher_sums_over_all_label_sequences(kind):
    model, x = make(kind)
    if kind in ("sequence", "tied"):
        x = x[:3]
    assert_close(full_fisher(model, x), enumerated(model, x), **EXACT)


def test_masked_positions_do_not_count():
    model, x = make("sequence")
    assert_close(full_fisher(model, batches(x, mask=MASK)), enumerated(model, x, MASK), **EXACT)
    found = full_fisher(model, batches(x, mask=MASK), "gaussian")
    assert_close(found, jacobian_gram(model, x, MASK), **EXACT)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gaussian_fisher_is_the_gram_matrix_of_the_jacobian(kind):
    model, x = make(kind)
    assert_close(full_fisher(model, x, "gaussian"), jacobian_gram(model, x), **EXACT)


def test_certain_predictions_in_single_precision_lose_nothing():
    logits = torch.tensor([[1000.0, 0.0, -1000.0], [0.0, 0.0, -200.0], [-90.0, 0.0, 1.0], [20.0, 0.0, 0.0]])
    labels = fisher.Labels("exact")
    roots = torch.stack([*fisher.cotangents(logits, Batch(logits), labels)])  # (C - 1, 4, C)
    p = logits.double().softmax(-1)
    expected = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    assert_close(torch.einsum("knc,knd->ncd", roots, roots).double(), expected, rtol=1e-5, atol=1e-15)


# Diagonals and blocks, against the full matrix


def forms(model: nn.Module, data, likelihood: str, variant: str) -> tuple[Tensor, dict, dict]:
    """Full matrix, blocks and diagonal of one variant."""
    if variant == "sampled":
        functions = sampled_full_fisher, sampled_block_fisher, sampled_diagonal_fisher
        return tuple(function(model, data, 3, seeded(), likelihood) for function in functions)
    named = {
        "exact": (full_fisher, block_fisher, diagonal_fisher),
        "empirical": (empirical_full_fisher, empirical_block_fisher, empirical_diagonal_fisher),
    }
    return tuple(function(model, data, likelihood=likelihood) for function in named[variant])


def targets(model: nn.Module, x: Tensor, likelihood: str) -> Tensor:
    f = model(x).detach()
    if likelihood == "gaussian":
        return torch.randn(f.shape, generator=seeded(), dtype=f.dtype)
    return torch.randint(0, f.shape[-1], f.shape[:-1], generator=seeded())


@pytest.mark.parametrize("variant", ["exact", "sampled", "empirical"])
@pytest.mark.parametrize("likelihood", ["categorical", "gaussian"])
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_and_diagonal_are_parts_of_the_full_matrix(kind, likelihood, variant):
    model, x = make(kind)
    mask = MASK if x.ndim == 2 and not x.is_floating_point() else None
    full, blocks, diagonal = forms(model, batches(x, targets(model, x, likelihood), mask), likelihood, variant)
    start = 0
    assert list(blocks) == list(diagonal) == [name for name, _ in model.named_parameters()]
    for (name, block), values in zip(blocks.items(), diagonal.values(), strict=True):
        part = slice(start, start := start + len(block))
        assert_close(block, full[part, part], **EXACT)
        assert_close(values.flatten(), full.diagonal()[part], **EXACT)
        assert values.shape == model.get_parameter(name).shape and not values.requires_grad
    assert start == len(full)
    assert torch.linalg.eigvalsh(full).min() > -1e-13 * full.trace()


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_parameters_have_the_same_diagonal(kind):
    model, x = make(kind)
    before = diagonal_fisher(model, x)
    after = diagonal_fisher(model.requires_grad_(False), x)
    assert_close(after, before, **EXACT)


def test_a_layer_whose_weight_is_taken_without_calling_it_is_counted():
    attention = nn.MultiheadAttention(4, 2, batch_first=True)

    class Attend(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = attention

        def forward(self, x: Tensor) -> Tensor:
            return self.mix(x, x, x, need_weights=False)[0]

    torch.manual_seed(0)
    model, x = Attend().double(), torch.randn(3, 2, 4).double()
    assert_close(flat(diagonal_fisher(model, x).values()), full_fisher(model, x).diagonal(), **EXACT)


@pytest.mark.parametrize("variant", ["exact", "sampled", "empirical"])
@pytest.mark.parametrize("likelihood", ["categorical", "gaussian"])
def test_batching_changes_nothing(likelihood, variant):
    model, x = make("sequence")
    y = targets(model, x, likelihood)
    whole = forms(model, batches(x, y, MASK), likelihood, variant)
    for size in (1, 4):
        assert_close(forms(model, batches(x, y, MASK, size), likelihood, variant), whole, **EXACT)
    assert_close(forms(model, [(x[:1], y[:1], MASK[:1]), Batch(x[1:], y[1:], MASK[1:])], likelihood, variant), whole)


def test_a_loader_and_a_list_of_tensors_are_data_too(model, x):
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, torch.zeros(N).long()), batch_size=7)
    assert_close(diagonal_fisher(model, loader), diagonal_fisher(model, x), **EXACT)
    assert_close(full_fisher(model, [x[:3], x[3:]]), full_fisher(model, x), **EXACT)


# Sampled and empirical


def test_sampled_labels_converge_to_the_fisher_at_the_rate_of_their_variance(model, x):
    samples = 4000
    found = sampled_diagonal_fisher(model, x, samples, seeded(3))["weight"]
    p, s = scores(model, x)
    squares = s["weight"] ** 2  # (N, C, C, D), one draw an example and sample picks a class
    mean = torch.einsum("nc,nckd->nkd", p, squares)
    variance = torch.einsum("nc,nckd->nkd", p, squares**2) - mean**2
    error = (found - diagonal_fisher(model, x)["weight"]).abs()
    assert (error < 5 * (variance.sum(0) / N**2 / samples).sqrt()).all()  # five standard errors, C D entries
    assert error.max() > 0


def test_sampled_means_have_the_variance_of_a_normal_square(x):
    samples, bias = 2000, nn.Linear(D, 2).double()
    found = sampled_diagonal_fisher(bias, x, samples, seeded(), "gaussian")["bias"]  # mean of N K squared normals
    assert ((found - 1).abs() < 5 * (2 / (N * samples)) ** 0.5).all()
    off = sampled_full_fisher(bias, x, samples, seeded(), "gaussian")[-1, -2].abs()  # mean of N K products
    assert off < 5 * (1 / (N * samples)) ** 0.5


def test_sampled_positions_are_independent():
    class Free(nn.Module):
        """Logits (N, 2, 2) that are parameters themselves, so that scores are residuals."""

        def __init__(self) -> None:
            super().__init__()
            self.logits = nn.Parameter(torch.tensor([[0.0, 1.0], [0.5, -1.0]]).double())

        def forward(self, x: Tensor) -> Tensor:
            return self.logits + 0 * x[:, :, None]

    model, x, samples = Free(), torch.zeros(50, 2).double(), 400
    found, expected = sampled_full_fisher(model, x, samples, seeded()), full_fisher(model, x)
    assert_close(expected[:2, 2:], torch.zeros(2, 2).double(), atol=1e-15, rtol=0)
    assert (found - expected).abs().max() < 5 * (1 / (50 * samples)) ** 0.5  # products of residuals lie in [-1, 1]


def test_the_same_generator_state_samples_the_same_fisher(model, x):
    a, b = (sampled_diagonal_fisher(model, x, 2, seeded()) for _ in range(2))
    assert_close(a, b, rtol=0, atol=0)
    generator = seeded()
    first, second = (sampled_diagonal_fisher(model, x, 2, generator) for _ in range(2))
    assert not torch.equal(first["bias"], second["bias"])


def test_the_empirical_fisher_is_the_mean_squared_score_at_the_labels_and_not_the_fisher(model, x):
    y = torch.arange(N) % C
    found = empirical_diagonal_fisher(model, x, y)["weight"]
    residual = torch.nn.functional.one_hot(y, C) - model(x).softmax(-1).detach()
    assert_close(found, torch.einsum("nc,ni->ci", residual**2, x**2) / N, **EXACT)
    assert not torch.allclose(found, diagonal_fisher(model, x)["weight"], rtol=0.05)


def test_the_empirical_fisher_of_sequences_squares_the_sum_over_kept_positions():
    model, x = make("sequence")
    y = torch.randint(0, C, (6, T)).masked_fill(~MASK, -100)  # the usual label of ignored positions
    rows = []
    for n in range(6):
        log_p = model(x[n : n + 1])[0].log_softmax(-1)
        rows.append(score(model, sum([log_p[t, y[n, t]] for t in range(T) if MASK[n, t]], 0 * log_p.sum())))
    rows = torch.stack(rows)
    assert_close(empirical_full_fisher(model, batches(x, y, MASK)), rows.T @ rows / 6, **EXACT)


def test_dtype_of_the_inputs_is_kept(x):
    assert diagonal_fisher(nn.Linear(D, C), x.float())["weight"].dtype == torch.float32
    assert sampled_full_fisher(nn.Linear(D, C), x.float(), 2, seeded(), "gaussian").dtype == torch.float32


# Products and solves


@pytest.mark.parametrize("likelihood", ["categorical", "gaussian"])
@pytest.mark.parametrize("kind", KINDS)
def test_products_are_those_of_the_full_matrix(kind, likelihood):
    model, x = make(kind)
    data = batches(x, mask=MASK if kind in ("sequence", "tied") else None, batch_size=4)
    full, product = full_fisher(model, data, likelihood), fisher_product(model, data, likelihood)
    v = torch.randn(3, len(full), generator=seeded(), dtype=torch.float64)
    assert_close(product(v), v @ full, **EXACT)
    assert_close(product(v[1]), full @ v[1], **EXACT)  # again: the graph is kept
    assert not product(v).requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_depends_on_the_callers_gradient_mode(kind):
    model, x = make(kind)
    v = torch.randn(sum(p.numel() for p in model.parameters()), generator=seeded(), dtype=torch.float64)
    expected = full_fisher(model, x), diagonal_fisher(model, x), fisher_product(model, x)(v)
    with torch.no_grad():
        assert_close((full_fisher(model, x), diagonal_fisher(model, x), fisher_product(model, x)(v)), expected)


def test_solves_reach_the_tolerance_of_the_dense_solution():
    model, x = make("dense")
    full = full_fisher(model, x)
    v = torch.randn(2, len(full), generator=seeded(), dtype=torch.float64)
    found = fisher_solve(fisher_product(model, x), v, damping=1e-3, tolerance=1e-10)
    expected = torch.linalg.solve(full + 1e-3 * torch.eye(len(full)).double(), v.T).T
    assert_close(found, expected, rtol=0, atol=1e-10 / 1e-3 * v.norm().item())  # |error| ≤ |residual| / λ
    assert_close(fisher_solve(fisher_product(model, x), 0 * v[0], 1.0), 0 * v[0])


# Mistakes


@pytest.mark.parametrize("samples", [0, -1])
def test_sampling_no_label_is_refused(model, x, samples):
    with pytest.raises(ValueError, match=f"samples must be at least 1; got {samples}"):
        sampled_diagonal_fisher(model, x, samples, torch.Generator())


def test_labels_that_do_not_fit_are_refused(model, x):
    with pytest.raises(ValueError, match=r"y must have shape \(20,\).*got \(20, 1\)"):
        empirical_diagonal_fisher(model, x, torch.zeros(N, 1, dtype=torch.int64))
    for bad in (-1, C):
        with pytest.raises(ValueError, match=rf"y must lie in 0\.\.2, integer; got torch.int64, {bad}\.\.{bad}"):
            empirical_diagonal_fisher(model, x, torch.full((N,), bad))
    with pytest.raises(ValueError, match=r"y must lie in 0\.\.2, integer; got torch.float32"):
        empirical_diagonal_fisher(model, x, torch.zeros(N))
    with pytest.raises(ValueError, match=r"y must have shape \(20,\); got None"):
        empirical_full_fisher(model, x)
    with pytest.raises(ValueError, match=r"y must be finite"):
        empirical_full_fisher(model, batches(x, torch.full((N, C), torch.nan)), "gaussian")


def test_no_example_and_outputs_of_another_shape_are_refused(model, x):
    for function in (diagonal_fisher, full_fisher, fisher_product, scores):
        with pytest.raises(ValueError, match=r"at least one example; got shape \(0, 4\)"):
            function(model, x[:0])
    for data in ([], batches(x[:0])):
        with pytest.raises(ValueError, match="data must hold at least one example; got no batch"):
            diagonal_fisher(model, data)
    with pytest.raises(ValueError, match=r"must return \(N, C\) or \(N, T, C\) with N = 20; got shape \(60,\)"):
        diagonal_fisher(nn.Sequential(model, nn.Flatten(0)), x)
    with pytest.raises(ValueError, match=r"at least two classes; got outputs \(20, 1\)"):
        diagonal_fisher(nn.Linear(D, 1).double(), x)
    with pytest.raises(ValueError, match=r"must return logits \(N, C\); got shape \(6, 3, 3\)"):
        scores(*make("sequence"))


def test_outputs_that_are_not_finite_are_refused(model, x):
    for function in (diagonal_fisher, full_fisher, fisher_product):
        with pytest.raises(ValueError, match="outputs must be finite"):
            function(model, x.masked_fill(x > 1, torch.nan))


def test_masks_that_do_not_fit_are_refused(model, x):
    with pytest.raises(ValueError, match=r"mask must be bool, \(N, T\).*here \(20, 3\); got torch.bool, \(20,\)"):
        full_fisher(model, batches(x, mask=torch.ones(N, dtype=torch.bool)))
    deep, tokens = make("sequence")
    with pytest.raises(ValueError, match=r"mask must be bool.*got torch.float32, \(6, 3\)"):
        diagonal_fisher(deep, batches(tokens, mask=MASK.float()))


def test_an_unknown_likelihood_or_source_is_refused(model, x):
    with pytest.raises(ValueError, match="likelihood must be 'categorical' or 'gaussian'; got 'poisson'"):
        diagonal_fisher(model, x, "poisson")
    with pytest.raises(ValueError, match="source of labels must be 'exact', 'sampled' or 'empirical'; got 'guessed'"):
        fisher.checked(model(x), Batch(x), fisher.Labels("guessed"))


def test_lengths_that_differ_are_refused(x):
    with pytest.raises(ValueError, match=r"must share a length.*got \[20, 3, None\], 0"):
        batches(x, torch.zeros(3))
    with pytest.raises(ValueError, match=r"batch_size be 0 or more; got \[20, None, None\], -1"):
        batches(x, batch_size=-1)


@pytest.mark.parametrize("layer", [nn.Dropout(0.1), nn.BatchNorm1d(D), nn.MultiheadAttention(4, 1, 0.1)])
def test_dropout_and_batch_norm_must_be_in_evaluation_mode(layer, x):
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.noisy, self.linear = layer, nn.Linear(D, C)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x)

    model = Noisy().double()
    y = torch.zeros(N).long()
    for call in (diagonal_fisher, full_fisher, scores, fisher_product):
        with pytest.raises(ValueError, match=rf"evaluation mode; noisy \({type(layer).__name__}\) is training"):
            call(model, x)
    with pytest.raises(ValueError, match="evaluation mode; noisy"):
        per_example_gradients(model, F.cross_entropy, x, y)
    diagonal_fisher(model.eval(), x)


def test_dropout_that_drops_nothing_is_welcome_in_training_mode(model, x):
    model.dropout = nn.Dropout(0.0)
    assert model.training
    assert_close(diagonal_fisher(model, x)["bias"], full_fisher(model, x).diagonal()[-C:], **EXACT)


def test_an_input_changed_in_place_after_use_is_refused(x):
    class Residual(nn.Linear):
        pass

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = Residual(D, D)

        def forward(self, x: Tensor) -> Tensor:
            x = x.clone()
            x += self.linear(x)
            return x

    with pytest.raises(ValueError, match="layer 'linear' takes an input that is changed in place later"):
        diagonal_fisher(Block().double().requires_grad_(False), x)


def test_a_layer_that_mixes_examples_into_its_first_dimension_is_refused():
    class Folded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, C)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x.flatten(0, 1)).unflatten(0, x.shape[:2])

    with pytest.raises(ValueError, match=r"layer 'linear' must take inputs \(5, ...\), examples first; got \(10, 4\)"):
        diagonal_fisher(Folded(), torch.randn(5, 2, 4))


def test_vectors_and_damping_that_do_not_fit_are_refused(model, x):
    product = fisher_product(model, x)
    with pytest.raises(ValueError, match=r"v must be \(15,\) or \(K, 15\); got \(14,\)"):
        product(torch.zeros(14))
    for damping in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=f"damping must be above 0; got {damping}"):
            fisher_solve(product, torch.zeros(15).double(), damping)


def test_a_solve_that_does_not_converge_says_how_far_it_came(model, x):
    v = torch.randn(15, generator=seeded(), dtype=torch.float64)
    with pytest.raises(
        ValueError, match=r"must reach a residual of 1e-12 \|v\|.* in 2 iterations; got .*: raise damping"
    ):
        fisher_solve(fisher_product(model, x), v, 1e-8, tolerance=1e-12, max_iterations=2)
