"""The method of `mbat-json` against explicit products, naive loops, SciPy, NumPy's FFT, limits and mistakes."""

import hashlib
import math
import random
from collections import Counter

import numpy as np
import pytest
import torch
from scipy import stats
from torch.testing import assert_close

DOCUMENT = {"a": {"b": "x", "c": ["y", 40, True]}, "b": {"a": "x"}, "n": None}
TRANSPOSED = ("orthogonal", "Gaussian", "signs", "signed permutation", "elementwise", "convolution")


def random_tree(r: random.Random, depth: int = 0):
    """Objects, lists and leaves of all types."""
    if depth == 3 or (depth and r.random() < 0.3):
        return r.choice(["u", "v", "w", 10, 55.5, True, False, None])
    if r.random() < 0.5:
        return [random_tree(r, depth + 1) for _ in range(r.randint(0, 3))]
    return {k: random_tree(r, depth + 1) for k in r.sample("abc", r.randint(0, 3))}


def test_haar_matrices_are_orthogonal_and_distributed_as_scipys(chapter, g):
    ours = torch.stack([chapter.haar(4, g, torch.float64) for _ in range(600)])
    assert_close(ours.mT @ ours, torch.eye(4, dtype=torch.float64).expand(600, 4, 4), rtol=0, atol=1e-13)
    theirs = stats.ortho_group.rvs(4, size=600, random_state=np.random.default_rng(0))
    for entry in ((0, 0), (3, 3), (1, 2)):
        assert stats.ks_2samp(ours[:, *entry].numpy(), theirs[:, *entry]).pvalue > 1e-3
    traces = [m.diagonal(dim1=-2, dim2=-1).sum(-1).numpy() for m in (ours, torch.from_numpy(theirs))]
    assert stats.ks_2samp(*traces).pvalue > 1e-3


def test_a_haar_matrix_takes_a_gaussian_one_to_a_triangle_with_positive_diagonal(chapter, g):
    twin = g.clone_state()
    M, G = chapter.haar(6, g, torch.float64), chapter.gaussian(6, twin, torch.float64)
    R = M.T @ G  # signs on rows instead of columns would spoil the triangle
    assert_close(R, R.triu(), rtol=0, atol=1e-12)
    assert (R.diagonal() > 0).all()


def test_without_the_sign_fix_the_factor_q_is_not_haar(g):
    raw = torch.linalg.qr(torch.randn(600, 4, 4, generator=g, dtype=torch.float64)).Q
    assert raw[:, 0, 0].mean().abs() > 0.3  # the fixed one has mean zero, standard error 0.02


def test_random_matrices_keep_squared_lengths_on_average(chapter, g):
    for draw in (chapter.gaussian, chapter.signs):
        M = draw(200, g, torch.float64)
        assert M.square().sum(0).mean().item() == pytest.approx(1, abs=0.03)
        assert abs(M.mean().item()) < 5 / (200 * 200**0.5)
    assert set(chapter.signs(16, g, torch.float64).unique().tolist()) == {-0.25, 0.25}
    assert set(chapter.sign_vector(50, g, torch.float64).unique().tolist()) == {-1.0, 1.0}
    v = chapter.unit_vector(300, g, torch.float64)
    assert v.norm().item() == pytest.approx(1) and abs(v.mean().item()) < 5 / 300


def test_binding_is_mv_and_not_its_transpose(chapter, g):
    M, v = (torch.randn(*shape, generator=g, dtype=torch.float64) for shape in ((5, 5), (5,)))
    expected = torch.tensor([sum(M[i, j] * v[j] for j in range(5)) for i in range(5)])
    assert_close(chapter.multiply(M, v[None])[0], expected)
    assert_close(chapter.multiply_back(M.T.contiguous(), v[None])[0], expected)


@pytest.mark.parametrize("kind", TRANSPOSED)
def test_unbinding_is_the_transpose_of_binding(chapter, g, kind):
    space = chapter.Space(32, 0, kind)
    u, v = torch.randn(2, 3, 32, generator=g, dtype=torch.float64)
    bound, back = space.bind(("key", "k"), u), space.unbind(("key", "k"), v)
    assert bound.shape == u.shape
    assert_close((bound * v).sum(1), (u * back).sum(1))


def test_inversion_undoes_a_gaussian_binding(chapter, g):
    space, v = chapter.Space(32, 0, "Gaussian, inverted"), torch.randn(3, 32, generator=g, dtype=torch.float64)
    M = space.role(("k",))[0]
    assert_close(space.bind(("k",), v), v @ M.T)
    assert_close(space.unbind(("k",), v), torch.linalg.solve(M, v.T).T)


def test_elementwise_and_circular_binding_are_those_of_the_literature(chapter, g):
    r, v = torch.randn(2, 9, generator=g, dtype=torch.float64)
    assert_close(chapter.elementwise(r, v), r * v)
    slow = torch.stack([sum(r[j] * v[(i - j) % 9] for j in range(9)) for i in range(9)])
    fft = np.fft.ifft(np.fft.fft(r.numpy()) * np.fft.fft(v.numpy())).real
    assert_close(chapter.convolve(r, v), slow)
    assert_close(chapter.convolve(r, v), torch.from_numpy(fft))


@pytest.mark.parametrize("kind", ["orthogonal", "signed permutation", "elementwise"])
def test_lengths_and_angles_survive_any_depth(chapter, g, kind):
    space = chapter.Space(24, 0, kind)
    at = V = torch.randn(5, 24, generator=g, dtype=torch.float64)
    for level in range(30):
        at = space.bind(("level", level), at)
    assert_close(at @ at.T, V @ V.T, rtol=0, atol=1e-12)
    assert_close(chapter.lookup(space, at, tuple(("level", k) for k in reversed(range(30)))), V)


def test_a_signed_permutation_is_one(chapter, g):
    r = chapter.signed_permutation(12, g, torch.float64)
    M = chapter.permute(r, torch.eye(12, dtype=torch.float64))
    assert (M != 0).sum(0).tolist() == (M != 0).sum(1).tolist() == [1] * 12
    assert set(M[M != 0].tolist()) == {-1.0, 1.0}


def test_names_decide_what_is_drawn(chapter):
    one, other, third = (chapter.Space(8, seed) for seed in (0, 0, 1))
    other.item(("string", "z"))  # drawing order must not matter
    for ask in (lambda s: s.item(("string", "x")), lambda s: s.role(("key", "x"))):
        assert_close(ask(one), ask(other), rtol=0, atol=0)
        assert_close(ask(one), ask(chapter.Space(8)), rtol=0, atol=0)  # seed 0 unless told otherwise
        assert (ask(one) - ask(third)).abs().max() > 0.1
    assert (one.item(("constant", True)) - one.item(("string", "True"))).abs().max() > 0.1
    flat = chapter.Space(8, 0, "convolution")  # there roles are drawn as items are
    assert (flat.item(("key", "x")) - flat.role(("key", "x"))).abs().max() > 0.1
    digest = hashlib.blake2b(b"('a', 1)", digest_size=8).hexdigest()
    assert chapter.stream("a", 1).initial_seed() == int(digest, 16) // 2


@pytest.mark.parametrize(
    ("d", "kind", "said"), [(8, "matrix", "kind must be one of orthogonal.*got 'matrix'"), (1, "signs", "d must be")]
)
def test_a_wrong_space_is_named(chapter, d, kind, said):
    with pytest.raises(ValueError, match=said):
        chapter.Space(d, 0, kind)


def test_leaves_become_symbols_by_type(chapter):
    assert chapter.symbols("big dog") == [(("string", "big dog"), 1.0)]
    soft = dict(chapter.symbols("Big dog", soft=True))
    assert soft == pytest.approx({("string", "big"): 0.5**0.5, ("string", "dog"): 0.5**0.5})
    assert chapter.symbols("", soft=True) == chapter.symbols("") == [(("string", ""), 1.0)]
    assert chapter.symbols(True) == [(("constant", True), 1.0)] != chapter.symbols(1)
    assert chapter.symbols(None) == [(("constant", None), 1.0)]


def test_soft_strings_are_near_where_they_share_words(chapter):
    space = chapter.Space(64)
    a, b, c = (space.item(("string", w)) for w in ("big", "dog", "cat"))
    for text, vector in (("Big dog", a + b), ("big cat", a + c)):
        assert_close(chapter.leaf_vector(space, text, soft=True), vector / 2**0.5)
    assert_close(chapter.leaf_vector(space, "big dog"), space.item(("string", "big dog")))


@pytest.mark.parametrize(
    ("x", "passed"), [(-5, 0), (0, 0), (1.5, 0), (1.5625, 1), (4.68, 1), (4.69, 2), (50, 16), (98.4375, 32), (1000, 32)]
)
def test_a_number_passes_its_thresholds(chapter, x, passed):
    found = chapter.symbols(x)
    assert [symbol for symbol, _ in found] == [("level", j) for j in range(passed + 1)]
    assert sum(weight**2 for _, weight in found) == pytest.approx(1)
    assert len({weight for _, weight in found}) == 1


@pytest.mark.parametrize("x", [math.nan, math.inf, (1, 2), {1}])
def test_what_is_no_leaf_is_named(chapter, x):
    with pytest.raises(ValueError, match="a leaf must be a string, finite number, bool or None; got"):
        chapter.symbols(x)


def test_words_are_read_from_the_outside_and_places_count_from_one(chapter):
    a, b, s = ("key", "a"), ("key", "b"), chapter.NEXT
    assert chapter.leaves({"a": {"b": ["x", "y"]}}) == [((a, b, s), "x"), ((a, b, s, s), "y")]
    assert chapter.leaves([{"a": 1}, [2]]) == [((s, a), 1), ((s, s, s), 2)]
    assert chapter.leaves("x") == [((), "x")] and chapter.leaves({"a": [], "b": {}}) == []


def explicit(chapter, space, x) -> torch.Tensor:
    """E(x) with matrices multiplied out, leaf by leaf, by a walk of its own."""
    S, zero = space.role(("next",)), torch.zeros(space.d, dtype=torch.float64)

    def walk(x, M):
        if isinstance(x, dict):
            return sum(
                (walk(child, M @ space.role(("key", k))) for k, child in x.items()), torch.zeros(space.d).double()
            )
        if isinstance(x, list):
            powers = (torch.linalg.matrix_power(S, i + 1) for i in range(len(x)))
            return sum((walk(child, M @ P) for child, P in zip(x, powers, strict=True)), zero)
        if isinstance(x, bool) or x is None:
            return M @ space.item(("constant", x))
        if isinstance(x, str):
            return M @ space.item(("string", x))
        thresholds = [100 / 64 + 100 / 32 * j for j in range(32)]
        p = sum(t <= x for t in thresholds)
        return M @ sum(space.item(("level", j)) for j in range(p + 1)) / math.sqrt(p + 1)

    return walk(x, torch.eye(space.d, dtype=torch.float64))


def test_both_encoders_are_the_sum_of_explicit_products(chapter):
    r = random.Random(1)
    documents = [DOCUMENT, {}, [], "x", *(random_tree(r) for _ in range(25))]
    for kind in ("orthogonal", "Gaussian"):
        space = chapter.Space(12, 0, kind)
        expected = torch.stack([explicit(chapter, space, x) for x in documents])
        assert_close(torch.stack([chapter.encode(space, x) for x in documents]), expected)
        assert_close(chapter.encode_all(space, documents), expected)


def test_a_reversed_word_and_places_from_zero_are_told_apart(chapter):
    space = chapter.Space(64)
    right = chapter.encode(space, {"a": {"b": ["x", "y"]}})
    a, b, s = ("key", "a"), ("key", "b"), chapter.NEXT
    x, y = (space.item(("string", v)) for v in "xy")
    reversed_word = space.bind(b, space.bind(a, space.bind(s, x) + space.bind(s, space.bind(s, y))))
    from_zero = space.bind(a, space.bind(b, x + space.bind(s, y)))
    for wrong in (reversed_word, from_zero):
        assert (right - wrong).norm() > 1


def test_the_kernel_is_the_naive_double_loop(chapter):
    r = random.Random(2)
    documents = [random_tree(r) for _ in range(20)] + [{"a": ["x", "x"]}, {"a": ["x", "x"]}]

    def similarity(x, y):
        numbers = [isinstance(v, int | float) and not isinstance(v, bool) for v in (x, y)]
        if all(numbers):
            p, q = sorted(sum(v >= 100 / 64 + 100 / 32 * j for j in range(32)) + 1 for v in (x, y))
            return math.sqrt(p / q)
        return float(type(x) is type(y) and x == y)

    for one in documents:
        for other in documents:
            pairs = [(p, q) for p in chapter.leaves(one) for q in chapter.leaves(other)]
            slow = sum(similarity(p[1], q[1]) for p, q in pairs if p[0] == q[0])
            assert chapter.kernel(chapter.features(one), chapter.features(other)) == pytest.approx(slow)


def test_colliding_words_count_with_their_multiplicity(chapter):
    nested, flat = chapter.features([["x"], "x"]), chapter.features(["w", "x"])  # S² x twice against once
    assert nested[(chapter.NEXT,) * 2, ("string", "x")] == 2
    assert chapter.kernel(nested, flat) == 2 and chapter.kernel(nested, nested) == 4
    assert chapter.kernel(Counter(), flat) == 0


def test_inner_products_are_unbiased_for_the_kernel_with_the_predicted_spread(chapter):
    a = {"a": "x", "b": {"a": "y", "c": "z"}, "c": 30}
    b = {"a": "x", "b": {"a": "y", "c": "u"}, "c": 60}
    found = []
    for seed in range(400):
        E = chapter.encode_all(chapter.Space(16, seed), [a, b])
        found.append((E[0] @ E[1]).item())
    K = chapter.kernel(chapter.features(a), chapter.features(b))
    assert K == pytest.approx(2 + math.sqrt(11 / 20))  # 10 and 19 thresholds passed
    assert abs(np.mean(found) - K) < 4 * np.std(found) / 20
    assert np.std(found) == pytest.approx(math.sqrt(4 * 4 / 16), rel=0.25)


def test_equal_documents_by_kernel_have_equal_vectors_in_the_limit(chapter):
    E = chapter.encode_all(chapter.Space(1024, dtype=torch.float32), [{"a": "x", "b": "y"}, {"a": "x", "b": "z"}])
    assert E.dtype == torch.float32
    assert (E @ E.T - torch.tensor([[2.0, 1.0], [1.0, 2.0]])).abs().max() < 5 * 2 / 1024**0.5


def test_a_lookup_returns_the_part_and_clean_up_finds_the_item(chapter):
    space = chapter.Space(400)
    alone = chapter.encode(space, {"a": {"b": ["x", "y"]}})
    word = (("key", "a"), ("key", "b"))
    assert_close(chapter.lookup(space, alone, word), chapter.encode(space, ["x", "y"]))
    items = torch.stack([space.item(("string", v)) for v in "uvwxyz"])
    found = chapter.lookup(space, alone, (*word, chapter.NEXT, chapter.NEXT))
    assert chapter.cosines(found, items).argmax() == 4
    swapped = chapter.lookup(space, alone, word[::-1])
    assert (swapped - chapter.encode(space, ["x", "y"])).norm() > 1


def test_cosines_are_inner_products_of_unit_vectors(chapter, g):
    V, items = torch.randn(2, 4, 7, generator=g, dtype=torch.float64)
    slow = [[float(v @ w / (v.norm() * w.norm())) for w in items] for v in V]
    assert_close(chapter.cosines(V, items), torch.tensor(slow, dtype=torch.float64))


def test_normalised_objects_have_length_one_and_shrink_what_is_inside(chapter):
    space = chapter.Space(64)
    inner = {"c": "y", "d": "z"}
    E = chapter.encode(space, {"a": inner, "b": "x"}, normalise=True)
    part = chapter.encode(space, inner)
    by_hand = space.bind(("key", "a"), part / part.norm()) + space.bind(("key", "b"), space.item(("string", "x")))
    assert_close(E, by_hand / by_hand.norm())
    assert chapter.encode(space, {"a": {}}, normalise=True).norm() == 0
    listed, S = chapter.encode(space, [inner, "x"], normalise=True), ("next",)
    by_hand = space.bind(S, part / part.norm() + space.bind(S, space.item(("string", "x"))))
    assert_close(listed, by_hand / by_hand.norm())


@pytest.mark.parametrize("kind", ["elementwise", "convolution"])
def test_commutative_bindings_confuse_swapped_keys_and_orthogonal_ones_do_not(chapter, kind):
    documents = [{"a": {"b": "x"}}, {"b": {"a": "x"}}]
    for name, same in ((kind, True), ("orthogonal", False), ("signed permutation", False)):
        E = chapter.encode_all(chapter.Space(256, 0, name), documents)
        cosine = chapter.cosines(E, E)[0, 1].item()
        assert (abs(cosine - 1) < 1e-12) if same else abs(cosine) < 4 / 16


def test_moments_are_exact_in_one_dimension_and_known_in_the_limit(chapter):
    for L in range(6):
        assert chapter.second_moment(L, 1) == 3**L  # E z⁴ = 3 for each of L Gaussian numbers
        assert chapter.second_moment(L, 1e9) == pytest.approx(L + 1)
    assert chapter.second_moment(1, 512) == pytest.approx(2 + 1 / 512)


def test_moments_agree_with_draws_in_three_dimensions(chapter, g):
    G = torch.randn(40_000, 2, 3, 3, generator=g, dtype=torch.float64) / 3**0.5
    A = G[:, 1] @ G[:, 0]
    squares = (A.mT @ A[:, :, :1]).square().sum((1, 2))
    assert abs(squares.mean() - chapter.second_moment(2, 3)) < 4 * squares.std() / 200


def test_the_cosine_after_binding_and_transposing_is_the_law(chapter):
    space = chapter.Space(512, 3, "Gaussian")
    V = at = torch.stack([space.item(("probe", i)) for i in range(8)])
    for k in range(4):
        at = space.bind(("level", k), at)
    back = chapter.lookup(space, at, tuple(("level", k) for k in (3, 2, 1, 0)))
    assert chapter.cosines(back, V).diagonal().mean().item() == pytest.approx(5**-0.5, abs=0.03)


def test_the_encoder_tells_types_and_positions_apart(chapter):
    space = chapter.Space(400)
    documents = [{"a": True}, {"a": 1}, {"a": "True"}, {"a": None}, ["x", "y"], ["y", "x"]]
    E = chapter.encode_all(space, documents)
    assert (chapter.cosines(E, E) - torch.eye(6, dtype=torch.float64)).abs().max() < 0.25


def test_two_dimensions_are_enough_for_a_space(chapter):
    assert chapter.Space(2).item(("string", "x")).norm().item() == pytest.approx(1)
