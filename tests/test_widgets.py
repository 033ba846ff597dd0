"""Knobs: all pictures on a static page, one of them visible, and the same knob live."""

import csv
from html.parser import HTMLParser

import pytest

from minilib import figures, widgets


def word(value):
    return f"<p>picture {value}</p>", f"value <{value}>"


def line(value):
    with figures.canvas(3, 2) as (figure, ax):
        ax.plot([0, value])
    return figure, f"up to {value}"


class Page(HTMLParser):
    """The elements of a page, as (tag, attributes)."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def of_class(self, name):
        return [attrs for _, attrs in self.found if name in attrs.get("class", "").split()]

    def one(self, tag):
        (attrs,) = (a for t, a in self.found if t == tag)
        return attrs


@pytest.mark.parametrize("start", [0, 2])
@pytest.mark.parametrize("draw", [word, line])
def test_a_static_page_has_every_picture_and_shows_one(draw, start):
    text = widgets.knob(draw, [1, 2, 4], "Strength", start=start).html()
    page = Page(text)
    frames = page.of_class("knob-frame")
    assert ["hidden" not in frame for frame in frames] == [i == start for i in range(3)]
    assert [frame["data-state"] for frame in frames] == [f"{v} — {draw(v)[1]}" for v in (1, 2, 4)]
    assert text.count("<svg" if draw is line else "<p>picture") == 3


def test_it_can_be_read_and_moved_without_a_mouse():
    page = Page(widgets.knob(word, [0.1, 0.25], "Learning rate", start=1, form="{:.2f}").html())
    slider, label, output = page.one("input"), page.one("label"), page.one("output")
    assert (slider["type"], slider["min"], slider["max"], slider["value"]) == ("range", "0", "1", "1")
    assert slider["aria-valuetext"] == "0.25 — value <0.25>"
    assert label["for"] == slider["id"] == output["for"]
    assert output["aria-live"] == "polite"


def test_a_knob_that_plays_has_a_button_and_others_have_none():
    plain, playing = (widgets.knob(word, [1, 2, 4], "Step", play=p).html() for p in (False, True))
    assert "<button" not in plain and "setInterval" not in plain
    assert Page(playing).one("button")["type"] == "button" and "setInterval" in playing
    live = widgets.knob(word, [1, 2, 4], "Step", play=True).live()
    assert live.children[0].children[0].max == 2


def test_words_are_escaped():
    text = widgets.knob(word, [1, 2], "<b>knob</b>").html()
    assert "<b>" not in text and "value &lt;1&gt;" in text


def test_the_script_belongs_to_its_knob():
    one, two = (widgets.knob(word, values, "k").html() for values in ([1, 2], [1, 3]))
    names = [Page(text).of_class("knob")[0]["id"] for text in (one, two)]
    assert names[0] != names[1]
    assert all(f'getElementById("{name}")' in text for name, text in zip(names, (one, two), strict=True))
    assert widgets.knob(word, [1, 2], "k").html() == one  # the same bytes each time


def test_pictures_in_one_knob_share_no_ids():
    page = Page(widgets.knob(line, [1, 2, 4], "Strength").html())
    ids = [attrs["id"] for _, attrs in page.found if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_a_figure_says_label_value_and_words():
    page = Page(widgets.knob(line, [1, 2], "Strength").html())
    labels = [attrs["aria-label"] for tag, attrs in page.found if tag == "svg"]
    assert labels == ["Strength 1: up to 1", "Strength 2: up to 2"]


def test_the_live_knob_draws_when_it_is_moved():
    drawn = []

    def draw(value):
        drawn.append(value)
        return word(value)

    slider, caption, screen = widgets.knob(draw, [1, 2, 4], "Strength", start=1).live().children
    assert drawn == [2] and "picture 2" in screen.value and caption.value == "value <2>"
    slider.value = 2
    assert drawn == [2, 4] and "picture 4" in screen.value and caption.value == "value <4>"
    slider.value = 1
    assert "picture 2" in screen.value and drawn == [2, 4]  # what was drawn is kept


def test_a_notebook_gets_both():
    bundle = widgets.knob(word, [1, 2], "Strength")._repr_mimebundle_()
    assert {"application/vnd.jupyter.widget-view+json", "text/html", "text/plain"} <= set(bundle)
    assert 'class="knob"' in bundle["text/html"] and bundle["text/plain"] == "Strength: a knob with 2 positions"


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"draw": 3}, TypeError, "draw must be a function"),
        ({"values": [1]}, ValueError, "values must hold at least two"),
        ({"values": []}, ValueError, "values must hold at least two"),
        ({"values": "abc"}, TypeError, "values must be a list"),
        ({"values": 3}, TypeError, "values must be a list"),
        ({"start": 2}, ValueError, "start must be a position from 0 to 1"),
        ({"start": -1}, ValueError, "start must be a position from 0 to 1"),
        ({"start": "0"}, ValueError, "start must be a position from 0 to 1"),
        ({"label": " "}, ValueError, "label must say what is being turned"),
        ({"label": None}, ValueError, "label must say what is being turned"),
        ({"form": "{:.q}"}, ValueError, "form '{:.q}' cannot write the value 1"),
        ({"form": "{x}"}, ValueError, "form '{x}' cannot write"),
        ({"form": None}, ValueError, "form None cannot write"),
    ],
)
def test_bad_input_is_named(changed, error, message):
    with pytest.raises(error) as caught:
        widgets.knob(**{"draw": word, "values": [1, 2], "label": "Strength", **changed})
    assert message in str(caught.value)


# ---- the rating sheet ----

ANSWERS = [{"question": f"Q{i}?", "answer": f"<A{i}>, and so on", "method": f"secret {i}"} for i in range(6)]


def test_a_click_is_in_the_file_at_once(tmp_path):
    file = tmp_path / "me.csv"
    sheet = widgets.rating_sheet(ANSWERS, file)
    boxes = sheet.live().children
    boxes[0].children[1].value = "yes"
    with file.open(newline="", encoding="utf8") as f:
        (row,) = csv.DictReader(f)
    i = sheet.order[0]
    assert row["id"] == str(i) and row["question"] == f"Q{i}?" and row["answer"] == f"<A{i}>, and so on"
    assert [row[q] for q in widgets.QUALITIES] == ["yes", "", "", ""]


def test_it_is_blind_and_in_no_telling_order(tmp_path):
    sheet = widgets.rating_sheet(ANSWERS, tmp_path / "me.csv")
    sheet.rate(2, widgets.QUALITIES[0], "no")
    shown = sheet._repr_mimebundle_()["text/html"] + (tmp_path / "me.csv").read_text("utf8")
    assert "secret" not in shown and "&lt;A2&gt;" in shown
    assert sorted(sheet.order) == list(range(6)) != sheet.order
    assert widgets.rating_sheet(ANSWERS, tmp_path / "me.csv", seed=1).order != sheet.order


def test_a_sheet_is_gone_on_with(tmp_path):
    file = tmp_path / "me.csv"
    widgets.rating_sheet(ANSWERS, file).rate(4, "is polite", "yes")
    again = widgets.rating_sheet(ANSWERS, file)
    again.rate(1, "is polite", "no")
    assert again.ratings[4]["is polite"] == "yes"
    assert again.live().children[again.order.index(4)].children[3].value == "yes"
    assert len(file.read_text("utf8").splitlines()) == 3


def test_wrong_sheets_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"answers\[0\] must be a dict with question and answer"):
        widgets.rating_sheet([{"question": "Q?"}], tmp_path / "me.csv")
    with pytest.raises(ValueError, match="not empty"):
        widgets.rating_sheet([], tmp_path / "me.csv")
    with pytest.raises(ValueError, match="verdict yes or no"):
        widgets.rating_sheet(ANSWERS, tmp_path / "me.csv").rate(0, "is polite", "maybe")
