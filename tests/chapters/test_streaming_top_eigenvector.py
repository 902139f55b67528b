"""The method of `streaming-top-eigenvector` against naive loops, closed forms, peers and mistakes."""

import math

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import svds
from torch import Tensor
from torch.testing import assert_close


def rows_of(g, n: int, d: int, first: float = 1.0) -> Tensor:
    """Gaussian rows (n, d), the first column scaled by √first."""
    A = torch.randn(n, d, generator=g, dtype=torch.float64)
    A[:, 0] *= first**0.5
    return A


def top(A: Tensor) -> Tensor:
    return torch.from_numpy(np.linalg.svd(A.numpy(), full_matrices=False)[2][0].copy())


def away(a: Tensor, b: Tensor) -> float:
    """Distance of two directions, whatever their signs."""
    return min((a - b).norm().item(), (a + b).norm().item())


def run(chapter, A: Tensor, start: Tensor, **kwargs):
    one = chapter.OnePass(len(A), start, **kwargs)
    one.feed(A)
    return one


def naive(A: Tensor, z: Tensor, t: int, tau: float, cap: int) -> tuple[Tensor, float, list[int], int]:
    """One pass by definition, a row at a time: z, λ, positions stored, most rows ever stored."""
    (n, d), squares = A.shape, (A**2).sum(1).tolist()
    z, y, energy, lam, held, peak = z / z.norm(), torch.zeros(A.shape[1]).double(), 0.0, 0.0, [], 0

    def spend(k):
        nonlocal y, energy
        held.remove(k)
        y = y + A[k] * (A[k] @ z)
        energy += (A[k] @ z).item() ** 2

    def heavy(k, among, seen):
        return squares[k] >= tau / d * (n / seen) * sum(squares[j] for j in among)

    for i in range(n):
        seen = i + 1
        held.append(i)
        if i < n // (4 * t):
            while held:
                k = min(held, key=squares.__getitem__)
                among = [j for j in range(seen) if j not in held or j == k]
                if len(held) <= cap and (len(held) == 1 or heavy(k, among, seen)):
                    break
                spend(k)
        elif len(held) > cap or not heavy(i, range(seen), seen):
            spend(i)
        peak = max(peak, len(held))
        if seen in [(j + 1) * n // t for j in range(t)]:
            for k in [k for k in held if not heavy(k, range(seen), seen)]:
                spend(k)
            if y.norm() > 0:
                z, lam = y / y.norm(), t * energy
            y, energy = torch.zeros_like(y), 0.0
    return z, lam, held, peak


def spiky(g, n: int = 400, d: int = 12, heavy: int = 9) -> Tensor:
    A = rows_of(g, n, d, 4.0)
    A[torch.randperm(n, generator=g)[:heavy]] *= 8
    return A


@pytest.mark.parametrize(
    ("t", "tau", "cap"), [(5, 0.25, 400), (8, 0.1, 400), (5, 0.25, 4), (5, 0.25, 0), (3, 1.0, 400)]
)
def test_one_pass_is_the_naive_pass(chapter, g, t, tau, cap):
    for _ in range(4):
        A, start = spiky(g), rows_of(g, 12, 1)
        z, lam, held, peak = naive(A, start[:, 0], t, tau, cap)
        one = run(chapter, A, start, t=t, tau=tau, cap=cap)
        out = chapter.finish(one)
        assert away(out.light, z) < 1e-12
        assert out.lam == pytest.approx(lam, rel=1e-12)
        assert {tuple(a.tolist()) for _, a in one.buffer.held} == {tuple(A[k].tolist()) for k in held}
        assert (out.held, one.buffer.peak, out.used) == (len(held), peak, len(A) - len(held))


def test_heavy_first_rows_are_kept_through_the_burn_in(chapter, g):
    A, start = rows_of(g, 1600, 8), rows_of(g, 8, 1)
    A[[0, 60, 61, 1000]] *= 30
    one = run(chapter, A, start, t=5)
    assert {a[0].item() for _, a in one.buffer.held} == {A[k, 0].item() for k in (0, 60, 61, 1000)}


def test_dismissal_starts_with_the_smallest_row_which_then_counts_against_the_next(chapter):
    a, b, c = torch.eye(3).double()
    held = [(10.0, a), (4.0, b), (1.0, c)]
    left = chapter.dismissed(held, 3.5, 0.5, 9)  # 1 < (3.5 + 1)/2, then 4 < (4.5 + 4)/2
    assert [row.argmax().item() for row in left] == [2, 1] and [square for square, _ in held] == [10.0]
    held = [(10.0, a), (4.0, b), (1.0, c)]
    assert len(chapter.dismissed(held, 2.9, 0.5, 9)) == 1 and len(held) == 2  # 4 ≥ (3.9 + 4)/2
    assert len(chapter.dismissed(held, 0.0, 0.5, 1)) == 1 and len(chapter.dismissed(held, 0.0, 0.5, 0)) == 1


def test_a_row_is_heavy_from_the_threshold_of_the_formula_on(chapter):
    rows = torch.zeros(99, 4).double()
    rows[:, 0] = 1
    for factor, kept in ((1.001, 1), (0.999, 0)):  # ‖a‖² = τ F̂²/d, F̂² = 99 + ‖a‖² after row 100 of 100
        buffer = chapter.Buffer(100, 4, 0.25, 9)
        buffer.later(rows)
        buffer.later(torch.full((1, 4), 0.5).double() * (factor * 99 * 0.25 / 4 / (1 - 0.25 / 4)) ** 0.5)
        assert len(buffer.held) == kept


def test_a_row_that_stops_being_heavy_is_spent_at_the_end_of_its_chunk(chapter, g):
    A, start = 0.01 * rows_of(g, 400, 8), rows_of(g, 8, 1)
    A[200:] *= 100
    A[30] *= 20
    one = chapter.OnePass(400, start, t=4)
    one.feed(A[:100])
    assert len(one.buffer.held) == 1
    one.feed(A[100:299])
    assert len(one.buffer.held) >= 1 and one.buffer.held[0][1][0] == A[30, 0]
    one.feed(A[299:])
    assert all(a[0] != A[30, 0] for _, a in one.buffer.held)
    out = chapter.finish(one)
    assert out.used + out.held == 400
    assert out.held < one.buffer.peak and out.floats == (2 + one.buffer.peak) * 8 + 1 + 4


def test_the_pieces_in_which_rows_come_do_not_matter(chapter, g):
    A, start = spiky(g), rows_of(g, 12, 3)
    whole = chapter.finish(run(chapter, A, start))
    for size in (1, 7, 399):
        one = chapter.OnePass(400, start)
        for piece in A.split(size):
            one.feed(piece)
        out = chapter.finish(one)
        assert away(out.v, whole.v) < 1e-12 and out[3:] == pytest.approx(whole[3:], rel=1e-12)


def test_one_chunk_is_one_power_step(chapter, g):
    A, start = rows_of(g, 300, 10), rows_of(g, 10, 1)
    out = chapter.finish(run(chapter, A, start, t=1, cap=0))
    step = A.T @ (A @ start[:, 0])
    unit = start[:, 0] / start.norm()
    assert away(out.light, step / step.norm()) < 1e-12
    assert out.lam == pytest.approx((A @ unit).square().sum().item(), rel=1e-12)


def test_a_chunk_without_light_rows_changes_neither_direction_nor_energy(chapter, g):
    A, start = rows_of(g, 300, 8), rows_of(g, 8, 1)
    before = chapter.finish(run(chapter, A[:225], start, t=3, cap=0))
    A[225:] = 0
    out = chapter.finish(run(chapter, A, start, t=4, cap=0))
    assert away(out.light, before.light) < 1e-12
    assert out.lam == pytest.approx(before.lam * 4 / 3, rel=1e-12) and out.lam > 0


def test_many_copies_of_one_chunk_are_the_power_method(chapter, g):
    block, start = rows_of(g, 60, 10, 9.0), rows_of(g, 10, 1)
    A = block.repeat(30, 1)
    out = chapter.finish(run(chapter, A, start, t=30, cap=0))
    assert away(out.v, top(A)) < 1e-9
    assert out.lam == pytest.approx(torch.linalg.matrix_norm(A, 2).item() ** 2, rel=1e-9)


def test_columns_are_orthogonal_iteration_and_rayleigh_ritz(chapter, g):
    block, start = rows_of(g, 60, 10), rows_of(g, 10, 4)
    out = chapter.finish(run(chapter, block.repeat(5, 1), start, t=5, cap=0))
    M = block.T @ block
    Q = torch.linalg.qr(torch.linalg.matrix_power(M, 4) @ start)[0]
    w, W = torch.linalg.eigh(Q.T @ M @ Q)
    step = M @ Q @ W[:, -1]
    assert away(out.light, step / step.norm()) < 1e-9
    assert out.lam == pytest.approx(5 * w[-1].item(), rel=1e-9)
    single = chapter.finish(run(chapter, block.repeat(5, 1), start[:, :1], t=5, cap=0))
    assert away(out.light, top(block)) < away(single.light, top(block))


def test_without_light_rows_the_answer_is_that_of_the_buffer(chapter, g):
    A, start = rows_of(g, 50, 9), rows_of(g, 9, 1)
    out = chapter.finish(run(chapter, A, start, tau=0.0))
    assert (out.held, out.lam, out.used) == (50, 0.0, 0)
    for v in (out.v, out.heavy):
        assert away(v, top(A)) < 1e-12


def test_without_heavy_rows_the_answer_is_the_light_direction(chapter, g):
    A, start = rows_of(g, 2000, 8, 9.0), rows_of(g, 8, 1)
    out = chapter.finish(run(chapter, A, start))
    assert out.held == 0 and out.heavy is None and away(out.v, out.light) < 1e-12
    assert chapter.error(out.v, top(A)) < 0.02


def test_the_combination_is_the_top_eigenvector_of_the_sum(chapter, g):
    H, z = rows_of(g, 5, 7), rows_of(g, 7, 1)[:, 0]
    z = z / z.norm()
    for lam in (0.0, 3.0, 500.0):
        _, V = torch.linalg.eigh(H.T @ H + lam * torch.outer(z, z))
        assert away(chapter.combine(H, z, lam), V[:, -1]) < 1e-10


def test_storing_heavy_rows_helps_and_each_candidate_is_worse(chapter, g):
    n, d, R = 4000, 32, 32.0
    light = rows_of(g, n, d, R / 2) / n**0.5
    noise = rows_of(g, 16, d) * 0.7 / d**0.5
    noise[:, 0] = (R / 32) ** 0.5
    A = torch.cat([light, noise])[torch.randperm(n + 16, generator=g)]
    start = rows_of(g, d, 1)
    out, v = chapter.finish(run(chapter, A, start)), top(A)
    everything = chapter.finish(run(chapter, A, start, cap=0))
    best = chapter.error(out.v, v)
    assert out.held == 16
    assert best < 0.5 * min(chapter.error(w, v) for w in (out.light, out.heavy, everything.v))


def test_the_account_of_memory(chapter, g):
    A = spiky(g)
    for b in (1, 3):
        one = run(chapter, A, rows_of(g, 12, b))
        assert chapter.finish(one).floats == (2 * b + one.buffer.peak) * 12 + b * b + 4
    assert run(chapter, A, rows_of(g, 12, 1), cap=3).buffer.peak == 3


def test_thinning_is_unbiased_and_keeps_the_share_it_promises(chapter, g):
    A = rows_of(g, 3000, 6) * torch.linspace(0.2, 2, 3000).double()[:, None]
    F2, C = A.square().sum().item(), 20.0
    p = (C * 6 * math.log(6) * A.square().sum(1) / F2).clamp(max=1)
    grams, counts = [], []
    for _ in range(60):
        kept = chapter.thinned(A, F2, C, g)
        grams.append(kept.T @ kept)
        counts.append(len(kept))
    spread = p.mul(1 - p).sum().sqrt().item() / 60**0.5
    assert abs(np.mean(counts) - p.sum().item()) < 5 * spread
    assert 0.02 < p.mean() < 0.3
    exact = A.T @ A
    assert ((torch.stack(grams).mean(0) - exact).abs().max() < 0.06 * exact.diagonal().max()).item()
    assert_close(chapter.thinned(A[:5], 1e-9, C, g), A[:5])  # p = 1: nothing is lost


def test_a_thinned_pass_still_finds_the_direction(chapter, g):
    A, start = rows_of(g, 20_000, 8, 16.0), rows_of(g, 8, 1)
    out = chapter.finish(run(chapter, A, start, thin=30.0, generator=g))
    assert chapter.error(out.v, top(A)) < 0.05
    expected = 30 * 8 * math.log(8)
    assert abs(out.used - expected) < 0.15 * expected


@pytest.mark.parametrize("k", [1, 5, 32, 200])
def test_oja_in_blocks_is_oja_row_by_row(chapter, g, k):
    A, start = rows_of(g, 200, 9, 4.0), rows_of(g, 9, 1)[:, 0]
    eta = torch.tensor([1e-3, 0.02, 0.3]).double()
    fast = chapter.Oja(start, eta)
    fast.feed(A[:60], k)
    fast.feed(A[60:], k)
    for j, step in enumerate(eta):
        v, growth = start / start.norm(), 0.0
        for a in A:
            v = v + step * (a @ v) * a
            growth, v = growth + v.norm().log().item(), v / v.norm()
        assert_close(fast.V[j], v, rtol=0, atol=1e-9)
        assert fast.growth[j].item() == pytest.approx(growth, rel=1e-10)


def test_oja_takes_several_streams_each_with_its_own_steps(chapter, g):
    A, start = torch.stack([rows_of(g, 40, 5) for _ in range(3)]), rows_of(g, 3, 5)
    eta = torch.tensor([[0.1, 0.2], [0.01, 0.02], [0.5, 0.6]]).double()
    together = chapter.Oja(start, eta)
    together.feed(A)
    for s in range(3):
        alone = chapter.Oja(start[s], eta[s])
        alone.feed(A[s])
        assert_close(together.V[s], alone.V)


def test_in_one_dimension_oja_multiplies_by_one_factor_a_row(chapter, g):
    A, eta = rows_of(g, 70, 1), torch.tensor([0.1, 2.0]).double()
    oja = chapter.Oja(torch.tensor([-3.0]).double(), eta)
    oja.feed(A)
    assert_close(oja.growth, (1 + eta * A.square()).log().sum(0))
    assert_close(oja.V, torch.tensor([[-1.0], [-1.0]]).double())


def test_a_block_that_forgets_the_rows_before_is_told_apart(chapter, g):
    A, start = rows_of(g, 32, 5), rows_of(g, 5, 1)[:, 0]
    v = start / start.norm()
    one = chapter.oja_block(v[None], A, torch.tensor([0.2]).double())[0]
    batch = v + 0.2 * A.T @ (A @ v)  # all u_i from the old v
    assert away(one / one.norm(), batch / batch.norm()) > 0.05


def test_price_and_xun_take_the_smallest_step_that_grew_enough(chapter):
    d, bar = 100, 10 * math.log(100)
    assert chapter.price_xun(torch.tensor([1.0, bar - 0.1, bar + 0.1, 99.0]), d) == 2
    assert chapter.price_xun(torch.tensor([1.0, bar - 0.1]), d) == -1
    assert chapter.price_xun(torch.tensor([bar]), d) == 0


@pytest.mark.parametrize("k", [2, 5, 12, 30])
def test_frequent_directions_is_the_textbook_sketch_and_keeps_its_bound(chapter, g, k):
    A = rows_of(g, 157, 20, 30.0)
    fd = chapter.FrequentDirections(k, 20)
    for piece in A.split(13):
        fd.feed(piece)
    S, filled = np.zeros((k, 20)), 0
    for a in A.numpy():  # a row at a time, by SVD
        S[filled], filled = a, filled + 1
        if filled == k:
            s, Vh = (np.linalg.svd(S, full_matrices=False))[1:]
            s = np.append(s, np.zeros(k - len(s)))
            shrunk = np.sqrt(np.maximum(s**2 - s[k // 2] ** 2, 0))
            S, filled = np.zeros((k, 20)), k // 2
            S[: min(k, 20)] = shrunk[: min(k, 20), None] * Vh
    sketch = torch.from_numpy(fd.S.T @ fd.S)
    assert_close(sketch, torch.from_numpy(S.T @ S), rtol=0, atol=1e-9)
    lost = torch.linalg.eigvalsh(A.T @ A - sketch)
    assert lost[0] > -1e-8 and lost[-1] <= A.square().sum() / (k // 2 + 1) + 1e-8


def test_the_tilted_instance_has_the_eigenpairs_of_the_formula(chapter):
    for d, R0 in ((5, 2.0), (64, 7.5)):
        A, v = chapter.tilted(d, R0), chapter.tilted_top(d, R0)
        assert A.shape == (d, d + 1)
        assert_close(A.T @ (A @ v), (R0 + 1) * v)
        w = torch.linalg.eigvalsh(A.T @ A)
        assert_close(w, torch.tensor([0.0, *[1.0] * (d - 1), R0 + 1]).double(), rtol=0, atol=1e-12)
        assert_close(A.square().sum(1), torch.full((d,), R0 / d + 1).double())


def test_every_tilted_row_is_heavy_and_is_stored(chapter, g):
    A = chapter.tilted(64, 2.0)[torch.randperm(64, generator=g)]
    out = chapter.finish(run(chapter, A, rows_of(g, 65, 1)))
    assert out.held == 64 and chapter.error(out.v, chapter.tilted_top(64, 2.0)) < 1e-20


def test_the_error_is_the_squared_sine_and_keeps_small_ones(chapter):
    for angle in (1e-9, 1e-3, 1.0, math.pi / 2):
        z, v = torch.tensor([math.cos(angle), math.sin(angle)]).double(), torch.tensor([1.0, 0.0]).double()
        assert chapter.error(z, v).item() == pytest.approx(math.sin(angle) ** 2, rel=1e-7)
        assert chapter.error(-z, v).item() == pytest.approx(math.sin(angle) ** 2, rel=1e-7)


def test_the_number_of_chunks(chapter):
    assert [chapter.n_chunks(d) for d in (2, 100, 128, 1024)] == [2, 14, 14, 20]
    assert chapter.n_chunks(128, 1.0) == 7
    one = chapter.OnePass(1003, torch.ones(128, 1).double())
    assert len(one.ends) == 14 and one.ends[-1] == 1003 and one.burn == 17


def test_sorting_decreasingly_breaks_block_power_and_not_oja(chapter, g):
    A, start = rows_of(g, 6000, 32, 16.0), rows_of(g, 32, 1)
    v = top(A)
    A = A[(A @ v).square().argsort(descending=True)]
    oja = chapter.Oja(start[:, 0], torch.tensor([16 / (16 * 6000.0)]).double())
    oja.feed(A)
    assert chapter.error(chapter.finish(run(chapter, A, start, cap=0)).v, v) > 0.7
    assert chapter.error(oja.V[0], v) < 0.05


def test_incremental_pca_and_sparse_svd_agree_with_one_pass(chapter, g):
    decomposition = pytest.importorskip("sklearn.decomposition")
    A, start = rows_of(g, 4000, 16, 12.0), rows_of(g, 16, 1)
    A = torch.cat([A, -A])  # mean zero, for IncrementalPCA centres
    A = A[torch.randperm(8000, generator=g)]
    exact = torch.from_numpy(svds(A.numpy(), 1, rng=0)[2][0].copy())
    peer = decomposition.IncrementalPCA(1, batch_size=16).fit(A.numpy()).components_[0]
    assert away(exact, top(A)) < 1e-8
    out = chapter.finish(run(chapter, A, start))
    assert chapter.error(out.v, exact) < 0.02
    assert chapter.error(torch.from_numpy(peer), exact) < 0.02


@pytest.mark.parametrize("t", [0, 11])
def test_a_wrong_number_of_chunks_is_named(chapter, t):
    with pytest.raises(ValueError, match=f"from 1 to n = 10; got {t}"):
        chapter.OnePass(10, torch.ones(4, 1).double(), t=t)


@pytest.mark.parametrize("shape", [(3, 5), (4,), (11, 4)])
def test_rows_of_a_wrong_shape_or_too_many_are_named(chapter, shape):
    one = chapter.OnePass(10, torch.ones(4, 1).double(), t=2)
    with pytest.raises(ValueError, match=r"rows must be \(m, 4\) with at most 10 rows"):
        one.feed(torch.ones(shape).double())


def test_an_unfinished_pass_is_refused(chapter, g):
    one = chapter.OnePass(10, torch.ones(4, 1).double(), t=2)
    one.feed(rows_of(g, 7, 4))
    with pytest.raises(ValueError, match="The pass is not over: 7 of 10 rows have come"):
        chapter.finish(one)
