"""K-FAC and EK-FAC against cases where they are exact, brute force in the eigenbasis, and naive loops."""

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from reprolib import kfac as module
from reprolib.fisher import batches, empirical_full_fisher, full_fisher, sampled_full_fisher
from reprolib.kfac import (
    dense,
    ekfac,
    empirical_ekfac,
    empirical_kfac,
    factored_solve,
    kfac,
    mean_damping,
    multiply,
    sampled_ekfac,
    sampled_kfac,
    solve,
)

C, T = 3, 4
EXACT = {"rtol": 1e-9, "atol": 1e-12}


class Sequence(nn.Module):
    """Linear layers on tokens, one called twice, and one on their mean or, per token, on each."""

    def __init__(self, pool: bool = False) -> None:
        super().__init__()
        self.pool = pool
        self.embed, self.up, self.again = nn.Embedding(5, 3), nn.Linear(3, 4), nn.Linear(4, 4)
        self.out = nn.Linear(4, C, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        h = torch.tanh(self.up(h + 0.5 * h.cumsum(1)))
        h = torch.tanh(self.again(torch.relu_(self.again(h))))
        return self.out(h.mean(1) if self.pool else h)


def make(kind: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(3)
    if kind == "dense":
        model: nn.Module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, C))
        return model.double(), torch.randn(6, 3).double()
    if kind == "convolutional":
        strided = nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2))
        plain = nn.Conv2d(3, 2, 2, bias=False)
        model = nn.Sequential(strided, nn.ReLU(inplace=True), plain, nn.Tanh(), nn.Flatten(), nn.Linear(12, C))
        return model.double(), torch.randn(5, 2, 6, 6).double()
    return Sequence(kind == "pooled").double(), torch.randint(0, 5, (6, T))


KINDS = ("dense", "convolutional", "sequence", "pooled")
MASK = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0], [1, 0, 1, 1]]).bool()


def seeded(seed: int = 4) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def labels(model: nn.Module, x: Tensor) -> Tensor:
    return torch.randint(0, C, model(x).shape[:-1], generator=seeded())


def layer_block(model: nn.Module, full: Tensor, path: str) -> Tensor:
    """The full matrix restricted to one layer, over its row-major (W, b)."""
    start, index = 0, {}
    for name, p in model.named_parameters():
        index[name] = torch.arange(start, start := start + p.numel()).view_as(p)
    weight = index[f"{path}.weight"].flatten(1)
    bias = index.get(f"{path}.bias")
    rows = (weight if bias is None else torch.cat([weight, bias[:, None]], 1)).flatten()
    return full[rows][:, rows]


def kronecker(block: module.Block) -> Tensor:
    return torch.kron(block.s, block.a)


def random_vector(blocks: module.Blocks, *lead: int) -> dict[str, Tensor]:
    shapes = {name: shape for block in blocks.values() for name, shape in block.shapes.items()}
    return {k: torch.randn(*lead, *shape, generator=seeded(), dtype=torch.float64) for k, shape in shapes.items()}


def matrix_of(block: module.Block, v: dict[str, Tensor]) -> Tensor:
    """One layer's part of v as a vector over (W, b)."""
    weight, *bias = (v[name] for name in block.shapes)
    return torch.cat([weight.flatten(1), *(b[:, None] for b in bias)], 1).flatten()


# Where K-FAC is exact


@pytest.mark.parametrize("likelihood", ["categorical", "gaussian"])
def test_one_example_makes_every_block_of_one_position_a_kronecker_product(likelihood):
    model, x = make("dense")
    blocks, full = kfac(model, x[:1], likelihood), full_fisher(model, x[:1], likelihood)
    assert list(blocks) == ["0", "2", "4"]
    for path, block in blocks.items():
        assert_close(kronecker(block), layer_block(model, full, path), **EXACT)
        assert_close(dense(block), layer_block(model, full, path), **EXACT)


def test_a_linear_layer_has_the_inputs_moment_and_the_mean_hessian_as_factors():
    torch.manual_seed(0)
    linear, x = nn.Linear(4, C).double(), torch.randn(7, 4).double()
    block = kfac(nn.Sequential(linear), x)["0"]
    z, p = torch.cat([x, torch.ones(7, 1).double()], 1), linear(x).softmax(-1).detach()
    assert_close(block.a, z.T @ z / 7, **EXACT)
    assert_close(block.s, (torch.diag_embed(p) - p[:, :, None] * p[:, None]).mean(0), **EXACT)


def test_deep_linear_gaussian_networks_have_exact_blocks():
    torch.manual_seed(1)
    model, x = (
        nn.Sequential(*(nn.Linear(i, o) for i, o in ((3, 4), (4, 5), (5, 2)))).double(),
        torch.randn(9, 3).double(),
    )
    full = full_fisher(model, x, "gaussian")
    for found in (kfac(model, x, "gaussian"), ekfac(model, x, "gaussian")):
        for path, block in found.items():
            assert_close(dense(block), layer_block(model, full, path), **EXACT)
    behind = model[2].weight.detach() @ model[1].weight.detach()
    assert_close(kfac(model, x, "gaussian")["0"].s, behind.T @ behind, **EXACT)


class DeepLinear(nn.Module):
    def __init__(self, pool: bool) -> None:
        super().__init__()
        self.pool, self.a, self.b = pool, nn.Linear(3, 4), nn.Linear(4, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        f = self.b(self.a(x))
        return f.mean(1) if self.pool else f


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_each_kind_of_sharing_is_exact_where_it_was_made_for(sharing):
    """Deep linear, Gaussian: expand with an output for each position, reduce with the mean of the positions."""
    torch.manual_seed(2)
    x = torch.randn(8, T, 3).double()
    for pool in (False, True):
        model = DeepLinear(pool).double()
        full = full_fisher(model, x, "gaussian")
        exact = [
            torch.allclose(kronecker(block), layer_block(model, full, path), rtol=1e-9, atol=1e-12)
            for path, block in kfac(model, x, "gaussian", sharing=sharing).items()
        ]
        assert exact == [pool == (sharing == "reduce")] * 2


# EK-FAC: the diagonal in the eigenbasis


def variants(model: nn.Module, x: Tensor, corrected: bool, mask: Tensor | None = None, size: int = 0, **options):
    """Blocks of the three variants, each with the full matrix that it approximates."""
    data = batches(x, labels(model, x), mask, size)
    plain, better = (kfac, sampled_kfac, empirical_kfac), (ekfac, sampled_ekfac, empirical_ekfac)
    exact, sampled, empirical = better if corrected else plain
    return {
        "exact": (exact(model, data, **options), full_fisher(model, data)),
        "sampled": (sampled(model, data, 2, seeded(), **options), sampled_full_fisher(model, data, 2, seeded())),
        "empirical": (empirical(model, data, **options), empirical_full_fisher(model, data)),
    }


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("kind", KINDS)
def test_corrected_eigenvalues_are_the_diagonal_of_the_matrix_in_the_eigenbasis(kind, sharing):
    model, x = make(kind)
    for blocks, full in variants(model, x, True, sharing=sharing).values():
        for path, block in blocks.items():
            q = torch.kron(block.q_s, block.q_a)
            expected = torch.diagonal(q.T @ layer_block(model, full, path) @ q)
            assert_close(block.eigenvalues.flatten(), expected, **EXACT)


def test_a_mask_drops_positions_from_the_log_likelihood_but_not_from_a_gradient():
    model, x = make("sequence")
    for blocks, full in variants(model, x, True, MASK).values():
        for path, block in blocks.items():
            q = torch.kron(block.q_s, block.q_a)
            expected = torch.diagonal(q.T @ layer_block(model, full, path) @ q)
            assert_close(block.eigenvalues.flatten(), expected, **EXACT)


@pytest.mark.parametrize("kind", KINDS)
def test_ekfac_is_at_least_as_near_as_kfac_and_any_other_diagonal_in_its_basis(kind):
    model, x = make(kind)
    full, corrected = full_fisher(model, x), ekfac(model, x)
    for path, block in kfac(model, x).items():
        target = layer_block(model, full, path)
        best = (dense(corrected[path]) - target).norm()
        assert_close(block.q_a, corrected[path].q_a, rtol=0, atol=0)
        assert best < (dense(block) - target).norm()
        for factor in (0.9, 1.1):
            other = corrected[path]._replace(eigenvalues=corrected[path].eigenvalues * factor)
            assert best < (dense(other) - target).norm()


@pytest.mark.parametrize("kind", KINDS)
def test_kfac_is_the_product_of_its_factors_and_eigenvectors_are_orthonormal(kind):
    for block in kfac(*make(kind)).values():
        assert_close(dense(block), kronecker(block), **EXACT)
        for q, m in ((block.q_a, block.a), (block.q_s, block.s)):
            assert_close(q.T @ q, torch.eye(len(q)).double(), **EXACT)
            values = torch.diagonal(q.T @ m @ q)
            assert (values.diff() > -1e-12).all()
            assert_close(q @ torch.diag(values) @ q.T, m, **EXACT)


# Factors by naive loops


@pytest.mark.parametrize("mask", [None, MASK])
@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_factors_of_a_sequence_layer_are_those_of_a_loop_over_examples_and_positions(sharing, mask):
    model, x = make("sequence")
    y, keep = labels(model, x), torch.ones(6, T).bool() if mask is None else mask
    block = empirical_kfac(model, batches(x, y, mask), sharing=sharing)["up"]
    seen: list[tuple[Tensor, Tensor]] = []
    model.up.register_forward_hook(lambda _, i, o: (o.retain_grad(), seen.append((i[0].detach(), o)))[0])
    a_terms, s_terms = [], []
    for n in range(6):
        seen.clear()
        log_p = model(x[n : n + 1])[0].log_softmax(-1)
        sum(log_p[t, y[n, t]] * keep[n, t] for t in range(T)).backward()
        inputs = torch.cat([seen[0][0][0], torch.ones(T, 1).double()], 1)[keep[n]]  # (kept, I + 1)
        gradients = seen[0][1].grad[0][keep[n]]
        if sharing == "reduce" and len(inputs):
            inputs, gradients = inputs.mean(0, keepdim=True), gradients.sum(0, keepdim=True)
        a_terms += [torch.outer(a, a) for a in inputs]
        s_terms += [torch.outer(g, g) for g in gradients]
    assert_close(block.a, sum(a_terms) / len(a_terms), **EXACT)
    assert_close(block.s, sum(s_terms) / 6, **EXACT)


def test_a_layer_on_whole_examples_counts_each_whatever_the_mask():
    class Context(nn.Module):
        """Logits of tokens from the token and from the mean over tokens."""

        def __init__(self) -> None:
            super().__init__()
            self.token, self.mean = nn.Linear(3, C), nn.Linear(3, C)

        def forward(self, x: Tensor) -> Tensor:
            return self.token(x) + self.mean(x.mean(1))[:, None]

    torch.manual_seed(0)
    model, x = Context().double(), torch.randn(6, T, 3).double()
    means = torch.cat([x.mean(1), torch.ones(6, 1).double()], 1)
    tokens = torch.cat([x, torch.ones(6, T, 1).double()], 2)[MASK]
    blocks = kfac(model, batches(x, mask=MASK))
    assert_close(blocks["mean"].a, means.T @ means / 6, **EXACT)
    assert_close(blocks["token"].a, tokens.T @ tokens / len(tokens), **EXACT)


def test_calls_of_one_layer_are_positions():
    _, x = make("dense")

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.layer(x))

    twice = Twice().double()
    block = kfac(twice, x, "gaussian")["layer"]
    one = torch.ones(6, 1).double()
    first, second = torch.cat([x, one], 1), torch.cat([twice.layer(x).detach(), one], 1)
    w = twice.layer.weight.detach()
    assert_close(block.a, (first.T @ first + second.T @ second) / 12, **EXACT)
    assert_close(block.s, w.T @ w + torch.eye(3).double(), **EXACT)


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("mask", [None, MASK])
def test_batching_changes_nothing(mask, corrected):
    model, x = make("sequence")
    whole = variants(model, x, corrected, mask)
    for size in (1, 4):
        for name, (blocks, _) in variants(model, x, corrected, mask, size).items():
            for path, block in blocks.items():
                other = whole[name][0][path]
                assert_close((block.a, block.s), (other.a, other.s), **EXACT)
                if not corrected:  # with a correction only up to signs and turns within equal eigenvalues
                    assert_close(dense(block), dense(other), **EXACT)
                else:
                    same = block._replace(q_a=other.q_a, q_s=other.q_s)
                    assert_close(dense(same), dense(other), rtol=1e-6, atol=1e-9)


def test_mean_factors_of_many_samples_approach_the_exact_ones():
    model, x = make("dense")
    samples = 1000
    exact, found = kfac(model, x)["4"].s, sampled_kfac(model, x, samples, seeded())["4"].s
    assert_close(sampled_kfac(model, x, 2, seeded())["4"].a, kfac(model, x)["4"].a, **EXACT)
    assert (found - exact).abs().max() < 5 * (1 / (len(x) * samples)) ** 0.5  # residual products lie in [-1, 1]
    assert (found - exact).abs().max() > 0


# Products and inverses


@pytest.mark.parametrize("make_blocks", [kfac, ekfac])
@pytest.mark.parametrize("kind", ["dense", "convolutional"])
def test_products_and_solves_are_those_of_the_dense_matrices(kind, make_blocks):
    blocks = make_blocks(*make(kind))
    v = random_vector(blocks)
    damping = mean_damping(blocks, 0.3)
    products, solved, plain = multiply(blocks, v), solve(blocks, v, damping), solve(blocks, v, 0.2)
    for path, block in blocks.items():
        f, one = dense(block), torch.eye(block.eigenvalues.numel()).double()
        assert_close(damping[path], 0.3 * f.trace().item() / len(f))
        assert_close(matrix_of(block, products), f @ matrix_of(block, v), **EXACT)
        expected = torch.linalg.solve(f + damping[path] * one, matrix_of(block, v))
        assert_close(matrix_of(block, solved), expected, **EXACT)
        assert_close(matrix_of(block, plain), torch.linalg.solve(f + 0.2 * one, matrix_of(block, v)), **EXACT)
    assert {name: t.shape for name, t in solved.items()} == {name: t.shape for name, t in v.items()}


def test_factored_damping_inverts_the_damped_factors():
    blocks = kfac(*make("dense"))
    v = random_vector(blocks)
    found = factored_solve(blocks, v, 0.05)
    for block in blocks.values():
        pi = ((block.a.trace() / len(block.a)) / (block.s.trace() / len(block.s))).sqrt()
        damped_a = block.a + pi * 0.05**0.5 * torch.eye(len(block.a)).double()
        damped_s = block.s + 0.05**0.5 / pi * torch.eye(len(block.s)).double()
        expected = torch.linalg.solve(torch.kron(damped_s, damped_a), matrix_of(block, v))
        assert_close(matrix_of(block, found), expected, **EXACT)


def test_factored_damping_refuses_a_layer_without_gradient():
    model, x = make("dense")
    nn.init.zeros_(model[4].weight)
    blocks = kfac(model, x, layers="2")
    with pytest.raises(ValueError, match="layer '2' must have A and S above zero; got π = inf"):
        factored_solve(blocks, random_vector(blocks), 0.1)


def test_leading_dimensions_of_vectors_are_kept():
    blocks = ekfac(*make("convolutional"))
    v = random_vector(blocks, 2, 3)
    for function in (multiply, lambda b, v: solve(b, v, 0.1), lambda b, v: factored_solve(b, v, 0.1)):
        found, one = function(blocks, v), function(blocks, {name: t[1, 2] for name, t in v.items()})
        assert {name: t.shape for name, t in found.items()} == {name: t.shape for name, t in v.items()}
        assert_close({name: t[1, 2] for name, t in found.items()}, one, **EXACT)


def test_single_precision_stays_single_and_agrees():
    model, x = make("dense")
    precise = ekfac(model, x)["2"]
    found = ekfac(model.float(), x.float())["2"]
    assert {t.dtype for t in found[:5]} == {torch.float32}
    assert_close(dense(found).double(), dense(precise), rtol=1e-3, atol=1e-5)


# Which layers


def test_layers_are_chosen_by_path_or_class():
    model, x = make("convolutional")
    assert list(kfac(model, x)) == ["0", "2", "5"]
    assert list(kfac(model, x, layers=nn.Conv2d)) == ["0", "2"]
    assert list(kfac(model, x, layers=["5", "0"])) == ["5", "0"]
    assert list(kfac(model, x, layers="2")) == ["2"]
    assert_close(dense(ekfac(model, x, layers=["2"])["2"]), dense(ekfac(model, x)["2"]), **EXACT)


def test_frozen_layers_have_the_same_factors():
    model, x = make("sequence")
    before, after = ekfac(model, x), ekfac(model.requires_grad_(False), x)
    assert_close([dense(block) for block in after.values()], [dense(block) for block in before.values()], **EXACT)


@pytest.mark.parametrize(
    ("conv", "words"),
    [
        (nn.Conv2d(2, 2, 3, groups=2), "groups=1"),
        (nn.Conv2d(2, 2, 3, padding="same"), "padding in numbers"),
        (nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), "padding_mode='zeros'"),
    ],
)
def test_unsupported_convolutions_are_refused_by_name(conv, words):
    with pytest.raises(ValueError, match=rf"layer '1' \(Conv2d\) must have .*{words}"):
        kfac(nn.Sequential(nn.Identity(), conv), torch.zeros(1, 2, 4, 4))


def test_other_layers_are_refused_by_name():
    model, x = make("sequence")
    with pytest.raises(ValueError, match=r"layer 'embed' \(Embedding\) must be an nn.Linear or nn.Conv2d"):
        kfac(model, x, layers=["embed"])
    with pytest.raises(ValueError, match=r"layers must name modules.*got \['down'\] of \['', 'embed', 'up'"):
        kfac(model, x, layers=["down"])
    with pytest.raises(ValueError, match=r"layers must name modules of the model, at least one; got \[\]"):
        kfac(model, x, layers=nn.Conv2d)
    normed = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)))
    with pytest.raises(ValueError, match=r"layer '0' \(ParametrizedLinear\) must be .* with a plain weight"):
        kfac(normed, torch.zeros(1, 3), layers=["0"])


def test_shared_parameters_are_refused_by_name():
    model, x = make("sequence")
    model.out = nn.Linear(3, 5, bias=False).double()
    model.out.weight = model.embed.weight
    with pytest.raises(
        ValueError, match=r"layer 'out' .* must share no parameter; embed.weight and out.weight are one"
    ):
        kfac(model, x)


def test_a_layer_that_is_never_called_is_refused_by_name():
    model = nn.Sequential(nn.Linear(3, 2))
    model[0].spare = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"layer '0.spare' is never called"):
        ekfac(model, torch.zeros(1, 3))


# Other mistakes


def test_unknown_sharing_and_likelihood_are_refused():
    with pytest.raises(ValueError, match="sharing must be 'expand' or 'reduce'; got 'share'"):
        kfac(*make("dense"), sharing="share")
    with pytest.raises(ValueError, match="likelihood must be 'categorical' or 'gaussian'; got 'probit'"):
        ekfac(*make("dense"), "probit")


def test_an_iterator_is_refused_where_data_are_swept_twice():
    model, x = make("dense")
    assert_close(kfac(model, iter([x]))["0"].a, kfac(model, x)["0"].a)
    with pytest.raises(ValueError, match=r"data must allow two sweeps .* got an iterator"):
        ekfac(model, iter([x]))


def test_masks_that_keep_nothing_or_do_not_match_a_layers_positions_are_refused():
    model, x = make("sequence")
    with pytest.raises(ValueError, match="mask must keep at least one position; got none"):
        kfac(model, batches(x, mask=torch.zeros(6, T).bool()))

    class Longer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, C)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(torch.cat([x, x[:, :1]], 1))[:, :-1]

    with pytest.raises(ValueError, match=r"layer 'layer' must have one position, or those of the mask; it has 5 .* 4"):
        kfac(Longer(), batches(torch.randn(6, T, 3), mask=MASK))


def test_vectors_that_do_not_fit_are_refused():
    blocks = kfac(*make("dense"))
    v = random_vector(blocks)
    fewer, more = {k: t for k, t in v.items() if k != "0.bias"}, v | {"6.weight": v["0.weight"]}
    words = r"v must hold \{'0.weight': \(4, 3\), '0.bias': \(4,\).*; got \{'0.weight'"
    for wrong in (fewer, more, v | {"0.bias": v["2.weight"][:3, :3]}):
        with pytest.raises(ValueError, match=words):
            multiply(blocks, wrong)


@pytest.mark.parametrize("damping", [0.0, -1.0, float("nan"), {"0": 1.0, "2": 1.0}, {"0": 1.0, "2": 0.0, "4": 1.0}])
def test_damping_must_be_above_zero_for_each_layer(damping):
    blocks = kfac(*make("dense"))
    for function in (solve, factored_solve):
        with pytest.raises(ValueError, match=r"damping must be above 0 for layer '(0|2|4)'; got"):
            function(blocks, random_vector(blocks), damping)
