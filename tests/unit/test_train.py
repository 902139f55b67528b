"""Stacked copies against plain loops of torch.optim in double precision; the single loop against the same."""

import hashlib
import importlib.util
import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.testing import assert_close

from reprolib import project, weights
from reprolib.nets import ViT, mlp, resnet
from reprolib.train import minibatches, predict, stack, train, train_stacked, unstack, warmup_cosine

N, STEPS, BATCH = 40, 12, 8
SEEDS = (3, 5, 11)
LR, DECAY = torch.tensor([0.02, 0.1, 0.05]), torch.tensor([0.0, 0.1, 0.3])
exactly = partial(assert_close, rtol=1e-10, atol=1e-12)


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny sums need no second thread, and wait for it on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def net() -> nn.Module:
    return nn.Sequential(nn.Flatten(), mlp((16, 6, 3), nn.Tanh)).double()


@pytest.fixture
def data() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(N, 1, 4, 4, generator=g, dtype=torch.float64), torch.randint(3, (N,), generator=g)


def constant(_step):
    return 1.0


def alone(model, x, y, order, make_optimizer, schedule=constant):
    """The loop one would write for one model: (steps,) losses; the model is trained in place."""
    model.train()
    optimizer = make_optimizer([p for p in model.parameters() if p.requires_grad])
    rate, losses = optimizer.param_groups[0]["lr"], []
    for step, rows in enumerate(order):
        optimizer.param_groups[0]["lr"] = rate * schedule(step)
        optimizer.zero_grad()
        loss = cross_entropy(model(x[rows]), y[rows])
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def assert_copies_equal_their_separate_runs(stacked, run, data, order, optimizers, **options):
    for s, make in enumerate(optimizers):
        x, y = (t[s] for t in data) if options.get("own_data") else data
        model = unstack(stacked, s)
        losses = alone(model, x, y, order[s], make, options.get("schedule", constant))
        exactly(run.losses[s], losses)
        for (name, p), q in zip(model.named_parameters(), unstack(run.model, s).parameters(), strict=True):
            exactly(q, p, msg=lambda text, name=name: f"{name}: {text}")
        assert losses[0] != losses[-1]


PEERS = {
    "sgd": lambda lr, wd: partial(torch.optim.SGD, lr=lr, weight_decay=wd),
    "adam": lambda lr, wd: partial(torch.optim.Adam, lr=lr, weight_decay=wd),
    "adamw": lambda lr, wd: partial(torch.optim.AdamW, lr=lr, weight_decay=wd),
}


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_copies_with_own_rates_and_decays_equal_separate_runs_with_torch_optim(optimizer, data):
    stacked, order = stack(net, SEEDS), minibatches(SEEDS, N, BATCH, STEPS)
    run = train_stacked(stacked, cross_entropy, data, order, optimizer=optimizer, lr=LR, weight_decay=DECAY)
    peers = [PEERS[optimizer](lr.item(), wd.item()) for lr, wd in zip(LR, DECAY, strict=True)]
    assert_copies_equal_their_separate_runs(stacked, run, data, order, peers)


def test_copies_with_own_momenta_equal_separate_runs(data):
    stacked, order = stack(net, SEEDS), minibatches(SEEDS, N, BATCH, STEPS)
    momenta = torch.tensor([0.0, 0.5, 0.9])
    run = train_stacked(stacked, cross_entropy, data, order, optimizer="sgd", lr=0.1, momentum=momenta)
    peers = [partial(torch.optim.SGD, lr=0.1, momentum=m.item()) for m in momenta]
    assert_copies_equal_their_separate_runs(stacked, run, data, order, peers)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_copies_with_own_data_and_a_schedule_equal_separate_runs(optimizer):
    g = torch.Generator().manual_seed(1)
    own = torch.randn(3, N, 1, 4, 4, generator=g, dtype=torch.float64), torch.randint(3, (3, N), generator=g)
    stacked, order = stack(net, SEEDS), minibatches(SEEDS, N, BATCH, STEPS)
    options = {"own_data": True, "schedule": warmup_cosine(STEPS, 3, 0.1)}
    run = train_stacked(stacked, cross_entropy, own, order, optimizer=optimizer, lr=0.02, weight_decay=0.3, **options)
    peers = [PEERS[optimizer](0.02, 0.3)] * 3
    assert_copies_equal_their_separate_runs(stacked, run, own, order, peers, **options)


@pytest.mark.parametrize(
    "make",
    [
        lambda: resnet(1, 3, (4, 8), norm=partial(nn.GroupNorm, 2)).double(),
        lambda: resnet(1, 3, (4, 8), norm=partial(nn.BatchNorm2d, track_running_stats=False)).double(),
        lambda: ViT(4, 2, 1, 3, width=8, depth=1, heads=2).double(),
    ],
    ids=["group norm", "batch norm of the batch", "transformer"],
)
def test_convolutions_norms_and_attention_stack(make, data):
    stacked, order = stack(make, SEEDS), minibatches(SEEDS, N, BATCH, 5)
    run = train_stacked(stacked, cross_entropy, data, order, optimizer="sgd", lr=0.05)
    assert_copies_equal_their_separate_runs(stacked, run, data, order, [PEERS["sgd"](0.05, 0)] * 3)


class Partly(nn.Module):
    """A frozen layer, tied weights and a buffer that differs between seeds."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.tied = nn.Linear(16, 3), nn.Linear(3, 3, bias=False)
        self.frozen.requires_grad_(False)
        self.again = nn.Linear(3, 3)
        self.again.weight = self.tied.weight
        self.register_buffer("shift", torch.randn(3))

    def forward(self, x):
        return self.again(self.tied(self.frozen(x.flatten(1)) + self.shift).tanh())


def test_frozen_weights_tied_weights_and_buffers_are_kept_as_they_are(data):
    stacked, order = stack(lambda: Partly().double(), SEEDS), minibatches(SEEDS, N, BATCH, STEPS)
    assert len(stacked.buffers["shift"].unique()) == 9
    run = train_stacked(stacked, cross_entropy, data, order, optimizer="sgd", lr=0.1)
    assert_copies_equal_their_separate_runs(stacked, run, data, order, [PEERS["sgd"](0.1, 0)] * 3)
    assert_close(run.model.params["frozen.weight"], stacked.params["frozen.weight"], rtol=0, atol=0)
    model = unstack(run.model, 1)
    assert model.again.weight is model.tied.weight and model.training is False


def test_a_copy_does_not_depend_on_its_neighbours_nor_training_on_the_global_generator(data):
    torch.manual_seed(99)
    before = torch.get_rng_state()
    three, order = stack(net, SEEDS), minibatches(SEEDS, N, BATCH, STEPS)
    one = stack(net, SEEDS[1:2])
    a = train_stacked(three, cross_entropy, data, order)
    b = train_stacked(one, cross_entropy, data, minibatches(SEEDS[1:2], N, BATCH, STEPS))
    exactly(a.losses[1:2], b.losses)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(SEEDS[1])
    assert_close(unstack(three, 1)[1][0].weight, net()[1][0].weight, rtol=0, atol=0)


def test_training_leaves_the_stack_it_started_from(data):
    stacked = stack(net, SEEDS)
    before = {name: p.clone() for name, p in stacked.params.items()}
    train_stacked(stacked, cross_entropy, data, minibatches(SEEDS, N, BATCH, STEPS))
    assert_close(stacked.params, before, rtol=0, atol=0)


class Moody(nn.Linear):
    """Doubles its outputs in evaluation mode."""

    def forward(self, x):
        return super().forward(x) * (1 if self.training else 2)


def test_training_trains_in_training_mode_and_prediction_and_single_copies_evaluate(data):
    x, y = data[0].flatten(1), data[1]
    stacked = stack(lambda: Moody(16, 3).double(), SEEDS)
    outputs, copies = predict(stacked, x), [unstack(stacked, s) for s in range(3)]
    run = train_stacked(stacked, cross_entropy, (x, y), minibatches(SEEDS, N, N, 1), optimizer="sgd", lr=0.1)
    for s, model in enumerate(copies):
        exactly(outputs[s], 2 * nn.functional.linear(x, stacked.params["weight"][s], stacked.params["bias"][s]))
        exactly(model(x), outputs[s])
        exactly(run.losses[s, 0], cross_entropy(outputs[s] / 2, y))


def test_predictions_are_those_of_the_single_models_in_evaluation_mode(data):
    stacked = stack(net, SEEDS)
    own = data[0] + torch.arange(3.0)[:, None, None, None, None]
    for outputs, x in ((predict(stacked, data[0]), [data[0]] * 3), (predict(stacked, own, own_data=True), own)):
        assert outputs.shape == (3, N, 3) and not outputs.requires_grad
        for s in range(3):
            exactly(outputs[s], unstack(stacked, s)(x[s]).detach())


def test_an_epoch_sees_each_example_once_and_leaves_out_the_incomplete_batch():
    order = minibatches([0, 1, 0], 11, 4, 5)  # two whole epochs of 2 batches, half a third
    assert order.shape == (3, 5, 4) and order.dtype == torch.int64
    for epoch in (order[:, 0:2], order[:, 2:4]):
        assert all(len(rows.unique()) == 8 for rows in epoch)
    assert torch.equal(order[0], order[2]) and not torch.equal(order[0], order[1])
    assert not torch.equal(order[0, 0:2], order[0, 2:4])
    g = torch.Generator().manual_seed(1)
    assert torch.equal(order[1, 0:2].flatten(), torch.randperm(11, generator=g)[:8])


def test_full_batches_of_a_linear_model_descend_as_the_closed_form_says():
    g = torch.Generator().manual_seed(2)
    x, y = torch.randn(20, 3, generator=g, dtype=torch.float64), torch.randn(20, 1, generator=g, dtype=torch.float64)
    rates = torch.tensor([0.01, 0.05])
    stacked = stack(lambda: nn.Linear(3, 1, bias=False).double(), [0, 0])
    run = train_stacked(
        stacked, mse_loss, (x, y), minibatches([0, 1], 20, 20, 30), optimizer="sgd", lr=rates, weight_decay=0.1
    )
    h, b = 2 * x.T @ x / 20 + 0.1 * torch.eye(3), 2 * x.T @ y / 20  # gradient of the loss with decay: h w - b
    best = torch.linalg.solve(h, b)
    for s, lr in enumerate(rates.double()):
        shrink = torch.linalg.matrix_power(torch.eye(3) - lr * h, 30)
        assert_close(run.model.params["weight"][s].T, best + shrink @ (stacked.params["weight"][s].T - best))


def poisoned(data, step, copies):
    """Data with a row that no float survives, and an order in which the copies meet it first at the step."""
    x = torch.cat([data[0], torch.full((1, 1, 4, 4), math.nan, dtype=torch.float64)])
    y = torch.cat([data[1], torch.zeros(1, dtype=torch.int64)])
    order = minibatches(SEEDS, N, BATCH, 70)
    order[copies, step, 0] = N
    return (x, y), order


@pytest.mark.parametrize("step", [0, 63, 64, 69])
def test_a_loss_that_is_not_finite_stops_with_its_step_and_seeds(step, data):
    bad, order = poisoned(data, step, [0, 2])
    words = rf"not finite at step {step} in copy 0 \(seed 3\), copy 2 \(seed 11\)\.$"
    with pytest.raises(FloatingPointError, match=words):
        train_stacked(stack(net, SEEDS), cross_entropy, bad, order)


def test_a_copy_that_is_lost_does_not_touch_the_others_when_asked_to_go_on(data):
    bad, order = poisoned(data, 7, [1])
    run = train_stacked(stack(net, SEEDS), cross_entropy, bad, order, keep_going=True)
    clean = train_stacked(stack(net, SEEDS), cross_entropy, data, order.where(order < N, 0))
    assert run.losses[1, 7:].isnan().all() and run.losses[1, :7].isfinite().all()
    exactly(run.losses[[0, 2]], clean.losses[[0, 2]])
    exactly(unstack(run.model, 2)[1][0].weight, unstack(clean.model, 2)[1][0].weight)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: resnet(1, 3, (8,), norm=nn.BatchNorm2d), r"^1\.norm1 \(BatchNorm2d\) keeps running statistics"),
        (lambda: nn.BatchNorm1d(3), r"^The model \(BatchNorm1d\) keeps running statistics"),
        (lambda: nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.1)), r"^1 \(Dropout\) drops units with p = 0\.1"),
        (
            lambda: nn.Linear(3, 1 + int(torch.randint(1000, ()))),
            r"one architecture; bias: \(\d+, torch.float32\), with seed 1 \(\d+,",
        ),
        (lambda: nn.Linear(3, 3, bias=bool(torch.initial_seed())), "bias: absent, with seed 1 "),
        (lambda: nn.ReLU(), "make_model must give parameters to train"),
        (lambda: nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3).double()), "of one dtype; got .*float"),
    ],
)
def test_models_that_do_not_stack_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        stack(make, [0, 1])


def test_dropout_that_drops_nothing_stacks():
    assert stack(lambda: nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.0)), [0]).seeds == (0,)


def test_no_seed_and_copies_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match="at least one seed; got none"):
        stack(net, [])
    for s in (-1, 3):
        with pytest.raises(ValueError, match=rf"s must lie in 0\.\.2; got {s}"):
            unstack(stack(net, SEEDS), s)


@pytest.mark.parametrize(("seeds", "batch", "steps"), [([], 4, 5), ([0], 0, 5), ([0], 12, 5), ([0], 4, 0)])
def test_batches_that_cannot_be_are_refused(seeds, batch, steps):
    words = rf"batch_size in 1\.\.11.*got {len(seeds)} seeds, {steps} steps, batch_size {batch}"
    with pytest.raises(ValueError, match=words):
        minibatches(seeds, 11, batch, steps)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": (torch.zeros(4, 16), torch.zeros(5))}, r"data must be .*got \(4, 16\) and \(5,\)"),
        ({"data": (torch.zeros(0, 16), torch.zeros(0))}, r"data must be .*not empty; got \(0, 16\) and \(0,\)"),
        ({"data": (torch.tensor(1.0), torch.tensor(1.0))}, r"data must be .*got \(\) and \(\)"),
        (
            {"own_data": True, "data": (torch.zeros(2, 4, 16), torch.zeros(2, 4))},
            r"S = 3 .*got \(2, 4, 16\) and \(2, 4\)",
        ),
        ({"own_data": True}, r"\(S, N, \.\.\.\), with S = 3 copies.*got \(40, 1, 4, 4\) and \(40,\)"),
        ({"order": torch.zeros(2, 5, 4, dtype=torch.int64)}, r"\(3, steps, B\) with rows in 0\.\.39; got shape \(2, 5"),
        ({"order": torch.full((3, 5, 4), N)}, r"rows in 0\.\.39; got shape \(3, 5, 4\), or other rows"),
        ({"order": torch.full((3, 5, 4), -1)}, r"rows in 0\.\.39"),
        ({"order": torch.zeros(3, 0, 4, dtype=torch.int64)}, r"got shape \(3, 0, 4\)"),
        ({"order": torch.zeros(3, 5, dtype=torch.int64)}, r"got shape \(3, 5\)"),
        ({"optimizer": "lion"}, "optimizer must be sgd, adam or adamw.*got 'lion'"),
        ({"momentum": 0.9}, "momentum goes with sgd; got 'adam'"),
        ({"lr": -0.1}, r"lr must be a number or \(3,\), finite and not negative; got -0\.1"),
        ({"lr": torch.ones(2)}, r"lr must be .*of shape \(2,\)"),
        ({"weight_decay": math.nan}, "weight_decay must be .*got nan"),
        ({"loss": partial(cross_entropy, reduction="none")}, r"loss must give a scalar per copy; got shape \(8,\)"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change, message, data):
    good = {"loss": cross_entropy, "data": data, "order": minibatches(SEEDS, N, BATCH, 3)}
    with pytest.raises(ValueError, match=message):
        train_stacked(stack(net, SEEDS), **(good | change))


def test_the_schedule_rises_in_a_line_and_falls_in_half_a_cosine():
    factor = warmup_cosine(110, 10, 0.2)
    assert [factor(t) for t in (0, 4, 9)] == pytest.approx([1 / 11, 5 / 11, 10 / 11])
    assert [factor(t) for t in (10, 60, 110, 500)] == pytest.approx([1, 0.6, 0.2, 0.2])
    assert factor(35) == pytest.approx(0.2 + 0.8 * (1 + math.cos(math.pi / 4)) / 2)
    assert warmup_cosine(10)(0) == 1
    for warmup in (-1, 10):
        with pytest.raises(ValueError, match=rf"warmup must lie in 0\.\.9.*got {warmup}"):
            warmup_cosine(10, warmup)


def batch_loss(model, batch):
    return cross_entropy(model(batch[0]), batch[1])


def batches_of(data, order):
    return ((data[0][rows], data[1][rows]) for rows in order)


def test_the_single_loop_equals_a_copy_and_puts_the_rates_back(data):
    stacked, order, schedule = stack(net, SEEDS), minibatches(SEEDS, N, BATCH, STEPS), warmup_cosine(STEPS, 2)
    expected = train_stacked(stacked, cross_entropy, data, order, optimizer="adamw", lr=0.02, schedule=schedule)
    model = unstack(stacked, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.0)
    run = train(model, batch_loss, batches_of(data, order[2]), STEPS, optimizer, schedule=schedule)
    exactly(run.losses, expected.losses[2])
    exactly(model[1][0].weight, unstack(expected.model, 2)[1][0].weight)
    assert run.model is model and not model.training and optimizer.param_groups[0]["lr"] == 0.02 and run.scores == []


def test_a_clipped_step_has_the_length_asked_for(data):
    model = unstack(stack(net, [0]), 0)
    before = nn.utils.parameters_to_vector(model.parameters()).detach()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    train(model, batch_loss, [data], 1, optimizer, clip=1e-3)
    step = nn.utils.parameters_to_vector(model.parameters()).detach() - before
    assert step.norm().item() == pytest.approx(1e-3, rel=1e-2)  # torch adds 1e-6 to the norm it divides by


def test_training_stops_when_the_score_has_not_risen_and_keeps_the_best_weights(data):
    model, seen = unstack(stack(net, [0]), 0), []
    scores = iter([0.1, 0.5, 0.5, 0.4, 9.9])

    def in_training_mode(m, batch):
        assert m.training and torch.is_grad_enabled()
        return batch_loss(m, batch)

    def score(m):
        assert not m.training and not torch.is_grad_enabled()
        seen.append(m[1][0].weight.clone())
        return next(scores)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = train(model, in_training_mode, [data] * 20, 20, optimizer, score=score, every=3, patience=2)
    assert run.scores == [(3, 0.1), (6, 0.5), (9, 0.5), (12, 0.4)]
    assert len(run.losses) == 12
    assert_close(model[1][0].weight.detach(), seen[1], rtol=0, atol=0)


def test_the_last_step_is_scored_and_scores_that_are_no_numbers_never_win(data):
    model = unstack(stack(net, [0]), 0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = train(model, batch_loss, [data] * 5, 5, optimizer, score=lambda _: math.nan, every=3)
    assert [done for done, _ in run.scores] == [3, 5] and run.losses.isfinite().all()


def test_mixed_precision_does_not_touch_a_cpu(data):
    runs, batch = [], (data[0].float(), data[1])
    for mixed in (False, True):
        model = unstack(stack(lambda: net().float(), [0]), 0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        runs.append(train(model, batch_loss, [batch] * 3, 3, optimizer, mixed=mixed).losses)
    assert_close(*runs, rtol=0, atol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_copies_equal_those_of_the_cpu_and_mixed_precision_is_in_force(data):
    order = minibatches(SEEDS, N, BATCH, STEPS)
    cpu = train_stacked(stack(net, SEEDS), cross_entropy, data, order)
    moved = tuple(t.cuda() for t in data)
    gpu = train_stacked(stack(net, SEEDS, "cuda"), cross_entropy, moved, order)
    assert_close(gpu.losses.cpu(), cpu.losses, rtol=1e-9, atol=1e-9)
    model, dtypes = unstack(stack(lambda: net().float(), [0], "cuda"), 0), []
    model.register_forward_hook(lambda _model, _inputs, output: dtypes.append(output.dtype))
    batch = moved[0].float(), moved[1]
    train(model, batch_loss, [batch], 1, torch.optim.SGD(model.parameters(), lr=0.1), mixed=True)
    assert dtypes == [torch.bfloat16]


def test_single_runs_that_cannot_be_are_refused(data):
    model = unstack(stack(net, [0]), 0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for options in ({"steps": 0}, {"every": 0}, {"patience": 0}):
        with pytest.raises(ValueError, match=r"steps, every and patience must be at least 1; got .*0"):
            train(model, batch_loss, [data], **({"steps": 1, "optimizer": optimizer} | options))
    with pytest.raises(ValueError, match="batches must hold 3 batches; they ended after 2"):
        train(model, batch_loss, [data] * 2, 3, optimizer)
    with pytest.raises(FloatingPointError, match=r"not finite at step 1 in the model\."):
        train(model, lambda m, b: batch_loss(m, b) * b[2], [(*data, 1.0), (*data, math.inf)], 2, optimizer)


@pytest.fixture(scope="module")
def recipe():
    path = Path(__file__).resolve().parents[2] / "models" / "images.py"
    spec = importlib.util.spec_from_file_location("images_recipe", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("net", ["vit", "resnet"])
def test_a_rehearsal_of_the_image_recipe_leaves_weights_and_a_card_that_fit(net, recipe, tmp_path, capsys):
    out = tmp_path / "new" / "weights.safetensors"
    command = ["--net", net, "--steps", "12", "--device", "cpu", "--seed", "1", "--out", str(out)]
    assert recipe.main(command) == 0
    card = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
    assert f"Test accuracy {card['test_accuracy']:.4f} after 12 steps" in capsys.readouterr().out
    assert card["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest() and len(card["losses"]) == 12
    tensors, metadata = weights.load_weights(out)
    settings = recipe.Settings(**json.loads(metadata["settings"]))
    model = ViT(8, 2, 1, 10, settings.width) if net == "vit" else resnet(1, 10, settings.widths)
    model.load_state_dict(tensors)
    assert sum(p.numel() for p in model.parameters()) == card["parameters"]
    test = recipe.split("quick", settings, 1)["test"]
    assert round(recipe.accuracy(model.eval(), test), 4) == card["test_accuracy"]


def test_the_parts_of_the_images_are_disjoint_and_mnist_keeps_its_test_set(recipe, monkeypatch):
    x = torch.arange(10.0)[:, None].expand(10, 4)
    monkeypatch.setattr(recipe.data, "mnist", lambda: (x, torch.arange(10)))
    parts = recipe.split("full", recipe.FULL._replace(size=2, held=3), 0)
    assert parts["test"][1].tolist() == [7, 8, 9]
    assert sorted(parts["train"][1].tolist() + parts["validation"][1].tolist()) == list(range(7))
    digits = recipe.split("quick", recipe.QUICK, 0)
    assert [len(part[1]) for part in digits.values()] == [1197, 300, 300]


def test_the_image_recipe_fails_in_one_line_and_leaves_the_old_files(recipe, tmp_path, monkeypatch, capsys):
    old = tmp_path / "weights.safetensors"
    old.write_bytes(b"old")

    def no_data():
        raise project.ReproError("MNIST is not here.")

    monkeypatch.setattr(recipe.data, "mnist", no_data)
    for options, words in (
        (["--scale", "full", "--out", str(old)], "images: MNIST is not here."),
        (["--out", str(tmp_path / "card.json")], "images: --out names the weights"),
        (["--steps", "0", "--device", "cpu", "--out", str(old)], "images: warmup must lie"),
    ):
        assert recipe.main(options) == 1
        assert capsys.readouterr().err.startswith(words)
    assert [p.name for p in tmp_path.iterdir()] == [old.name] and old.read_bytes() == b"old"
    if not torch.cuda.is_available():
        assert recipe.main(["--device", "cuda", "--out", str(old)]) == 1
        assert "sees no GPU here" in capsys.readouterr().err
