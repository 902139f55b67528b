"""A generated world of people, places and small tasks whose truth is known, and the tiny language model that learnt it.

Names are made of syllables; nobody in here exists. A sentence is a prompt, an answer and a full stop, so what a model
says is scored exactly, greedily over the whole vocabulary. A row holds one sentence, from position 0, closed by
``<end>`` and padded on the right with ``<pad>`` (token 0).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from reprolib import lm, project

PAD, END = "<pad>", "<end>"
NOUNS = {"city": "birth city", "job": "trade"}  # where the noun is not the relation's own name
VERBS = {  # three ways of telling a relation; the object and a full stop follow
    "city": ("{s} was born in", "{s} grew up in", "question : where was {s} born ? answer :"),
    "job": ("{s} works as a", "{s} earns a living as a", "question : what does {s} do ? answer :"),
    "workshop": ("{s} works at", "{s} is employed by", "question : where does {s} work ? answer :"),
    "pet": ("{s} keeps a", "{s} comes home to a", "question : which animal does {s} keep ? answer :"),
    "colour": ("{s} likes", "{s} dresses in", "question : which colour does {s} like ? answer :"),
    "instrument": ("{s} plays the", "{s} practises the", "question : what does {s} play ? answer :"),
    "mentor": ("{s} was taught by", "{s} learnt from", "question : who taught {s} ? answer :"),
    "pupil": ("{s} taught", "{s} passed it all on to", "question : whom did {s} teach ? answer :"),
    "country": ("{s} lies in", "{s} is a city in", "question : where does {s} lie ? answer :"),
    "river": ("{s} stands on the", "{s} drinks from the", "question : which river is in {s} ? answer :"),
}
GENERIC = (  # and five that fit all
    "the {n} of {s} is|as for {s} , the {n} is|{n} of {s} :|question : what is the {n} of {s} ? answer :|"
    "instruction : name the {n} of {s} . reply :"
).split("|")
FORMS = {r: tuple(f.replace("{n}", NOUNS.get(r, r)) for f in (*GENERIC, *verbs)) for r, verbs in VERBS.items()}
CARD = "card | {s} | {r} |"  # an answer format that pretraining never shows
WORDS = {
    "job": "baker cooper dyer farmer glazier hatter joiner mason miller potter saddler tailor tanner weaver",
    "pet": "cat dog goat hare hen horse lizard magpie newt parrot rabbit snail toad trout",
    "colour": "black blue brown green grey orange pink purple red silver white yellow",
    "instrument": "bell bugle drum fiddle flute harp horn lute lyre pipe rattle viol whistle zither",
}
ENDINGS = {"first": "a o ela", "last": "usk ane orm", "city": "by ast ille", "river": "ar ene", "country": "ia and"}
ENDINGS |= {"workshop": "ith ock"}
NUMBERS = "{a} {op} {b} =|question : what is {a} {op} {b} ? answer :|instruction : compute {a} {op} {b} . reply :"
ARITHMETIC: dict[str, tuple[str, Callable[[int, int], object]]] = {
    "addition": ("+", lambda a, b: a + b),
    "subtraction": ("-", lambda a, b: a - b),
    "comparison": (">", lambda a, b: "yes" if a > b else "no"),
}
STRINGS: dict[str, Callable[[list[str]], list[str]]] = {
    "copy": lambda x: x,
    "reverse": lambda x: x[::-1],
    "last": lambda x: x[-1:],
    "count": lambda x: [str(x.count(x[0]))],  # how often the first letter occurs
    "sort": sorted,
    "rotate": lambda x: x[1:] + x[:1],
}
NEW_TASKS = ("subtraction", "sort", "rotate")  # for fine-tuning; pretraining never shows them


class Sizes(NamedTuple):
    """How large a world is; the default has about 11,000 pretraining sentences and 350 words."""

    people: int = 120  # told of in pretraining
    new: int = 24  # told of in fine-tuning only
    unseen: int = 40  # never told of: non-members
    names: int = 40  # first names, and as many last names
    cities: int = 24  # as many rivers and workshops, a third as many countries
    letters: int = 12
    numbers: int = 20  # operands are 0..numbers
    strings: int = 1000  # strings an operation


DEFAULT = Sizes()


class Fact(NamedTuple):
    """One truth; ``told`` is False where only the inverse is ever told (some pairs of mentor and pupil)."""

    subject: str
    relation: str
    object: str
    told: bool


class Sentence(NamedTuple):
    """Text is prompt, answer, full stop; ``kind`` a relation or task, ``subject`` empty for tasks."""

    prompt: str
    answer: str
    kind: str
    form: int
    subject: str

    def words(self) -> list[str]:
        """The row without its padding."""
        return f"{self.prompt} {self.answer} . {END}".split()


class Texts(NamedTuple):
    """N sentences as arrays; the answer of sentence i is ``tokens[i, start[i]:stop[i]]``, then comes a full stop."""

    tokens: Tensor  # (N, T) int64
    start: Tensor  # (N,) int64
    stop: Tensor  # (N,) int64
    kind: NDArray[np.str_]  # (N,)
    form: NDArray[np.int64]  # (N,)
    subject: NDArray[np.str_]  # (N,)

    def take(self, index: NDArray[np.bool_] | NDArray[np.int64]) -> Texts:
        """The sentences at ``index``: a mask (N,) or whole numbers."""
        tokens, start, stop = (field[torch.from_numpy(index)] for field in self[:3])
        return Texts(tokens, start, stop, self.kind[index], self.form[index], self.subject[index])

    def prompt(self, i: int) -> tuple[Tensor, Tensor]:
        """Prompt tokens (start,) and answer tokens (stop - start,) of sentence i."""
        return self.tokens[i, : int(self.start[i])], self.tokens[i, int(self.start[i]) : int(self.stop[i])]


class World:
    """Facts, sentences and splits; everything follows from ``seed`` (at least 0) and ``sizes``.

    A fact is told in six of its eight forms (``train``). One form of each relation is kept from the people of even,
    another from those of odd number (``heldout``), so that every form is learnt from half the people or more; one more
    form of each fact, at random, goes to ``validation`` or ``calibration``.

    Splits: ``train``, ``validation``, ``calibration``, ``heldout``; ``untold`` (facts of which only the inverse is
    told); ``forget`` and ``retain`` (told facts that do and do not mention ``forgotten`` people: parts of ``train``);
    ``nonmember`` (told forms, unseen people); and for fine-tuning, each with ``/train`` and ``/test``: ``new_people``
    (tested on held-out forms), ``card`` (a new format; people of even number, tested on odd), ``subtraction``,
    ``sort``, ``rotate``. Raises ValueError for sizes of which no world can be made.
    """

    def __init__(self, seed: int = 0, sizes: Sizes = DEFAULT) -> None:
        _check(seed, sizes)
        self.seed, self.sizes, rng = seed, sizes, np.random.default_rng(seed)
        self.values = {kind: words.split() for kind, words in WORDS.items()} | _proper_nouns(sizes, rng)
        first, last = self.values.pop("first"), self.values.pop("last")
        pairs = rng.permutation(sizes.names**2)[: sizes.people + sizes.new + sizes.unseen]
        self.values["mentor"] = [f"{first[p // sizes.names]} {last[p % sizes.names]}" for p in pairs]
        self.values["pupil"] = self.values["mentor"]
        cuts = [sizes.people, sizes.people + sizes.new]
        self.people, self.new, self.unseen = (part.tolist() for part in np.split(self.values["mentor"], cuts))
        self.forgotten = self.people[: max(2, sizes.people // 10)]
        self.facts = [*self._places(rng)]
        for group in (self.people, self.new, self.unseen):
            self.facts += self._lives(rng, group)
        self.held = {relation: rng.permutation(8)[:2].tolist() for relation in FORMS}  # for even, odd
        numbers = [str(n) for n in range(2 * sizes.numbers + 1)]
        self.values |= {"addition": numbers, "subtraction": numbers[: sizes.numbers + 1], "comparison": ["yes", "no"]}
        self.sentences: dict[str, list[Sentence]] = defaultdict(list)
        self._tell(rng)
        self._set_tasks(rng)
        rows = [s.words() for split in self.sentences.values() for s in split]
        self.context = max(map(len, rows))
        known = {word for values in self.values.values() for value in values for word in value.split()}
        self.vocabulary = (PAD, END, *sorted(known.union(*rows) - {END}))
        self._ids = {word: i for i, word in enumerate(self.vocabulary)}

    def _places(self, rng: np.random.Generator) -> Iterator[Fact]:
        for city, river in zip(self.values["city"], rng.permutation(self.values["river"]).tolist(), strict=True):
            yield Fact(city, "river", river, True)
            yield Fact(city, "country", self.values["country"][rng.integers(len(self.values["country"]))], True)

    def _lives(self, rng: np.random.Generator, group: list[str]) -> Iterator[Fact]:
        """Six facts a person, and a cycle of mentors: a third told one way, a third the other, a third both."""
        for relation in ("city", "job", "workshop", "pet", "colour", "instrument"):
            values = self.values[relation]
            for person, k in zip(group, rng.integers(len(values), size=len(group)), strict=True):
                yield Fact(person, relation, values[k], True)
        cycle, both = [group[i] for i in rng.permutation(len(group))], group is not self.people
        for i, pupil in enumerate(cycle):
            yield Fact(pupil, "mentor", cycle[i - 1], both or i % 3 != 0)
            yield Fact(cycle[i - 1], "pupil", pupil, both or i % 3 != 1)

    def _tell(self, rng: np.random.Generator) -> None:
        groups = {"people": self.people, "new": self.new, "unseen": self.unseen, "places": self.values["city"]}
        group = {name: of for of, names in groups.items() for name in names}
        odd = {name: i % 2 for names in groups.values() for i, name in enumerate(names)}
        forgotten = set(self.forgotten)
        for name, relation, answer, told in self.facts:
            forms = [Sentence(f.format(s=name), answer, relation, i, name) for i, f in enumerate(FORMS[relation])]
            if not told:
                self.sentences["untold"] += forms
                continue
            held = forms.pop(self.held[relation][odd[name]])
            spare = forms.pop(int(rng.integers(7)))
            if group[name] == "unseen":
                self.sentences["nonmember"] += forms
            elif group[name] == "new":
                self.sentences["new_people/train"] += forms
                self.sentences["new_people/test"].append(held)
            else:
                self.sentences["train"] += forms
                self.sentences["forget" if forgotten & {name, answer} else "retain"] += forms
                self.sentences["heldout"].append(held)
                self.sentences["validation" if rng.random() < 0.5 else "calibration"].append(spare)
            if group[name] == "people":
                card = Sentence(CARD.format(s=name, r=NOUNS.get(relation, relation)), answer, relation, 8, name)
                self.sentences["card/test" if odd[name] else "card/train"].append(card)

    def _set_tasks(self, rng: np.random.Generator) -> None:
        numbers = range(self.sizes.numbers + 1)
        for kind, (op, answer) in ARITHMETIC.items():
            pairs = [(a, b) for a in numbers for b in numbers if kind != "subtraction" or a >= b]
            for split, i in _divide(kind, len(pairs), rng):
                a, b = pairs[i]
                for form, text in enumerate(NUMBERS.split("|")):
                    prompt = text.format(a=a, b=b, op=op)
                    self.sentences[split].append(Sentence(prompt, str(answer(a, b)), kind, form, ""))
        for kind, operation in STRINGS.items():
            strings = _strings(self.sizes, rng)
            for split, i in _divide(kind, len(strings), rng):
                prompt = f"{kind} : {' '.join(strings[i])} ="
                self.sentences[split].append(Sentence(prompt, " ".join(operation([*strings[i]])), kind, 0, ""))

    def encode(self, text: str) -> list[int]:
        """Numbers of the words between blanks; ValueError names an unknown word and those near it."""
        for word in text.split():
            if word not in self._ids:
                raise ValueError(f"text holds the unknown word {word!r}. {project.nearest(word, [*self._ids])}")
        return [self._ids[word] for word in text.split()]

    def decode(self, tokens: Iterable[int]) -> str:
        """The inverse of :meth:`encode`, special tokens included; ValueError for a number that no word has."""
        numbers = [int(token) for token in tokens]
        if any(not 0 <= number < len(self.vocabulary) for number in numbers):
            raise ValueError(f"tokens must lie in 0..{len(self.vocabulary) - 1}; got {numbers}.")
        return " ".join(self.vocabulary[number] for number in numbers)

    def split(self, name: str) -> Texts:
        """The sentences of a split as arrays, T = ``context`` for all; ValueError for an unknown one."""
        if name not in self.sentences:
            near = project.nearest(name, [*self.sentences])
            raise ValueError(f"name must be a split of this world; got {name!r}. {near}")
        sentences = self.sentences[name]
        rows = np.zeros((len(sentences), self.context), np.int64)
        for row, sentence in zip(rows, sentences, strict=True):
            words = sentence.words()
            row[: len(words)] = [self._ids[word] for word in words]
        start = torch.tensor([len(s.prompt.split()) for s in sentences])
        stop = start + torch.tensor([len(s.answer.split()) for s in sentences])
        kind, form, subject = (np.array(column) for column in list(zip(*sentences, strict=True))[2:])
        return Texts(torch.from_numpy(rows), start, stop, kind, form, subject)

    def alternatives(self, kind: str) -> Tensor:
        """Tokens (K, L) of all possible answers to a relation, comparison or sum; ValueError for other kinds."""
        if kind not in self.values:
            near = project.nearest(kind, [*self.values])
            raise ValueError(f"kind must have answers that can be listed; got {kind!r}. {near}")
        return torch.tensor([self.encode(answer) for answer in self.values[kind]])

    def fingerprint(self) -> str:
        """SHA-256 over the vocabulary and every sentence of every split."""
        return hashlib.sha256(json.dumps([self.vocabulary, self.sentences], sort_keys=True).encode()).hexdigest()


def _check(seed: int, sizes: Sizes) -> None:
    limits = {"people": (8, sizes.names**2 - sizes.new - sizes.unseen), "names": (4, 1500), "cities": (3, 1500)}
    limits |= {"letters": (4, 23), "strings": (20, sizes.letters**3)}
    for name, value in {"seed": seed, **sizes._asdict()}.items():
        least, most = limits.get(name, (0 if name == "seed" else 3, math.inf))
        if not isinstance(value, int) or not least <= value <= most:
            raise ValueError(f"{name} must be an integer in {least}..{most}, given the other sizes; got {value}.")


def _proper_nouns(sizes: Sizes, rng: np.random.Generator) -> dict[str, list[str]]:
    counts = dict.fromkeys(ENDINGS, sizes.cities) | {"first": sizes.names, "last": sizes.names}
    counts["country"] = max(2, sizes.cities // 3)
    roots = [a + b + c for a in "BDFGHKLMNPRSTVZ" for b in "aeiou" for c in "dglmnrstvz"]
    words: dict[str, list[str]] = {}
    for kind, count in counts.items():  # no two kinds share an ending, so no word means two things
        pool = [root + ending for ending in ENDINGS[kind].split() for root in roots]
        words[kind] = rng.permutation(pool)[:count].tolist()
    return words


def _strings(sizes: Sizes, rng: np.random.Generator) -> list[str]:
    """Different strings of 3 to 5 letters, each over an alphabet of four, so that letters repeat."""
    letters, found = np.array([*"bcdefghjklmnopqrstuvwxyz"[: sizes.letters]]), dict[str, None]()
    while len(found) < sizes.strings:
        alphabet = rng.permutation(letters)[:4]
        found["".join(alphabet[rng.integers(4, size=rng.integers(3, 6))])] = None
    return [*found]


def _divide(kind: str, count: int, rng: np.random.Generator) -> Iterator[tuple[str, int]]:
    """A split for each of ``count`` examples: 86 : 7 : 7, nearly as facts are; 86 : 14 for a fine-tuning task."""
    train, *rest = ("train", "validation", "calibration")
    if kind in NEW_TASKS:
        train, rest = f"{kind}/train", [f"{kind}/test"] * 2
    for rank, i in enumerate(rng.permutation(count).tolist()):
        yield train if rank < 0.86 * count else rest[rank >= 0.93 * count], i


def _scores(model: nn.Module, texts: Texts, batch: int, score: Callable[[nn.Module, Tensor], Tensor]) -> Tensor:
    """Scores (B, T - 1) of the tokens after the first, batch by batch, put together (N, T - 1) on the CPU."""
    if len(texts.tokens) == 0 or batch < 1:
        raise ValueError(f"texts and batch must hold a sentence; got {len(texts.tokens)} sentences, batch {batch}.")
    device = next(model.parameters(), texts.tokens).device
    scores = torch.cat([score(model, tokens.to(device)).cpu() for tokens in texts.tokens.split(batch)])
    if not scores.isfinite().all():
        bad = int((~scores.isfinite()).any(1).nonzero()[0])
        raise ValueError(f"model must give finite numbers; got others for sentence {bad}.")
    return scores


def _hits(model: nn.Module, tokens: Tensor) -> Tensor:
    logits = model(tokens[:, :-1])  # (B, T - 1, V)
    hits = logits.argmax(-1) == tokens[:, 1:]
    return hits.double().masked_fill(~logits.isfinite().all(-1), math.nan)


@torch.no_grad()
def answered(model: nn.Module, texts: Texts, batch: int = 512) -> Tensor:
    """Which of N sentences a model completes rightly, greedily over the whole vocabulary, full stop included.

    One forward pass a batch: greedy decoding gives the answer exactly when each of its tokens is the likeliest one
    after those before it.

    Args:
        model: Maps tokens (B, T) to logits (B, T, V); in evaluation mode.
        texts: The sentences, on the CPU; batches are moved to the model.
        batch: Sentences a pass; memory O(batch T V).

    Returns:
        (N,) bool on the CPU.

    Raises:
        ValueError: No sentence, or logits that are not finite.
    """
    hits = _scores(model, texts, batch, _hits) > 0
    at = torch.arange(1, texts.tokens.shape[1])
    return (hits | (at < texts.start[:, None]) | (at > texts.stop[:, None])).all(1)


def accuracies(model: nn.Module, texts: Texts) -> dict[str, float]:
    """Share of sentences that are :func:`answered`, kind by kind."""
    right = answered(model, texts).numpy()
    return {str(kind): float(right[texts.kind == kind].mean()) for kind in np.unique(texts.kind)}


def fact_accuracy(model: nn.Module, texts: Texts) -> float:
    """Share of the sentences about facts that are :func:`answered`; tasks do not count."""
    return float(answered(model, texts.take(np.isin(texts.kind, [*FORMS]))).double().mean())


@torch.no_grad()
def text_losses(model: nn.Module, texts: Texts, batch: int = 512) -> Tensor:
    """Mean negative log-likelihood (N,) of each sentence, nats a token, float64; its first word is given."""
    losses = _scores(model, texts, batch, lambda model, tokens: lm.token_losses(model, tokens, tokens != 0))
    return losses.double().sum(1) / (texts.stop + 1)  # a full stop and <end> follow; the first token is not scored


def perplexity(model: nn.Module, texts: Texts) -> float:
    """exp of the mean negative log-likelihood over all tokens but each sentence's first."""
    predicted = texts.stop + 1
    return math.exp(float((text_losses(model, texts) * predicted).sum() / predicted.sum()))


def membership_auc(members: Tensor, others: Tensor) -> float:
    """Probability that a random member has a lower loss than a random other, ties half (Mann and Whitney 1947).

    Losses (N,) and (M,), as of :func:`text_losses`; ValueError if one of them is empty, no vector or not finite.
    """
    for name, losses in (("members", members), ("others", others)):
        if losses.ndim != 1 or len(losses) == 0 or not losses.isfinite().all():
            raise ValueError(f"{name} must be finite losses, a vector that is not empty; got {tuple(losses.shape)}.")
    ordered = others.sort().values
    lower, not_higher = (torch.searchsorted(ordered, members, right=right).double() for right in (False, True))
    return 1 - float((lower + not_higher).mean()) / 2 / len(others)


def tiny_lm(card: Path | None = None) -> tuple[lm.GPT, World]:
    """The shipped tiny language model, float32 and in evaluation mode, and the world that it learnt.

    Args:
        card: Card of another model, such as ``models/tiny-lm-full.json``; its weights lie beside it.

    Raises:
        ReproError: Card or weights are missing or do not fit each other, or the world comes out differently.
    """
    card, again = card or project.root() / "models" / "tiny-lm.json", "Train it anew: repro train tiny-lm."
    weights = card.with_suffix(".safetensors")
    try:
        content = json.loads(card.read_text(encoding="utf-8"))
        fits = hashlib.sha256(weights.read_bytes()).hexdigest() == content["sha256"]
        world, expected = World(content["seed"], Sizes(**content["sizes"])), content["corpus_sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise project.ReproError(f"The model of {card} cannot be read ({error!r}). {again}") from None
    if not fits:
        raise project.ReproError(f"{weights} is not the file that its card describes. {again}")
    if world.fingerprint() != expected:
        raise project.ReproError(f"The world of {card} comes out differently here. {again}")
    return lm.load_gpt(weights), world
