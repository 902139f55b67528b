"""A slider over pictures made beforehand: it moves without a kernel, in JupyterLab and on the static page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from reprolib.plot import png, require_words, shown_size, webp
from reprolib.show import display, ipython


def slider(frames: Sequence[Any], labels: Sequence[str], *, name: str, caption: str, alt: str) -> None:
    """Show pictures one at a time under a slider.

    Args:
        frames: Matplotlib figures of one size, or PNG bytes; at least two.
        labels: One sentence a frame: the slider's reading and the frame's text alternative, all different.
        name: What the slider changes.
        caption: What to look for; Markdown.
        alt: What the whole shows, for a reader who cannot see it.

    Where ipywidgets is missing, or outside Jupyter, the middle frame is shown.

    Raises:
        ValueError: Fewer than two frames, labels that do not match, or a missing text.
    """
    require_words(name=name, caption=caption, alt=alt)
    if len(frames) < 2 or len(labels) != len(frames) or len(set(labels)) != len(labels):
        raise ValueError(
            f"slider needs two frames or more, each with its own label; got {len(frames)} and {len(labels)}."
        )
    pictures = [f if isinstance(f, bytes) else png(f) for f in frames]
    width, height = shown_size(pictures[0])
    start = len(frames) // 2
    words = {"kind": "slider", "name": name, "caption": caption, "alt": alt, "labels": list(labels), "start": start}
    words |= {"width": width, "height": height}
    text = f"Slider: {name}, {len(frames)} frames. {caption}"
    try:
        if ipython() is None:
            raise ImportError
        import ipywidgets as widgets
    except ImportError:
        display({"image/png": pictures[start], "text/plain": text}, {"reprolib": {**words, "kind": "figure"}})
        return
    images = [widgets.Image(value=webp(p), format="webp", width=f"{width}") for p in pictures]
    stack = widgets.Stack(images, selected_index=start)
    reading = widgets.SelectionSlider(options=list(labels), index=start, description=name, continuous_update=True)
    reading.layout.width, reading.style.description_width = "100%", "initial"
    widgets.jslink((reading, "index"), (stack, "selected_index"))
    view = {"version_major": 2, "version_minor": 0, "model_id": widgets.VBox([reading, stack]).model_id}
    display({"application/vnd.jupyter.widget-view+json": view, "text/plain": text}, {"reprolib": words})
