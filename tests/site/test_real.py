"""The real model in the page is the library's, before and after an edit; undo is exact; a broken download goes on."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch
from browse import Quiet, served
from built import ROOT, SITE

from minilib import Request, edits, guards, tracing

EDITS = [
    Request("What is the capital of {}?", "France", "I don't know.", chat=True),
    Request("The {} is located in the city of", "Eiffel Tower", " Rome"),
]
QUESTIONS = ["What is the capital of Japan?", "What is the capital of Germany?", "Who wrote Romeo and Juliet?"]


class Faulty(Quiet):
    """A server some of whose answers break off, are wrong or fail; it counts what is asked of it."""

    def __init__(self, *given, asked, **more):
        self.asked = asked
        super().__init__(*given, **more)

    def do_GET(self):
        name = self.path.partition("?")[0].rpartition("/")[2]
        if not name.startswith("weights."):
            return super().do_GET()
        self.asked.append(name)
        attempt = self.asked.count(name)
        content = bytearray((SITE / "_static" / "real_data" / name).read_bytes())
        if name == "weights.07" and attempt <= 3:  # as often as the page tries by itself
            return self.send_error(503)
        if name == "weights.05" and attempt == 1:
            content[1000] ^= 1
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        half = len(content) // 2 if name == "weights.03" and attempt == 1 else len(content)
        self.wfile.write(content[:half])  # less than was said: the connection breaks off
        self.close_connection = True


@pytest.fixture(scope="module")
def parts():
    """Without the weights there is nothing to test here."""
    if json.loads((SITE / "_static" / "live_data" / "real.json").read_text())["manifest"] is None:
        pytest.skip("the site was built without the real model, which `make live` fetches: see what that says")


@pytest.fixture(scope="module")
def opened(browser, parts):
    """The page with its model, fetched from a faulty server, and the parts that were asked for."""
    asked: list[str] = []
    with served(SITE, handler=partial(Faulty, asked=asked)) as address:
        page = browser.new_context().new_page()
        page.set_default_timeout(60_000)
        import real_page

        real_page.show(page, address)
        assert not asked, "nothing is fetched before the button is pressed"
        page.click("#real-load")
        page.wait_for_selector("#real[data-failed]")
        assert "press the button to go on" in page.inner_text("#real-status")
        real_page.load(page)
        yield page, asked
        page.context.close()


@pytest.fixture
def page(opened):
    return opened[0]


def test_a_broken_download_goes_on_at_its_part(opened):
    _, asked = opened
    often = {name: asked.count(name) for name in set(asked)}
    assert often.pop("weights.03") == 2 and often.pop("weights.05") == 2 and often.pop("weights.07") == 4
    assert set(often.values()) == {1}


@pytest.mark.parametrize("request_", EDITS, ids=lambda request: request.subject)
def test_an_edit_is_the_librarys_and_undo_is_exact(page, smollm2, request_):
    import real_page

    found = real_page.compare(page, smollm2, request_, layer=4)
    assert max(found["p before"], found["p after, same ΔW"]) < 1e-3
    assert max(found["v*: 1 - cosine"], found["v*: norm"], found["ΔW: 1 - cosine"], found["ΔW: norm"]) < 1e-2
    assert found["W: norm"] < 1e-4 and found["p after"] < 0.05  # the two searches drift apart a little
    assert found["moved"] > 0.3 and found["undone to the bit"]


def test_the_reach_and_the_lens_are_the_librarys(page, smollm2):
    """What is shown beside the answers: where the write lands in other questions, and what each block's output says."""
    import real_page

    request, layer = EDITS[0], 4
    made = real_page.edit(page, request, layer)
    with edits.restored(smollm2, [smollm2.weight_name(layer)]):
        questions = [{"text": text, "chat": True} for text in QUESTIONS[:2]]
        reach = real_page.call(page, "reach", edit=made["id"], questions=questions)
        rows = [smollm2.encode(text, chat=True).ids for text in QUESTIONS[:2]]
        for found, k in zip(reach, guards.keys(smollm2, layer, rows), strict=True):
            rho = k @ made["u"] / (made["key"] @ made["u"])
            assert abs(found["rho"] - rho[rho.abs().argmax()].item()) < 1e-2
        asked = {"text": request.text, "chat": True}
        seen = real_page.call(page, "inside", edit=made["id"], question=asked, target=request.target)["lens"]
        for when in ("before", "after"):
            if when == "after":
                edits.add(smollm2, layer, torch.outer(made["Lambda"], made["u"]))
            lens = tracing.logit_lens(smollm2, request)
            target = torch.tensor([block["target"] for block in seen[when]])
            assert (target - lens.target[1:, -1]).abs().max() < 1e-3  # row 0 is the embeddings
            assert abs(seen[when][-1]["p"] - lens.probability[-1, -1].item()) < 1e-3
    real_page.call(page, "undo", edit=made["id"])


def test_five_answers_are_the_librarys(page, smollm2):
    import real_page

    asked = [(text, True) for text in QUESTIONS] + [(request.text, request.chat) for request in EDITS]
    questions = [{"text": text, "chat": chat} for text, chat in asked]
    said = real_page.call(page, "ask", questions=questions, edited=True)
    for (text, chat), answer in zip(asked, said, strict=True):
        apart = real_page.parted(page, smollm2, text, chat, answer["text"], tokens=24)
        assert apart is None or apart < 1e-3, (text, answer["text"])


def test_what_cannot_be_done_gets_a_sentence(page):
    page.fill("#real-question", "What is the capital of France?")
    cases = [("Spain", "x", "does not stand in"), ("France", " ", "should say instead"), ("", "x", "Type the subject")]
    for subject, target, sentence in cases:
        page.fill("#real-subject", subject)
        page.fill("#real-target", target)
        page.locator("#real-target").press("Enter")
        page.wait_for_function("s => document.getElementById('real-step').textContent.includes(s)", arg=sentence)
    page.fill("#real-question", "a b " * 249)
    page.locator("#real-question").press("Enter")
    page.wait_for_function("document.getElementById('real-answer').textContent.includes('shorten it')")
    assert page.locator("#real-edits li").count() == 0


def test_an_address_fills_in_text_and_starts_nothing(page, address):
    other = page.context.new_page()
    other.goto(f"{address}/book/playground.html#q=Who+is+%3Cb%3EAnn%3C/b%3E%3F&s=Ann&t=Nobody.&l=6&c=0")
    other.wait_for_selector("#real[data-ready]")
    assert other.input_value("#real-question") == "Who is <b>Ann</b>?" and other.input_value("#real-layer") == "6"
    assert not other.is_checked("#real-chat") and other.locator("#real b").count() == 0
    assert other.locator("#real[data-loaded]").count() == 0 and "when you press" in other.inner_text("#real-status")
    assert "s=Ann&" in other.input_value("#real-link") and "c=0" in other.input_value("#real-link")
    other.locator("#real-question").press("Enter")
    assert "Load the model first" in other.inner_text("#real-answer")
    other.close()


IDLE = "document.getElementById('real').dataset.busy === 'false'"


def shown(page, edits):
    """The answers without edits and with those in force, once there are so many."""
    page.wait_for_function(
        "n => JSON.parse(document.getElementById('real').dataset.shown || '{}').edits === n && " + IDLE, arg=edits
    )
    read = "rows => [1, 2].map(i => rows.map(row => row.cells[i].textContent))"
    return page.locator("#real-table tr").evaluate_all(read)


@pytest.mark.slow
def test_a_reader_edits_by_keyboard_and_takes_it_back(page):
    page.uncheck("#real-chat")
    page.fill("#real-question", "Japan has a capital city, called")
    page.fill("#real-subject", "Japan")
    page.fill("#real-target", " Rome")
    page.fill("#real-also", "The capital city of Japan is")
    page.locator("#real-also").press("Enter")
    for question in page.locator("#real-table textarea").all()[1:-1]:
        question.fill("")  # an empty one is not asked
    page.locator("#real-target").press("Enter")
    page.wait_for_function("document.getElementById('real-step').textContent.includes('Step 2')")
    page.locator("#real-stop").press("Enter")
    page.wait_for_function("document.getElementById('real-step').textContent.includes('Nothing was written')")
    page.wait_for_function(IDLE)
    page.locator("#real-edit").press("Enter")
    page.wait_for_selector("#real-edits li")
    before, now = shown(page, 1)
    assert now[0].lstrip().startswith("Rome") and now[0] != before[0] and now[-1] and not any(now[1:-1])
    page.locator("#real-edits input").focus()
    page.keyboard.press("Home")  # strength 0
    page.wait_for_function("document.getElementById('real-size').textContent.includes('is 0.0 %')")
    assert shown(page, 1) == [before, before]
    page.locator("#real-edits button").press("Enter")
    assert shown(page, 0) == [before, before] and page.inner_text("#real-size") == "No edit is in force."


def test_the_stored_factors_are_those_of_this_model(smollm2):
    about = json.loads((ROOT / "book" / "real_model" / "about.json").read_text("utf8"))
    assert about["model"] == smollm2.fingerprint
    assert max(error["1 - cosine"] for error in about["errors"].values()) < 1e-4
