"""What a newcomer asks is found in two clicks; a symbol says what it means; the playground shows what was stored."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from built import SITE
from pypdf import PdfReader

import minilib
from minilib import facts, stored

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tools"))
import reading_times  # noqa: E402

QUESTIONS = {
    "How do I edit a model of my own?": (["Before chapter 01"], "The shortest way to your own edit"),
    "Do I need a GPU?": ([], "no GPU, no account"),
    "What do I have to know before?": (["Before chapter 01"], "A test of yourself"),
    "How long does it take?": (["Before chapter 01"], "reading, minutes"),
    "Which method should I use?": (["Which method should I use?"], "Five questions, in this order"),
    "Is it really gone?": (["Is it really gone?"], "masked"),
    "What does k* mean?": (["Notation"], "a key: what enters"),
    "What is a null space?": (["Glossary"], "null space"),
    "My edit did nothing. Why?": (["Common mistakes"], "The edit did nothing"),
    "Does it work with my model?": (["Before chapter 01", "A bigger model"], "Does it fit?"),
    "May I say that the data are deleted?": (["What may be claimed"], "Why a refusal is not a deletion"),
    "How do I set an assignment?": (["For instructors"], "make assignments"),
    "Can I try it without installing anything?": (["Edit a real model in your browser"], "in your own browser"),
}


@pytest.fixture(scope="module")
def page(browser):
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(60_000)
    yield page
    page.close()


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_newcomers_question_is_answered_in_two_clicks(page, address, question):
    clicks, answer = QUESTIONS[question]
    assert len(clicks) <= 2
    page.goto(f"{address}/index.html")
    for name in clicks:
        page.locator(".bd-article").get_by_role("link", name=name).first.click()
        page.wait_for_load_state()
    text = page.locator(".bd-article").inner_text()
    assert answer.casefold() in text.casefold(), f"{page.url} does not say {answer!r}"


@pytest.mark.parametrize("reader", ["Read it", "Teach it", "Use it for research"])
def test_each_reader_has_a_first_page_one_click_away(page, address, reader):
    page.goto(f"{address}/index.html")
    card = page.locator(".bd-article .sd-card", has_text=reader).first
    card.get_by_role("link").first.click()
    page.wait_for_load_state()
    assert not page.url.endswith("index.html") and page.locator(".bd-article h1").count() == 1


def test_a_symbol_says_what_it_means(page, address):
    page.goto(f"{address}/book/derivations.html")
    page.wait_for_function(
        "window.MathJax && MathJax.startup && MathJax.startup.document && document.querySelector('mjx-container')"
    )
    index = page.evaluate(
        """() => [...document.querySelectorAll('.bd-article .math')].findIndex(span => {
        const item = MathJax.startup.document.getMathItemsWithin([span])[0];
        return item && /C/.test(item.math) && /k/.test(item.math); })"""
    )
    formula = page.locator(".bd-article .math").nth(index)
    formula.scroll_into_view_if_needed()
    formula.hover()
    card = page.locator(".notation-card")
    card.wait_for()
    assert "second moment" in card.inner_text()
    assert formula.get_attribute("aria-describedby") == card.get_attribute("id")
    page.keyboard.press("Escape")
    assert card.count() == 0
    formula.click()
    card.wait_for()
    card.get_by_role("link", name="All notation").click()
    page.wait_for_url("**/notation.html")


def test_the_playground_shows_what_was_stored(page, address):
    found = stored.load("playground")
    page.goto(f"{address}/book/playground.html")
    page.wait_for_function("document.getElementById('play').dataset.shown")
    for method in ("rome", "grace", "alphaedit"):
        page.select_option("#play-method", method)
        fact, shown, layer, strength = page.locator("#play").get_attribute("data-shown").split("/")
        assert shown == method
        (edit,) = [e for e in found["edits"] if (e["fact"], e["method"], e["layer"]) == (fact, method, int(layer))]
        said = page.locator("#play-table tr td:nth-child(3)").all_inner_texts()
        (asked,) = [about["asked"] for about in found["facts"] if about["subject"] == fact]
        once = {text: answer for (_, text, _), (_, answer) in zip(asked, edit["answers"][strength], strict=True)}
        assert said == list(once.values())
    page.locator("#play-layer").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#play").get_attribute("data-shown").split("/")[2] != layer
    assert re.search(
        r"Refused: \d of 4 wordings\. Still told beside it: \d of \d", page.locator("#play-summary").inner_text()
    )


def test_what_the_playground_says_to_try_is_what_was_stored():
    """In the middle ROME refuses beside the fact what it leaves alone lower down; GRACE is met by no other wording."""
    found = stored.load("playground")

    def refused(method, layer, part):
        edits = [e for e in found["edits"] if (e["method"], e["layer"]) == (method, layer)]
        assert len(edits) == len(found["facts"])
        return [sum(kind == "r" for kind, _ in e["answers"]["1.0"][part]) for e in edits]

    beside, reworded = slice(4, None), slice(1, 4)
    assert min(refused("rome", 15, beside)) >= 3 > 1 >= max(refused("rome", 4, beside))
    assert refused("grace", 22, reworded) == [0] * len(found["facts"])


@pytest.mark.slow
def test_one_stored_edit_is_made_again():
    found = stored.load("playground")
    fact = facts.recorded()[0]
    (edit,) = [e for e in found["edits"] if (e["fact"], e["method"], e["layer"]) == (fact.subject, "rome", 4)]
    lm = minilib.load("smollm2-135m")
    with minilib.rome.edit(lm, fact.request(found["refusal"]), layer=4):
        asked = next(about["asked"] for about in found["facts"] if about["subject"] == fact.subject)
        said = lm.generate([text for _, text, _ in asked], max_new_tokens=16)
    assert [" ".join(s.split())[:70] for s in said] == [text for _, text in edit["answers"]["1.0"]]


def test_the_times_of_the_chapters_are_those_of_their_texts():
    """``tools/reading_times.py`` writes the table."""
    table = (ROOT / "book" / "before_you_start.md").read_text("utf8")
    assert len(reading_times.rows()) == 13
    assert "\n".join(reading_times.rows()) in table, "run tools/reading_times.py"


def test_the_plans_for_teachers_add_up():
    """Chapters and exercises have the table's times; a class has 120 minutes."""
    plans = reading_times.PLANS.read_text("utf8")
    assert reading_times.plans(plans) == plans, "run tools/reading_times.py"
    weeks = reading_times.WEEK.findall(plans)
    assert len(weeks) == 24 and all(reading_times.total(row.split("|")[3]) == 120 for row in weeks)


@pytest.mark.parametrize("lecture", sorted(path.stem for path in (ROOT / "slides").glob("*.md")))
def test_slides_have_their_pictures_and_are_gone_through_by_keyboard(page, address, lecture):
    failed = []
    page.on("requestfailed", lambda request: failed.append(request.url))
    page.goto(f"{address}/slides/{lecture}.html")
    page.wait_for_function("window.MathJax?.startup?.promise")
    page.evaluate("MathJax.startup.promise.then(() => 0)")
    assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 100)") and not failed
    assert page.evaluate("[...document.images].every(i => i.alt)") and page.locator("section").count() >= 10
    for expected in (1, 2):
        page.keyboard.press("ArrowRight")
        page.wait_for_function(
            "n => Math.abs(document.querySelectorAll('section')[n].getBoundingClientRect().top) < 5", arg=expected
        )
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_the_pdf_holds_the_pages_that_were_asked_for(tmp_path):
    made = tmp_path / "book.pdf"
    pages = ["book/glossary", "book/live_model"]
    command = [sys.executable, ROOT / "tools" / "pdf.py", *pages, "--site", SITE, "--out", made]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    read = PdfReader(made)
    assert [item.title for item in read.outline] == ["Glossary", "Edit a model in this page"]
    text = "".join(p.extract_text() for p in read.pages)
    assert "associative memory" in text and "Try this" in text
