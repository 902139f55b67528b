"""Fisher estimators against the closed form of a linear softmax model, in double precision."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from reprolib.fisher import diagonal_fisher, empirical_diagonal_fisher, full_fisher, sampled_diagonal_fisher, scores

N, D, C = 20, 4, 3


@pytest.fixture
def model() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(D, C).double()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(N, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def closed_form(model: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """mean_n (diag p_n - p_n p_n^T) ⊗ z_n z_n^T with z = (x, 1), in the order weight (C, D), bias (C)."""
    p = model(x).softmax(-1).detach()
    z = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    middle = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    blocks = torch.einsum("ncd,ni,nj->cidj", middle, z, z) / len(x)  # (C, D+1, C, D+1)
    order = [c * (D + 1) + i for c in range(C) for i in range(D)] + [c * (D + 1) + D for c in range(C)]
    return blocks.reshape(C * (D + 1), -1)[order][:, order]


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


def test_full_fisher_of_a_linear_softmax_model_is_the_closed_form(model, x):
    assert_close(full_fisher(model, x), closed_form(model, x), rtol=1e-10, atol=1e-14)


def test_diagonal_fisher_of_a_linear_softmax_model_is_the_closed_form(model, x):
    found = diagonal_fisher(model, x)
    p = model(x).softmax(-1).detach()
    assert_close(found["weight"], torch.einsum("nc,ni->ci", p * (1 - p), x**2) / N, rtol=1e-10, atol=1e-14)
    assert_close(found["bias"], (p * (1 - p)).mean(0), rtol=1e-10, atol=1e-14)


def test_the_diagonal_fisher_is_the_diagonal_of_the_full_one_for_a_deeper_model(x):
    torch.manual_seed(2)
    deep = nn.Sequential(nn.Linear(D, 5), nn.Tanh(), nn.Linear(5, C)).double()
    diagonal = torch.cat([f.flatten() for f in diagonal_fisher(deep, x).values()])
    assert_close(full_fisher(deep, x).diagonal(), diagonal, rtol=1e-12, atol=1e-16)
    assert torch.linalg.eigvalsh(full_fisher(deep, x)).min() > -1e-14


def test_sampled_labels_converge_to_the_fisher_at_the_rate_of_their_variance(model, x):
    samples = 4000
    found = sampled_diagonal_fisher(model, x, samples, torch.Generator().manual_seed(3))["weight"]
    p, s = scores(model, x)
    squares = s["weight"] ** 2  # (N, C, C, D), one draw an example and sample picks a class
    mean = torch.einsum("nc,nckd->nkd", p, squares)
    variance = torch.einsum("nc,nckd->nkd", p, squares**2) - mean**2
    error = (found - diagonal_fisher(model, x)["weight"]).abs()
    assert (error < 5 * (variance.sum(0) / N**2 / samples).sqrt()).all()  # five standard errors, C D entries
    assert error.max() > 0


def test_the_same_generator_state_samples_the_same_fisher(model, x):
    a, b = (sampled_diagonal_fisher(model, x, 2, torch.Generator().manual_seed(4)) for _ in range(2))
    assert_close(a, b, rtol=0, atol=0)


def test_the_empirical_fisher_is_the_mean_squared_score_at_the_labels_and_not_the_fisher(model, x):
    y = torch.arange(N) % C
    found = empirical_diagonal_fisher(model, x, y)["weight"]
    residual = torch.nn.functional.one_hot(y, C) - model(x).softmax(-1).detach()
    assert_close(found, torch.einsum("nc,ni->ci", residual**2, x**2) / N, rtol=1e-10, atol=1e-14)
    assert not torch.allclose(found, diagonal_fisher(model, x)["weight"], rtol=0.05)


def test_dtype_of_the_inputs_is_kept(x):
    assert diagonal_fisher(nn.Linear(D, C), x.float())["weight"].dtype == torch.float32


@pytest.mark.parametrize("samples", [0, -1])
def test_sampling_no_label_is_refused(model, x, samples):
    with pytest.raises(ValueError, match=f"samples must be at least 1; got {samples}"):
        sampled_diagonal_fisher(model, x, samples, torch.Generator())


def test_labels_that_do_not_fit_are_refused(model, x):
    with pytest.raises(ValueError, match=r"y must have shape \(20,\).*got \(20, 1\)"):
        empirical_diagonal_fisher(model, x, torch.zeros(N, 1, dtype=torch.int64))
    for bad in (-1, C):
        with pytest.raises(ValueError, match=r"y must lie in 0\.\.2"):
            empirical_diagonal_fisher(model, x, torch.full((N,), bad))


def test_no_example_and_logits_of_another_shape_are_refused(model, x):
    with pytest.raises(ValueError, match=r"at least one example; got shape \(0, 4\)"):
        diagonal_fisher(model, x[:0])
    flat = nn.Sequential(model, nn.Flatten(0))
    with pytest.raises(ValueError, match=r"must return logits \(N, C\); got shape \(3,\)"):
        diagonal_fisher(flat, x)
