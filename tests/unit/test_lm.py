"""The GPT against a naive loop, enumeration and transformers; its weights against the safetensors library."""

import json
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close

from reprolib import lm, weights
from reprolib.lm import GPT, GPTConfig
from reprolib.project import ReproError

V, CONTEXT = 11, 8
SMALL = GPTConfig(vocabulary=V, context=CONTEXT, layers=2, heads=2, width=8)
VARIANTS = {
    "gpt-2": SMALL,
    "rms": SMALL._replace(norm="rms", bias=False),
    "untied without biases": SMALL._replace(tied=False, bias=False, hidden=5, epsilon=0.1),
    "one head": SMALL._replace(heads=1, layers=1, norm="rms"),
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Threads cost more than they bring with tensors this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def perturbed(config: GPTConfig, dtype: torch.dtype = torch.float64, seed: int = 0) -> GPT:
    """A model none of whose parameters is 0 or 1, with attention far from uniform."""
    model, generator = GPT(config, seed).to(dtype).eval(), torch.Generator().manual_seed(seed + 100)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.4 * torch.randn(p.shape, generator=generator).to(dtype)
    return model


def some_tokens(rows: int, length: int, seed: int = 1, vocabulary: int = V) -> Tensor:
    return torch.randint(vocabulary, (rows, length), generator=torch.Generator().manual_seed(seed))


def leaves(model: GPT) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.fixture
def model() -> GPT:
    return perturbed(SMALL)


def naive_logits(model: GPT, sequence: list[int]) -> Tensor:
    """Logits (V,) after the last token of one sequence: place by place, head by head, no masks, no batches."""
    c, p = model.config, leaves(model)

    def norm(x: Tensor, name: str) -> Tensor:
        if c.norm == "rms":
            return x / (x.square().mean() + c.epsilon).sqrt() * p[f"{name}.weight"]
        centred = x - x.mean()
        return centred / (centred.square().mean() + c.epsilon).sqrt() * p[f"{name}.weight"] + p.get(f"{name}.bias", 0)

    def linear(x: Tensor, name: str) -> Tensor:
        return p[f"{name}.weight"] @ x + p.get(f"{name}.bias", 0)

    def gelu(x: Tensor) -> Tensor:
        return x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2

    xs = [p["embed.weight"][token] + p["position.weight"][t] for t, token in enumerate(sequence)]
    for layer in range(c.layers):
        name, d = f"blocks.{layer}", c.width // c.heads
        normed = [norm(x, f"{name}.norm1") for x in xs]
        q, k, v = ([linear(x, f"{name}.attention.{part}") for x in normed] for part in ("query", "key", "value"))
        for t in range(len(xs)):
            heads = []
            for h in range(c.heads):
                own = slice(h * d, (h + 1) * d)
                weights = torch.stack([(q[t][own] @ k[s][own] / math.sqrt(d)).exp() for s in range(t + 1)])
                heads.append(sum(w / weights.sum() * v[s][own] for s, w in enumerate(weights)))
            xs[t] = xs[t] + linear(torch.cat(heads), f"{name}.attention.out")
        for t, x in enumerate(xs):
            xs[t] = x + linear(gelu(linear(norm(x, f"{name}.norm2"), f"{name}.mlp.up")), f"{name}.mlp.down")
    return p["embed.weight" if c.tied else "head.weight"] @ norm(xs[-1], "norm")


# The model.


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_logits_are_those_of_the_naive_loop(config):
    model, tokens = perturbed(config), some_tokens(3, CONTEXT)
    rows = [[naive_logits(model, row[: t + 1]) for t in range(CONTEXT)] for row in tokens.tolist()]
    expected = torch.stack([torch.stack(row) for row in rows])
    assert_close(model(tokens).detach(), expected, rtol=1e-12, atol=1e-12)


def test_parameters_have_the_names_by_which_chapters_address_them():
    names = dict(GPT(SMALL._replace(tied=False)).named_parameters())
    block = [f"blocks.1.{n}" for n in ("attention.query", "attention.key", "attention.value", "attention.out")]
    block += ["blocks.1.mlp.up", "blocks.1.mlp.down", "blocks.1.norm1", "blocks.1.norm2", "norm"]
    expected = {f"{n}.{part}" for n in block for part in ("weight", "bias")}
    expected |= {n.replace("blocks.1", "blocks.0") for n in expected}
    assert set(names) == expected | {"embed.weight", "position.weight", "head.weight"}
    assert names["blocks.0.mlp.up.weight"].shape == (32, 8)


def test_tying_shares_one_parameter_and_untying_does_not():
    tied, untied = GPT(SMALL), GPT(SMALL._replace(tied=False))
    assert tied.head.weight is tied.embed.weight and "head.weight" not in leaves(tied)
    assert not untied.head.weight.equal(untied.embed.weight)


def test_initial_weights_are_those_of_gpt_2():
    wide = GPT(GPTConfig(vocabulary=400, context=100, layers=8, heads=4, width=128))
    for name, p in wide.named_parameters():
        if p.ndim == 1:
            assert_close(p.detach(), torch.full_like(p, "norm" in name and name.endswith("weight")), rtol=0, atol=0)
        else:
            deviation = 0.02 / 4 if name.endswith(("out.weight", "down.weight")) else 0.02  # 4 = sqrt(2 * 8)
            error = deviation / math.sqrt(2 * p.numel())  # standard error of the root mean square
            assert abs(p.square().mean().sqrt().item() - deviation) < 5 * error, name
            assert abs(p.mean().item()) < 5 * deviation / math.sqrt(p.numel()), name


def test_the_seed_decides_the_weights_and_the_global_generator_is_left_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    a, b, c = GPT(SMALL, seed=3), GPT(SMALL, seed=3), GPT(SMALL, seed=4)
    assert_close(torch.rand(3), expected, rtol=0, atol=0)
    assert_close(leaves(a), leaves(b), rtol=0, atol=0)
    assert not a.embed.weight.equal(c.embed.weight)


def test_states_are_what_the_head_reads(model):
    tokens = some_tokens(2, 5)
    assert model.states(tokens).shape == (2, 5, 8)
    assert_close(model.states(tokens) @ model.embed.weight.T, model(tokens))


def test_dropout_acts_in_training_only_and_in_all_three_places():
    model, tokens = perturbed(SMALL._replace(dropout=0.5)), some_tokens(2, CONTEXT)
    plain = perturbed(SMALL)
    assert_close(model(tokens), plain(tokens), rtol=0, atol=0)
    torch.manual_seed(0)
    model.train()
    for part in ("drop", "blocks.0.drop", "blocks.0.attention"):
        for module in model.modules():
            module.training = False
        model.get_submodule(part).training = True
        assert not torch.allclose(model(tokens), plain(tokens)), part


def test_dtype_follows_the_parameters_and_int32_tokens_do():
    assert perturbed(SMALL, torch.bfloat16)(some_tokens(1, 3).int()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 9}, "width must be a multiple of heads; got 9 and 2"),
        ({"layers": 0}, "layers must be an integer of at least 1; got 0"),
        ({"context": 8.0}, r"context must be an integer of at least 1; got 8\.0"),
        ({"heads": None}, "heads must be an integer of at least 1; got None"),
        ({"hidden": 0}, "hidden must be an integer of at least 1; got 0"),
        ({"norm": "batch"}, "norm must be 'layer' or 'rms'; got 'batch'"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), epsilon above 0; got 1\.0"),
        ({"epsilon": math.nan}, "epsilon above 0; got 0.0 and nan"),
    ],
)
def test_impossible_sizes_and_options_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        GPT(SMALL._replace(**change))


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.zeros(3, dtype=torch.int64), r"integers \(B, T\), not empty; got torch.int64 \(3,\)"),
        (torch.zeros(0, 3, dtype=torch.int64), r"not empty; got torch.int64 \(0, 3\)"),
        (torch.zeros(2, 0, dtype=torch.int64), r"not empty; got torch.int64 \(2, 0\)"),
        (torch.zeros(2, 3), r"tokens must be integers .* got torch.float32 \(2, 3\)"),
        (torch.tensor([[0, V]]), r"tokens must lie in 0\.\.10; got 0\.\.11"),
        (torch.tensor([[-1, 3]]), r"tokens must lie in 0\.\.10; got -1\.\.3"),
        (torch.zeros(2, CONTEXT + 1, dtype=torch.int64), r"fit the context of 8; got \(2, 9\) after 0 tokens"),
    ],
)
def test_tokens_that_do_not_fit_are_refused(model, tokens, message):
    with pytest.raises(ValueError, match=message):
        model(tokens)


# Under torch.func.


def test_stacked_models_give_the_gradients_of_each_model_apart():
    models, tokens = [perturbed(SMALL, seed=s) for s in range(3)], some_tokens(4, CONTEXT)
    stacked = {name: torch.stack([leaves(m)[name] for m in models]) for name in leaves(models[0])}

    def loss(params: dict[str, Tensor], tokens: Tensor) -> Tensor:
        return lm.token_losses(lambda t: functional_call(models[0], params, (t,)), tokens).mean()

    found = vmap(grad(loss), (0, None))(stacked, tokens)
    per_example = vmap(grad(loss), (None, 0))(leaves(models[2]), tokens[:, None])
    for s, model in enumerate(models):
        lm.token_losses(model, tokens).mean().backward()
        for name, p in model.named_parameters():
            assert_close(found[name][s], p.grad, rtol=1e-10, atol=1e-13)
            if s == 2:
                assert_close(per_example[name].mean(0), p.grad, rtol=1e-10, atol=1e-13)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # by torch's own jvp
def test_directional_derivatives_and_hessian_products_are_those_of_finite_differences(model):
    tokens, params = some_tokens(2, CONTEXT), leaves(model)
    generator = torch.Generator().manual_seed(5)
    direction = {n: torch.randn(p.shape, generator=generator, dtype=p.dtype) for n, p in params.items()}

    def loss(params: dict[str, Tensor]) -> Tensor:
        return lm.token_losses(lambda t: functional_call(model, params, (t,)), tokens).mean()

    def moved(h: float) -> dict[str, Tensor]:
        return {n: p + h * direction[n] for n, p in params.items()}

    h = 1e-5
    slope = jvp(loss, (params,), (direction,))[1]
    assert_close(slope, (loss(moved(h)) - loss(moved(-h))) / (2 * h), rtol=1e-6, atol=1e-8)
    product = jvp(grad(loss), (params,), (direction,))[1]
    up, down = grad(loss)(moved(h)), grad(loss)(moved(-h))
    with sdpa_kernel(SDPBackend.MATH):
        first = torch.autograd.grad(lm.token_losses(model, tokens).mean(), list(model.parameters()), create_graph=True)
        along = sum((g * direction[n]).sum() for n, g in zip(params, first, strict=True))
        second = torch.autograd.grad(along, list(model.parameters()))
    for (name, found), expected in zip(product.items(), second, strict=True):
        assert_close(found, expected, rtol=1e-9, atol=1e-11)
        assert_close(found, (up[name] - down[name]) / (2 * h), rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0:RuntimeWarning")
def test_the_model_compiles_as_one_graph(model):
    tokens = some_tokens(2, 5)
    assert_close(torch.compile(model, fullgraph=True, backend="eager")(tokens), model(tokens))


# The cache and sampling.


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("cuts", [[1] * CONTEXT, [5, 3], [1, 4, 2, 1], [CONTEXT]])
def test_cached_logits_equal_uncached_ones_however_the_tokens_are_cut(cuts, dtype, tolerance):
    model, tokens, cache = perturbed(SMALL, dtype), some_tokens(3, CONTEXT), []
    found = torch.cat([model(part, cache) for part in tokens.split(cuts, 1)], 1)
    assert_close(found, model(tokens), rtol=tolerance, atol=tolerance)
    assert len(cache) == 2 and cache[0][0].shape == cache[1][1].shape == (3, 2, CONTEXT, 4)


def test_a_full_cache_and_another_batch_are_refused_and_leave_the_cache_as_it_was(model):
    cache: lm.Cache = []
    model(some_tokens(2, 6), cache)
    with pytest.raises(ValueError, match=r"have 2 rows and fit the context of 8; got \(2, 3\) after 6 tokens"):
        model(some_tokens(2, 3), cache)
    with pytest.raises(ValueError, match=r"have 2 rows and fit the context of 8; got \(1, 1\) after 6 tokens"):
        model(some_tokens(1, 1), cache)
    assert cache[0][0].shape[2] == 6


def test_greedy_generation_is_the_naive_argmax_up_to_the_last_place(model):
    prompts = some_tokens(3, 4)
    found = lm.generate(model, prompts, CONTEXT + 1 - 4, temperature=0)
    for row, prompt in zip(found.tolist(), prompts.tolist(), strict=True):
        while len(prompt) < CONTEXT + 1:
            prompt.append(int(naive_logits(model, prompt).argmax()))
        assert row == prompt


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, None), (0.5, None), (2.0, 4), (1.0, 1)])
def test_sampled_tokens_have_the_frequencies_of_the_tempered_model(model, temperature, top_k):
    n, prompt = 20_000, [3, 1, 4]
    found = lm.generate(model, torch.tensor([prompt] * n), 1, temperature, top_k, torch.Generator().manual_seed(2))
    weights = (naive_logits(model, prompt) / temperature).exp()
    if top_k is not None:
        weights[weights.argsort(descending=True)[top_k:]] = 0
    p = weights / weights.sum()
    frequencies = found[:, -1].bincount(minlength=V) / n
    assert ((frequencies - p).abs() <= 5 * (p * (1 - p) / n).sqrt() + 1e-9).all()
    assert (found[:, :3] == torch.tensor(prompt)).all()


def test_the_same_generator_state_samples_the_same_tokens(model):
    a, b, c = (lm.generate(model, some_tokens(4, 2), 6, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert a.equal(b) and not a.equal(c)


def test_a_stopped_sequence_is_filled_and_the_others_go_on_as_if_alone(model):
    prompts, stop = some_tokens(40, 2), 3
    free, held = (
        lm.generate(model, prompts, 6, generator=torch.Generator().manual_seed(1), stop=s)[:, 2:].tolist()
        for s in (None, stop)
    )
    expected = [new[: new.index(stop)] + [stop] * (6 - new.index(stop)) if stop in new else new for new in free]
    assert held == expected
    assert free != expected and any(stop not in new for new in free)


def test_sampling_ends_with_the_last_sequence_and_keeps_its_stop(model):
    prompt = some_tokens(1, 2)
    free = lm.generate(model, prompt, 6, temperature=0)[0].tolist()
    stop = free[4]
    end = 2 + free[2:].index(stop)
    assert lm.generate(model, prompt, 6, temperature=0, stop=stop)[0].tolist() == free[: end + 1]
    assert end + 1 < len(free)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, r"steps must lie in 1\.\.6 with this prompt; got 0"),
        ({"steps": 7}, r"steps must lie in 1\.\.6 with this prompt; got 7"),
        ({"temperature": -1.0}, r"temperature must be 0, or positive with a generator; got -1\.0"),
        ({"temperature": math.nan}, "temperature must be 0, or positive with a generator; got nan"),
        ({"generator": None}, r"temperature must be 0, or positive with a generator; got 1\.0 and None"),
        ({"top_k": 0}, r"top_k must lie in 1\.\.11; got 0"),
        ({"top_k": 12}, r"top_k must lie in 1\.\.11; got 12"),
        ({"stop": V}, r"stop must lie in 0\.\.10; got 11"),
        ({"tokens": torch.zeros(3, dtype=torch.int64)}, r"tokens must be integers \(B, T\)"),
    ],
)
def test_sampling_options_out_of_range_are_refused(model, arguments, message):
    good: dict[str, Any] = {"tokens": some_tokens(1, 3), "steps": 2, "generator": torch.Generator()}
    with pytest.raises(ValueError, match=message):
        lm.generate(model, **good | arguments)


def test_logits_that_are_nan_are_refused(model):
    torch.nn.init.constant_(model.norm.weight, math.nan)
    with pytest.raises(ValueError, match="logits that are numbers; got NaN"):
        lm.generate(model, some_tokens(1, 3), 2, temperature=0)


# Scores.


def naive_losses(model: GPT, row: list[int]) -> list[float]:
    return [-naive_logits(model, row[:t]).log_softmax(0)[row[t]].item() for t in range(1, len(row))]


def test_token_losses_are_the_naive_negative_log_likelihoods_up_to_the_last_place(model):
    tokens = some_tokens(3, CONTEXT + 1)
    expected = torch.tensor([naive_losses(model, row) for row in tokens.tolist()], dtype=torch.float64)
    assert_close(lm.token_losses(model, tokens).detach(), expected, rtol=1e-12, atol=1e-12)
    mask = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(3)) < 0.5
    assert_close(lm.token_losses(model, tokens, mask).detach(), expected * mask[:, 1:], rtol=1e-12, atol=1e-12)
    found = lm.sequence_log_likelihood(model, tokens, mask).detach()
    assert_close(found, -(expected * mask[:, 1:]).sum(1), rtol=1e-12, atol=1e-12)


def test_probabilities_of_all_completions_sum_to_one(model):
    pairs = torch.cartesian_prod(torch.arange(V), torch.arange(V))
    tokens = torch.cat([torch.tensor([[2, 7]]).expand(V * V, 2), pairs], 1)
    mask = lm.completion_mask(torch.full((V * V,), 2), torch.full((V * V,), 4), 4)
    total = lm.sequence_log_likelihood(model, tokens, mask).exp().sum()
    assert_close(total.detach(), torch.tensor(1.0, dtype=torch.float64), rtol=1e-12, atol=0)


def test_what_lies_behind_the_mask_changes_nothing(model):
    a, b = some_tokens(2, 6), some_tokens(2, 6, seed=9)
    prompts, lengths = torch.tensor([2, 1]), torch.tensor([4, 5])
    for row, length in enumerate(lengths):
        b[row, :length] = a[row, :length]
    mask = lm.completion_mask(prompts, lengths, 6)
    assert not a.equal(b)
    assert_close(lm.token_losses(model, a, mask), lm.token_losses(model, b, mask), rtol=1e-13, atol=1e-13)


def test_the_completion_mask_is_that_of_the_loop():
    prompts, lengths = torch.tensor([1, 2, 3, 5]), torch.tensor([5, 2, 4, 5])
    expected = [[p <= t < n for t in range(5)] for p, n in zip(prompts.tolist(), lengths.tolist(), strict=True)]
    assert lm.completion_mask(prompts, lengths, 5).tolist() == expected


@pytest.mark.parametrize("batch", [1, 2, 64])
def test_perplexity_is_the_exponential_of_the_mean_loss_for_every_batch(model, batch):
    tokens = some_tokens(5, 6)
    mask = lm.completion_mask(torch.tensor([1, 1, 2, 5, 3]), torch.tensor([6, 2, 5, 5, 4]), 6)
    pairs = zip(tokens.tolist(), mask[:, 1:].tolist(), strict=True)
    losses = [loss for row, m in pairs for loss, counts in zip(naive_losses(model, row), m, strict=True) if counts]
    assert lm.perplexity(model, tokens, mask, batch) == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-12)


def test_perplexity_of_a_model_that_knows_nothing_is_the_size_of_the_vocabulary():
    tokens = some_tokens(4, 5)
    assert lm.perplexity(lambda t: torch.zeros(*t.shape, V), tokens) == pytest.approx(V, rel=1e-6)


@pytest.mark.parametrize("score", [lm.token_losses, lm.sequence_log_likelihood, lm.perplexity])
def test_tokens_and_masks_that_cannot_be_scored_are_refused(model, score):
    tokens = some_tokens(2, 4)
    for bad in (tokens[0], tokens[:, :1]):
        with pytest.raises(ValueError, match=r"tokens must be \(B, T\) with T at least 2; got shape"):
            score(model, bad)
    for mask in (torch.ones(2, 3, dtype=torch.bool), torch.ones(2, 4)):
        with pytest.raises(ValueError, match=r"mask must be bool of shape \(2, 4\); got"):
            score(model, tokens, mask)
    for last in (V, -1, -100):  # the last token is not read by the model, only predicted
        with pytest.raises(ValueError, match=r"tokens must lie in 0\.\.10; got"):
            score(model, torch.tensor([[1, 2, last]]))


def test_perplexity_of_no_token_is_refused(model):
    tokens, nothing = some_tokens(2, 4), torch.zeros(2, 4, dtype=torch.bool)
    nothing[:, 0] = True
    with pytest.raises(ValueError, match="counted tokens must be at least 1; got 64 and 0"):
        lm.perplexity(model, tokens, nothing)
    with pytest.raises(ValueError, match="batch and the counted tokens must be at least 1; got 0 and 6"):
        lm.perplexity(model, tokens, batch=0)


@pytest.mark.parametrize(("prompts", "lengths"), [([0], [2]), ([3], [2]), ([1], [6])])
def test_completions_that_cannot_be_are_refused(prompts, lengths):
    with pytest.raises(ValueError, match=r"1 <= prompts <= lengths <= 5 must hold; got \["):
        lm.completion_mask(torch.tensor(prompts), torch.tensor(lengths), 5)
    with pytest.raises(ValueError, match=r"must share a shape \(B,\)"):
        lm.completion_mask(torch.tensor(prompts), torch.tensor([lengths]), 5)


# Weights as files.

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16]
DTYPES += [torch.int8, torch.uint8, torch.bool]


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    """Every type; one-byte types first, so that only sorting aligns the others; empty, zero-dimensional, transposed."""
    generator = torch.Generator().manual_seed(0)
    table = {str(d): (torch.randn(3, 5, generator=generator) * 9).to(d) for d in reversed(DTYPES)}
    table["transposed"] = torch.randn(4, 3, generator=generator).T
    table |= {"empty": torch.zeros(0, 3), "zero-dimensional": torch.tensor(2.5, dtype=torch.bfloat16)}
    table['Grüße "a\\b"'] = torch.tensor([math.nan, math.inf, -0.0])
    return table


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, t in expected.items():
        assert (found[name].dtype, found[name].shape) == (t.dtype, t.shape), name
        bits = [x.contiguous().view(-1).view(torch.uint8) for x in (found[name], t)]
        assert bits[0].equal(bits[1]), name


def test_our_file_is_read_by_the_safetensors_library(tensors, tmp_path):
    safetensors = pytest.importorskip("safetensors")
    path = tmp_path / "new folder" / "a.safetensors"
    weights.save_weights(path, tensors, {"made by": "us ü"})
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata() == {"made by": "us ü"}
        assert_same({name: file.get_tensor(name) for name in file.keys()}, tensors)


def test_the_library_s_file_is_read_by_us(tensors, tmp_path):
    torch_files = pytest.importorskip("safetensors.torch")
    path = tmp_path / "a.safetensors"
    torch_files.save_file({name: t.contiguous() for name, t in tensors.items()}, path, {"format": "pt"})
    found, metadata = weights.load_weights(path)
    assert_same(found, tensors)
    assert metadata == {"format": "pt"}
    torch_files.save_file({}, path)
    assert weights.load_weights(path) == ({}, {})


def test_weights_come_back_bit_by_bit_and_every_tensor_is_aligned(tensors, tmp_path):
    path = tmp_path / "a.safetensors"
    weights.save_weights(str(path), tensors)
    found, metadata = weights.load_weights(str(path))
    assert_same(found, tensors)
    assert metadata == {}
    length = int.from_bytes(path.read_bytes()[:8], "little")
    header = json.loads(path.read_bytes()[8 : 8 + length])
    assert all((8 + length + header[n]["data_offsets"][0]) % t.element_size() == 0 for n, t in tensors.items())
    assert path.stat().st_mode & 0o777 == 0o644
    weights.save_weights(path, {})
    assert weights.load_weights(path) == ({}, {})


def test_loaded_tensors_can_be_changed_without_touching_one_another(tmp_path):
    shared = torch.ones(3)
    weights.save_weights(tmp_path / "a", {"x": shared, "y": shared})
    found = weights.load_weights(tmp_path / "a")[0]
    found["x"] += 1
    assert_same(found, {"x": torch.full((3,), 2.0), "y": torch.ones(3)})


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_an_interrupted_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, failing):
    path = tmp_path / "a.safetensors"
    weights.save_weights(path, {"x": torch.ones(3)})

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, failing, interrupted)
    with pytest.raises(KeyboardInterrupt):
        weights.save_weights(path, {"x": torch.zeros(3)})
    assert_same(weights.load_weights(path)[0], {"x": torch.ones(3)})
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({"x": torch.zeros(2, dtype=torch.complex64)}, {}, "none called __metadata__; got x, torch.complex64"),
        ({"__metadata__": torch.zeros(2)}, {}, "none called __metadata__; got __metadata__, torch.float32"),
        ({}, {"steps": 3}, "metadata must map text to text; got {'steps': 3}"),
    ],
)
def test_what_the_format_cannot_hold_is_refused(tmp_path, tensors, metadata, message):
    with pytest.raises(ValueError, match=message):
        weights.save_weights(tmp_path / "a", tensors, metadata)
    assert not list(tmp_path.iterdir())


def file_of(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(start: int, stop: int, shape: tuple[int, ...], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


X = entry(0, 8, (2,))
DAMAGED = {
    "empty file": (b"", "cut short or no safetensors file"),
    "only a length": (file_of(b""), "cut short or no safetensors file: header of 0 bytes, 0 follow"),
    "pickle": (b"\x80\x04\x95" + b"\x00" * 60, "cut short or no safetensors file"),
    "header cut": (file_of({"x": X})[:-5], "cut short"),
    "header too large": (file_of(b"{}", length=2**63), r"header of 9223372036854775808 bytes, 2 follow"),
    "data cut": (file_of({"x": X}, b"\0" * 7), r"one after the other; got x, F32 \[2\], at bytes 0\.\.8 of 7"),
    "data left over": (file_of({"x": X}, b"\0" * 9), "tensors must fill the file; 1 bytes at its end belong to none"),
    "no JSON": (file_of(b"x" * 16), "no valid safetensors header: Expecting value"),
    "no text": (file_of(b'{"\xff": 1}'), "no valid safetensors header"),
    "a list": (file_of([1]), "no valid safetensors header"),
    "a number": (file_of(b"12345"), "no valid safetensors header"),
    "deep": (file_of(b"[" * 100_000), "no valid safetensors header"),
    "a name twice": (file_of(b'{"x": {}, "x": {}}'), "no valid safetensors header: a name stands twice"),
    "missing field": (file_of({"x": {"dtype": "F32", "shape": [2]}}, b"\0" * 8), "missing .* 'data_offsets'"),
    "surplus field": (file_of({"x": X | {"y": 1}}, b"\0" * 8), "unexpected keyword argument 'y'"),
    "unknown type": (file_of({"x": entry(0, 8, (2,), "F31")}, b"\0" * 8), "type 'F31' of x is none of"),
    "no type": (file_of({"x": X | {"dtype": []}}, b"\0" * 8), "no valid safetensors header"),
    "negative shape": (file_of({"x": entry(0, 8, (-1, -2))}, b"\0" * 8), "shape and data_offsets of x must be natural"),
    "fractional shape": (file_of({"x": X | {"shape": [2.0]}}, b"\0" * 8), "of x must be natural numbers"),
    "shape too large": (file_of({"x": entry(0, 0, (0, 2**63))}), "of x must be natural numbers"),
    "three offsets": (file_of({"x": X | {"data_offsets": [0, 4, 8]}}, b"\0" * 8), "too many values"),
    "backwards": (file_of({"x": entry(8, 0, (2,))}, b"\0" * 8), "one after the other; got x"),
    "shape and bytes": (file_of({"x": entry(0, 8, (3,))}, b"\0" * 8), r"one after the other; got x, F32 \[3\]"),
    "overlap": (file_of({"x": X, "y": entry(4, 12, (2,))}, b"\0" * 12), "got y.* 4..12 of 12, the last one ended at 8"),
    "twice the same": (file_of({"x": X, "y": X}, b"\0" * 8), "got y.* 0..8 of 8, the last one ended at 8"),
    "hole": (file_of({"x": X, "y": entry(12, 20, (2,))}, b"\0" * 20), "got y.* the last one ended at 8"),
    "metadata not text": (file_of({"__metadata__": {"a": 1}}), "__metadata__ must map text to text"),
    "metadata a list": (file_of({"__metadata__": [1]}), "no valid safetensors header"),
}


OVERLOOKED = {"surplus field", "shape too large"}  # by the library, and harmless


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_is_refused_by_us_and_by_the_library(tmp_path, damage):
    path, (content, message) = tmp_path / "a.safetensors", DAMAGED[damage]
    path.write_bytes(content)
    with pytest.raises(ReproError, match=message) as refused:
        weights.load_weights(path)
    assert str(path) in str(refused.value)
    safetensors = pytest.importorskip("safetensors")
    if damage not in OVERLOOKED:
        with pytest.raises(safetensors.SafetensorError):
            safetensors.deserialize(content)


def test_every_cut_of_a_file_is_refused(tensors, tmp_path):
    path = tmp_path / "a.safetensors"
    weights.save_weights(path, tensors)
    whole = path.read_bytes()
    for n in range(0, len(whole), 13):
        path.write_bytes(whole[:n])
        with pytest.raises(ReproError):
            weights.load_weights(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ReproError, match="nowhere is missing"):
        weights.load_weights(tmp_path / "nowhere")


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_a_model_comes_back_with_its_configuration_and_its_logits(tmp_path, config):
    model, tokens = perturbed(config), some_tokens(2, 5)
    lm.save_gpt(tmp_path / "m", model)
    found = lm.load_gpt(tmp_path / "m")
    assert found.config == config and not found.training
    assert (found.head.weight is found.embed.weight) == config.tied
    assert_close(found(tokens), model(tokens), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_is_a_way_of_storing_and_comes_back_as_float32(tmp_path, dtype):
    model = perturbed(SMALL)
    lm.save_gpt(tmp_path / "m", model, dtype)
    assert weights.load_weights(tmp_path / "m")[0]["embed.weight"].dtype == dtype
    expected = {name: p.to(dtype).float() for name, p in leaves(model).items()}
    assert_close(leaves(lm.load_gpt(tmp_path / "m")), expected, rtol=0, atol=0)


def test_tensors_that_do_not_fit_the_configuration_are_named(tmp_path):
    path, good = tmp_path / "m", leaves(GPT(SMALL))
    metadata = {"gpt": json.dumps(SMALL._asdict())}
    surplus = {n: t for n, t in good.items() if n != "norm.bias"} | {"more": torch.zeros(1)}
    weights.save_weights(path, surplus, metadata)
    with pytest.raises(ReproError, match=r"m: missing tensors \['norm.bias'\], unexpected tensors \['more'\]"):
        lm.load_gpt(path)
    weights.save_weights(path, good | {"norm.bias": torch.zeros(1)}, metadata)
    with pytest.raises(ReproError, match=r"norm.bias must be \(8,\); got \(1,\)"):
        lm.load_gpt(path)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "needs the configuration of a GPT in its metadata .*'gpt'"),
        ({"gpt": "{"}, "needs the configuration of a GPT"),
        ({"gpt": "[1]"}, "needs the configuration of a GPT"),
        ({"gpt": '{"vocabulary": 3}'}, "missing 4 required positional arguments"),
        ({"gpt": json.dumps(SMALL._asdict() | {"width": 9})}, "width must be a multiple of heads"),
        ({"gpt": json.dumps(SMALL._asdict() | {"rope": True})}, "unexpected keyword argument 'rope'"),
    ],
)
def test_weights_without_a_usable_configuration_are_refused(tmp_path, metadata, message):
    weights.save_weights(tmp_path / "m", leaves(GPT(SMALL)), metadata)
    with pytest.raises(ReproError, match=message):
        lm.load_gpt(tmp_path / "m")


# Checkpoints of transformers.


def hugging_face(folder: Path, lm_head: bool = True, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A random GPT-2 of transformers, no parameter 0 or 1, saved to ``folder``."""
    sys.modules.setdefault("torchvision", None)  # transformers imports it where it can; GPT-2 needs none
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 37, "n_positions": 16, "n_layer": 3, "n_head": 4, "n_embd": 24, "layer_norm_epsilon": 1e-3}
    config = transformers.GPT2Config(**sizes | {"bos_token_id": 0, "eos_token_id": 0} | changes)
    torch.manual_seed(0)
    model = (transformers.GPT2LMHeadModel if lm_head else transformers.GPT2Model)(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * torch.randn_like(p)
    model.to(dtype).save_pretrained(folder)
    return model.float()


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": False}, {"n_inner": 40}], ids=str)
def test_a_checkpoint_gives_the_logits_and_the_greedy_text_of_transformers(tmp_path, changes):
    theirs, tokens = hugging_face(tmp_path, **changes), some_tokens(3, 16, vocabulary=37)
    ours = lm.from_hugging_face(tmp_path)
    assert ours.config.tied == changes.get("tie_word_embeddings", True) and not ours.training
    with torch.no_grad():
        expected = theirs(tokens).logits
        assert_close(ours(tokens), expected, rtol=1e-4, atol=1e-4)
        assert expected.std() > 0.3
    prompts = tokens[:, :6]
    options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "attention_mask": torch.ones_like(prompts)}
    text = theirs.generate(prompts, max_new_tokens=10, **options)
    assert lm.generate(ours, prompts, 10, temperature=0).equal(text)


def test_names_without_prefix_half_precision_and_old_mask_buffers_are_read(tmp_path):
    theirs, tokens = hugging_face(tmp_path, lm_head=False, dtype=torch.float16), some_tokens(2, 9, vocabulary=37)
    ours = lm.from_hugging_face(tmp_path)
    with torch.no_grad():
        expected = theirs(tokens).last_hidden_state @ theirs.wte.weight.T
        assert_close(ours(tokens), expected, rtol=1e-4, atol=1e-4)
    state = {f"transformer.{name}": t for name, t in theirs.state_dict().items()}
    for layer in range(3):
        state[f"transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, 16, 16).tril()
        state[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    state["lm_head.weight"] = state["transformer.wte.weight"].clone()
    again = lm.from_hugging_face(state, json.loads((tmp_path / "config.json").read_text()))
    assert_close(leaves(again), leaves(ours), rtol=0, atol=0)
    with pytest.raises(ReproError, match=r"lm_head\.weight must equal wte\.weight"):
        lm.from_hugging_face(state | {"lm_head.weight": torch.zeros(37, 24)}, theirs.config.to_dict())


@pytest.fixture(scope="module")
def gpt_2(tmp_path_factory) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State and configuration of a checkpoint, to be damaged."""
    folder = tmp_path_factory.mktemp("gpt-2")
    model = hugging_face(folder)
    return model.state_dict(), json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "model_type must be 'gpt2'; got 'llama'"),
        ({"activation_function": "gelu"}, "activation_function must be 'gelu_new'; got 'gelu'"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx must be False; got True"),
        ({"scale_attn_weights": False}, "scale_attn_weights must be True; got False"),
        ({"add_cross_attention": True}, "add_cross_attention must be False; got True"),
        ({"n_head": 5}, "width must be a multiple of heads; got 24 and 5"),
        ({"n_layer": 2}, r"missing tensors \[\], unexpected tensors \['blocks.2.attention.key.bias'"),
        ({"n_layer": 4}, r"missing tensors \['blocks.3.attention.key.bias'"),
        ({"n_embd": 12}, r"embed.weight must be \(37, 12\); got \(37, 24\)"),
    ],
)
def test_a_checkpoint_that_this_gpt_cannot_follow_is_refused(gpt_2, changes, message):
    state, config = gpt_2
    with pytest.raises(ReproError, match=message):
        lm.from_hugging_face(state, config | changes)


def test_tensors_missing_from_a_checkpoint_are_named(gpt_2):
    state, config = gpt_2
    kept = {name: t for name, t in state.items() if "wte" not in name}
    with pytest.raises(ReproError, match=r"missing tensors \['embed.weight'\], unexpected tensors \['head.weight'\]"):
        lm.from_hugging_face(kept, config)


def test_a_configuration_that_is_missing_or_damaged_is_refused(gpt_2, tmp_path):
    state, config = gpt_2
    with pytest.raises(ReproError, match="state dictionary needs a config that this GPT can follow"):
        lm.from_hugging_face(state)
    with pytest.raises(ReproError, match="model_type must be 'gpt2'; got None"):
        lm.from_hugging_face(state, {k: v for k, v in config.items() if k != "model_type"})
    with pytest.raises(ReproError, match="needs a config that this GPT can follow: 'n_layer'"):
        lm.from_hugging_face(state, {k: v for k, v in config.items() if k != "n_layer"})
    with pytest.raises(ReproError, match=r"model\.safetensors is missing"):
        lm.from_hugging_face(tmp_path)
    weights.save_weights(tmp_path / "model.safetensors", {})
    with pytest.raises(ReproError, match=r"can follow: .*No such file.*config\.json"):
        lm.from_hugging_face(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ReproError, match="needs a config that this GPT can follow: Expecting"):
        lm.from_hugging_face(tmp_path)
