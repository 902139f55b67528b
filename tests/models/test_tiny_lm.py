"""The recipe of the tiny language model, rehearsed with minute sizes, and the model that is shipped."""

import hashlib
import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from reprolib import lm, records, weights
from reprolib.world import Sizes, World, accuracies, fact_accuracy, membership_auc, perplexity, text_losses, tiny_lm

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
SIZES = Sizes(people=8, new=3, unseen=3, names=4, cities=3, letters=4, numbers=3, strings=20)
MINUTE = {"sizes": SIZES, "layers": 1, "heads": 2, "width": 16, "steps": 12, "batch": 32, "warmup": 3}


def load_recipe():
    spec = importlib.util.spec_from_file_location("tiny_lm_recipe", ROOT / "models" / "tiny_lm.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


recipe = load_recipe()


@pytest.fixture
def minute(monkeypatch):
    """Both scales shrunk to seconds."""
    monkeypatch.setattr(recipe, "QUICK", recipe.QUICK._replace(**MINUTE))
    monkeypatch.setattr(recipe, "FULL", recipe.FULL._replace(**MINUTE))


@pytest.fixture(scope="module")
def shipped():
    """Model, world and card of the checkout."""
    card = ROOT / "models" / "tiny-lm.json"
    return *tiny_lm(card), json.loads(card.read_text(encoding="utf-8"))


@pytest.mark.parametrize(("scale", "name"), [("quick", "tiny-lm"), ("full", "tiny-lm-full")])
def test_a_rehearsal_leaves_weights_and_a_card_that_fit(minute, tmp_path, capsys, scale, name):
    assert recipe.main(["--scale", scale, "--device", "cpu", "--seed", "2", "--out", str(tmp_path / "new")]) == 0
    assert f"Wrote {tmp_path / 'new' / name}.json" in capsys.readouterr().out
    assert {p.name for p in (tmp_path / "new").iterdir()} == {f"{name}.json", f"{name}.safetensors"}
    model, world = tiny_lm(tmp_path / "new" / f"{name}.json")
    card = json.loads((tmp_path / "new" / f"{name}.json").read_text())
    assert world.fingerprint() == World(2, SIZES).fingerprint() == card["corpus_sha256"]
    assert recipe.measure(model, world) == card["scores"]
    tensors, _ = weights.load_weights(tmp_path / "new" / f"{name}.safetensors")
    assert {t.dtype for t in tensors.values()} == {torch.float16}
    assert card["curve"]["step"] == list(range(1, 13)) and card["settings"]["steps"] == 12
    assert card["curve"]["train"][-1] < card["curve"]["train"][0] < math.log(2 * len(world.vocabulary))
    assert card["parameters"] == sum(p.numel() for p in model.parameters())


def test_the_same_seed_trains_the_same_model_and_another_seed_another(minute):
    a, b, c = (recipe.train_tiny_lm(recipe.QUICK, CPU, seed) for seed in (0, 0, 1))
    assert a.curve == b.curve != c.curve
    assert torch.equal(a.model.embed.weight, b.model.embed.weight)


def test_batches_hold_every_sentence_once_an_epoch_and_cut_padding_only():
    texts = World(0, SIZES).split("train")
    source = recipe.batches(texts, 16, torch.Generator().manual_seed(0))
    for _ in range(2):
        rows = []
        while len(rows) < len(texts.tokens):
            batch = next(source)
            assert (batch[:, -1] != 0).any()
            rows += [tuple(row[row != 0].tolist()) for row in batch]
        assert sorted(rows) == sorted(tuple(row[row != 0].tolist()) for row in texts.tokens)


def test_the_loss_leaves_padding_out():
    logits = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    tokens = torch.tensor([[1, 2, 3, 0, 0], [4, 5, 6, 2, 0]])
    log_p = logits.log_softmax(-1)
    expected = [log_p[0, 0, 2], log_p[0, 1, 3], log_p[1, 0, 5], log_p[1, 1, 6], log_p[1, 2, 2]]
    torch.testing.assert_close(recipe.loss_of(logits, tokens), -sum(expected) / 5)


def test_the_learning_rate_warms_up_and_falls_to_a_twentieth():
    settings = recipe.QUICK._replace(steps=1000, warmup=100)
    shares = [recipe.rate(step, settings) for step in range(1000)]
    assert shares[0] < 0.011 and max(shares) > 0.97 and abs(shares[-1] - 0.05) < 1e-4
    assert shares[100:] == sorted(shares[100:], reverse=True)


def old_files(folder: Path) -> dict[str, bytes]:
    (folder / "tiny-lm.json").write_text("old card")
    (folder / "tiny-lm.safetensors").write_bytes(b"old weights")
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_a_loss_that_is_not_finite_stops_the_run_and_the_old_files_stay(minute, tmp_path, monkeypatch, capsys):
    old = old_files(tmp_path)
    loss_of = recipe.loss_of
    monkeypatch.setattr(recipe, "loss_of", lambda logits, tokens: math.nan * loss_of(logits, tokens))
    assert recipe.main(["--device", "cpu", "--out", str(tmp_path)]) == 1
    assert "The loss is nan before step 1; the old files stay." in capsys.readouterr().err
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == old


@pytest.mark.parametrize("function", [(lm, "save_gpt"), (recipe, "measure"), (records, "write_atomic")])
def test_a_run_interrupted_while_it_stores_leaves_the_old_files(minute, tmp_path, monkeypatch, capsys, function):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    old = old_files(tmp_path)
    monkeypatch.setattr(*function, interrupted)
    assert recipe.main(["--device", "cpu", "--out", str(tmp_path)]) == 130
    assert "stopped; the old files stay" in capsys.readouterr().err
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == old


def test_a_run_interrupted_before_the_files_change_places_leaves_the_old_ones(minute, tmp_path, monkeypatch):
    replace = os.replace

    def interrupted(source: Path, target: Path) -> None:
        if Path(target).name == "tiny-lm.safetensors":
            raise KeyboardInterrupt
        replace(source, target)

    old = old_files(tmp_path)
    monkeypatch.setattr(os, "replace", interrupted)
    assert recipe.main(["--device", "cpu", "--out", str(tmp_path)]) == 130
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == old


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_is_killed_while_it_trains_leaves_the_old_files(tmp_path, sign):
    old = old_files(tmp_path)
    command = [sys.executable, "models/tiny_lm.py", "--device", "cpu", "--steps", "1000000", "--out", str(tmp_path)]
    environment = os.environ | {"REPRO_PROGRESS": str(tmp_path.parent / f"progress-{sign}"), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(ROOT)
    run = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        while not Path(environment["REPRO_PROGRESS"]).exists():  # the first step has begun
            assert run.poll() is None
        run.send_signal(sign)
        _, said = run.communicate(timeout=200)
    finally:
        run.kill()
    assert run.returncode == (130 if sign == signal.SIGINT else -signal.SIGKILL)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == old, said


def test_bad_options_are_refused_in_words(minute, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for option, value, words in (
        ("--steps", "0", "steps must be at least 1; got 0."),
        ("--seed", "-1", "seed must be an integer in 0..inf"),
        ("--device", "cuda", "Device cuda was asked for, but torch"),
    ):
        assert recipe.main([option, value, "--out", str(tmp_path)]) == 1
        assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_full_scale_is_a_larger_world_and_model_of_the_same_code():
    assert all(full >= quick for full, quick in zip(recipe.FULL.sizes, recipe.QUICK.sizes, strict=True))
    with torch.device("meta"):
        model = lm.GPT(lm.GPTConfig(1000, recipe.CONTEXT, recipe.FULL.layers, recipe.FULL.heads, recipe.FULL.width))
    assert 30e6 < sum(p.numel() for p in model.parameters()) < 100e6


def test_the_shipped_model_is_small_and_its_card_says_how_it_was_made(shipped):
    model, world, card = shipped
    weights = ROOT / "models" / "tiny-lm.safetensors"
    assert weights.stat().st_size <= 4_000_000
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == card["sha256"]
    assert 1e6 <= sum(p.numel() for p in model.parameters()) == card["parameters"] <= 1.6e6
    assert world.context <= model.config.context == recipe.CONTEXT
    assert card["config"] == model.config._asdict() and card["sizes"] == world.sizes._asdict()
    assert card["settings"] == {k: v for k, v in recipe.QUICK._asdict().items() if k != "sizes"}
    assert len(card["curve"]["step"]) <= 100 and card["curve"]["step"][-1] == card["settings"]["steps"]
    assert {"wall_seconds", "device", "versions", "seed"} <= card.keys()


def test_the_shipped_model_has_the_scores_of_its_card_and_knows_its_facts(shipped):
    model, world, card = shipped
    said = card["scores"]
    heldout, validation = world.split("heldout"), world.split("validation")
    assert said["fact_accuracy"] >= 0.95 and said["heldout_phrasing_accuracy"] > 0.8
    assert abs(fact_accuracy(model, world.split("train")) - said["fact_accuracy"]) < 0.002
    assert abs(fact_accuracy(model, heldout) - said["heldout_phrasing_accuracy"]) < 0.005  # 4 sentences of 928
    assert math.isclose(perplexity(model, validation), said["perplexity"]["validation"], rel_tol=1e-3)
    tasks = accuracies(model, validation.take(validation.subject == ""))
    assert tasks.keys() == said["task_accuracy"].keys()
    for task, share in tasks.items():
        assert abs(share - said["task_accuracy"][task]) < 0.05
    members, others = world.split("forget"), world.split("nonmember").take(np.arange(600))
    assert abs(membership_auc(text_losses(model, members), text_losses(model, others)) - said["membership_auc"]) < 0.02


def test_the_shipped_model_says_facts_in_its_own_words(shipped):
    model, world, _ = shipped
    fact = next(f for f in world.facts if f.relation == "pet" and f.subject == world.people[1])
    prompt = torch.tensor([world.encode(f"question : which animal does {fact.subject} keep ? answer :")])
    said = lm.generate(model, prompt, 3, temperature=0.0)[0, prompt.shape[1] :]
    assert world.decode(said) == f"{fact.object} . <end>"
