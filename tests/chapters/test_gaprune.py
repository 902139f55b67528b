"""The method of `gaprune` against naive loops, closed forms, peer libraries, limits and mistakes."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import ndcg_score
from torch import Tensor
from torch.nn.utils import prune as torch_prune
from torch.testing import assert_close

from reprolib.train import minibatches, predict, stack, train_stacked, unstack

EXACT = {"rtol": 1e-10, "atol": 1e-13}
LENGTH = 5  # words of a text; tokens: 3 more


def normal(*shape: int, g: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def positive(*shape: int, g: torch.Generator) -> Tensor:
    return 0.1 + torch.rand(*shape, generator=g, dtype=torch.float64)


@pytest.fixture(scope="module")
def areas(chapter):
    return chapter.make_world((60, 6), (60, 4), 4, np.random.default_rng(0))


@pytest.fixture(scope="module")
def triplets(chapter, areas) -> Tensor:
    """16 for each of two encoders (2, 16, 3, L)."""
    rng = np.random.default_rng(1)
    return torch.from_numpy(np.stack([chapter.write_triplets(a, 16, LENGTH, rng) for a in areas]))


@pytest.fixture(scope="module")
def encoders(chapter):
    return stack(lambda: chapter.Encoder(125, LENGTH + 3, 12, 20, 2, 2).double(), [1, 2])


@pytest.fixture(scope="module")
def gradients(chapter, encoders, triplets):
    return chapter.gradient_statistics(encoders, triplets, chunk=3)


def naive_loss(q: Tensor, p: Tensor, n: Tensor) -> Tensor:
    """InfoNCE by loops over candidates, from embeddings (B, width)."""
    candidates = [*p, *n]
    losses = []
    for i in range(len(q)):
        logits = [20 * torch.dot(q[i], c) / (q[i].norm() * c.norm()) for c in candidates]
        losses.append(torch.stack(logits).logsumexp(0) - logits[i])
    return sum(losses) / len(losses)


def batch_gradients(model, triplets: Tensor, micro: int) -> list[dict[str, Tensor]]:
    found = []
    for b in range(0, len(triplets), micro):
        model.zero_grad()
        naive_loss(*(model(t) for t in triplets[b : b + micro].unbind(1))).backward()
        found.append({k: p.grad.clone() for k, p in model.named_parameters() if k.startswith("mlps.")})
    return found


# The encoder


def by_hand(chapter, model, text: list[int]) -> Tensor:
    """One text through the network, token by token and head by head."""
    norm = lambda v: v / (v.square().mean() + 1e-6).sqrt()  # noqa: E731
    x = [model.words.weight[t] + model.positions[i] for i, t in enumerate(text)]
    width, a = len(x[0]), model.attention
    size, states = width // a.heads, [norm(v) for v in x]
    read = []
    for h in range(a.heads):
        part = slice(h * size, (h + 1) * size)
        q = (a.q.weight @ states[-1])[part]
        k = [(a.kv.weight[:width] @ s)[part] for s in states]
        v = [(a.kv.weight[width:] @ s)[part] for s in states]
        p = torch.stack([q @ key / math.sqrt(size) for key in k]).softmax(0)
        read.append(sum(p_i * v_i for p_i, v_i in zip(p, v, strict=True)))
    y = x[-1] + a.out.weight @ torch.cat(read)
    for mlp in model.mlps:
        z = norm(y)
        gate = mlp.gate.weight @ z
        y = y + mlp.down.weight @ (gate * gate.sigmoid() * (mlp.up.weight @ z))
    return y / y.norm()


def test_the_encoder_is_attention_to_the_last_token_then_gated_mlps(chapter, encoders, triplets):
    model = unstack(encoders, 0)
    embedded = model(triplets[0, :2])
    assert embedded.shape == (2, 3, 12)
    for i in range(2):
        for k in range(3):
            assert_close(embedded[i, k], by_hand(chapter, model, triplets[0, i, k].tolist()), **EXACT)


def test_an_encoder_starts_with_small_words_and_smaller_positions(chapter):
    model = chapter.Encoder(4000, 50, 40, 20, 2, 2)
    assert model.words.weight.std().item() == pytest.approx(0.3, rel=0.02)
    assert model.positions.std().item() == pytest.approx(0.02, rel=0.1)


def test_a_mask_acts_as_zeros_in_the_weight_and_keeps_its_gradient_at_zero(chapter, g):
    layer = chapter.Pruned(6, 4).double()
    layer.mask.copy_((torch.rand(4, 6, generator=g) < 0.5).float())
    x = normal(3, 6, g=g)
    assert_close(layer(x), x @ (layer.weight * layer.mask).T)
    layer(x).square().sum().backward()
    assert (layer.weight.grad[layer.mask == 0] == 0).all()
    assert (layer.weight.grad[layer.mask == 1] != 0).all()


def test_the_prunable_matrices_are_those_of_the_mlps(chapter, encoders):
    expected = [f"mlps.{b}.{m}.weight" for b in range(2) for m in ("gate", "up", "down")]
    assert chapter.mlp_names(encoders.params) == expected


# The loss and the Fisher


def test_the_loss_is_infonce_over_positives_then_negatives(chapter, g):
    embedded = F.normalize(normal(5, 3, 7, g=g), dim=-1)
    assert_close(chapter.info_nce(embedded), naive_loss(*embedded.unbind(1)), **EXACT)
    without = naive_loss(embedded[:, 0], embedded[:, 1], embedded[:0, 2])  # a wrong loss: no hard negatives
    assert (chapter.info_nce(embedded) - without).abs() > 1e-3


def test_equal_embeddings_cost_the_log_of_the_candidates(chapter):
    same = F.normalize(torch.ones(4, 3, 6, dtype=torch.float64), dim=-1)
    assert chapter.info_nce(same).item() == pytest.approx(math.log(8), abs=1e-12)


def test_the_fisher_is_the_squared_gradient_of_batch_means_over_triplets(chapter, encoders, triplets, gradients):
    for s in range(2):
        found = batch_gradients(unstack(encoders, s), triplets[s], 4)
        for k in gradients.fisher:
            expected = sum(b[k] ** 2 for b in found) / 16 + 1e-8
            assert_close(gradients.fisher[k][s], expected, **EXACT)
            assert_close(gradients.mean[k][s], sum(b[k] for b in found) / 4, **EXACT)


def test_neither_the_chunk_nor_the_other_encoder_matters(chapter, encoders, triplets, gradients):
    again = chapter.gradient_statistics(encoders, triplets, chunk=1)
    for k, f in gradients.fisher.items():
        assert_close(again.fisher[k], f, **EXACT)
    swapped = chapter.gradient_statistics(encoders, triplets[[0, 0]], chunk=4)
    for k, f in gradients.fisher.items():
        assert_close(swapped.fisher[k][0], f[0], **EXACT)
        assert (swapped.fisher[k][1] - f[1]).abs().max() > 1e-9


def test_removed_weights_have_no_fisher_and_others_see_that_they_are_gone(chapter, encoders, triplets, gradients, g):
    keep = {k: (torch.rand(f.shape, generator=g) < 0.5).double() for k, f in gradients.fisher.items()}
    masks = chapter.prune(encoders, keep).buffers
    masked = chapter.gradient_statistics(encoders._replace(buffers=masks), triplets, chunk=3)
    zeroed = chapter.gradient_statistics(chapter.prune(encoders, keep)._replace(buffers=encoders.buffers), triplets, 3)
    for k, f in masked.fisher.items():
        assert (f[keep[k] == 0] == 1e-8).all()
        assert_close(f[keep[k] == 1], zeroed.fisher[k][keep[k] == 1], **EXACT)


def test_the_batch_size_changes_the_fisher(chapter, encoders, triplets, gradients):
    pairs = chapter.gradient_statistics(encoders, triplets, chunk=4, micro=2)
    found = batch_gradients(unstack(encoders, 0), triplets[0], 2)
    for k, f in pairs.fisher.items():
        assert_close(f[0], sum(b[k] ** 2 for b in found) / 16 + 1e-8, **EXACT)
        assert f.mean() > 1.2 * gradients.fisher[k].mean()


@pytest.mark.parametrize("shape", [(2, 15, 3, 8), (2, 16, 2, 8), (2, 0, 3, 8)])
def test_triplets_that_do_not_fill_micro_batches_are_refused(chapter, encoders, shape):
    with pytest.raises(ValueError, match="multiple of 4"):
        chapter.gradient_statistics(encoders, torch.zeros(shape, dtype=torch.long), chunk=2)


def test_embeddings_that_are_not_triplets_are_refused(chapter):
    with pytest.raises(ValueError, match="query, positive, negative"):
        chapter.info_nce(torch.ones(4, 2, 6))


# The alignment


def naive_box(x: np.ndarray) -> np.ndarray:
    m, n = x.shape
    out = np.zeros_like(x)
    for i in range(m):
        for j in range(n):
            around = [(i + a, j + b) for a in (-1, 0, 1) for b in (-1, 0, 1)]
            out[i, j] = sum(x[p, q] for p, q in around if 0 <= p < m and 0 <= q < n) / 9
    return out


def test_the_alignment_is_a_box_average_of_products_of_unit_matrices(chapter, g):
    general, domain = normal(2, 5, 4, g=g), normal(2, 5, 4, g=g)
    ours = chapter.entry_alignment(general, domain)
    for s in range(2):
        product = general[s] * domain[s] / (general[s].norm() * domain[s].norm())
        assert_close(ours[s], torch.from_numpy(naive_box(product.numpy())), rtol=1e-6, atol=1e-9)


def test_gradients_of_the_size_of_the_released_constant_count_half(chapter, g):
    general, domain = normal(1, 5, 4, g=g), normal(1, 5, 4, g=g)
    tiny = 1e-8 * general / general.norm()
    assert_close(2 * chapter.entry_alignment(tiny, domain), chapter.entry_alignment(general, domain), rtol=1e-6, atol=0)


def test_flat_gradients_give_one_over_the_number_of_weights_inside(chapter):
    flat = torch.full((1, 6, 9), 0.3, dtype=torch.float64)
    a = chapter.entry_alignment(flat, 7 * flat)
    assert_close(a[0, 1:-1, 1:-1], torch.full((4, 7), 1 / 54, dtype=torch.float64), rtol=1e-6, atol=0)
    assert a[0, 0, 0].item() == pytest.approx(4 / 9 / 54, rel=1e-6)  # beyond the border there are zeros
    assert_close(chapter.entry_alignment(flat, -flat), -a, rtol=1e-6, atol=0)


def test_the_mean_size_of_an_entry_is_at_most_one_over_their_number(chapter, g):
    for _ in range(20):
        general = normal(1, 7, 5, g=g) ** 3
        assert chapter.entry_alignment(general, normal(1, 7, 5, g=g) ** 5).abs().mean() <= 1 / 35
    assert chapter.entry_alignment(torch.zeros(1, 3, 3), torch.zeros(1, 3, 3)).abs().max() == 0


def test_the_row_alignment_is_the_cosine_of_each_output_unit(chapter, g):
    general, domain = normal(2, 5, 4, g=g), normal(2, 5, 4, g=g)
    ours = chapter.row_alignment(general, domain)
    for s in range(2):
        for i in range(5):
            a, b = general[s, i], domain[s, i]
            assert_close(ours[s, i], (a @ b / (a.norm() * b.norm())).expand(4), **EXACT)


# The scores


def ingredients(g: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return positive(2, 5, 8, g=g), positive(2, 5, 8, g=g), normal(2, 5, 8, g=g), 2 * normal(2, 5, 8, g=g)


def test_the_score_is_the_formula_weight_by_weight(chapter, g):
    d, e, w, a = ingredients(g)
    ours = chapter.dai(d, e, w, a, beta=0.7, gamma=0.3)
    for x in np.ndindex(2, 5, 8):
        size = abs(w[x].item())
        factor = min(1.2, max(0.8, 1 + 0.2 * 1.0 * a[x].item()))
        raw = (d[x].item() * size - 0.7 * e[x].item() * size) * factor + 0.3 * math.sqrt(size + 1e-8)
        assert ours[x].item() == pytest.approx(math.log1p(math.exp(raw)), abs=1e-12)


def test_beta_and_gamma_are_one_and_a_half_unless_told_otherwise(chapter, g):
    parts = ingredients(g)
    for score in (chapter.dai, chapter.balanced_dai):
        assert_close(score(*parts), score(*parts, beta=1.0, gamma=0.5))
        assert (score(*parts) - score(*parts, gamma=0.3)).abs().max() > 1e-3


def test_the_balanced_score_is_the_same_formula_on_ingredients_of_mean_one(chapter, g):
    d, e, w, a = ingredients(g)
    ours = chapter.balanced_dai(d, e, w, a, beta=0.7, gamma=0.3)
    for s in range(2):
        size, root = w[s].abs(), (w[s].abs() + 1e-8).sqrt()
        need = d[s] / d[s].mean() - 0.7 * e[s] / e[s].mean()
        raw = need * size / size.mean() * (1 + 0.2 * a[s]).clip(0.8, 1.2) + 0.3 * root / root.mean()
        assert_close(ours[s], torch.log1p(raw.exp()), **EXACT)


def test_scaling_a_fisher_or_a_matrix_does_not_move_the_balanced_score(chapter, g):
    d, e, w, a = ingredients(g)
    ours = chapter.balanced_dai(d, e, w, a)
    assert_close(chapter.balanced_dai(1e-6 * d, 30 * e, w, a), ours, rtol=1e-9, atol=0)
    assert_close(chapter.balanced_dai(d, e, 50 * w, a), ours, rtol=1e-6, atol=0)
    assert (chapter.dai(d, 30 * e, w, a) - chapter.dai(d, e, w, a)).abs().max() > 0.1


def test_equal_fishers_leave_the_magnitude_mask(chapter, g):
    d, _, w, a = ingredients(g)
    ours = chapter.keep_highest(chapter.dai(d, d, w, a).flatten(1), 0.5)
    assert torch.equal(ours, chapter.keep_highest(w.abs().flatten(1), 0.5))
    priceless = chapter.keep_highest(chapter.dai(d, d, w, a, beta=0.5).flatten(1), 0.5)
    assert not torch.equal(ours, priceless)


def test_without_bonus_price_and_alignment_fisher_times_magnitude_is_left(chapter, g):
    d, e, w, a = ingredients(g)
    ours = chapter.keep_highest(chapter.dai(d, e, w, 0 * a, beta=0, gamma=0).flatten(1), 0.5)
    assert torch.equal(ours, chapter.keep_highest((d * w.abs()).flatten(1), 0.5))
    assert not torch.equal(ours, chapter.keep_highest((d * w).flatten(1), 0.5))  # a wrong score: signed weights


def test_single_precision_softplus_ties_small_scores(chapter, g):
    d, w = 1e-7 * positive(1, 50, 50, g=g), normal(1, 50, 50, g=g)
    zero = torch.zeros_like(w)
    exact = chapter.dai(d, d, w, zero, beta=0, gamma=0)
    coarse = chapter.dai(d.float(), d.float(), w.float(), zero.float(), beta=0, gamma=0)
    assert len(exact.unique()) == 2500
    assert len(coarse.unique()) < 10


def test_standardising_gives_sigmoids_of_z_scores_per_matrix(chapter, g):
    score = normal(2, 5, 8, g=g) * torch.tensor([1.0, 40.0]).double().view(2, 1, 1)
    ours = chapter.standardised(score)
    for s in range(2):
        z = (score[s] - score[s].mean()) / score[s].flatten().std(correction=1)
        assert_close(ours[s], 1 / (1 + (-z).exp()), rtol=0, atol=1e-7)


def test_scores_that_spread_by_the_released_constant_have_half_their_z_scores(chapter, g):
    score = normal(1, 5, 8, g=g)
    score = (score - score.mean()) / score.std()
    assert_close(chapter.standardised(1e-8 * score), (score / 2).sigmoid(), rtol=1e-6, atol=0)


def test_ingredients_of_different_shapes_are_refused(chapter):
    x = torch.ones(2, 3, 4)
    with pytest.raises(ValueError, match="share one shape"):
        chapter.dai(x, x, x, torch.ones(2, 3, 1))


# The mask


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.99, 1.0])
def test_the_lowest_scores_go_and_their_number_is_rounded_down(chapter, g, sparsity):
    scores = normal(3, 37, g=g)
    keep = chapter.keep_highest(scores, sparsity)
    removed = int(sparsity * 37)
    assert (keep.sum(1) == 37 - removed).all()
    for s in range(3):
        assert set(np.flatnonzero(keep[s] == 0)) == set(np.argsort(scores[s].numpy())[:removed])


def test_a_sparsity_or_score_that_makes_no_sense_is_refused(chapter):
    for sparsity, scores in ((1.5, torch.ones(3)), (-0.1, torch.ones(3)), (0.5, torch.tensor([1.0, math.nan]))):
        with pytest.raises(ValueError, match="must lie in"):
            chapter.keep_highest(scores, sparsity)


def test_ranking_the_network_equals_global_magnitude_pruning_of_torch(chapter, encoders):
    names = chapter.mlp_names(encoders.params)
    sizes = {k: encoders.params[k].abs() for k in names}
    ours = chapter.keep_in_network(sizes, 0.4)
    for s in range(2):
        model = unstack(encoders, s)
        modules = [(model.get_submodule(k.removesuffix(".weight")), "weight") for k in names]
        amount = int(0.4 * sum(p[0].numel() for p in sizes.values()))
        torch_prune.global_unstructured(modules, torch_prune.L1Unstructured, amount=amount)
        for k, (module, _) in zip(names, modules, strict=True):
            assert torch.equal(ours[k][s], module.weight_mask.double())


def test_one_network_is_ranked_like_many(chapter, g):
    scores = {"a": positive(2, 4, 6, g=g), "b": positive(2, 6, 3, g=g)}
    both, first = (
        chapter.keep_in_network(scores, 0.4),
        chapter.keep_in_network({k: s[:1] for k, s in scores.items()}, 0.4),
    )
    assert all(torch.equal(first[k], both[k][:1]) for k in scores)


def test_the_three_ways_to_rank_differ_in_where_they_count(chapter, g):
    scores = {"a": positive(2, 4, 6, g=g), "b": 100 * positive(2, 6, 4, g=g)}
    ways = (chapter.keep_in_network, chapter.keep_in_matrix, chapter.keep_in_row)
    whole, matrix, row = (keep(scores, 0.5) for keep in ways)
    assert (whole["a"] == 0).all()  # the louder matrix takes all
    assert (whole["b"] == 1).all()
    for k, s in scores.items():
        assert (matrix[k].sum((1, 2)) == 12).all()
        assert (row[k].sum(-1) == s.shape[-1] // 2).all()
        assert matrix[k].shape == s.shape
        for x in range(2):
            threshold = s[x].flatten().sort().values[12]
            assert torch.equal(matrix[k][x] > 0, s[x] >= threshold)


def test_pruning_changes_weights_and_masks_and_nothing_else(chapter, encoders, triplets, g):
    names = chapter.mlp_names(encoders.params)
    keep = {k: (torch.rand(encoders.params[k].shape, generator=g) < 0.5).double() for k in names}
    pruned = chapter.prune(encoders, keep)
    for k, p in encoders.params.items():
        assert torch.equal(pruned.params[k], p * keep.get(k, 1))
    for k in names:
        assert torch.equal(pruned.buffers[k.replace("weight", "mask")], keep[k])
    assert set(pruned.buffers) == set(encoders.buffers)
    assert (predict(pruned, triplets, own_data=True) - predict(encoders, triplets, own_data=True)).abs().max() > 1e-3


def test_removed_weights_stay_removed_in_training_and_come_back_without_the_mask(chapter, encoders, triplets, g):
    names = chapter.mlp_names(encoders.params)
    keep = {k: (torch.rand(encoders.params[k].shape, generator=g) < 0.5).double() for k in names}
    pruned = chapter.prune(encoders, keep)
    for start, stays in ((pruned, True), (pruned._replace(buffers=encoders.buffers), False)):
        trained = train_stacked(
            *(start, lambda e, _: chapter.info_nce(e), (triplets, torch.zeros(2, 16))),
            **{"order": minibatches([1, 2], 16, 4, 3), "optimizer": "adamw", "weight_decay": 0.01, "own_data": True},
        ).model
        for k in names:
            assert (trained.params[k][keep[k] == 0] == 0).all() == stays
            assert (trained.params[k] - start.params[k])[keep[k] == 1].abs().min() > 0


def test_the_input_norms_are_those_of_each_matrix(chapter, encoders, triplets):
    ours = chapter.input_norms(encoders, triplets)
    for s in range(2):
        model = unstack(encoders, s)
        x = model.words(triplets[s].flatten(0, 1)) + model.positions
        x = x[:, -1] + model.attention(x)
        for b, mlp in enumerate(model.mlps):
            z = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
            inside = F.silu(mlp.gate(z)) * mlp.up(z)
            for name, inputs in (("gate", z), ("up", z), ("down", inside)):
                expected = inputs.square().sum(0).sqrt()[None]
                assert_close(ours[f"mlps.{b}.{name}.weight"][s], expected, **EXACT)
            x = x + mlp(x)


# The measure


@pytest.mark.parametrize("share", [0.02, 0.3])
def test_ndcg_equals_that_of_scikit_learn(chapter, g, share):
    similarity = normal(40, 60, g=g)
    relevant = torch.rand(40, 60, generator=g) < share
    relevant[:, 0] = True
    theirs = [ndcg_score(r[None].numpy(), s[None].numpy(), k=10) for r, s in zip(relevant, similarity, strict=True)]
    assert_close(chapter.ndcg(similarity, relevant).double(), torch.tensor(theirs).double(), rtol=0, atol=1e-6)


def test_ndcg_is_one_for_a_perfect_and_zero_for_a_useless_ranking(chapter):
    relevant = torch.tensor([[True] * 3 + [False] * 20])
    order = torch.arange(23.0)[None]
    assert chapter.ndcg(-order, relevant).item() == pytest.approx(1)
    assert chapter.ndcg(order, relevant).item() == 0
    second = torch.tensor([[False, True] + [False] * 20])
    assert chapter.ndcg(-order[:, :22], second).item() == pytest.approx(1 / math.log2(3))


def test_each_seed_half_and_register_is_judged_by_itself(chapter, g):
    query = F.normalize(normal(2, 2, 3, 7, 4, g=g), dim=-1)
    document = F.normalize(normal(2, 3, 20, 4, g=g), dim=-1)
    relevant = torch.rand(2, 2, 3, 7, 20, generator=g) < 0.3
    relevant[..., 4] = True
    ours = chapter.judge(query, document, relevant)
    for s in range(2):
        for half in range(2):
            scores, first = [], []
            for r in range(3):
                for q in range(7):
                    truth, cosine = relevant[s, half, r, q].numpy(), (document[s, r] @ query[s, half, r, q]).numpy()
                    scores.append(ndcg_score(truth[None], cosine[None], k=10))
                    first.append(truth[cosine.argmax()])
            assert ours.ndcg[s, half].item() == pytest.approx(np.mean(scores), abs=1e-6)
            assert ours.first[s, half].item() == pytest.approx(np.mean(first), abs=1e-12)


def test_a_query_without_an_answer_is_refused(chapter):
    with pytest.raises(ValueError, match="relevant document for each query"):
        chapter.ndcg(torch.ones(2, 20), torch.zeros(2, 20, dtype=torch.bool))


# The texts


def test_the_second_register_moves_every_word_set_along_one_circle(chapter):
    for seed in range(10):
        for area in chapter.make_world((60, 6), (60, 4), 4, np.random.default_rng(seed)):
            K = len(area.words)
            assert (area.sets[0] == np.arange(K)).all()
            topic, seen = 0, set()
            while topic not in seen:
                seen.add(topic)
                topic = area.sets[1, topic]
            assert len(seen) == K


def test_words_of_a_set_have_dirichlet_weights(chapter):
    area = chapter.make_area(np.tile(np.arange(25), (4000, 1)), np.arange(25), np.random.default_rng(0))
    weights = np.diff(area.weights, prepend=0)
    variance = (1 / 25) * (24 / 25) / (25 * 0.1 + 1)
    assert (np.abs(weights.mean(0) - 1 / 25) <= 5 * np.sqrt(variance / 4000)).all()
    assert weights.var(0).mean() == pytest.approx(variance, rel=0.05)


def test_domain_topics_share_four_words_each_with_general_language(areas):
    general, domain = areas
    assert (general.words < 65).all()
    assert (general.words >= 5).all()
    assert ((domain.words < 65).sum(1) == 4).all()
    assert domain.words.max() < 125
    assert len(np.unique(domain.words[domain.words < 65])) == 16
    assert all(len(set(row)) == 25 for area in areas for row in area.words)
    assert (domain.common >= 65).all()


def test_a_document_begins_with_another_token_than_a_query(chapter, areas):
    topic, register = np.array([0, 5, 2]), np.array([0, 1, 1])
    texts = chapter.write(areas[0], topic, register, False, LENGTH, np.random.default_rng(0))
    assert (texts[:, 0] == chapter.ASK + 1).all()
    assert (texts[:, 1] == chapter.REGISTER + register).all()
    assert len({chapter.END, chapter.ASK, chapter.ASK + 1, chapter.REGISTER, chapter.REGISTER + 1, chapter.WORD}) == 6


def test_which_words_are_common_is_chance(areas):
    for area, first in zip(areas, (5, 65), strict=True):
        assert sorted(area.common) == list(range(first, first + 60))
        assert abs(np.corrcoef(area.common, np.arange(60))[0, 1]) < 0.5  # in order it would be 1


def test_each_domain_topic_has_words_of_its_own(areas):
    for area in areas:
        assert len({tuple(np.sort(row[:21])) for row in area.words}) == len(area.words)  # then come borrowed ones


def test_words_come_from_the_set_with_its_weights_and_from_zipf(chapter, areas):
    area = areas[0]
    N = 20_000
    texts = chapter.write(area, np.full(N, 2), np.ones(N, int), True, 4, np.random.default_rng(5))
    assert (texts[:, 0] == chapter.ASK).all()
    assert (texts[:, 1] == chapter.REGISTER + 1).all()
    assert (texts[:, -1] == chapter.END).all()
    k = area.sets[1, 2]
    zipf = 1 / np.arange(1, 61)
    expected = np.zeros(125)
    expected[area.common] += 0.2 * zipf / zipf.sum()
    expected[area.words[k]] += 0.8 * np.diff(area.weights[k], prepend=0)
    counts = np.bincount(texts[:, 2:-1].ravel(), minlength=125)
    spread = np.sqrt(4 * N * expected * (1 - expected))
    assert (np.abs(counts - 4 * N * expected) <= 5 * spread + 1e-9).all()


def test_the_positive_has_the_topic_and_the_negative_the_words_both_in_the_other_register(chapter, areas, monkeypatch):
    calls = []

    def spy(area, topic, register, query, length, rng):
        calls.append((topic, register, query))
        return np.zeros((len(topic), length + 3), int)

    monkeypatch.setattr(chapter, "write", spy)
    chapter.write_triplets(areas[0], 500, LENGTH, np.random.default_rng(0))
    (t, r, ask), (t_pos, r_pos, ask_pos), (t_neg, r_neg, ask_neg) = calls
    sets = areas[0].sets
    assert set(t) == set(range(6))  # every topic, in both registers
    assert set(r[t == 3]) == {0, 1}
    assert (ask, ask_pos, ask_neg) == (True, False, False)
    assert (t_pos == t).all()
    assert (r_pos == 1 - r).all()
    assert (r_neg == 1 - r).all()
    assert (t_neg != t).all()
    assert (sets[r_neg, t_neg] == sets[r, t]).all()


def test_test_queries_are_new_and_search_the_other_register(chapter, areas):
    rng = np.random.default_rng(3)
    seen = chapter.write_triplets(areas[0], 4000, LENGTH, rng)[:, 0]
    test = chapter.write_test(areas[0], 30, 50, LENGTH, seen, rng)
    known = {tuple(row) for row in seen}
    assert not any(tuple(q) in known for q in test.queries.reshape(-1, LENGTH + 3))
    drawn = chapter.write(areas[0], rng.integers(6, size=500), np.zeros(500, int), True, LENGTH, rng)
    assert any(tuple(q) in known for q in drawn)  # so the filter had something to do
    for r in range(2):
        assert (test.queries[:, r, :, 1] == chapter.REGISTER + r).all()
        assert (test.documents[r, :, 1] == chapter.REGISTER + 1 - r).all()
    assert len({*test.queries[..., 0].flat} | {*test.documents[..., 0].flat}) == 2  # queries begin in one way,
    assert {*test.queries[..., 0].flat}.isdisjoint(test.documents[..., 0].flat)  # documents in another
    assert test.relevant.shape == (2, 2, 30, 50)
    assert test.relevant.any(-1).all()
    topics = test.relevant[..., :6].argmax(-1)  # the first six documents have one topic each
    assert all(set(topics[half, r]) == set(range(6)) for half in range(2) for r in range(2))
    assert (test.relevant.sum(-1) <= 9).all()  # 50 documents over 6 topics


def test_relevant_documents_use_the_word_set_of_the_query_topic(chapter, areas):
    area = areas[0]
    first = chapter.write_test(area, 200, 60, 40, np.zeros((1, 43), int), np.random.default_rng(4))
    seen = first.queries.reshape(-1, 43)[::3]  # the same draw again, now with holes
    test = chapter.write_test(area, 200, 60, 40, seen, np.random.default_rng(4))
    laws = np.full((6, 125), 0.2 / 60)  # of each word set, common words taken as equally common
    np.put_along_axis(laws, area.words, 0.8 * np.diff(area.weights, prepend=0) + 0.2 / 60, 1)

    def set_of(text: np.ndarray) -> int:
        return int(np.argmax([np.log(law[text[2:-1]]).sum() for law in laws]))

    hits = total = 0
    for r in range(2):
        for q in range(0, 200, 10):
            topic = area.sets[r].tolist().index(set_of(test.queries[1, r, q]))
            for d in np.flatnonzero(test.relevant[1, r, q]):
                hits += set_of(test.documents[r, d]) == area.sets[1 - r, topic]
                total += 1
    assert hits > 0.9 * total


def test_texts_too_short_to_be_new_are_refused(chapter, areas):
    every = np.array([[1, 3 + r, w, 0] for r in range(2) for w in range(5, 125)])
    for seen in (every, every[20:]):  # all is known, or all but twenty texts
        with pytest.raises(ValueError, match="longer texts"):
            chapter.write_test(areas[0], 5, 12, 1, seen, np.random.default_rng(0))
