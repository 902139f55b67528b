"""What cells show: numbers that the tests can mask, tables, figures, sliders, progress and self-checks."""

import configparser
import io
import math
import random
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import pytest
import torch
from PIL import Image

from reprolib import (
    ReproError,
    approx,
    approx_interval,
    check,
    exercises,
    explore,
    figure,
    plot,
    progress,
    require,
    say,
    self_check,
    show,
    slider,
    table,
)

ALT = "A straight line that rises from one to two."


SANITIZE = configparser.RawConfigParser()
SANITIZE.read(Path(__file__).parents[1] / "nbval_sanitize.cfg", encoding="utf-8")


def mask(text: str) -> str:
    """The text as nbval compares it."""
    for name in SANITIZE.sections():
        text = re.sub(SANITIZE[name]["regex"], SANITIZE[name]["replace"], text)
    return text


# ------------------------------------------------------------------------------------------------------ numbers


def many_floats():
    """Floats of every size and sign, the awkward ones first."""
    yield from (0.0, -0.0, 1.0, 999.4, 999.5, 999.7, -999.96, 1000.0, 99999.5, 1e9 - 1, 1e9, 1e15, 5e-324, 1.7e305, 0.1)
    rng = random.Random(0)
    for _ in range(2000):
        yield rng.choice((-1, 1)) * 10 ** rng.uniform(-308, 305)
        yield rng.choice((-1, 1)) * 10 ** rng.uniform(-7, 10)


@pytest.mark.parametrize("digits", [1, 2, 3, 6])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("percent", [False, True])
def test_every_finite_number_is_masked_whole_and_nothing_beside_it(digits, signed, percent):
    for x in many_floats():
        text = approx(x, digits, signed=signed, percent=percent)
        for around in ("a {} b", "It is {}, then {}. The end.", "[{}, {}]", "| {} | {} |"):
            masked = mask(around.replace("{}", text))
            assert masked == around.replace("{}", "≈NUMBER %" if percent else "≈NUMBER"), (x, text)


def test_numbers_without_the_mark_are_not_masked():
    assert mask("3 of 10 seeds, 0.5 nats, ≈ 2") == "3 of 10 seeds, 0.5 nats, ≈ 2"


def test_a_number_that_is_not_finite_stays_visible_to_the_comparison():
    assert [mask(approx(v)) for v in (math.nan, math.inf, -math.inf)] == ["≈nan", "≈inf", "≈-inf"]


@pytest.mark.parametrize(
    ("x", "settings", "text"),
    [
        (0.87321, {}, "≈0.873"),
        (0.87321, {"digits": 1}, "≈0.9"),
        (0.039, {"signed": True}, "≈+0.039"),
        (-0.039, {"signed": True}, "≈-0.039"),
        (0.8732, {"percent": True}, "≈87.3 %"),
        (1234567.8, {}, "≈1,234,568"),
        (999.7, {}, "≈1,000"),
        (99.6, {"digits": 2}, "≈100"),
        (1e-7, {}, "≈1e-07"),
        (torch.tensor(2.5), {}, "≈2.5"),
    ],
)
def test_numbers_read_as_a_person_writes_them(x, settings, text):
    assert approx(x, **settings) == text


@pytest.mark.parametrize("digits", [1, 2, 3, 5])
def test_the_digits_shown_round_to_the_number(digits):
    for x in many_floats():
        shown = float(approx(x, digits)[1:].replace(",", ""))
        assert math.isclose(shown, x, rel_tol=0.5000001 * 10 ** (1 - digits), abs_tol=5e-323)


def test_an_interval_shows_all_three_numbers_marked():
    result = SimpleNamespace(mean=0.0393, low=-0.0251, high=0.0532)
    assert approx_interval(result) == "≈+0.039 [≈-0.025, ≈+0.053]"
    assert approx_interval(result, 1, signed=False, percent=True) == "≈4 % [≈-3 %, ≈5 %]"


# ----------------------------------------------------------------------------------------- sentences and tables


def test_outside_jupyter_sentences_are_printed_and_ipython_is_not_imported(capsys):
    say("Two **words**.")
    assert capsys.readouterr().out == "Two **words**.\n"
    assert show.ipython() is None


def test_a_table_escapes_its_cells_and_aligns_its_columns(capsys):
    table(["method", "loss (nats)"], [("a|b", 1), ("two\nlines", None)], align="lr")
    assert capsys.readouterr().out.splitlines() == [
        "| method | loss (nats) |",
        "| :-- | --: |",
        "| a\\|b | 1 |",
        "| two lines | None |",
    ]


@pytest.mark.parametrize("row", [(1,), (1, 2, 3), ()])
def test_a_row_of_another_length_is_refused(row):
    with pytest.raises(ValueError, match=r"each row must hold 2 cells \(a, b\); got "):
        table(["a", "b"], [(1, 2), row])


def test_an_alignment_of_another_length_is_refused():
    with pytest.raises(ValueError, match=r"align must hold one letter a column \(2\); got 'l'"):
        table(["a", "b"], [], align="l")


# ------------------------------------------------------------------------------------------ figures and sliders


@pytest.fixture
def shown(monkeypatch):
    """The bundles that figure and slider display, with their metadata."""
    bundles = []

    def keep(bundle, metadata=None):
        bundles.append((bundle, metadata))

    monkeypatch.setattr(plot, "display", keep)
    monkeypatch.setattr(explore, "display", keep)
    return bundles


def line(height=1.5, slope=1):
    fig, ax = plt.subplots(figsize=(2, height))
    ax.plot([0, slope])
    return fig


@pytest.mark.parametrize("missing", ["name", "caption", "alt"])
@pytest.mark.parametrize("text", ["", "   ", None])
def test_a_figure_without_one_of_its_texts_is_refused_by_name(missing, text):
    words = {"name": "fig-a", "caption": "A line.", "alt": ALT} | {missing: text}
    fig = line()
    with pytest.raises(ValueError, match=f"A figure needs {missing}="):
        figure(fig, **words)
    plt.close(fig)


def test_a_text_alternative_of_a_few_words_is_refused():
    fig = line()
    with pytest.raises(ValueError, match=r"alt= with at least 20 character\(s\); got 'A line\.'"):
        figure(fig, name="fig-a", caption="A line.", alt="A line.")
    plt.close(fig)


def test_a_figure_is_a_small_picture_with_its_words_and_is_closed(shown):
    fig = line()
    figure(fig, name="fig-a", caption="A line.", alt=ALT)
    ((bundle, metadata),) = shown
    picture = Image.open(io.BytesIO(bundle["image/png"]))
    assert metadata["image/png"] == {"width": 144, "height": 108} and picture.size == (288, 216)
    assert metadata["reprolib"] == {"kind": "figure", "name": "fig-a", "caption": "A line.", "alt": ALT}
    assert bundle["text/plain"] == f"Figure: A line. {ALT}"
    assert picture.mode == "P" and picture.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
    assert not plt.fignum_exists(fig.number)


def test_equal_figures_give_equal_bytes(shown):
    for _ in range(2):
        figure(line(), name="fig-a", caption="A line.", alt=ALT)
    assert shown[0] == shown[1]


def test_outside_jupyter_a_figure_is_its_words(capsys):
    figure(line(), name="fig-a", caption="A line.", alt=ALT)
    assert capsys.readouterr().out == f"Figure: A line. {ALT}\n"


WORDS = {"name": "slope", "caption": "Move it.", "alt": ALT}


@pytest.mark.parametrize(
    ("frames", "labels"), [([b"1"], ["one"]), ([], []), ([b"1", b"2"], ["one"]), ([b"1", b"2"], ["same", "same"])]
)
def test_a_slider_needs_two_frames_with_labels_of_their_own(frames, labels):
    with pytest.raises(ValueError, match="slider needs two frames or more, each with its own label"):
        slider(frames, labels, **WORDS)


@pytest.mark.parametrize("missing", WORDS)
def test_a_slider_without_one_of_its_texts_is_refused(missing):
    with pytest.raises(ValueError, match=f"needs {missing}="):
        slider([b"1", b"2"], ["one", "two"], **WORDS | {missing: ""})


@pytest.mark.parametrize("why", ["outside Jupyter", "without ipywidgets"])
def test_where_there_are_no_widgets_the_middle_frame_is_a_figure(shown, monkeypatch, why):
    if why == "without ipywidgets":
        monkeypatch.setattr(explore, "ipython", lambda: object())
        monkeypatch.setitem(sys.modules, "ipywidgets", None)
    frames = [plot.png(line(slope=k), scale=1.2) for k in range(3)]
    slider(frames, ["one", "two", "three"], **WORDS)
    ((bundle, metadata),) = shown
    assert bundle == {"image/png": frames[1], "text/plain": "Slider: slope, 3 frames. Move it."}
    size = {"width": 144, "height": 108}  # in CSS pixels, though there are 1.2 times as many
    assert metadata["reprolib"] == {**WORDS, **size, "kind": "figure", "labels": ["one", "two", "three"], "start": 1}


def test_a_frame_that_is_no_picture_is_refused(shown):
    with pytest.raises(ValueError, match="frames must be Matplotlib figures or PNG bytes; got b'first'"):
        slider([b"first", b"last"], ["one", "two"], **WORDS)
    assert shown == []


def test_a_frame_as_webp_keeps_every_pixel_and_takes_less_room():
    frame = plot.png(line(height=2.5, slope=3))
    small = plot.webp(frame)
    same = [Image.open(io.BytesIO(content)).convert("RGB").tobytes() for content in (frame, small)]
    assert small[8:12] == b"WEBP" and same[0] == same[1] and len(small) < 0.9 * len(frame)


def test_in_jupyter_a_slider_links_its_reading_to_its_pictures(shown, monkeypatch):
    monkeypatch.setattr(explore, "ipython", lambda: object())
    slider([line(slope=k) for k in range(4)], [f"slope {k}" for k in range(4)], **WORDS)
    ((bundle, metadata),) = shown
    assert list(bundle) == ["application/vnd.jupyter.widget-view+json", "text/plain"]
    assert (metadata["reprolib"]["kind"], metadata["reprolib"]["start"]) == ("slider", 2)
    assert (metadata["reprolib"]["width"], metadata["reprolib"]["height"]) == (144, 108)


# ----------------------------------------------------------------------------------------------------- progress


def test_progress_yields_every_item_and_tells_the_runner_how_far_it_is(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "EVERY", -1.0)
    monkeypatch.setenv("REPRO_PROGRESS", str(tmp_path / "p"))
    seen = [(item, (tmp_path / "p").read_text()) for item in progress.progress([7, 8], "E1")]
    assert seen == [(7, "E1 0/2"), (8, "E1 1/2")]
    assert [(tmp_path / "p").read_text() for _ in progress.progress(iter("a"), "E2")] == ["E2 0"]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("setting", ["off", ""])
def test_progress_leaves_nothing_where_no_one_looks(monkeypatch, capsys, tmp_path, setting):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(progress, "EVERY", -1.0)
    monkeypatch.setenv("REPRO_PROGRESS", setting)
    assert list(progress.progress(range(3), "E1")) == [0, 1, 2]
    assert capsys.readouterr() == ("", "") and list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------------- exercises


@pytest.fixture
def exercise(monkeypatch):
    monkeypatch.setattr(exercises, "_CHECKS", {})

    @self_check("toy/2")
    def _(answer):
        require(answer > 0, "It must be positive.")
        require(torch.tensor(answer == 3), "Count again.")


def unwritten():
    raise NotImplementedError


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (None, "Exercise 2: not answered yet. Put your answer in place of None"),
        (-1, "Exercise 2: not yet. It must be positive."),
        (4, "Exercise 2: not yet. Count again."),
        ("three", "Exercise 2: your answer stopped with TypeError: "),
        (3, "Exercise 2: correct."),
    ],
)
def test_feedback_says_what_is_wrong_and_never_the_answer(exercise, capsys, answer, text):
    check("toy/2", answer)
    found = capsys.readouterr().out
    assert found.startswith(text) and (answer == 3 or "3" not in found)


def test_a_function_still_to_be_written_is_not_an_error(exercise):
    self_check("toy/3")(lambda f: f())
    assert exercises.feedback("toy/3", unwritten).startswith("Exercise 3: not answered yet. Write the body")


def test_a_check_whose_cell_was_not_run_names_the_nearest(exercise):
    with pytest.raises(ReproError, match=r"No self-check 'toy/1'; run its cell first\. Did you mean toy/2\?"):
        check("toy/1", 3)


def test_a_thin_line_keeps_its_colour_in_the_small_picture():
    import io

    import matplotlib.pyplot as plt
    from PIL import Image

    from reprolib import plot

    fig, ax = plt.subplots(figsize=(3, 2))
    for k, colour in enumerate(plot.COLOURS):
        ax.plot([0, 1], [k, k], color=colour, linewidth=3)
    seen = {colour for _, colour in Image.open(io.BytesIO(plot.png(fig))).convert("RGB").getcolors(10_000)}
    assert {tuple(bytes.fromhex(c[1:])) for c in plot.COLOURS} <= seen
