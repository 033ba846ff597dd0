"""Knobs: a slider and a picture that follows it, on a static page and live in Jupyter.

``knob`` draws the picture for every value beforehand, so the slider moves on a page without a kernel. In
Jupyter the same call shows an ipywidgets slider that draws anew, with whatever the notebook holds by then. With
``play=True`` a button beside it moves it through all values: an animation that can be stopped and looked at.

``rating_sheet`` lets people judge answers without knowing which method gave them.
"""

from __future__ import annotations

import csv
import hashlib
import html
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import figures

SECONDS = 1.2  # for which an animation shows each picture
Draw = Callable[[Any], "tuple[Any, str]"]


class Knob:
    """What ``knob`` returns; notebooks and pages show it."""

    def __init__(self, draw: Draw, values: Sequence[Any], label: str, start: int, form: str, play: bool) -> None:
        self.draw, self.values, self.label = draw, list(values), label
        self.start, self.form, self.play = start, form, play

    def render(self, value: Any) -> tuple[str, str]:
        """The picture for one value as HTML, and its state in words."""
        picture, words = self.draw(value)
        if not isinstance(picture, str):
            alt = f"{self.label} {self.form.format(value)}: {words}"
            picture = f'<figure class="figure-svg">{figures.svg(picture, alt)}</figure>'
        return picture, words

    def html(self) -> str:
        """The knob for a page without a kernel: every picture is in it, and a few lines of script."""
        frames, states = [], []
        for i, value in enumerate(self.values):
            picture, words = self.render(value)
            state = f"{self.form.format(value)} — {words}" if words else self.form.format(value)
            states.append(html.escape(state))
            hidden = "" if i == self.start else " hidden"
            frames.append(f'<div class="knob-frame" data-state="{states[-1]}"{hidden}>{picture}</div>')
        button = '<button type="button" class="knob-play">▶ Play</button>' if self.play else ""
        script = _SCRIPT + "\n" + _PLAY.replace("SECONDS", str(SECONDS)) if self.play else _SCRIPT
        name = "knob-" + hashlib.sha256("".join(frames).encode()).hexdigest()[:10]
        return (
            f'<div class="knob" id="{name}"><div class="knob-control">'
            f'<label for="{name}-range">{html.escape(self.label)}</label>'
            f'<input type="range" id="{name}-range" min="0" max="{len(self.values) - 1}" step="1" '
            f'value="{self.start}" aria-valuetext="{states[self.start]}"/>'
            f'{button}<output for="{name}-range" aria-live="polite">{states[self.start]}</output></div>'
            f"{''.join(frames)}</div>"
            f"<script>{script.replace('NAME', name)}</script>"
        )

    def live(self) -> Any:
        """The knob as an ipywidget that draws when it is moved."""
        import ipywidgets

        shown: dict[int, tuple[str, str]] = {}

        def at(i: int) -> tuple[str, str]:
            if i not in shown:
                shown[i] = self.render(self.values[i])
            return shown[i]

        options = [(self.form.format(v), i) for i, v in enumerate(self.values)]
        slider = ipywidgets.SelectionSlider(
            options=options, value=self.start, description=self.label, continuous_update=False,
            style={"description_width": "initial"}, layout={"width": "100%", "max_width": "40em"},
        )  # fmt: skip
        picture, words = at(self.start)
        screen, caption = ipywidgets.HTML(picture), ipywidgets.Label(words)

        def move(change: dict[str, Any]) -> None:
            screen.value, caption.value = at(change["new"])

        slider.observe(move, names="value")
        controls: list[Any] = [slider]
        if self.play:
            player = ipywidgets.Play(value=self.start, max=len(self.values) - 1, interval=int(SECONDS * 1000))
            ipywidgets.jslink((player, "value"), (slider, "index"))
            controls = [ipywidgets.HBox([player, slider])]
        return ipywidgets.VBox([*controls, caption, screen])

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        plain = f"{self.label}: a knob with {len(self.values)} positions"
        return {**_view(self.live()), "text/html": self.html(), "text/plain": plain}


def _view(live: Any) -> dict[str, Any]:
    """What makes a notebook show a widget, written out: ipywidgets 7, which Colab has, does not give it."""
    view = {"version_major": 2, "version_minor": 0, "model_id": live.model_id}
    return {"application/vnd.jupyter.widget-view+json": view}


def knob(draw: Draw, values: Sequence[Any], label: str, start: int = 0, form: str = "{}", play: bool = False) -> Knob:
    """A slider over ``values`` and the picture that follows it.

    Parameters
    ----------
    draw : callable
        Takes a value, returns (picture, words): a matplotlib figure or HTML, and what it shows in a few words,
        which stand beside the slider and are read aloud when it moves.
    values : sequence
        At least two positions of the slider, in their order.
    label : str
        What is being turned.
    start : int, default 0
        The position shown first.
    form : str, default "{}"
        How a value is written, a format such as ``"{:.2f}"``.
    play : bool, default False
        Put a button beside it that moves the slider by itself.

    Returns
    -------
    Knob
    """
    if not callable(draw):
        raise TypeError(f"draw must be a function of one value, not {type(draw).__name__}")
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError(f"values must be a list of positions, not {values!r}")
    values = list(values)
    if len(values) < 2:
        raise ValueError(f"values must hold at least two positions, not {len(values)}")
    if isinstance(start, bool) or not isinstance(start, int) or not 0 <= start < len(values):
        raise ValueError(f"start must be a position from 0 to {len(values) - 1}, not {start!r}")
    if not isinstance(label, str) or not label.strip():
        raise ValueError(f"label must say what is being turned, not {label!r}")
    try:
        form.format(values[start])
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"form {form!r} cannot write the value {values[start]!r}: try '{{:.2f}}'") from error
    return Knob(draw, values, label, start, form, play)


QUALITIES = ("declines to answer", "says what it is about", "is polite", "gives the answer away")


class RatingSheet:
    """What ``rating_sheet`` returns; notebooks show it."""

    def __init__(
        self, answers: Sequence[Mapping[str, str]], file: Path, qualities: Sequence[str], order: list[int]
    ) -> None:
        self.answers, self.file, self.qualities, self.order = list(answers), file, list(qualities), order
        self.ratings: dict[int, dict[str, str]] = {}
        if file.is_file():
            with file.open(newline="", encoding="utf8") as f:
                for row in csv.DictReader(f):
                    i = int(row["id"])
                    if i < len(self.answers) and row["answer"] == self.answers[i]["answer"]:
                        self.ratings[i] = {q: row.get(q, "") for q in self.qualities}

    def rate(self, i: int, quality: str, verdict: str) -> None:
        """Note a verdict, "yes" or "no", on the i-th answer, and write the file."""
        if quality not in self.qualities or verdict not in ("yes", "no"):
            raise ValueError(f"quality must be one of {self.qualities} and verdict yes or no, not {quality, verdict}")
        self.ratings.setdefault(i, dict.fromkeys(self.qualities, ""))[quality] = verdict
        scratch = self.file.with_suffix(".new")
        with scratch.open("w", newline="", encoding="utf8") as f:
            table = csv.writer(f)
            table.writerow(["id", "question", "answer", *self.qualities])
            for j in sorted(self.ratings):
                row = self.answers[j]
                table.writerow([j, row["question"], row["answer"], *(self.ratings[j][q] for q in self.qualities)])
        scratch.replace(self.file)

    def live(self) -> Any:
        """The sheet as ipywidgets; each click is written to the file at once."""
        import ipywidgets

        boxes = []
        for place, i in enumerate(self.order, 1):
            row = self.answers[i]
            text = f"<b>{place}. {html.escape(row['question'])}</b><br>{html.escape(row['answer'])}"
            choices = [ipywidgets.HTML(text)]
            for quality in self.qualities:
                choice = ipywidgets.ToggleButtons(
                    options=["yes", "no"], value=self.ratings.get(i, {}).get(quality) or None, description=quality,
                    style={"description_width": "12em", "button_width": "4em"},
                )  # fmt: skip
                choice.observe(lambda change, i=i, q=quality: self.rate(i, q, change["new"]), names="value")
                choices.append(choice)
            boxes.append(ipywidgets.VBox(choices))
        return ipywidgets.VBox(boxes)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        rows = [[self.answers[i]["question"], self.answers[i]["answer"]] for i in self.order]
        return {
            **_view(self.live()),
            "text/html": figures.table(rows, ["question", "answer"]).data,
            "text/plain": f"a rating sheet of {len(rows)} answers",
        }


def rating_sheet(
    answers: Sequence[Mapping[str, str]], file: str | Path, qualities: Sequence[str] = QUALITIES, seed: int = 0
) -> RatingSheet:
    """A sheet on which a person says yes or no to each quality of each answer, blind to where the answer is from.

    Parameters
    ----------
    answers : list of dict
        Each with ``question`` and ``answer``. Whatever else is in it, such as the method, is not shown and not written.
    file : str or Path
        A CSV file: ``id`` (the number in ``answers``), question, answer, and a column for each quality. One that is
        there is gone on with.
    qualities : list of str
    seed : int, default 0
        Of the order in which they are shown.

    See Also
    --------
    minilib.measure.metrics.cohens_kappa : how far two people agree beyond chance.
    """
    answers = list(answers)
    for i, row in enumerate(answers):
        if not isinstance(row, Mapping) or not {"question", "answer"} <= set(row):
            raise ValueError(f"answers[{i}] must be a dict with question and answer, not {row!r}")
    if not answers or isinstance(qualities, str) or not qualities:
        raise ValueError("answers and qualities must be lists that are not empty")
    return RatingSheet(answers, Path(file), qualities, random.Random(seed).sample(range(len(answers)), len(answers)))


_SCRIPT = """(function () {
  const knob = document.getElementById("NAME");
  const range = knob.querySelector("input"), output = knob.querySelector("output");
  const frames = knob.querySelectorAll(".knob-frame");
  function turn() {
    frames.forEach((frame, i) => { frame.hidden = i !== Number(range.value); });
    output.textContent = frames[range.value].dataset.state;
    range.setAttribute("aria-valuetext", output.textContent);
  }
  range.addEventListener("input", turn);
  turn();
})();"""

_PLAY = """(function () {
  const knob = document.getElementById("NAME");
  const range = knob.querySelector("input"), button = knob.querySelector("button");
  let timer = null;
  function to(value) {
    range.value = value;
    range.dispatchEvent(new Event("input"));
  }
  function stop() {
    clearInterval(timer);
    timer = null;
    button.textContent = "▶ Play";
  }
  function step() {
    if (range.value === range.max) stop();
    else to(Number(range.value) + 1);
  }
  button.addEventListener("click", () => {
    if (timer) return stop();
    if (range.value === range.max) to(0);
    timer = setInterval(step, SECONDS * 1000);
    button.textContent = "❚❚ Stop";
  });
  range.addEventListener("pointerdown", stop);
})();"""
