"""Figures: read aloud, in the page's colours, the same bytes each time."""

import re
import xml.etree.ElementTree as ElementTree

import matplotlib
import pytest

from minilib import figures


def bars(alt="Two bars.", values=(0.2, 0.7)):
    with figures.canvas(5, 2) as (figure, ax):
        figures.probabilities(ax, ["before", "after"], {"Paris": values, "Rome": (0.1, 0.2)})
        ax.set_title("P < 1 & more")
    return figures.svg(figure, alt)


def lines(alt):
    with figures.canvas(5, 2, columns=2) as (figure, axes):
        for ax in axes:
            ax.plot([0, 1, 2], [0, 1, 0], marker="o")
    return figures.svg(figure, alt)


def test_an_svg_is_an_image_with_a_label():
    root = ElementTree.fromstring(bars('Bars: "Paris" falls, <Rome> rises & stays.'))
    assert root.tag.endswith("svg")
    assert root.get("role") == "img"
    assert root.get("aria-label") == 'Bars: "Paris" falls, <Rome> rises & stays.'


def test_it_takes_the_pages_colour_and_width():
    text = bars()
    assert "currentColor" in text and "#010203" not in text
    opening = text[: text.index(">")]
    assert "width:100%" in opening and not re.search(r' (width|height)="', opening)
    assert "viewBox" in opening


def test_the_same_figure_gives_the_same_bytes():
    assert bars() == bars() and lines("a") == lines("a")
    assert bars(values=(0.3, 0.7)) != bars()


def ids(text):
    return re.findall(r'\bid="([^"]+)"', text)


def test_ids_on_one_page_do_not_collide():
    pages = [bars("one"), bars("two"), lines("three"), lines("four")]
    found = [name for page in pages for name in ids(page)]
    assert found and len(found) == len(set(found))
    for page in pages:  # what is referred to is there
        used = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', page)
        assert used and {a or b for a, b in used} <= set(ids(page))


def test_it_holds_no_date_and_no_address():
    assert "<metadata" not in bars() and "2026" not in bars()
    assert set(re.findall(r"https?://[^\"]+", bars())) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_shown_in_a_notebook_it_comes_as_html_png_and_words():
    with figures.canvas() as (figure, ax):
        ax.plot([0, 1])
    bundle = figures.show(figure, "A rising line.")._repr_mimebundle_()
    assert set(bundle) == {"text/html", "image/png", "text/plain"}
    assert 'aria-label="A rising line."' in bundle["text/html"] and bundle["text/plain"] == "A rising line."
    assert bundle["image/png"].startswith("iVBOR")


@pytest.mark.parametrize("wrong", ["", "  ", None, 3])
def test_a_figure_without_words_is_refused(wrong):
    with figures.canvas() as (figure, _), pytest.raises(ValueError, match="alt must say in words"):
        figures.show(figure, wrong)


def test_matplotlib_is_left_as_it_was():
    before = dict(matplotlib.rcParams)
    bars()
    with pytest.raises(RuntimeError), figures.canvas():
        raise RuntimeError
    assert dict(matplotlib.rcParams) == before


def test_a_table_escapes_its_cells():
    page = figures.table([["<b>", 1], ["&", 2.5]], ["text", "<n>"]).data
    assert "&lt;b&gt;" in page and "&amp;" in page and "&lt;n&gt;" in page and "<b>" not in page
    assert page.count("<tr>") == 3 and page.count("<td>") == 4


def test_a_table_that_sorts_has_a_button_in_each_heading():
    page = figures.table([["b", "2"], ["a", "10"]], ["name", "<n>"], sort=True).data
    assert page.count('<button type="button" class="table-sort">') == 2 and "&lt;n&gt;</button>" in page
    name = re.search(r'id="(table-\w+)"', page).group(1)
    assert f'getElementById("{name}")' in page
    assert "<button" not in figures.table([["b", "2"]], ["name", "n"]).data


def test_glued_values_are_found_by_name(monkeypatch):
    kept = []
    monkeypatch.setattr("IPython.display.display", lambda data, **how: kept.append((data, how)))
    figures.glue("share", "77%")
    figures.glue("count", 3)
    assert [list(data.values()) for data, _ in kept] == [["77%"], ["3"]]
    assert [how["metadata"]["scrapbook"]["name"] for _, how in kept] == ["share", "count"]


@pytest.mark.parametrize("text", ["47,109", "1.00", "0 to 5", "1e-3", "None", "it's", "7 and 8"])
def test_a_glued_text_is_shown_as_it_stands(monkeypatch, text):
    from myst_nb.core.variables import format_plain_text

    kept = []
    monkeypatch.setattr("IPython.display.display", lambda data, **how: kept.append(data))
    figures.glue("text", text)
    assert [format_plain_text(value, "s") for value in kept[0].values()] == [text]


def test_source_shows_the_lines_of_the_library_itself():
    from minilib import memit, rome

    block = figures.source(memit.spread, "S = torch", "return").data
    assert block.startswith("```python\nS = torch.cholesky_solve(K, L)") and block.endswith("\n```")
    assert "def edit(" in figures.source(rome.edit).data  # through the decorator
    for first, last, word in (("no such line", "", "first"), ("S = torch", "no such line", "last")):
        with pytest.raises(ValueError, match=f"{word} 'no such line' stands in no line of spread"):
            figures.source(memit.spread, first, last)
