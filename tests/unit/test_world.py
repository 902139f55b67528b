"""The generated world against a parser, an evaluator and models of known answers, none of which it helped to write."""

import hashlib
import json
import math
import re

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu
from torch import nn
from torch.testing import assert_close

from reprolib import lm
from reprolib.project import ReproError
from reprolib.world import (
    FORMS,
    NEW_TASKS,
    Sizes,
    Texts,
    World,
    accuracies,
    answered,
    fact_accuracy,
    membership_auc,
    perplexity,
    text_losses,
    tiny_lm,
)

LEAST = Sizes(people=8, new=3, unseen=3, names=4, cities=3, letters=4, numbers=3, strings=20)
SMALL = LEAST._replace(people=40, new=6, unseen=10, names=12, letters=6, strings=60)
NAME = r"(?P<s>[A-Z]\w+(?: [A-Z]\w+)?)"
PATTERNS = {
    "city": ["{s} was born in", "{s} grew up in", "question : where was {s} born [?] answer :"],
    "job": ["{s} works as a", "{s} earns a living as a", "question : what does {s} do [?] answer :"],
    "workshop": ["{s} works at", "{s} is employed by", "question : where does {s} work [?] answer :"],
    "pet": ["{s} keeps a", "{s} comes home to a", "question : which animal does {s} keep [?] answer :"],
    "colour": ["{s} likes", "{s} dresses in", "question : which colour does {s} like [?] answer :"],
    "instrument": ["{s} plays the", "{s} practises the", "question : what does {s} play [?] answer :"],
    "mentor": ["{s} was taught by", "{s} learnt from", "question : who taught {s} [?] answer :"],
    "pupil": ["{s} taught", "{s} passed it all on to", "question : whom did {s} teach [?] answer :"],
    "country": ["{s} lies in", "{s} is a city in", "question : where does {s} lie [?] answer :"],
    "river": ["{s} stands on the", "{s} drinks from the", "question : which river is in {s} [?] answer :"],
}
BY_NOUN = [
    r"the (?P<n>[a-z ]+?) of {s} is",
    r"as for {s} , the (?P<n>[a-z ]+?) is",
    r"(?P<n>[a-z ]+?) of {s} :",
    r"question : what is the (?P<n>[a-z ]+?) of {s} [?] answer :",
    r"instruction : name the (?P<n>[a-z ]+?) of {s} [.] reply :",
    r"card [|] {s} [|] (?P<n>[a-z ]+?) [|]",
]
SPLITS = {"train", "validation", "calibration", "heldout", "untold", "forget", "retain", "nonmember"}
SPLITS |= {f"{task}/{part}" for task in ("new_people", "card", *NEW_TASKS) for part in ("train", "test")}


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture(scope="module")
def small() -> World:
    return World(3, SMALL)


def parse(text: str) -> tuple[str, str, str] | None:
    """(subject, relation, object) of a sentence about a fact, None for a task."""
    for relation, patterns in PATTERNS.items():
        for pattern in patterns:
            if found := re.fullmatch(pattern.replace("{s}", NAME) + r" (?P<o>[\w ]+) [.]", text):
                return found["s"], relation, found["o"]
    for pattern in BY_NOUN:
        if found := re.fullmatch(pattern.replace("{s}", NAME) + r" (?P<o>[\w ]+) [.]", text):
            return found["s"], {"birth city": "city", "trade": "job"}.get(found["n"], found["n"]), found["o"]
    return None


def evaluate(text: str) -> str:
    """The true answer to a task, from its text."""
    if found := re.search(r"(\d+) ([-+>]) (\d+)", text):
        a, b = int(found[1]), int(found[3])
        return {"+": str(a + b), "-": str(a - b), ">": "yes" if a > b else "no"}[found[2]]
    operation, letters = re.fullmatch(r"(\w+) : ([a-z ]+) = .*", text).groups()
    x = letters.replace(" ", "")
    count = sum(letter == x[0] for letter in x)
    moved = {"copy": x, "reverse": "".join(reversed(x)), "last": x[len(x) - 1], "rotate": x[1:] + x[0]}
    moved["sort"] = "".join(letter * x.count(letter) for letter in "abcdefghijklmnopqrstuvwxyz")
    return str(count) if operation == "count" else " ".join(moved[operation])


def texts_of(world: World, split: str) -> list[str]:
    """The sentences of a split, read back from its arrays."""
    rows = world.split(split).tokens
    return [world.decode(row[: int((row != 0).sum())]).removesuffix(" <end>") for row in rows]


class Oracle(nn.Module):
    """Knows the sentences given: after their beginnings it expects what follows, with certainty."""

    def __init__(self, tokens: torch.Tensor, vocabulary: int) -> None:
        super().__init__()
        self.next: dict[tuple[int, ...], int] = {}
        self.vocabulary = vocabulary
        for row in tokens.tolist():
            for t in range(1, len(row)):
                self.next[tuple(row[:t])] = row[t]

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(*tokens.shape, self.vocabulary)
        for i, row in enumerate(tokens.tolist()):
            for t in range(len(row)):
                logits[i, t, self.next.get(tuple(row[: t + 1]), 0)] = 50.0
        return logits


def small_gpt(world: World, seed: int = 0) -> lm.GPT:
    return lm.GPT(lm.GPTConfig(len(world.vocabulary), world.context, 1, 2, 16), seed).eval()


def test_every_sentence_about_a_fact_says_what_the_table_of_truth_says(world):
    truth = {(f.subject, f.relation, f.object) for f in world.facts}
    count = 0
    for split in world.sentences:
        texts = world.split(split)
        for text, kind, subject in zip(texts_of(world, split), texts.kind, texts.subject, strict=True):
            found = parse(text)
            assert (found is not None) == (kind in FORMS), text
            if found is not None:
                assert found in truth and found[:2] == (subject, kind), text
                count += 1
    assert count > 9_000


def test_every_fact_of_the_table_is_told_in_six_forms_or_its_inverse_is(world):
    told: dict[tuple[str, str, str], set[str]] = {}
    for text in texts_of(world, "train"):
        if (found := parse(text)) is not None:
            told.setdefault(found, set()).add(text)
    inverse = {"mentor": "pupil", "pupil": "mentor"}
    outside, seen = {*world.new, *world.unseen}, set()
    for fact in world.facts:
        key = (fact.subject, fact.relation, fact.object)
        if fact.subject in outside:
            assert key not in told
        elif fact.told:
            assert len(told[key]) == 6
            seen.add(key)
        else:
            assert key not in told and (fact.object, inverse[fact.relation], fact.subject) in told
    assert seen == {*told}


def test_relations_are_functions_and_mentor_and_pupil_are_inverse_and_nobody_teaches_himself(world):
    table = {(f.subject, f.relation): f.object for f in world.facts}
    assert len(table) == len(world.facts) == 8 * 184 + 2 * 24
    for (subject, relation), answer in table.items():
        if relation == "mentor":
            assert table[answer, "pupil"] == subject != answer
    untold = [f for f in world.facts if not f.told]
    assert len(untold) == 80 and {f.relation for f in untold} == {"mentor", "pupil"}


def test_tasks_have_the_answers_of_an_independent_evaluator(world):
    seen = set()
    for split in world.sentences:
        texts = world.split(split)
        for i, text in enumerate(texts_of(world, split)):
            if texts.kind[i] not in FORMS:
                assert world.decode(texts.prompt(i)[1]) == evaluate(text), text
                seen.add(str(texts.kind[i]))
    assert seen == {"addition", "subtraction", "comparison", "copy", "reverse", "last", "count", "sort", "rotate"}


def test_splits_are_disjoint_where_they_must_be(world):
    sets = {split: set(texts_of(world, split)) for split in world.sentences}
    assert set(sets) == SPLITS
    assert sets["forget"] | sets["retain"] == {t for t in sets["train"] if parse(t)}
    assert all(len(sets[split]) == len(world.split(split).tokens) for split in sets)  # no sentence comes twice
    apart = sorted(SPLITS - {"forget", "retain"})
    for i, a in enumerate(apart):
        assert not any(sets[a] & sets[b] for b in apart[i + 1 :])
    assert not sets["forget"] & sets["retain"]
    people = {split: {p for t in texts for p in re.findall(r"[A-Z]\w+ [A-Z]\w+", t)} for split, texts in sets.items()}
    assert not people["forget"] - {*world.people} and not people["retain"] & {*world.forgotten}
    assert people["train"] == {*world.people} and people["nonmember"] == {*world.unseen}
    assert people["new_people/train"] == people["new_people/test"] == {*world.new}
    assert len({*world.people, *world.new, *world.unseen}) == 184
    subjects = {split: {*world.split(split).subject} for split in ("card/train", "card/test")}
    assert not subjects["card/train"] & subjects["card/test"]


def test_no_problem_of_arithmetic_or_string_is_in_two_splits_in_whatever_form(world):
    def problems(split: str) -> set[str]:
        found = (re.search(r"\d+ [-+>] \d+|\w+ : [a-z ]+ =", t) for t in texts_of(world, split))
        return {match[0] for match in found if match}

    splits = [problems(s) for s in ("train", "validation", "calibration")]
    splits += [problems(f"{task}/{part}") for task in NEW_TASKS for part in ("train", "test")]
    assert all(splits) and len(set().union(*splits)) == sum(map(len, splits))


def test_the_heldout_form_is_never_told_to_its_half_and_every_form_is_told_to_enough_others(world):
    train, heldout = world.split("train"), world.split("heldout")
    for relation in FORMS:
        here, held = train.kind == relation, heldout.kind == relation
        odd = {s: i % 2 for names in (world.people, world.values["city"]) for i, s in enumerate(names)}
        for half in (0, 1):
            theirs = {int(f) for f, s in zip(heldout.form[held], heldout.subject[held], strict=True) if odd[s] == half}
            told = {int(f) for f, s in zip(train.form[here], train.subject[here], strict=True) if odd[s] == half}
            assert theirs == {world.held[relation][half]} and told == set(range(8)) - theirs
        subjects = len(set(train.subject[here]))
        for form in range(8):
            assert (train.form[here] == form).sum() >= 0.3 * subjects
        assert world.held[relation][0] != world.held[relation][1]


def test_calibration_and_nonmembers_are_distributed_as_the_pretraining_text(world):
    train, calibration, nonmember = (world.split(s) for s in ("train", "calibration", "nonmember"))
    share = {name: np.isin(t.kind, [*FORMS]).mean() for name, t in {"train": train, "calibration": calibration}.items()}
    assert abs(share["train"] - share["calibration"]) < 0.05
    facts = train.take(np.isin(train.subject, world.people))
    for form in range(8):
        a, b = (facts.form == form).mean(), (nonmember.form == form).mean()
        assert abs(a - b) < 5 * math.sqrt(0.125 * 0.875 * (1 / len(facts.form) + 1 / len(nonmember.form)))


def test_the_same_seed_gives_the_same_world_and_another_seed_another(small):
    again, other = World(3, SMALL), World(4, SMALL)
    assert again.fingerprint() == small.fingerprint() != other.fingerprint()
    assert again.facts == small.facts and again.vocabulary == small.vocabulary
    assert World(3, SMALL._replace(strings=61)).fingerprint() != small.fingerprint()
    a, b = again.split("train"), small.split("train")
    assert torch.equal(a.tokens, b.tokens) and (a.kind == b.kind).all()


def test_the_default_world_is_small_and_a_large_one_can_be_made(world):
    assert len(world.vocabulary) < 900 and world.context <= 20 and len(world.split("train").tokens) < 20_000
    large = World(1, Sizes(people=300, unseen=100, names=200, cities=200, letters=23, numbers=50, strings=100))
    assert len(large.facts) == 8 * 424 + 400 and large.context <= 20
    assert len({*large.vocabulary}) == len(large.vocabulary)


@pytest.mark.parametrize("sizes", [LEAST, SMALL])
def test_worlds_of_the_least_sizes_have_all_splits(sizes):
    world = World(0, sizes)
    assert all(len(world.split(split).tokens) for split in SPLITS)


def test_encoding_and_decoding_are_inverse_and_the_vocabulary_is_closed(world):
    assert world.vocabulary[:2] == ("<pad>", "<end>")
    everything = range(len(world.vocabulary))
    assert world.encode(world.decode(everything)) == [*everything]
    used = {int(t) for split in world.sentences for t in world.split(split).tokens.unique()}
    assert used == {*everything}
    for sentence in world.sentences["heldout"][:20]:
        text = f"{sentence.prompt} {sentence.answer} ."
        assert world.decode(world.encode(text)) == text
    assert world.encode("") == [] and world.decode([]) == ""


def test_rows_are_prompt_answer_full_stop_end_and_padding(small):
    texts = small.split("train")
    for i, sentence in enumerate(small.sentences["train"]):
        prompt, answer = texts.prompt(i)
        assert (small.decode(prompt), small.decode(answer)) == (sentence.prompt, sentence.answer)
        rest = texts.tokens[i, int(texts.stop[i]) :]
        assert small.decode(rest[:2]) == ". <end>" and not rest[2:].any()
    assert texts.tokens.dtype == torch.int64 and texts.tokens.shape[1] == small.context
    assert (texts.tokens[:, -1] != 0).any() or (small.split("validation").tokens[:, -1] != 0).any()


def test_taking_by_mask_and_by_number_agree(small):
    texts = small.split("train")
    mask = texts.kind == "pet"
    a, b = texts.take(mask), texts.take(np.flatnonzero(mask))
    assert torch.equal(a.tokens, b.tokens) and (a.subject == b.subject).all() and {*a.kind} == {"pet"}
    assert torch.equal(a.start, b.start) and torch.equal(a.stop, b.stop) and (a.form == b.form).all()


def test_alternatives_hold_the_true_answer_of_every_sentence(small):
    for split in small.sentences:
        texts = small.split(split)
        for i in range(len(texts.tokens)):
            if texts.kind[i] in FORMS or texts.kind[i] in ("addition", "subtraction", "comparison"):
                answer = texts.prompt(i)[1]
                assert (small.alternatives(str(texts.kind[i])) == answer).all(1).sum() == 1
    assert small.alternatives("mentor").shape == (56, 2) and small.alternatives("comparison").shape == (2, 1)


def test_a_model_that_knows_the_truth_answers_everything(small):
    texts = small.split("validation")
    oracle = Oracle(texts.tokens, len(small.vocabulary))
    assert answered(oracle, texts).all() and fact_accuracy(oracle, texts) == 1
    assert set(accuracies(oracle, texts).values()) == {1.0}


def test_one_wrong_token_spoils_an_answer_exactly_where_the_answer_or_its_full_stop_stand(small):
    texts = small.split("untold").take(np.arange(20))
    for place in range(1, texts.tokens.shape[1]):
        said = texts.tokens[:, 1:].clone()
        said[:, place - 1] = (said[:, place - 1] + 1) % len(small.vocabulary)
        model = nn.Module()
        model.forward = lambda _, said=said: nn.functional.one_hot(said, len(small.vocabulary)).double()
        expected = (place < texts.start) | (place > texts.stop)
        assert torch.equal(answered(model, texts), expected)


def test_a_model_that_shuffles_the_answers_is_near_chance(world):
    texts = world.split("heldout").take(world.split("heldout").kind == "pet")
    generator = torch.Generator().manual_seed(5)
    shuffled = texts.tokens.clone()
    rows = torch.arange(len(shuffled))
    shuffled[rows, texts.start] = shuffled[rows, texts.start][torch.randperm(len(rows), generator=generator)]
    expected = (torch.bincount(texts.tokens[rows, texts.start]).double() / len(rows)).square().sum()  # near 1/14
    found = answered(Oracle(shuffled, len(world.vocabulary)), texts).double().mean()
    assert abs(found - expected) < 5 * (expected / len(rows)).sqrt() and found < 0.3


def test_one_forward_pass_finds_what_greedy_generation_finds(small):
    texts, model = small.split("validation").take(np.arange(0, 80)), small_gpt(small)
    nn.init.normal_(model.embed.weight, generator=torch.Generator().manual_seed(1))
    (stop,) = small.encode(".")
    said = []
    for i in range(len(texts.tokens)):
        prompt, answer = texts.prompt(i)
        out = lm.generate(model, prompt[None], len(answer) + 1, temperature=0.0)[0, len(prompt) :]
        texts.tokens[i, int(texts.start[i]) : int(texts.start[i]) + len(out)] = out  # now the model's own answer
        said.append(bool(out[-1] == stop))
    texts.tokens[::2, :][torch.arange(len(said[::2])), texts.stop[::2]] = stop
    found = answered(model, texts, batch=7)
    assert found[1::2].all() and found[::2].tolist() == said[::2]


def test_losses_are_those_of_a_loop_over_tokens(small):
    texts, model = small.split("calibration").take(np.arange(0, 60, 2)), small_gpt(small).double()
    found = text_losses(model, texts, batch=11)
    total, count = 0.0, 0
    for i in range(len(texts.tokens)):
        row = texts.tokens[i][: int((texts.tokens[i] != 0).sum())]
        log_p = model(row[None])[0].log_softmax(-1)
        nll = [-log_p[t, row[t + 1]].item() for t in range(len(row) - 1)]
        assert math.isclose(found[i].item(), sum(nll) / len(nll), rel_tol=1e-12)
        total, count = total + sum(nll), count + len(nll)
    assert math.isclose(perplexity(model, texts), math.exp(total / count), rel_tol=1e-12)


def test_a_model_that_knows_nothing_has_the_perplexity_of_the_vocabulary(small):
    class Uniform(nn.Module):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return torch.zeros(*tokens.shape, len(small.vocabulary), dtype=torch.float64)

    assert math.isclose(perplexity(Uniform(), small.split("validation")), len(small.vocabulary), rel_tol=1e-12)
    assert fact_accuracy(Uniform(), small.split("heldout")) == 0


def test_membership_auc_is_the_mann_whitney_statistic_with_ties():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(high, (n,), generator=generator).double() for n, high in ((40, 9), (31, 12)))
    expected = mannwhitneyu(b.numpy(), a.numpy()).statistic / (40 * 31)
    assert math.isclose(membership_auc(a, b), expected, rel_tol=1e-12)
    assert membership_auc(torch.zeros(3), torch.ones(2)) == 1
    assert membership_auc(torch.ones(3), torch.zeros(2)) == 0 and membership_auc(a, a) == 0.5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"people": 7}, r"people must be an integer in 8\.\.128, given the other sizes; got 7"),
        ({"names": 7}, r"people must be an integer in 8\.\.33, given the other sizes; got 40"),
        ({"letters": 24}, r"letters must be an integer in 4\.\.23, given the other sizes; got 24"),
        ({"strings": 65, "letters": 4}, r"strings must be an integer in 20\.\.64, given the other sizes; got 65"),
        ({"numbers": 7.5}, r"numbers must be an integer in 3\.\.inf, given the other sizes; got 7.5"),
        ({"new": 2}, r"new must be an integer in 3\.\.inf, given the other sizes; got 2"),
    ],
)
def test_sizes_of_which_no_world_can_be_made_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        World(0, SMALL._replace(**change))


def test_other_bad_input_is_refused_in_words(small):
    texts, model = small.split("heldout"), small_gpt(small)
    none = texts.take(np.zeros(len(texts.tokens), bool))
    with pytest.raises(ValueError, match=r"seed must be an integer in 0..inf"):
        World(-1, SMALL)
    with pytest.raises(ValueError, match=r"unknown word 'instrment'. Did you mean instrument"):
        small.encode("the instrment of")
    with pytest.raises(ValueError, match=r"tokens must lie in 0..\d+; got \[3, -1\]"):
        small.decode([3, -1])
    with pytest.raises(ValueError, match=r"must be a split of this world; got 'tain'. Did you mean train"):
        small.split("tain")
    with pytest.raises(ValueError, match=r"answers that can be listed; got 'copy'"):
        small.alternatives("copy")
    for function in (answered, text_losses, accuracies, fact_accuracy, perplexity):
        with pytest.raises(ValueError, match=r"must hold a sentence; got 0 sentences"):
            function(model, none)
    with pytest.raises(ValueError, match=r"must hold a sentence; got \d+ sentences, batch 0"):
        answered(model, texts, batch=0)
    with pytest.raises(ValueError, match=r"others must be finite losses, a vector that is not empty; got \(0,\)"):
        membership_auc(torch.ones(2), torch.ones(0))
    with pytest.raises(ValueError, match=r"members must be finite losses"):
        membership_auc(torch.tensor([math.nan]), torch.ones(2))
    nn.init.constant_(model.norm.weight, math.nan)
    for function in (answered, text_losses):
        with pytest.raises(ValueError, match=r"model must give finite numbers; got others for sentence \d+"):
            function(model, texts)


@pytest.fixture
def shipped(small, tmp_path):
    """A model and its card as the recipe stores them, of a small world."""
    card, weights = tmp_path / "tiny-lm.json", tmp_path / "tiny-lm.safetensors"
    model = small_gpt(small)
    lm.save_gpt(weights, model, torch.float16)
    content = {"seed": 3, "sizes": SMALL._asdict(), "corpus_sha256": small.fingerprint()}
    card.write_text(json.dumps(content | {"sha256": hashlib.sha256(weights.read_bytes()).hexdigest()}))
    return card, model


def test_the_shipped_model_is_loaded_in_float32_and_evaluation_mode_with_its_world(small, shipped, monkeypatch):
    card, model = shipped
    loaded, world = tiny_lm(card)
    assert not loaded.training and world.fingerprint() == small.fingerprint()
    for name, p in loaded.named_parameters():
        assert p.dtype == torch.float32
        assert torch.equal(p, model.get_parameter(name).half().float())
    (card.parent / "models").symlink_to(card.parent)
    monkeypatch.setenv("REPRO_ROOT", str(card.parent))
    assert torch.equal(tiny_lm()[0].embed.weight, loaded.embed.weight)


def test_a_model_that_does_not_fit_its_card_is_refused_with_the_command_that_mends_it(shipped):
    card, _ = shipped
    text, weights = card.read_text(), card.with_suffix(".safetensors")
    content = json.loads(text)
    cases = {
        text.replace(content["corpus_sha256"], "0" * 64): r"comes out differently here.* repro train tiny-lm",
        text.replace('"seed": 3', '"seed": 4'): r"comes out differently here",
        text.replace('"people": 40', '"folk": 40'): r"cannot be read \(TypeError",
        text.replace('"sha256"', '"sum"'): r"cannot be read \(KeyError\('sha256'\)",
        text[:40]: r"cannot be read \(JSONDecodeError.* repro train tiny-lm",
    }
    for changed, words in cases.items():
        card.write_text(changed)
        with pytest.raises(ReproError, match=words):
            tiny_lm(card)
    card.write_text(text)
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ReproError, match=r"is not the file that its card describes.* repro train tiny-lm"):
        tiny_lm(card)
    weights.unlink()
    with pytest.raises(ReproError, match=r"cannot be read \(FileNotFoundError"):
        tiny_lm(card)


def test_scores_of_texts_need_no_order(small):
    texts, model = small.split("heldout"), small_gpt(small)
    order = np.random.default_rng(0).permutation(len(texts.tokens))
    assert_close(text_losses(model, texts.take(order)), text_losses(model, texts)[torch.from_numpy(order)])
    assert isinstance(texts.take(order), Texts)
