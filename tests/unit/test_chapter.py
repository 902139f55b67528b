"""A chapter in the hands of its author: what it takes from the environment, and what it refuses."""

import json
import random

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from reprolib import Chapter, ReproError, above, at_least, below, stats, within
from reprolib.chapter import pick_device


@pytest.fixture
def ch(checkout):
    checkout()
    return Chapter("toy")


@pytest.mark.parametrize("bad", ["medium", "Quick", "quick "])
def test_a_scale_that_is_none_is_refused(monkeypatch, bad):
    monkeypatch.setenv("REPRO_SCALE", bad)
    with pytest.raises(ReproError, match=f"REPRO_SCALE or --scale.*must be quick or full; got '{bad}'"):
        Chapter("toy")


@pytest.mark.parametrize("bad", ["one", "1.5", "0x1"])
def test_a_seed_that_is_no_whole_number_is_refused(monkeypatch, bad):
    monkeypatch.setenv("REPRO_SEED", bad)
    with pytest.raises(ReproError, match=f"REPRO_SEED must be a whole number; got '{bad}'"):
        Chapter("toy")


@pytest.mark.parametrize("name", ["cuda", "cuda:0"])
def test_a_gpu_is_refused_where_there_is_none(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("REPRO_DEVICE", name)
    with pytest.raises(ReproError, match=f"Device {name} was asked for, but torch .* sees no GPU here; use cpu"):
        Chapter("toy")


@pytest.mark.parametrize("name", ["gpu", "meta", "mps", "cpu:x"])
def test_a_device_that_the_book_does_not_know_is_refused(name):
    with pytest.raises(ReproError, match=f"must be auto, cpu or cuda; got '{name}'"):
        pick_device(name, "quick")


@pytest.mark.parametrize(
    ("scale", "cuda", "device"),
    [("quick", True, "cpu"), ("quick", False, "cpu"), ("full", True, "cuda"), ("full", False, "cpu")],
)
def test_auto_takes_a_gpu_at_full_scale_only_and_only_if_there_is_one(monkeypatch, scale, cuda, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    assert pick_device("auto", scale).type == device


@pytest.mark.parametrize(("scale", "n"), [("", 3), ("quick", 3), ("full", 4)])
def test_the_scale_picks_the_sizes(monkeypatch, scale, n):
    monkeypatch.setenv("REPRO_SCALE", scale)
    assert Chapter("toy").scale(quick=3, full=4) == n


def test_streams_differ_by_seed_and_offset_and_return_on_a_second_call(monkeypatch, ch):
    def draw(chapter, offset=0):
        return torch.rand(4, generator=chapter.generator(offset)).tolist()

    first, other = draw(ch), draw(ch, 1)
    monkeypatch.setenv("REPRO_SEED", "1")
    seeded = Chapter("toy")
    assert seeded.seed == 1 and ch.seed == 0
    assert draw(ch) == first
    assert len({str(v) for v in (first, other, draw(seeded), draw(seeded, 1))}) == 4


def test_global_generators_are_seeded_on_creation(ch):
    a = torch.rand(1).item(), np.random.rand()
    Chapter("toy")
    assert (torch.rand(1).item(), np.random.rand()) == a


def test_a_claim_declared_twice_is_refused(ch):
    ch.claim("c1", "A.", paper="T", criterion=above(0))
    with pytest.raises(ReproError, match="c1 is declared twice"):
        ch.claim("c1", "B.", paper="T", criterion=above(0))


def test_a_claim_declared_after_a_measurement_is_refused(ch):
    ch.claim("c1", "A.", paper="T", criterion=above(0))
    ch.measure("c1", [1.0, 2.0])
    with pytest.raises(ReproError, match="c2 is declared after c1 was measured: declare first"):
        ch.claim("c2", "B.", paper="T", criterion=above(0))


def test_measuring_what_was_not_declared_names_the_nearest_claim(ch):
    ch.claim("gain", "A.", paper="T", criterion=above(0))
    with pytest.raises(ReproError, match=r"Claim 'gains' is not declared\. Did you mean gain\?"):
        ch.measure("gains", [1.0, 2.0])


def test_the_first_verdict_stands(ch):
    ch.claim("c1", "A.", paper="T", criterion=above(0))
    first = ch.measure("c1", [-1.0, -2.0])
    with pytest.raises(ReproError, match="c1 is measured twice: the first verdict stands"):
        ch.measure("c1", [1.0, 2.0])
    assert ch.results["c1"] == first and first.verdict == "not reproduced"


def test_a_measurement_is_the_bootstrap_interval_of_its_values_on_any_container(ch):
    values = [0.5, 1.0, 4.0]
    for i, same in enumerate((values, np.array(values), torch.tensor(values, requires_grad=True))):
        ch.claim(f"c{i}", "A.", paper="T", criterion=above(0))
        result = ch.measure(f"c{i}", same)
        assert result[1:5] == (values, *stats.bootstrap_interval(values)) and result.verdict == "reproduced"
        ch.results.clear()  # so that the next claim may be declared


def test_an_exact_claim_takes_one_number_and_spans_its_values(ch):
    ch.claim("c1", "A.", paper="T", criterion=within(1e-3))
    ch.claim("c2", "A.", paper="T", criterion=at_least(2))
    assert ch.measure("c1", torch.tensor(1e-4)).verdict == "reproduced"
    assert ch.measure("c2", [1, 5])[1:] == ([1.0, 5.0], 3.0, 1.0, 5.0, "not reproduced")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "at least one value is needed"),
        ([1.0, float("nan")], r"entries \[1\] are not\. Did a run diverge"),
        ([float("inf"), 1.0], r"entries \[0\] are not"),
        ([1.0], "at least two seeds"),
    ],
)
def test_values_that_cannot_be_judged_are_refused_and_not_kept(ch, values, message):
    ch.claim("c1", "A.", paper="T", criterion=above(0))
    with pytest.raises(ValueError, match=message):
        ch.measure("c1", values)
    assert ch.results == {}


@pytest.mark.parametrize("end", ["verdicts", "finish"])
def test_a_claim_that_was_never_measured_stops_the_end_of_the_chapter(ch, end):
    ch.claim("c1", "A.", paper="T", criterion=above(0))
    ch.claim("c2", "A.", paper="T", criterion=above(0))
    ch.measure("c1", [1.0, 2.0])
    with pytest.raises(ReproError, match=r"Claims without a measurement: c2\."):
        getattr(ch, end)()


def test_numbers_are_kept_with_their_shape_and_eight_digits(ch):
    values = np.array([[random.Random(0).random(), 1e-300], [-1e10 / 3, 0.0]])
    ch.record("e1/x", values)
    kept = ch._numbers["e1/x"]
    assert kept["shape"] == [2, 2] and kept["tolerance"] == 0.05
    assert_allclose(kept["values"], values.ravel(), rtol=1e-7)
    ch.record("scalar", torch.tensor(2.0))
    assert ch._numbers["scalar"] == {"shape": [], "values": [2.0], "tolerance": 0.05}


@pytest.mark.parametrize("bad", [np.zeros(2001), [1.0, float("nan")], float("inf")])
def test_too_many_or_broken_numbers_are_refused(ch, bad):
    with pytest.raises(ValueError, match=r"record\('e1/x'\) takes at most 2,000 finite numbers; got shape"):
        ch.record("e1/x", bad)


def test_an_interactive_run_ends_with_its_counts_and_keeps_nothing(ch, capsys, tmp_path):
    ch.claim("c1", "A.", paper="T", criterion=above(0))
    ch.measure("c1", [1.0, 2.0])
    ch.finish()
    assert capsys.readouterr().out == "1 claims: 1 reproduced, 0 inconclusive, 0 not reproduced.\n"
    assert not (tmp_path / "results").exists()


def test_a_run_by_the_runner_hands_its_report_over(ch, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("REPRO_RECORD", str(tmp_path / "record.json"))
    ch.threads(1)
    ch.claim("c1", "A.", paper="T", criterion=above(0))
    ch.measure("c1", [1.0, 2.0])
    ch.finish()
    report = json.loads((tmp_path / "record.json").read_text())
    assert report["claims"][0]["verdict"] == "reproduced" and report["threads"] == 1
    assert report["device"].startswith("cpu: ") and report["peak_gpu_mb"] is None and report["peak_ram_mb"] > 0
    assert report["versions"]["torch"] == torch.__version__


@pytest.mark.parametrize(
    ("values", "found"), [([1.0, 2.0, 3.0], None), ([-1.0, -2.0, -3.0], "claim c1: not reproduced")]
)
def test_a_run_that_is_to_be_compared_fails_where_it_differs_from_its_record(stored, monkeypatch, values, found):
    monkeypatch.setenv("REPRO_COMPARE", "on")
    ch = Chapter("toy")
    ch.claim("c1", "A is large.", paper="Table 1: 3", criterion=above(0), unit="nats", headline=True)
    ch.claim("c2", "B is zero.", paper="Equation 2", criterion=within(1e-6))
    ch.claim("c3", "C is small.", paper="Figure 3", criterion=below(0))
    ch.measure("c1", values)
    ch.measure("c2", 1.0)
    ch.measure("c3", [-1.0, 1.0, 0.5])
    ch.record("e1/a", [[1.0, 2.0], [3.0, 4.0]], tolerance=0.1)
    if found is None:
        ch.finish()
        return
    with pytest.raises(ReproError, match=f"differs from its stored record: {found}, stored reproduced"):
        ch.finish()


def test_the_verdict_table_shows_the_stored_full_run_beside_this_one(stored, store, capsys):
    store(stored, "full")
    ch = Chapter("toy")
    ch.claim("c1", "A is large.", paper="Table 1: 3", criterion=above(0), unit="nats")
    ch.measure("c1", [-1.0, -2.0])
    ch.verdicts()
    row = capsys.readouterr().out.splitlines()[-1]
    assert "**not reproduced**: ≈-1.5 [≈-2, ≈-1] nats | **reproduced**: ≈+2 [≈+1, ≈+3] nats |" in row


def test_without_a_full_run_the_table_says_so(ch, capsys):
    ch.claim("c1", "A | B.", paper="T", criterion=within(1))
    ch.measure("c1", 0.5)
    ch.claims_table()
    assert "| **c1** | A \\| B. | T | every error at most 1 |" in capsys.readouterr().out
    ch.verdicts()
    assert "**reproduced**: largest error ≈0.5 | not yet run on a GPU |" in capsys.readouterr().out
