"""The small models against published sizes, naive loops and what their equations say at special weights."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from reprolib.nets import ViT, mlp, mobilenet, resnet

FOUR_GROUPS = partial(nn.GroupNorm, 4)


def images(n: int, channels: int, size: int) -> torch.Tensor:
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def size_of(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def perturb(model: nn.Module) -> nn.Module:
    """No weight stays at zero or one, where a mistake would not show."""
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.double().parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=g, dtype=p.dtype))
    return model.eval()


def test_a_perceptron_is_its_chain_of_matrix_products():
    model, x = mlp((4, 5, 6, 3), nn.Tanh).double(), images(7, 1, 2).flatten(1)
    assert [type(m) for m in model] == [nn.Linear, nn.Tanh, nn.Linear, nn.Tanh, nn.Linear]
    a = x
    for i in (0, 2):
        a = (a @ model[i].weight.T + model[i].bias).tanh()
    assert_close(model(x), a @ model[4].weight.T + model[4].bias)


def test_the_mobilenet_of_the_published_widths_has_the_published_size():
    model = mobilenet(3, 1000, (64, 128, 256, 512, 1024), (1, 2, 2, 6, 2), nn.BatchNorm2d)
    running = sum(b.numel() for name, b in model.named_buffers() if "running" in name)
    assert size_of(model[:-1]) + running == 3_228_864  # as counted by Keras, without its top
    convolutions = [m for m in model if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 27
    assert [m.stride[0] for m in convolutions[1::2]] == [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1]


def test_a_depthwise_and_pointwise_pair_costs_the_published_share_of_a_full_convolution():
    model = mobilenet(1, 10, (32, 64), 1, FOUR_GROUPS)
    depthwise, pointwise = (m for m in list(model)[9:16] if isinstance(m, nn.Conv2d))
    assert (depthwise.groups, pointwise.kernel_size) == (32, (1, 1))
    share = (size_of(depthwise) + size_of(pointwise)) / (32 * 64 * 9)
    assert share == pytest.approx(1 / 64 + 1 / 9, rel=1e-12)


@pytest.mark.parametrize("size", [8, 7, 28])
def test_each_width_after_the_first_halves_the_image(size):
    model, seen = resnet(1, 10, (4, 8, 12), (1, 2, 1), FOUR_GROUPS).double(), []
    for block in model[1:5]:
        block.register_forward_hook(lambda _block, _inputs, output: seen.append(tuple(output.shape[1:])))
    assert model(images(2, 1, size)).shape == (2, 10)
    half, quarter = -(-size // 2), -(-size // 4)
    assert seen == [(4, size, size), (8, half, half), (8, half, half), (12, quarter, quarter)]


def test_a_residual_block_without_its_last_convolution_is_its_shortcut():
    model, x = perturb(resnet(4, 10, (4, 8), 1, FOUR_GROUPS)), images(2, 4, 6)
    same, wider = model[1], model[2]
    with torch.no_grad():
        same.conv2.weight.zero_()
        wider.conv2.weight.zero_()
    assert_close(same(x), x, rtol=0, atol=0)
    a = nn.functional.group_norm(x, 4, wider.norm1.weight, wider.norm1.bias).relu()
    expected = torch.einsum("oi,nihw->nohw", wider.shortcut.weight[:, :, 0, 0], a[:, :, ::2, ::2])
    assert_close(wider(x), expected)


def test_a_residual_block_is_its_equation():
    block, x = perturb(resnet(4, 10, (4,), 1, FOUR_GROUPS))[1], images(2, 4, 6)
    conv, norm = nn.functional.conv2d, nn.functional.group_norm
    inner = conv(norm(x, 4, block.norm1.weight, block.norm1.bias).relu(), block.conv1.weight, padding=1)
    expected = x + conv(norm(inner, 4, block.norm2.weight, block.norm2.bias).relu(), block.conv2.weight, padding=1)
    assert_close(block(x), expected)


def test_a_resnet_is_stem_blocks_norm_mean_over_pixels_and_head():
    model, x = perturb(resnet(1, 5, (4, 8), 1, FOUR_GROUPS)), images(2, 1, 6)
    a = nn.functional.conv2d(x, model[0].weight, padding=1)
    for block in model[1:3]:
        a = block(a)
    features = nn.functional.group_norm(a, 4, model[3].weight, model[3].bias).relu().mean((2, 3))
    assert_close(model[:-1](x), features)
    assert_close(model(x), features @ model[-1].weight.T + model[-1].bias)


@pytest.mark.parametrize("make", [resnet, mobilenet])
def test_convolutional_nets_keep_examples_apart_and_take_batch_norm_where_asked(make):
    model, x = perturb(make(1, 10, (8, 16), norm=FOUR_GROUPS)), images(3, 1, 8)
    assert_close(model(x), torch.cat([model(x[n : n + 1]) for n in range(3)]))
    assert model[:-1](x).shape == (3, 16)
    with_batch = make(1, 10, (8, 16), norm=nn.BatchNorm2d)
    assert any(isinstance(m, nn.BatchNorm2d) for m in with_batch.modules())
    assert not any(isinstance(m, nn.GroupNorm) for m in with_batch.modules())


def attention_by_loops(block: nn.Module, a: torch.Tensor) -> torch.Tensor:
    """Attention of one image's tokens a (T, D), head by head and token by token."""
    q, k, v = block.query(a), block.key(a), block.value(a)
    wide = a.shape[1] // block.heads
    rows = []
    for t in range(len(a)):
        heads = []
        for h in range(block.heads):
            part = slice(h * wide, (h + 1) * wide)
            e = torch.stack([q[t, part] @ k[u, part] for u in range(len(a))]).div(wide**0.5).exp()
            heads.append(sum(e[u] * v[u, part] for u in range(len(a))) / e.sum())
        rows.append(torch.cat(heads))
    return block.out(torch.stack(rows))


@pytest.mark.parametrize("class_token", [True, False])
def test_a_transformer_is_its_equations_read_aloud(class_token):
    model = perturb(ViT(4, 2, 3, 5, width=8, depth=2, heads=2, class_token=class_token))
    x = images(2, 3, 4)
    for image, logits in zip(x, model(x), strict=True):
        cuts = [image[:, r : r + 2, c : c + 2].flatten() for r in (0, 2) for c in (0, 2)]
        t = model.embed(torch.stack(cuts))
        if class_token:
            t = torch.cat([model.class_token[0], t])
        t = t + model.position[0]
        for block in model.blocks:
            t = t + attention_by_loops(block, block.norm1(t))
            t = t + block.down(nn.functional.gelu(block.up(block.norm2(t))))
        t = model.norm(t)
        assert_close(logits, model.head(t[0] if class_token else t.mean(0)))


def test_the_tokens_are_those_that_a_card_counts():
    model = ViT(8, 2, 1, 10)
    assert model.tokens(torch.zeros(3, 1, 8, 8)).shape == (3, 17, 48)
    assert ViT(8, 2, 1, 10, class_token=False).tokens(torch.zeros(3, 1, 8, 8)).shape == (3, 16, 48)


@pytest.mark.parametrize("widths", [(3,), (), (4, 0, 2)])
def test_a_perceptron_of_impossible_widths_is_refused(widths):
    with pytest.raises(ValueError, match=r"(layers|widths) must be at least 1.*; got"):
        mlp(widths)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: resnet(1, 10, (8, 0)), r"widths must be at least 1.*; got \(8, 0\)"),
        (lambda: resnet(1, 10, ()), r"widths must .* not be empty; got \(\)"),
        (lambda: mobilenet(1, 10, ()), r"widths must .* not be empty; got \(\)"),
        (lambda: mobilenet(1, 10, (1, 8)), "stem must be at least 1.*; got 0"),
        (lambda: resnet(0, 10), "channels must be at least 1.*; got 0"),
        (lambda: mobilenet(1, 0), "classes must be at least 1.*; got 0"),
        (lambda: resnet(1, 10, blocks=0), "blocks must be at least 1.*; got 0"),
        (lambda: resnet(1, 10, (8, 16), (1, 2, 3)), "one per width; got 3 for 2 widths"),
        (lambda: resnet(1, 10, (8, 12)), "num_channels"),
        (lambda: ViT(8, 3, 1, 10), "patch must divide size .*; got patch 3, size 8"),
        (lambda: ViT(8, 2, 1, 10, heads=5), "heads must divide width; got .* 5 heads, width 48"),
        (lambda: ViT(8, 2, 1, 10, depth=0), "depth must be at least 1.*; got 0"),
        (lambda: ViT(8, 0, 1, 10), "patch must be at least 1.*; got 0"),
    ],
)
def test_impossible_sizes_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("shape", [(2, 1, 8, 7), (2, 3, 8, 8), (2, 64)])
def test_a_transformer_refuses_images_of_another_shape(shape):
    with pytest.raises(ValueError, match=rf"x must be images \(N, 1, 8, 8\); got \({', '.join(map(str, shape))}\)"):
        ViT(8, 2, 1, 10)(torch.zeros(shape))
