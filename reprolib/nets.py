"""A few small models: multilayer perceptron, ResNet, MobileNet, vision transformer. Images are (N, channels, H, W).

Plain modules with plain attention and, unless asked otherwise, no running statistics, so that copies stack
(:mod:`reprolib.train`); every projection is a layer that a chapter can address by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

Sizes = Sequence[int]
Norm = Callable[[int], nn.Module]
EIGHT_GROUPS: Norm = partial(nn.GroupNorm, 8)  # Wu and He (2018); a norm takes the number of channels


def mlp(widths: Sizes, activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear layers from widths[0] inputs to widths[-1] outputs, an activation between each two: (N, D) to (N, C).

    Raises ValueError for fewer than two widths, or one below 1.
    """
    _positive(layers=len(widths) - 1, widths=widths)
    layers = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), activation())]
    return nn.Sequential(*layers[:-1])


def resnet(
    channels: int, classes: int, widths: Sizes = (16, 32, 64), blocks: Sizes | int = 1, norm: Norm = EIGHT_GROUPS
) -> nn.Sequential:
    """Pre-activation ResNet: 3x3 stem, ``blocks`` residual blocks per width, norm, mean over pixels, linear head.

    Each width after the first halves the image. ``norm`` makes a norm for a number of channels: ``nn.BatchNorm2d`` is
    one. ``model[:-1]`` gives the features, (N, widths[-1]). Raises ValueError for sizes below 1 and, as GroupNorm does,
    for groups that do not divide a width. Source: He et al. (2016), Identity mappings in deep residual networks.
    """
    _positive(channels=channels, classes=classes, widths=widths, blocks=blocks)
    layers = [PreActivation(*sizes, norm) for sizes in _stages(widths[0], widths, blocks)]
    stem = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
    return nn.Sequential(stem, *layers, norm(widths[-1]), nn.ReLU(), *_head(widths[-1], classes))


def mobilenet(
    channels: int, classes: int, widths: Sizes = (16, 32, 64), blocks: Sizes | int = 1, norm: Norm = EIGHT_GROUPS
) -> nn.Sequential:
    """MobileNet: as :func:`resnet`, of depthwise 3x3 and pointwise 1x1 convolutions, with a stem of half the width.

    Widths 64, 128, 256, 512, 1024 with blocks 1, 2, 2, 6, 2 are the published net, but for the stride of its stem.
    Source: Howard et al. (2017), MobileNets.
    """
    _positive(channels=channels, classes=classes, widths=widths, blocks=blocks, stem=sum(widths[:1]) // 2)
    layers = _conv(channels, stem := widths[0] // 2, 3, norm)
    for a, b, stride in _stages(stem, widths, blocks):
        layers += _conv(a, a, 3, norm, stride, groups=a) + _conv(a, b, 1, norm)
    return nn.Sequential(*layers, *_head(widths[-1], classes))


def _conv(a: int, b: int, size: int, norm: Norm, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(a, b, size, stride, size // 2, groups=groups, bias=False), norm(b), nn.ReLU()]


def _stages(stem: int, widths: Sizes, blocks: Sizes | int) -> Iterator[tuple[int, int, int]]:
    """Channels in, channels out and stride of each block."""
    counts = [blocks] * len(widths) if isinstance(blocks, int) else blocks
    if len(counts) != len(widths):
        raise ValueError(f"blocks must be one number, or one per width; got {len(counts)} for {len(widths)} widths.")
    for stage, (a, b, count) in enumerate(zip((stem, *widths), widths, counts, strict=False)):
        yield a, b, 2 if stage else 1
        yield from [(b, b, 1)] * (count - 1)


def _head(width: int, classes: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)]


def _positive(**sizes: int | Sizes) -> None:
    for name, size in sizes.items():
        if min([size] if isinstance(size, int) else size, default=0) < 1:
            raise ValueError(f"{name} must be at least 1, and not be empty; got {size}.")


class PreActivation(nn.Module):
    """Residual block: x + W2 a(W1 a(x)), a the ReLU of a norm; where sizes change, a 1x1 convolution of a(x) for x."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(inputs), norm(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        same = stride == 1 and inputs == outputs
        self.shortcut = None if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride), rounded up."""
        a = self.norm1(x).relu()
        residual: Tensor = self.conv2(self.norm2(self.conv1(a)).relu())
        return residual + (x if self.shortcut is None else self.shortcut(a))


class Block(nn.Module):
    """Pre-norm transformer block: attention with ``heads`` heads, then a GELU layer of 2 D units; (N, T, D) to same."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.norm1, self.norm2 = heads, nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        a = self.norm1(x)
        q, k, v = (f(a).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)  # (N, heads, T, T)
        x = x + self.out((weights @ v).transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class ViT(nn.Module):
    """Vision transformer for images (N, channels, size, size), cut into patches of patch x patch pixels.

    ``width`` is that of a token, D; ``depth`` counts blocks. Classifies from a learned class token that stands first,
    or without ``class_token`` from the mean token. Raises ValueError for a patch that does not divide size, heads that
    do not divide width, images of another shape. Source: Dosovitskiy et al. (2021), An image is worth 16x16 words.
    """

    def __init__(
        self,
        size: int,
        patch: int,
        channels: int,
        classes: int,
        width: int = 48,
        depth: int = 3,
        heads: int = 4,
        class_token: bool = True,
    ) -> None:
        super().__init__()
        _positive(size=size, patch=patch, channels=channels, classes=classes, width=width, depth=depth, heads=heads)
        if size % patch or width % heads:
            raise ValueError(
                f"patch must divide size and heads must divide width; got patch {patch}, size {size}, "
                f"{heads} heads, width {width}."
            )
        self.shape, self.patch = (channels, size, size), patch
        self.embed = nn.Linear(channels * patch**2, width)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width)) if class_token else None
        self.position = nn.Parameter(0.02 * torch.randn(1, (size // patch) ** 2 + class_token, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def tokens(self, x: Tensor) -> Tensor:
        """Images to their final tokens, (N, T, D): the class token if there is one, then the patches by row."""
        if x.shape[1:] != self.shape:
            raise ValueError(f"x must be images (N, {', '.join(map(str, self.shape))}); got {tuple(x.shape)}.")
        cut = x.unflatten(3, (-1, self.patch)).unflatten(2, (-1, self.patch))  # (N, channels, rows, p, columns, p)
        t = self.embed(cut.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2))
        if self.class_token is not None:
            t = torch.cat([self.class_token.expand(len(x), -1, -1), t], 1)
        tokens: Tensor = self.norm(self.blocks(t + self.position))
        return tokens

    def forward(self, x: Tensor) -> Tensor:
        """Images to logits, (N, classes)."""
        t = self.tokens(x)
        logits: Tensor = self.head(t.mean(1) if self.class_token is None else t[:, 0])
        return logits
