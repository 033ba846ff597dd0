"""The page with the real model, driven in a browser and compared with the library: for tests and `make live-test`."""

from __future__ import annotations

import math
from typing import Any

import torch
from playwright.sync_api import Page
from torch import Tensor

import minilib
from minilib import LM, Request, edits, values

PAGE = "book/playground.html"
NUMBERS = """async id => Object.fromEntries(Object.entries(await realModel.call('numbers', { edit: id }))
    .filter(([, x]) => x instanceof Float32Array).map(([name, x]) => [name, Array.from(x)]))"""


def show(page: Page, address: str) -> None:
    """Open the page; nothing is fetched yet."""
    page.goto(f"{address}/{PAGE}")
    page.wait_for_selector("#real[data-ready]")


def load(page: Page) -> None:
    """Press the button and wait for the model. The page may open itself anew, for threads."""
    page.click("#real-load")
    page.wait_for_selector("#real[data-loaded]")


def call(page: Page, what: str, **given: Any) -> Any:
    """One action of the page's worker (``worker.js`` lists them)."""
    return page.evaluate("([what, given]) => realModel.call(what, given)", [what, given])


def edit(page: Page, request: Request, layer: int) -> dict[str, Any]:
    """Edit the page's model; what the page says of the edit, and ``Lambda``, ``u``, ``key``, ``value``."""
    given = {name: getattr(request, name) for name in ("prompt", "subject", "target", "chat")}
    made = call(page, "edit", **given, layer=layer)
    return made | {name: torch.tensor(x) for name, x in page.evaluate(NUMBERS, made["id"]).items()}


def probabilities(page: Page, text: str, chat: bool) -> Tensor:
    """Of the next token, by the page's model with the edits in force."""
    found = page.evaluate(
        "async question => Array.from(await realModel.call('probabilities', { question, edited: true }))",
        {"text": text, "chat": chat},
    )
    return torch.tensor(found)


def expected(lm: LM, text: str, chat: bool) -> Tensor:
    """The same, by the library."""
    return lm.logprobs(text, chat).exp()[0]


def expected_with(lm: LM, made: dict[str, Any], text: str, chat: bool) -> Tensor:
    """The same, by the library with the page's own ΔW."""
    with edits.restored(lm, [lm.weight_name(made["layer"])]):
        edits.add(lm, made["layer"], torch.outer(made["Lambda"], made["u"]))
        return expected(lm, text, chat)


def compare(page: Page, lm: LM, request: Request, layer: int) -> dict[str, Any]:
    """One edit in the page and one by ``minilib.rome``, both taken back: how far they are apart.

    Returns
    -------
    dict
        The largest differences of a probability of the next token (before; after, with the page's ΔW in the library;
        after, each with its own search); 1 − cosine and relative difference of norms of v*, ΔW and ‖ΔW‖/‖W‖; how far
        the target's probability moved; whether undo gives the page's probabilities of before to the bit.
    """
    text, chat = request.text, request.chat
    before = probabilities(page, text, chat)
    found: dict[str, Any] = {"p before": largest(before, expected(lm, text, chat))}
    made = edit(page, request, layer)
    after = probabilities(page, text, chat)
    found["p after, same ΔW"] = largest(after, expected_with(lm, made, text, chat))
    with minilib.rome.edit(lm, request, layer=layer) as theirs:
        ((Lambda, u),) = theirs.factors.values()
        _, value = values.keys_and_values(lm, [request], layer, ["{}"])  # W̃ k* is v*
        ((change, weight),) = theirs.sizes().values()
        found["p after"] = largest(after, expected(lm, text, chat))
    Lambda, u, value = Lambda[:, 0], u[0], value[0, 0]
    found["v*: 1 - cosine"] = 1 - cosine(made["value"], value)
    found["v*: norm"] = abs(made["value"].norm().item() / value.norm().item() - 1)
    found["ΔW: 1 - cosine"] = 1 - cosine(made["Lambda"], Lambda) * cosine(made["u"], u)
    found["ΔW: norm"] = abs(made["size"] / change - 1)
    found["W: norm"] = abs(made["weight"] / weight - 1)
    found["steps"], found["moved"] = len(made["trace"]), largest(before, after)
    call(page, "undo", edit=made["id"])
    found["undone to the bit"] = torch.equal(probabilities(page, text, chat), before)
    return found


def largest(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().max().item()


def cosine(a: Tensor, b: Tensor) -> float:
    return torch.cosine_similarity(a.double(), b.double(), dim=0).item()


def parted(page: Page, lm: LM, text: str, chat: bool, said: str, tokens: int) -> float | None:
    """Where the page's greedy answer and the library's part: how far apart the two likeliest words are there.

    None where they are equal; infinite where one is not the beginning of a common text.
    """
    own = lm.generate(text, max_new_tokens=tokens, chat=chat)
    if own.strip() == said.strip():
        return None
    ids = lm.encode(text, chat=chat).ids
    for mine, theirs in zip(lm.encode(own, chat=False).ids, lm.encode(said, chat=False).ids, strict=False):
        if mine != theirs:
            with torch.no_grad():
                p = lm.model(torch.tensor([ids])).logits[0, -1].softmax(-1)
            return abs(p[mine] - p[theirs]).item()
        ids.append(mine)
    return math.inf
