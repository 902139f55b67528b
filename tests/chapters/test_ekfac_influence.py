"""The method of `ekfac-influence` against naive loops, dense matrices, kronfluence, closed forms and mistakes."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.data import TensorDataset

N, T, C = 12, 4, 5
LAYERS = ["up", "down"]
CLOSE = {"rtol": 1e-9, "atol": 1e-12}


class Tokens(nn.Module):
    """Logits for each token; what stands before it matters."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.up, self.down = nn.Embedding(7, 3), nn.Linear(3, 6), nn.Linear(6, C)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.tanh(self.up(self.embed(x).cumsum(1))))


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return Tokens().double()


@pytest.fixture
def data(g) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randint(0, 7, (N, T), generator=g)
    y = torch.randint(0, C, (N, T), generator=g)
    return x, y, torch.arange(T) < torch.randint(1, T + 1, (N, 1), generator=g)


def true_labels(chapter, y):
    """Gradients at the outputs for the labels y: no chance on either side of a comparison."""
    return lambda outputs: [chapter.label_scores(outputs, y)]


def naive(model, x_n, y_n, mask_n) -> dict[str, Tensor]:
    """Gradient of one sequence's log-likelihood by autograd, bias as last column."""
    model.zero_grad()
    logits = model(x_n[None])[0]
    loss = sum(logits[t].log_softmax(-1)[y_n[t]] for t in range(T) if mask_n[t])
    loss.backward()
    return {k: torch.cat([m.weight.grad, m.bias.grad[:, None]], 1) for k, m in layers_of(model)}


def layers_of(model):
    return [(name, model.get_submodule(name)) for name in LAYERS]


def inputs_of(model, x):
    """Inputs of both layers, with a one behind, without hooks."""
    h = model.embed(x).cumsum(1)
    both = {"up": h, "down": torch.tanh(model.up(h))}
    return {k: torch.cat([a, torch.ones_like(a[..., :1])], -1).detach() for k, a in both.items()}


# Gradients


def test_gradients_are_those_of_autograd_sequence_by_sequence(chapter, model, data):
    x, y, mask = data
    found = chapter.gradients(model, LAYERS, x, y, mask)
    for n in range(N):
        for name, expected in naive(model, x[n], y[n], mask[n]).items():
            assert_close(found[name][n], expected, **CLOSE)
    assert not any(dw.requires_grad for dw in found.values())  # so that many can be kept without their graphs


def test_gradients_at_the_outputs_are_those_of_the_log_likelihood(chapter, g):
    logits = torch.randn(6, C, generator=g, dtype=torch.float64, requires_grad=True)
    y = torch.randint(0, C, (6,), generator=g)
    (expected,) = torch.autograd.grad(-F.cross_entropy(logits, y, reduction="sum"), logits)
    assert_close(chapter.label_scores(logits.detach(), y), expected, **CLOSE)
    means, real = torch.randn(2, 6, 3, generator=g, dtype=torch.float64)
    means.requires_grad_()
    (expected,) = torch.autograd.grad(-0.5 * (real - means).square().sum(), means)
    assert_close(chapter.label_scores(means.detach(), real), expected, **CLOSE)


@pytest.mark.parametrize("kind", ["categorical", "gaussian"])
def test_expected_scores_have_the_loss_hessian_as_second_moment(chapter, g, kind):
    f = torch.randn(4, C, generator=g, dtype=torch.float64)
    vs = torch.stack(chapter.expected(kind)(f))
    p = f.softmax(-1)
    hessian = torch.diag_embed(p) - p[:, :, None] * p[:, None] if kind == "categorical" else torch.eye(C).double()
    assert_close(torch.einsum("knc,knd->ncd", vs, vs), hessian.expand(4, C, C), **CLOSE)


@pytest.mark.parametrize("kind", ["categorical", "gaussian"])
def test_sampled_scores_have_it_on_average_and_mean_zero(chapter, g, kind):
    n = 60_000
    f = torch.randn(1, 3, generator=g, dtype=torch.float64)
    (v,) = chapter.sampled(kind, g)(f.expand(n, 3))
    p = f[0].softmax(-1)
    hessian = torch.diag(p) - torch.outer(p, p) if kind == "categorical" else torch.eye(3).double()
    spread = 5 * math.sqrt(2 / n)  # five standard errors of a product of variance at most 2
    assert (v.mean(0).abs() < spread).all() and (v.T @ v / n - hessian).abs().max() < spread


def test_sampled_labels_ignore_the_data_and_follow_their_generator(chapter):
    f = torch.randn(50, C, generator=torch.Generator().manual_seed(1))
    first, second = (chapter.sampled("categorical", torch.Generator().manual_seed(s))(f)[0] for s in (3, 4))
    again = chapter.sampled("categorical", torch.Generator().manual_seed(3))(f)[0]
    assert torch.equal(first, again) and not torch.equal(first, second)


@pytest.mark.parametrize("kind", ["categorical", "gaussian"])
def test_draws_follow_the_generator_and_not_the_global_state(chapter, kind):
    f, draws = torch.randn(50, C, generator=torch.Generator().manual_seed(1)), []
    for state in (5, 6):
        torch.manual_seed(state)
        draws.append(chapter.sampled(kind, torch.Generator().manual_seed(3))(f)[0])
    other = chapter.sampled(kind, torch.Generator().manual_seed(4))(f)[0]
    assert torch.equal(*draws) and not torch.equal(draws[0], other)


# Steps 1 to 3


def test_covariances_are_the_naive_sums(chapter, model, data):
    x, y, mask = data
    halves = [(x[:5], mask[:5]), (x[5:], mask[5:])]
    labels = iter([y[:5], y[5:]])
    found = chapter.covariances(model, LAYERS, halves, lambda f: [chapter.label_scores(f, next(labels))])
    a, outputs = inputs_of(model, x), model(x)
    weights = dict(layers_of(model))
    top = torch.where(mask[..., None], chapter.label_scores(outputs.detach(), y), 0.0)
    below = top @ weights["down"].weight.detach() * (1 - a["down"][..., :-1] ** 2)
    for name, ds in (("down", top), ("up", below)):
        A = sum(torch.outer(a[name][n, t], a[name][n, t]) for n in range(N) for t in range(T) if mask[n, t])
        S = sum(torch.outer(ds[n, t], ds[n, t]) for n in range(N) for t in range(T))
        assert_close(found[name][0], A / mask.sum(), **CLOSE)
        assert_close(found[name][1], S / N, **CLOSE)


def test_padding_that_is_not_masked_is_told_apart(chapter, model, data):
    x, y, mask = data
    masked = chapter.covariances(model, LAYERS, [(x, mask)], true_labels(chapter, y))["up"][0]
    whole = chapter.covariances(model, LAYERS, [(x, torch.ones_like(mask))], true_labels(chapter, y))["up"][0]
    assert (masked - whole).abs().max() > 0.1 and masked[-1, -1].item() == pytest.approx(1)


def test_eigenvectors_rebuild_a_matrix_that_is_not_quite_symmetric(chapter, g):
    x = torch.randn(9, 4, generator=g, dtype=torch.float64)
    C_ = x.T @ x
    C_[0, 1] += 1e-9
    values, Q = chapter.eigen(C_)
    assert_close(Q @ torch.diag(values) @ Q.T, (C_ + C_.T) / 2, **CLOSE)
    assert (values.diff() >= 0).all() and (chapter.eigen(torch.diag(torch.tensor([-1e-9, 1.0])))[0] >= 0).all()


def test_corrected_eigenvalues_are_mean_squares_of_whole_gradients(chapter, model, data):
    x, y, mask = data
    factors = chapter.ekfac(model, LAYERS, [(x, mask)], true_labels(chapter, y))
    whole = [naive(model, *row) for row in zip(x, y, mask, strict=True)]
    for name, f in factors.items():
        expected = sum((f.Q_S.T @ dw[name] @ f.Q_A) ** 2 for dw in whole) / N
        assert_close(f.Lambda, expected, **CLOSE)
        assert f.damping == pytest.approx(0.1 * expected.mean().item())


def test_both_passes_read_all_batches(chapter, model, data):
    x, y, mask = data
    whole = chapter.ekfac(model, LAYERS, [(x, mask)], true_labels(chapter, y))
    labels = iter([y[:5], y[5:]] * 2)  # two passes
    parts = [(x[:5], mask[:5]), (x[5:], mask[5:])]
    halves = chapter.ekfac(model, LAYERS, parts, lambda f: [chapter.label_scores(f, next(labels))])
    assert next(labels, None) is None
    for name, f in whole.items():
        V = torch.ones_like(f.Lambda)
        assert_close(halves[name].kfac, f.kfac, **CLOSE)
        assert_close(
            chapter.inverse(V, *halves[name][:3], f.damping),
            chapter.inverse(V, *f[:3], f.damping),
            rtol=1e-7,
            atol=1e-9,
        )


def test_squaring_before_the_sum_over_tokens_is_told_apart(chapter, model, data):
    x, y, mask = data
    f = chapter.ekfac(model, LAYERS, [(x, mask)], true_labels(chapter, y))["up"]
    wrong = 0
    for n in range(N):
        for t in range(T):  # the mistake: one token's loss at a time
            only = torch.zeros_like(mask[n])
            only[t] = mask[n, t]
            if only.any():
                wrong = wrong + (f.Q_S.T @ naive(model, x[n], y[n], only)["up"] @ f.Q_A) ** 2 / N
    assert (wrong - f.Lambda).norm() / f.Lambda.norm() > 0.1


def test_kfac_eigenvalues_are_the_products_and_lose_to_the_corrected_ones(chapter, model, data):
    x, y, mask = data
    factors = chapter.ekfac(model, LAYERS, [(x, mask)], true_labels(chapter, y))
    moments = chapter.covariances(model, LAYERS, [(x, mask)], true_labels(chapter, y))
    whole = [naive(model, *row) for row in zip(x, y, mask, strict=True)]
    for name, f in factors.items():
        G = sum(torch.outer(dw[name].flatten(), dw[name].flatten()) for dw in whole) / N
        Q = torch.kron(f.Q_S, f.Q_A)  # row-major vec
        A, S = moments[name]
        assert_close(Q @ torch.diag(f.kfac.flatten()) @ Q.T, torch.kron(S, A), **CLOSE)
        assert_close(torch.diag(Q.T @ G @ Q), f.Lambda.flatten(), **CLOSE)
        gap = [(G - Q @ torch.diag(L.flatten()) @ Q.T).norm() for L in (f.Lambda, f.kfac)]
        assert gap[0] < gap[1]


def test_with_one_example_the_block_is_a_kronecker_product_and_ekfac_is_exact(chapter, g):
    line = nn.Sequential(nn.Linear(3, C)).double()
    x, v = torch.randn(1, 3, generator=g).double(), torch.randn(2, C, 4, generator=g).double()
    f = chapter.ekfac(line, ["0"], [(x, torch.ones(1, 1, dtype=torch.bool))], chapter.expected("categorical"))["0"]
    p, a = line(x)[0].softmax(-1).detach(), torch.cat([x[0], torch.ones(1).double()])
    G = torch.kron(torch.diag(p) - torch.outer(p, p), torch.outer(a, a))
    exact = torch.linalg.solve(G + 0.3 * torch.eye(4 * C), v.flatten(1).T).T
    assert_close(chapter.inverse(v, f.Q_A, f.Q_S, f.Lambda, 0.3).flatten(1), exact, rtol=1e-7, atol=1e-8)


def test_the_expectation_over_labels_reaches_every_layer_of_a_deep_network(chapter, g):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, C)).double()
    x, mask = torch.randn(N, 3, generator=g, dtype=torch.float64), torch.ones(N, 1, dtype=torch.bool)
    factors = chapter.ekfac(net, ["0", "2"], [(x, mask)], chapter.expected("categorical"))
    p = net(x).softmax(-1).detach()
    each = [chapter.gradients(net, ["0", "2"], x, torch.full((N,), c), mask) for c in range(C)]
    for name, f in factors.items():
        squares = torch.stack([(f.Q_S.T @ dw[name] @ f.Q_A) ** 2 for dw in each], 1)  # (N, C, P, M + 1)
        assert_close(f.Lambda, (p[..., None, None] * squares).sum(1).mean(0), **CLOSE)


# Step 4 and scores


def test_the_inverse_is_that_of_the_dense_matrix_and_not_of_its_transpose(chapter, g):
    Q_A, Q_S = (torch.linalg.qr(torch.randn(k, k, generator=g, dtype=torch.float64))[0] for k in (4, 3))
    Lambda, V = torch.rand(3, 4, generator=g).double() + 0.1, torch.randn(2, 3, 4, generator=g).double()
    found = chapter.inverse(V, Q_A, Q_S, Lambda, 0.5)
    Q = torch.kron(Q_S, Q_A)
    dense = Q @ torch.diag(Lambda.flatten()) @ Q.T + 0.5 * torch.eye(12).double()
    assert_close(found.flatten(1), torch.linalg.solve(dense, V.flatten(1).T).T, **CLOSE)
    transposed = chapter.inverse(V, Q_A.T, Q_S.T, Lambda, 0.5)  # a plausible mistake
    assert (found - transposed).abs().max() > 0.1


def test_influence_is_the_sum_of_inner_products_over_layers(chapter, model, data):
    x, y, mask = data
    factors = chapter.ekfac(model, LAYERS, [(x, mask)], true_labels(chapter, y))
    dw = chapter.gradients(model, LAYERS, x, y, mask)
    R = chapter.precondition({k: v[:3] for k, v in dw.items()}, factors, times=2.0)
    expected = torch.zeros(3, N, dtype=torch.float64)
    for name, f in factors.items():
        Q = torch.kron(f.Q_S, f.Q_A)
        dense = Q @ torch.diag(f.Lambda.flatten() + 0.2 * f.Lambda.mean()) @ Q.T
        vectors = dw[name].flatten(1)
        expected += vectors[:3] @ torch.linalg.solve(dense, vectors.T)
    assert_close(chapter.influence(R, dw), expected, rtol=1e-7, atol=1e-9)
    assert (chapter.influence(R, dw).diagonal() > 0).all()  # a sequence speaks for itself


def test_token_influence_is_the_bilinear_form_of_each_place(chapter, model, data, g):
    x, y, mask = data
    R = {name: torch.randn(len(m.weight), m.in_features + 1, generator=g).double() for name, m in layers_of(model)}
    found = chapter.token_influence(model, R, x, y, mask)
    dw = chapter.gradients(model, LAYERS, x, y, mask)
    assert_close(found.sum(1), chapter.influence({k: r[None] for k, r in R.items()}, dw)[0], **CLOSE)
    down = chapter.token_influence(model, {"down": R["down"]}, x, y, mask)
    a, ds = inputs_of(model, x)["down"], chapter.label_scores(model(x).detach(), y) * mask[..., None]
    assert_close(down[2, 1], ds[2, 1] @ R["down"] @ a[2, 1] if mask[2, 1] else down[2, 1] * 0, **CLOSE)
    assert (down[~mask] == 0).all()


def test_thin_factors_are_the_best_of_their_rank(chapter, g):
    R = {"up": torch.randn(2, 6, 4, generator=g).double()}
    singular = torch.linalg.svdvals(R["up"])
    for rank in (1, 2, 4):
        U, W = chapter.thin(R, rank)["up"]
        assert U.shape == (2, 6, rank) and W.shape == (2, 4, rank)
        gap = (R["up"] - U @ W.mT).square().sum((1, 2))
        assert_close(gap, singular[:, rank:].square().sum(1), rtol=1e-9, atol=1e-12)


@pytest.mark.filterwarnings("ignore:.torch.cuda.amp.GradScaler:FutureWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")
def test_kronfluence_gives_the_same_scores_up_to_the_sign(chapter, model, data, tmp_path):
    pytest.importorskip("kronfluence")
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.task import Task

    x, y, mask = data

    class LogLikelihood(Task):
        def compute_train_loss(self, batch, model, sample=False):  # noqa: ARG002
            loss = F.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten(), reduction="none")
            return (loss * batch[2].flatten()).sum()

        def compute_measurement(self, batch, model):
            return -self.compute_train_loss(batch, model)

        def get_influence_tracked_modules(self):
            return LAYERS

        def get_attention_mask(self, batch):
            return batch[2].long()

    factors = chapter.ekfac(model, LAYERS, [(x, mask)], true_labels(chapter, y))
    dw = chapter.gradients(model, LAYERS, x, y, mask)
    V = {name: v[:3] for name, v in dw.items()}
    wide = {f"{k}_dtype": torch.float64 for k in ("activation_covariance", "gradient_covariance")}
    wide |= {"eigendecomposition_dtype": torch.float64, "per_sample_gradient_dtype": torch.float64}
    task = LogLikelihood()
    analyzer = Analyzer("a", prepare_model(model, task), task, cpu=True, output_dir=str(tmp_path), disable_tqdm=True)
    full = TensorDataset(x, y, mask)
    arguments = FactorArguments(strategy="ekfac", use_empirical_fisher=True, lambda_dtype=torch.float64, **wide)
    analyzer.fit_all_factors("f", full, per_device_batch_size=N, factor_args=arguments)
    types = {f"{k}_dtype": torch.float64 for k in ("per_sample_gradient", "precondition", "score")}
    analyzer.compute_pairwise_scores(
        "s", "f", TensorDataset(x[:3], y[:3], mask[:3]), full, per_device_query_batch_size=3,
        per_device_train_batch_size=N, score_args=ScoreArguments(damping_factor=None, **types),
    )  # fmt: skip
    scored = analyzer.load_pairwise_scores("s")["all_modules"]
    R = chapter.precondition(V, factors)  # None: kronfluence's name for the paper's damping
    assert_close(-scored, chapter.influence(R, dw), rtol=1e-6, atol=1e-9)


# The rivals


def test_labels_are_drawn_for_each_token_of_each_sequence(chapter, g):
    outputs = 3 * torch.randn(2, 3, 4, generator=g)
    (scores,) = chapter.sampled("categorical", g)(outputs)
    assert_close(scores + outputs.softmax(-1), F.one_hot((scores > 0).long().argmax(-1), 4).float())


def system(g, s: int = 2, k: int = 3, size: int = 4, d: int = 6):
    batches = torch.randn(s, k, size * 2, d, generator=g, dtype=torch.float64)
    damping = torch.rand(s, d, generator=g, dtype=torch.float64) + 0.2
    return torch.randn(s, d, 5, generator=g, dtype=torch.float64), batches, damping


def test_the_first_lissa_steps_are_those_of_the_formula(chapter, g):
    v, batches, damping = system(g)
    alpha = torch.tensor([[0.05] * 5, [0.02] * 5]).double()
    found = chapter.lissa(v, batches, 4, damping, alpha, [1, 2, 4])
    for s, a in enumerate((0.05, 0.02)):
        r = v[s]
        for j in range(4):
            G = batches[s, j % 3].T @ batches[s, j % 3] / 4
            r = v[s] + r - a * (G + torch.diag(damping[s])) @ r
            if j + 1 in found:
                assert_close(found[j + 1][s], a * r, rtol=1e-6, atol=1e-8)


def test_lissa_ends_at_the_damped_inverse_with_safe_steps_and_diverges_above_twice_them(chapter, g):
    v, batches, damping = system(g, k=1)
    safe = chapter.safe_step(batches, 4, damping)
    G = batches[:, 0].mT @ batches[:, 0] / 4
    expected = 1 / (torch.linalg.eigvalsh(G)[:, -1] + damping.amax(1))
    assert_close(safe, expected, **CLOSE)
    exact = torch.linalg.solve(G + torch.diag_embed(damping), v)
    for share in (1.0, 1.8):
        found = chapter.lissa(v, batches, 4, damping, share * safe[:, None].expand(2, 5), [4000])[4000]
        assert_close(found, exact, rtol=1e-6, atol=1e-8)
    equal = damping.amax(1, keepdim=True).expand_as(damping)
    assert chapter.lissa(v, batches, 4, equal, 2.1 * safe[:, None].expand(2, 5), [2000])[2000].abs().max() > 1e6


def test_the_safe_step_is_that_of_the_worst_minibatch(chapter, g):
    _, batches, damping = system(g)
    tops = torch.linalg.eigvalsh(batches.mT @ batches / 4)[..., -1]  # (S, K)
    assert_close(1 / chapter.safe_step(batches, 4, damping), tops.amax(1) + damping.amax(1), **CLOSE)
    assert (tops.amax(1) > tops.amin(1) + 0.1).all()


def test_bm25_by_hand(chapter):
    texts = [[1, 2, 3], [1, 1, 4, 5, 6], [7, 8]]
    found = chapter.bm25([1, 3, 9], texts)
    mean = 10 / 3
    idf = {1: math.log(1 + 1.5 / 2.5), 3: math.log(1 + 2.5 / 1.5)}
    first = (idf[1] + idf[3]) * 2.5 / (1 + 1.5 * (0.25 + 0.75 * 3 / mean))
    second = idf[1] * 2 * 2.5 / (2 + 1.5 * (0.25 + 0.75 * 5 / mean))
    assert_close(found.double(), torch.tensor([first, second, 0.0]).double(), rtol=1e-6, atol=1e-7)
    assert_close(chapter.bm25([1, 1], texts), 2 * chapter.bm25([1], texts))  # words of the query count each time


def test_top_share_by_hand_and_of_a_gaussian(chapter, g):
    scores = torch.tensor([[4.0, 3.0, 2.0, 1.0, -100.0, 0, 0, 0, 0, 0], [1.0] * 10])
    assert_close(chapter.top_share(scores, 0.1), torch.tensor([0.4, 0.1]))
    assert_close(chapter.top_share(scores, 0.15), torch.tensor([0.7, 0.2]))  # rounded up
    z = 2.3263478740408408  # 99 % point of the normal
    share = chapter.top_share(torch.randn(200, 5000, generator=g)).mean().item()
    assert share == pytest.approx(math.exp(-(z**2) / 2), rel=0.02)  # φ(z) / φ(0), here 6.7 %


# What is refused


def test_bad_input_is_refused_in_words(chapter, model, data):
    x, y, mask = data
    with pytest.raises(ValueError, match=r"nn\.Linear with a bias; 'embed' is Embedding"):
        chapter.tapped(model, ["embed"], x)
    with pytest.raises(ValueError, match="'0' is Linear"):
        chapter.tapped(nn.Sequential(nn.Linear(2, 2, bias=False)), ["0"], torch.zeros(1, 2))
    with pytest.raises(ValueError, match="kind must be 'categorical' or 'gaussian'; got 'poisson'"):
        chapter.sampled("poisson", torch.Generator())
    with pytest.raises(ValueError, match="kind must be 'categorical' or 'gaussian'; got 'poisson'"):
        chapter.expected("poisson")
    with pytest.raises(ValueError, match="at least one token that counts"):
        chapter.covariances(model, LAYERS, [(x, torch.zeros_like(mask))], true_labels(chapter, y))
    eye = torch.eye(2)
    with pytest.raises(ValueError, match=r"shape \(2, 2\) of Λ; got \(3, 2\)"):
        chapter.inverse(torch.zeros(3, 2), eye, eye, eye, 0.1)
    with pytest.raises(ValueError, match="damping must be above 0; got 0"):
        chapter.inverse(eye, eye, eye, eye, 0)
    with pytest.raises(ValueError, match="rank must be at least 1; got 0"):
        chapter.thin({"up": eye[None]}, 0)
    with pytest.raises(ValueError, match="part must lie in"):
        chapter.top_share(torch.ones(1, 5), 0)
    with pytest.raises(ValueError, match="sequences must hold at least one"):
        chapter.bm25([1], [])
