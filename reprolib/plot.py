"""Figures that read on light and dark pages, with a caption and a text alternative that cannot be forgotten."""

from __future__ import annotations

import io
import math
from itertools import combinations
from typing import Any

from reprolib.show import display

BLUE, VERMILLION, GREEN, PURPLE = COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
WHITE = (255, 255, 255)
DPI = 72  # a figure's inches are CSS pixels / DPI; pictures are stored at twice that
STYLE: dict[Any, Any] = {
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "figure.figsize": (7.0, 3.6),
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "legend.frameon": False,
    "image.cmap": "cividis",
    "svg.hashsalt": "reprolib",
}


def use_style() -> None:
    """Set the book's look for all figures that follow."""
    import matplotlib.pyplot as plt

    plt.rcParams.update(STYLE)
    plt.rcParams["axes.prop_cycle"] = plt.cycler(color=list(COLOURS))


def _palette() -> Any:
    """White, shades of black and the four colours, pale mixtures of two: lines and crossing bands keep their colour."""
    from PIL import Image

    bases = [tuple(bytes.fromhex(c[1:])) for c in ("#000000", *COLOURS)]
    mixtures = [tuple((u + v) // 2 for u, v in zip(a, b, strict=True)) for a, b in combinations(bases[1:], 2)]
    depths = [(base, depth) for base in bases for depth in (0.1, 0.2, 0.35, 0.55, 0.8, 1.0)]
    depths += [(mixture, 0.36) for mixture in mixtures]
    shades = [WHITE, *(tuple(round(255 + (v - 255) * depth) for v in base) for base, depth in depths)]
    palette = Image.new("P", (1, 1))
    palette.putpalette([v for shade in shades + [WHITE] * (256 - len(shades)) for v in shade])
    return palette


def png(fig: Any, *, photo: bool = False, scale: float = 2.0) -> bytes:
    """A figure as a small PNG with ``scale`` pixels per CSS pixel; closes the figure.

    The picture keeps the book's colours and their shades; ``photo`` takes the 256 colours that fit it best instead.
    """
    import matplotlib.pyplot as plt
    from PIL import Image

    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=DPI * scale, metadata={"Software": None})
    plt.close(fig)
    full, small = Image.open(buffer).convert("RGB"), io.BytesIO()
    found = full.quantize(256) if photo else full.quantize(palette=_palette(), dither=Image.Dither.NONE)
    found.save(small, "PNG", optimize=True, dpi=(DPI * scale, DPI * scale))
    return small.getvalue()


def shown_size(picture: bytes) -> tuple[int, int]:
    """Width and height in CSS pixels at which a picture made by :func:`png` is shown.

    Raises:
        ValueError: It is no picture.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(io.BytesIO(picture))
    except UnidentifiedImageError:
        raise ValueError(f"frames must be Matplotlib figures or PNG bytes; got {picture[:20]!r}.") from None
    share = DPI / round(image.info.get("dpi", (DPI, DPI))[0], 1)  # a PNG keeps pixels a metre, to the next integer
    return math.ceil(image.width * share), math.ceil(image.height * share)


def webp(picture: bytes) -> bytes:
    """A PNG as lossless WebP, which takes two thirds of its bytes."""
    from PIL import Image

    small = io.BytesIO()
    Image.open(io.BytesIO(picture)).convert("RGB").save(small, "WEBP", lossless=True, quality=100, method=4)
    return small.getvalue()


def require_words(**texts: str) -> None:
    """Refuse a figure without a name, a caption or a text alternative of at least 20 characters.

    Raises:
        ValueError: Names the one that is missing.
    """
    for key, text in texts.items():
        least = 20 if key == "alt" else 1
        if not isinstance(text, str) or len(text.strip()) < least:
            raise ValueError(f"A figure needs {key}= with at least {least} character(s); got {text!r}.")


def figure(fig: Any, *, name: str, caption: str, alt: str, photo: bool = False) -> None:
    """Show a matplotlib figure and close it.

    Args:
        fig: The figure.
        name: Its anchor on the page, unique in the chapter, for example ``fig-gain``.
        caption: What it shows; Markdown.
        alt: What a reader who cannot see it must know, at least 20 characters.
        photo: Whether it shows photographs or colour maps, which need colours of their own.

    Raises:
        ValueError: ``name``, ``caption`` or ``alt`` is missing or too short.
    """
    require_words(name=name, caption=caption, alt=alt)
    width, height = (round(inches * DPI) for inches in fig.get_size_inches())
    data = png(fig, photo=photo)
    words = {"kind": "figure", "name": name, "caption": caption, "alt": alt}
    display(
        {"image/png": data, "text/plain": f"Figure: {caption} {alt}"},
        {"image/png": {"width": width, "height": height}, "reprolib": words},
    )
