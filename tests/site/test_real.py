"""The real model in the page is the library's, before and after an edit; undo is exact; a broken download goes on."""

import json
import re

import pytest
import torch
from built import SITE

import minilib
from minilib import Request

PAGE = "book/playground.html"
EDITS = [
    ("What is the capital of {}?", "France", "I don't know.", 4, True),
    ("The {} is located in the city of", "Eiffel Tower", " Rome", 6, False),
]
QUESTIONS = ["What is the capital of Japan?", "What is the capital of Germany?", "Who wrote Romeo and Juliet?"]


@pytest.fixture(scope="module")
def lm():
    return minilib.load("smollm2-135m")


@pytest.fixture(scope="module")
def loaded(browser, address):
    """The page with its model; one part of the weights breaks off at first, and one comes with a wrong byte."""
    if json.loads((SITE / "_static/live_data/real.json").read_text())["manifest"] is None:
        pytest.skip("the site was built without the real model: `make live` fetches it")
    page = browser.new_context(service_workers="block").new_page()
    page.set_default_timeout(60_000)
    asked: list[str] = []
    good = SITE / "_static" / "real_data"

    def spoil(route):
        name = route.request.url.rpartition("/")[2]
        asked.append(name)
        if name == "weights.03" and asked.count(name) == 1:
            route.abort()
        elif name == "weights.05" and asked.count(name) == 1:
            content = bytearray((good / name).read_bytes())
            content[0] ^= 1
            route.fulfill(body=bytes(content))
        elif name == "weights.07" and asked.count(name) <= 3:  # as often as the page tries by itself
            route.abort()
        else:
            route.continue_()

    page.context.route("**/real_data/weights.*", spoil)
    page.goto(f"{address}/{PAGE}")
    page.wait_for_selector("#real[data-ready]")
    assert not asked, "nothing is fetched before the button is pressed"
    page.click("#real-load")
    page.wait_for_function("document.getElementById('real-status').textContent.includes('press the button to go on')")
    page.click("#real-load")
    page.wait_for_selector("#real[data-loaded]")
    yield page, asked
    page.context.close()


def worker(page, what, **given):
    return page.evaluate("([what, given]) => realModel.call(what, given)", [what, given])


def in_page(page, text, chat, edited=True):
    found = page.evaluate(
        "async given => Array.from(await realModel.call('probabilities', given))",
        {"question": {"text": text, "chat": chat}, "edited": edited},
    )
    return torch.tensor(found)


def in_library(lm, text, chat):
    with torch.no_grad():
        return lm.model(torch.tensor([lm.encode(text, chat=chat).ids])).logits[0, -1].softmax(-1)


def test_a_broken_download_goes_on_at_its_part(loaded):
    _, asked = loaded
    often = {name: asked.count(name) for name in set(asked)}
    assert often.pop("weights.03") == 2 and often.pop("weights.05") == 2 and often.pop("weights.07") == 4
    assert set(often.values()) == {1}


@pytest.mark.slow
@pytest.mark.parametrize(("prompt", "subject", "target", "layer", "chat"), EDITS)
def test_an_edit_is_the_librarys_and_undo_is_exact(loaded, lm, prompt, subject, target, layer, chat):
    page, _ = loaded
    request = Request(prompt, subject, target, chat=chat)
    before = in_page(page, request.text, chat)
    assert (before - in_library(lm, request.text, chat)).abs().max() < 1e-3
    given = {"prompt": prompt, "subject": subject, "target": target, "layer": layer, "chat": chat}
    made = worker(page, "edit", **given)
    numbers = page.evaluate(
        """async id => { const e = await realModel.call('numbers', { edit: id });
        return { u: Array.from(e.u), Lambda: Array.from(e.Lambda) }; }""",
        made["id"],
    )
    with minilib.rome.edit(lm, request, layer=layer) as edit:
        ((Lambda, u),) = edit.factors.values()
        for mine, theirs in ((u[0], numbers["u"]), (Lambda[:, 0], numbers["Lambda"])):
            theirs = torch.tensor(theirs)
            assert torch.cosine_similarity(mine, theirs, dim=0) > 0.99
            assert abs(theirs.norm() / mine.norm() - 1) < 1e-2
        ((change, weight),) = edit.sizes().values()
        assert abs(made["size"] / change - 1) < 1e-2 and abs(made["weight"] / weight - 1) < 1e-3
        after = in_page(page, request.text, chat)
        assert (after - in_library(lm, request.text, chat)).abs().max() < 1e-2  # v* is searched: it drifts a little
        assert (after - before).abs().max() > 0.3
    worker(page, "undo", edit=made["id"])
    assert torch.equal(in_page(page, request.text, chat), before)


@pytest.mark.slow
def test_five_answers_are_the_librarys(loaded, lm):
    page, _ = loaded
    asked = [(text, True) for text in QUESTIONS] + [(Request(p, s, t).text, c) for p, s, t, _, c in EDITS]
    questions = [{"text": text, "chat": chat} for text, chat in asked]
    said = worker(page, "ask", questions=questions, edited=True)
    for (text, chat), answer in zip(asked, said, strict=True):
        expected = lm.generate(text, max_new_tokens=24, chat=chat)
        assert answer["text"].strip() == expected.strip()


def test_bad_input_gets_a_sentence_and_an_address_starts_nothing(loaded, address):
    page, _ = loaded
    page.fill("#real-question", "What is the capital of France?")
    for subject, target, sentence in (("Spain", "x", "does not stand in"), ("France", " ", "should say instead")):
        page.fill("#real-subject", subject)
        page.fill("#real-target", target)
        page.locator("#real-target").press("Enter")
        page.wait_for_function("s => document.getElementById('real-step').textContent.includes(s)", arg=sentence)
    page.fill("#real-question", "a b " * 149)
    page.click("#real-ask")
    page.wait_for_function("document.getElementById('real-answer').textContent.includes('shorten it')")
    other = page.context.new_page()
    other.goto(f"{address}/{PAGE}#q=Who+is+%3Cb%3EAnn%3C/b%3E%3F&s=Ann&t=Nobody.&l=6")
    other.wait_for_selector("#real[data-ready]")
    assert other.input_value("#real-question") == "Who is <b>Ann</b>?" and other.input_value("#real-layer") == "6"
    assert other.locator("#real b").count() == 0 and other.locator("#real[data-loaded]").count() == 0
    assert re.search(r"[#&]s=Ann&", other.input_value("#real-link"))
    other.close()
