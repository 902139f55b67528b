"""A small readable GPT: forward pass, cached sampling, scores in nats, Hugging Face's GPT-2 loaded into it.

Shapes: B sequences of T tokens, a vocabulary of V, states of width D, H heads. Padding goes to the right, where causal
attention cannot see it; masks, True where a token counts, keep it out of the scores.
"""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from reprolib.project import ReproError
from reprolib.weights import load_weights, save_weights

LanguageModel = Callable[[Tensor], Tensor]  # tokens (B, T) to logits (B, T, V)
Cache = list[tuple[Tensor, Tensor]]  # keys and values of the tokens read, both (B, H, T, D/H), for each block


class GPTConfig(NamedTuple):
    """Sizes and options of a :class:`GPT`."""

    vocabulary: int
    context: int  # most tokens the model can read
    layers: int
    heads: int
    width: int
    hidden: int | None = None  # width inside the MLP; 4 width when None
    norm: str = "layer"  # or "rms"
    bias: bool = True  # of projections and layer norms
    tied: bool = True  # the head's weight is the embedding's
    dropout: float = 0.0
    epsilon: float = 1e-5  # of the norms


def _checked(c: GPTConfig) -> GPTConfig:
    for name in ("vocabulary", "context", "layers", "heads", "width", "hidden"):
        value = getattr(c, name)
        if (type(value) is not int or value < 1) and (name, value) != ("hidden", None):
            raise ValueError(f"{name} must be an integer of at least 1; got {value!r}.")
    if c.width % c.heads:
        raise ValueError(f"width must be a multiple of heads; got {c.width} and {c.heads}.")
    if c.norm not in ("layer", "rms"):
        raise ValueError(f"norm must be 'layer' or 'rms'; got {c.norm!r}.")
    if not (0 <= c.dropout < 1 and 0 < c.epsilon < math.inf):
        raise ValueError(f"dropout must lie in [0, 1), epsilon above 0; got {c.dropout} and {c.epsilon}.")
    return c


def _in_func(x: Tensor) -> bool:
    """Whether torch.func is at work on x: its values are hidden, and fused attention has no rule for it."""
    return not torch.compiler.is_compiling() and torch._C._functorch.is_functorch_wrapped_tensor(x)


def _check_tokens(tokens: Tensor, vocabulary: int) -> None:
    if tokens.ndim != 2 or 0 in tokens.shape or tokens.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"tokens must be integers (B, T), not empty; got {tokens.dtype} {tuple(tokens.shape)}.")
    seen = not (torch.compiler.is_compiling() or _in_func(tokens))
    if seen and tokens.device.type == "cpu":  # a GPU would have to wait for the answer
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= vocabulary:
            raise ValueError(f"tokens must lie in 0..{vocabulary - 1}; got {low}..{high}.")


def _norm(c: GPTConfig) -> nn.Module:
    return nn.RMSNorm(c.width, c.epsilon) if c.norm == "rms" else nn.LayerNorm(c.width, c.epsilon, bias=c.bias)


class Attention(nn.Module):
    r"""Causal attention, :math:`\mathrm{softmax}(q k^\top / \sqrt{D/H})\, v` in each of H heads."""

    def __init__(self, c: GPTConfig, layer: int) -> None:
        super().__init__()
        self.heads, self.layer, self.dropout = c.heads, layer, c.dropout
        self.query, self.key, self.value, self.out = (nn.Linear(c.width, c.width, c.bias) for _ in range(4))

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        q, k, v = (f(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        if cache is not None:
            if self.layer < len(cache):
                k, v = (torch.cat(pair, 2) for pair in zip(cache[self.layer], (k, v), strict=True))
            cache[self.layer : self.layer + 1] = [(k, v)]
        new, past = q.shape[2], k.shape[2] - q.shape[2]
        mask = torch.ones(new, past + new, dtype=torch.bool, device=x.device).tril(past) if past else None
        drop = self.dropout if self.training else 0.0
        with sdpa_kernel(SDPBackend.MATH) if _in_func(q) else nullcontext():
            mixed = F.scaled_dot_product_attention(q, k, v, mask, drop, is_causal=mask is None)  # (B, H, T, D/H)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)), the GELU of the MLP in its tanh form."""

    def __init__(self, c: GPTConfig, layer: int) -> None:
        super().__init__()
        self.norm1, self.attention, self.norm2 = _norm(c), Attention(c, layer), _norm(c)
        hidden = c.hidden or 4 * c.width
        up, down = nn.Linear(c.width, hidden, c.bias), nn.Linear(hidden, c.width, c.bias)
        self.mlp = nn.Sequential(OrderedDict(up=up, gelu=nn.GELU("tanh"), down=down))
        self.drop = nn.Dropout(c.dropout)

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        x = x + self.drop(self.attention(self.norm1(x), cache))
        return x + self.drop(self.mlp(self.norm2(x)))


class GPT(nn.Module):
    """GPT-2: learned positions, norms before each part of a block and at the end.

    Projections are ``nn.Linear``: ``blocks.0.attention.query`` (``key``, ``value``, ``out``), ``blocks.0.mlp.up``
    (``down``). Weights start normal with deviation 0.02, divided by sqrt(2 layers) in ``out`` and ``down``; biases 0,
    norms 1. Works under ``functional_call``, ``vmap``, ``grad``, ``jvp``; second derivatives by ``torch.autograd``
    alone need ``sdpa_kernel(SDPBackend.MATH)`` around the forward pass.

    Args:
        config: Sizes and options; kept as ``model.config``.
        seed: Of the initial weights; the global generator stays as it was.

    Raises:
        ValueError: An impossible size or option.

    Source: Radford et al. (2019), Language models are unsupervised multitask learners.
    """

    def __init__(self, config: GPTConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = c = _checked(config)
        with torch.random.fork_rng(devices=[]):  # torch's own initialisation draws too, and is overwritten
            self.embed, self.position = nn.Embedding(c.vocabulary, c.width), nn.Embedding(c.context, c.width)
            self.drop = nn.Dropout(c.dropout)
            self.blocks = nn.ModuleList(Block(c, layer) for layer in range(c.layers))
            self.norm, self.head = _norm(c), nn.Linear(c.width, c.vocabulary, bias=False)
        if c.tied:
            self.head.weight = self.embed.weight
        generator = torch.Generator().manual_seed(seed)
        for name, p in self.named_parameters():
            if p.ndim == 1:
                nn.init.constant_(p, float("norm" in name and name.endswith("weight")))
            else:
                residual = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(p, 0, 0.02 / math.sqrt(2 * c.layers if residual else 1), generator)

    def states(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        """What the head reads: states (B, T, D) after the last norm; arguments as :meth:`forward`."""
        _check_tokens(tokens, self.config.vocabulary)
        rows, past = cache[0][0].shape[::2] if cache else (len(tokens), 0)
        new = tokens.shape[1]
        if rows != len(tokens) or past + new > self.config.context:
            found = f"got {tuple(tokens.shape)} after {past} tokens"
            raise ValueError(f"tokens must have {rows} rows and fit the context of {self.config.context}; {found}.")
        x = self.drop(self.embed(tokens) + self.position(torch.arange(past, past + new, device=tokens.device)))
        for block in self.blocks:
            x = block(x, cache)
        return self.norm(x)

    def forward(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        """Logits of the next token at every place.

        Args:
            tokens: Integers in 0..V-1, (B, T), with the cache no longer than the context.
            cache: A list, empty at first, to which each call adds its tokens, so that the next brings only new ones.

        Returns:
            (B, T, V).

        Raises:
            ValueError: Tokens that are no (B, T) integers in range, too many, or of another B than the cache.
        """
        return self.head(self.states(tokens, cache))


@torch.no_grad()
def generate(
    model: GPT,
    tokens: Tensor,
    steps: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    generator: torch.Generator | None = None,
    stop: int | None = None,
) -> Tensor:
    """Continue prompts of one length token by token, with a cache.

    Args:
        model: In evaluation mode.
        tokens: Prompts, (B, T).
        steps: Most tokens to add; the last one is not read, so T + steps - 1 must fit the context.
        temperature: Divides the logits; 0 takes the likeliest token.
        top_k: Draw among so many of the likeliest only.
        generator: Needed unless the temperature is 0; on the device of ``tokens``.
        stop: Token that ends a sequence and then fills it; when all have ended, so does sampling.

    Returns:
        Prompts with their continuations, (B, at most T + steps).

    Raises:
        ValueError: An argument outside its range, or NaN in the logits.
    """
    c = model.config
    _check_tokens(tokens, c.vocabulary)
    if steps < 1 or tokens.shape[-1] + steps - 1 > c.context:
        raise ValueError(f"steps must lie in 1..{c.context + 1 - tokens.shape[-1]} with this prompt; got {steps}.")
    if not 0 <= temperature < math.inf or (temperature > 0 and generator is None):
        raise ValueError(f"temperature must be 0, or positive with a generator; got {temperature} and {generator}.")
    for name, value, low, high in (("top_k", top_k, 1, c.vocabulary), ("stop", stop, 0, c.vocabulary - 1)):
        if value is not None and not low <= value <= high:
            raise ValueError(f"{name} must lie in {low}..{high}; got {value}.")
    cache: Cache = []
    unread, ended = tokens, torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
    for _ in range(steps):
        logits = model.head(model.states(unread, cache)[:, -1])  # (B, V)
        if logits.isnan().any():
            raise ValueError("model must give logits that are numbers; got NaN.")
        drawn = logits.argmax(-1) if temperature == 0 else _draw(logits / temperature, top_k, generator)
        if stop is not None:
            drawn = drawn.masked_fill(ended, stop)
            ended |= drawn == stop
        unread = drawn[:, None].to(tokens.dtype)
        tokens = torch.cat([tokens, unread], 1)
        if ended.all():
            break
    return tokens


def _draw(logits: Tensor, top_k: int | None, generator: torch.Generator | None) -> Tensor:
    if top_k is not None:
        best = logits.topk(top_k)
        logits = torch.full_like(logits, -math.inf).scatter(-1, best.indices, best.values)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]


def completion_mask(prompts: Tensor, lengths: Tensor, width: int) -> Tensor:
    """Mask (B, width) of completions: True at t with prompts[b] <= t < lengths[b], both (B,) integers.

    Raises:
        ValueError: Not 1 <= prompts <= lengths <= width; the first token has nothing that predicts it.
    """
    if prompts.ndim != 1 or prompts.shape != lengths.shape:
        raise ValueError(f"prompts and lengths must share a shape (B,); got {prompts.shape} and {lengths.shape}.")
    if not ((prompts >= 1) & (prompts <= lengths) & (lengths <= width)).all():
        raise ValueError(f"1 <= prompts <= lengths <= {width} must hold; got {prompts.tolist()}, {lengths.tolist()}.")
    t = torch.arange(width, device=prompts.device)
    return (t >= prompts[:, None]) & (t < lengths[:, None])


def token_losses(model: LanguageModel, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""Negative log-likelihood of every token but the first, :math:`-\log p(x_{t+1} \mid x_1, \dots, x_t)`.

    Args:
        model: A :class:`GPT`, or any function from tokens (B, T - 1) to logits (B, T - 1, V).
        tokens: (B, T), T from 2 to the context + 1.
        mask: Booleans (B, T), True where a token counts; the first column has no effect. All count by default.

    Returns:
        (B, T - 1) in nats, differentiable; 0 where the mask is False.

    Raises:
        ValueError: Tokens or mask of another shape or type, tokens out of range.
    """
    counted = _counted(tokens, mask)
    logits = model(tokens[:, :-1])
    _check_tokens(tokens, logits.shape[-1])
    losses = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten().long(), reduction="none")
    return losses.unflatten(0, counted.shape).masked_fill(~counted, 0)


def _counted(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """The mask (B, T - 1) of the tokens that are predicted and count."""
    if tokens.ndim != 2 or tokens.shape[1] < 2:
        raise ValueError(f"tokens must be (B, T) with T at least 2; got shape {tuple(tokens.shape)}.")
    if mask is None:
        return torch.ones_like(tokens[:, 1:], dtype=torch.bool)
    if mask.shape != tokens.shape or mask.dtype != torch.bool:
        raise ValueError(f"mask must be bool of shape {tuple(tokens.shape)}; got {mask.dtype} {tuple(mask.shape)}.")
    return mask[:, 1:]


def sequence_log_likelihood(model: LanguageModel, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """Log-likelihood (B,) in nats of the tokens that count, given those before; arguments as :func:`token_losses`."""
    return -token_losses(model, tokens, mask).sum(1)


@torch.no_grad()
def perplexity(model: LanguageModel, tokens: Tensor, mask: Tensor | None = None, batch: int = 64) -> float:
    """exp of the mean of :func:`token_losses` over the tokens that count, ``batch`` sequences at a time.

    Raises:
        ValueError: No token counts, or as :func:`token_losses`.
    """
    counted = _counted(tokens, mask)
    if batch < 1 or not counted.any():
        raise ValueError(f"batch and the counted tokens must be at least 1; got {batch} and {int(counted.sum())}.")
    losses = [token_losses(model, part).double() for part in tokens.split(batch)]
    return float(torch.cat(losses)[counted].mean().exp())


def save_gpt(path: Path | str, model: GPT, dtype: torch.dtype | None = None) -> None:
    """Write a model's parameters, as ``dtype`` if given, and its configuration (metadata ``gpt``)."""
    tensors = {name: p.detach().to(dtype or p.dtype) for name, p in model.named_parameters()}
    save_weights(path, tensors, {"gpt": json.dumps(model.config._asdict())})


def load_gpt(path: Path | str) -> GPT:
    """Read what :func:`save_gpt` wrote: a model in evaluation mode, in float32, or float64 where stored so.

    Raises:
        ReproError: As :func:`load_weights`; no configuration; tensors missing, unexpected or of another shape.
    """
    tensors, metadata = load_weights(path)
    try:
        config = _checked(GPTConfig(**json.loads(metadata["gpt"])))
    except (KeyError, TypeError, ValueError) as error:
        raise ReproError(f"{path} needs the configuration of a GPT in its metadata ('gpt'): {error}.") from None
    return _filled(config, tensors, str(path))


def _filled(config: GPTConfig, tensors: dict[str, Tensor], source: str) -> GPT:
    model = GPT(config).eval()
    params = dict(model.named_parameters())
    if params.keys() != tensors.keys():
        missing, unexpected = sorted(params.keys() - tensors.keys()), sorted(tensors.keys() - params.keys())
        raise ReproError(f"{source}: missing tensors {missing}, unexpected tensors {unexpected}.")
    for name, p in params.items():
        if p.shape != tensors[name].shape:
            raise ReproError(f"{source}: {name} must be {tuple(p.shape)}; got {tuple(tensors[name].shape)}.")
    model.to(torch.promote_types(tensors["embed.weight"].dtype, torch.float32))
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(tensors[name])
    return model


_RENAMED = {"wte": "embed", "wpe": "position", "h": "blocks", "ln_1": "norm1", "ln_2": "norm2", "ln_f": "norm"}
_RENAMED |= {"lm_head": "head", "attn": "attention", "c_fc": "up"}
_ONLY = {"model_type": "gpt2", "activation_function": "gelu_new", "scale_attn_weights": True}
_ONLY |= {"scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False}


def from_hugging_face(source: Path | str | dict[str, Tensor], config: dict[str, Any] | None = None) -> GPT:
    """Make a :class:`GPT` of a GPT-2 checkpoint of the transformers library; evaluation mode, dropout 0.

    Args:
        source: Folder with ``config.json`` and ``model.safetensors``, or a state dictionary.
        config: What ``config.json`` says; needed with a state dictionary.

    Raises:
        ReproError: Files missing or damaged, another family, an option that this GPT does not have.
    """
    if isinstance(source, dict):
        state, where = source, "state dictionary"
    else:
        state, where = load_weights(Path(source) / "model.safetensors")[0], str(source)
    try:
        config = json.loads((Path(where) / "config.json").read_text("utf-8")) if config is None else config
        ours = _translated(config)
    except (OSError, ValueError, KeyError) as error:
        raise ReproError(f"{where} needs a config that this GPT can follow: {error}.") from None
    tensors: dict[str, Tensor] = {}
    for old, t in state.items():
        new = ".".join(_RENAMED.get(part, part) for part in old.removeprefix("transformer.").split("."))
        new = new.replace("attention.c_proj", "attention.out").replace("mlp.c_proj", "mlp.down")
        t = t.T if ".c_" in old and t.ndim == 2 else t  # Conv1D keeps (in, out)
        if "c_attn" in new:
            query, key, value = (new.replace("c_attn", part) for part in ("query", "key", "value"))
            tensors[query], tensors[key], tensors[value] = t.tensor_split(3)
        elif not new.endswith(("attention.bias", "attention.masked_bias")):  # the causal mask, kept by old versions
            tensors[new] = t
    if ours.tied and {"head.weight", "embed.weight"} <= tensors.keys():
        if not tensors.pop("head.weight").equal(tensors["embed.weight"]):
            raise ReproError(f"{where}: lm_head.weight must equal wte.weight, as the config ties them; it differs.")
    return _filled(ours, tensors, where)


def _translated(config: dict[str, Any]) -> GPTConfig:
    for key, only in _ONLY.items():
        if (found := config.get(key, None if key == "model_type" else only)) != only:
            raise ValueError(f"{key} must be {only!r}; got {found!r}")
    vocabulary, context, layers = config["vocab_size"], config["n_positions"], config["n_layer"]
    heads, width, hidden = config["n_head"], config["n_embd"], config.get("n_inner")
    tied, epsilon = config.get("tie_word_embeddings", True), config["layer_norm_epsilon"]
    return _checked(GPTConfig(vocabulary, context, layers, heads, width, hidden, tied=tied, epsilon=epsilon))
