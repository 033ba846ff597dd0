"""What an edit tells its reader at its end: which requests are not answered with their target, and why."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .requests import Request

LONG = 20  # tokens of a target, from which on its length is named as a reason
BATCH = 8  # prompts run together: more would take much memory where the vocabulary is large


def tokens_said(lm: Any, requests: Sequence[Request]) -> list[tuple[int, int]]:
    """How many tokens of each target the model says before it says something else, and how many there are.

    In one pass: greedy generation says the target as long as each token is the likeliest after those before it.
    """
    pairs = lm.pairs(requests)
    likeliest = [steps.argmax(-1).tolist() for steps in lm.target_steps(pairs, BATCH)]
    right = [
        [a == b for a, b in zip(said, wanted, strict=True)] for said, (_, wanted) in zip(likeliest, pairs, strict=True)
    ]
    return [((*row, False).index(False), len(row)) for row in right]


def unanswered(edit: Any) -> list[str]:
    """A note for each request that is not answered with its target, unless the edit has one already."""
    found = []
    keys = [ids[: subject + 1] for ids, subject in map(edit.lm.encode_request, edit.requests)]
    for i, (request, (said, of)) in enumerate(zip(edit.requests, tokens_said(edit.lm, edit.requests), strict=True)):
        opening = f"{request.text!r} is not answered"
        if said < of and not any(note.startswith(opening) for note in edit.notes):
            parts = [f"{opening} {short(request.target)!r}: the model departs from it at token {said + 1} of {of}"]
            found.append("; ".join(parts + _reasons(edit, i, of, keys)))
    return found


def asked_otherwise(lm: Any, requests: Sequence[Request]) -> list[str]:
    """A note where requests are plain text and the model is one for chats, which people will ask in chats."""
    plain = [request for request in requests if not request.chat]
    if not plain or not lm.has_chat:
        return []
    some = "the request is" if len(requests) == 1 else f"{len(plain)} of {len(requests)} requests are"
    return [
        f"{some} plain text, and {lm.name} is a chat model: what it answers in a chat is another prompt; to edit that, "
        f"write Request({plain[0].prompt!r}, {plain[0].subject!r}, ..., chat=True)"
    ]


def leaking(lm: Any, requests: Sequence[Request]) -> list[str]:
    """A note for each request whose target, the answer to be forgotten, the model still says."""
    said = zip(requests, tokens_said(lm, requests), strict=True)
    return [f"{r.text!r} is still answered {short(r.target)!r}" for r, (n, of) in said if n == of]


def short(text: str, most: int = 60) -> str:
    """The beginning of a long text."""
    return text if len(text) <= most else f"{text[:most]}…"


def _reasons(edit: Any, i: int, tokens: int, keys: Sequence[list[int]]) -> list[str]:
    """Why request ``i`` is not answered with its target, as far as that is known."""
    reasons = []
    if edit.guard is not None:
        (row,) = edit.explain([edit.requests[i]])
        if not row["decided"]:
            reasons.append(f"the {edit.guard.what} is not read for this prompt (edit.explain says how near it is)")
    else:
        same = [repr(r.text) for j, r in enumerate(edit.requests) if j != i and keys[j] == keys[i]]
        if same:
            reasons.append(
                f"{', '.join(same)} {'has' if len(same) == 1 else 'have'} the same key, since the prompts agree up to "
                "the end of the subject, and one key has one value: give them one target, or another wording"
            )
    traces = edit.traces
    trace = traces[i] if len(traces) == len(edit.requests) else traces[0] if len(traces) == 1 else None
    if trace is None:  # several of WISE's shards
        return reasons
    loss, aim, steps = trace["loss"][-1], edit.settings["stop_loss"], edit.settings["steps"]
    if trace.get("nll", trace["loss"])[-1] * tokens < math.log(2):  # then each token has more than half
        if edit.guard is None and not reasons:
            reasons.append(
                "a value that gives it was found, but the weights, which serve many keys, return another one"
            )
        return reasons
    what = "the search for its value" if edit.guard is None else "training"
    if loss >= aim:
        reasons.append(
            f"{what} ended after {steps} steps at a loss of {loss:.2g}, above stop_loss {aim:g}: raise steps"
        )
    else:
        reasons.append(f"{what} ended at a loss of {loss:.2g}, below stop_loss {aim:g}: lower stop_loss")
    if "limit" in trace and trace["norm"][-1] > 0.999 * trace["limit"][-1]:
        reasons.append(f"its value grew to the length that clamp_factor {edit.settings['clamp_factor']:g} allows")
    if tokens > LONG:
        reasons.append(f"its target has {tokens} tokens, which is long for one value: shorten it")
    return reasons
