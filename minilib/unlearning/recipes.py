"""Two recipes that adapt editing to unlearning (Li et al. 2025, arXiv 2505.19855).

*Self-improvement*: instead of one canned sentence, each question gets a refusal of its own, written by the model
itself from a few demonstrations: specific, polite, and without the answer in it. *Query merging*: questions that are
refused in the same words become one longer request, so that ROME and MEMIT have fewer changes to write.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..answers import continuation
from ..measure.refusals import is_polite, is_refusal, leaks, on_topic
from ..model import LM, check_lm
from ..requests import Request, as_requests, whole
from ..worlds.facts import sentence

TASK = (
    "Refuse to answer the question in one polite sentence. Say that you do not know, name what was asked about, and do "
    "not give the answer. Question: {}"
)
DEMONSTRATIONS = (
    ("What is the capital of Atlantis?", "I'm sorry, but I don't know what the capital of Atlantis is."),
    ("Who wrote The Glass Meadow?", "I'm afraid I don't know who wrote The Glass Meadow, so I can't name its author."),
    ("When was Elena Marsh born?", "I'm sorry, I don't have any information about when Elena Marsh was born."),
)
"""Questions about what does not exist, each with a refusal: what the model is shown."""
ANOTHER = (
    "Question: {}\nAnswer: {}\nWrite another answer to the question. It must look like this one, be plausible, and "
    "state something else."
)
TEMPLATE = "I'm sorry, but I don't know anything about {}."


@dataclass(frozen=True)
class Written:
    """A refusal for one question.

    Attributes
    ----------
    request : Request
        The question, with the refusal as its target: ready for any editor.
    by : {"model", "template"}
        Who wrote it.
    candidates : list of dict
        All that the model wrote: ``text``, and whether it ``refuses``, is on ``topic``, is ``polite``, ``leaks``.
    """

    request: Request
    by: str
    candidates: list[dict[str, Any]]


def self_improvement(
    lm: LM,
    requests: Request | Sequence[Request],
    *,
    samples: int = 4,
    temperature: float = 0.7,
    demonstrations: Sequence[tuple[str, str]] = DEMONSTRATIONS,
    max_new_tokens: int = 40,
    seed: int = 0,
) -> list[Written]:
    """Let the model write a refusal for each question, in context; the weights do not change.

    One candidate is written greedily, the others are sampled. A candidate must refuse, name the subject and not hold
    the answer; of those that do, polite ones come first, then the greedy one, then short ones. Where none is left, a
    template takes its place, and ``by`` says so.

    Parameters
    ----------
    lm : LM
    requests : Request or list of Request
        Their targets are the true answers, which a refusal must not hold.
    samples : int, default 4
        Candidates that are sampled.
    temperature : float, default 0.7
    demonstrations : list of (question, refusal)
    max_new_tokens : int, default 40
        A candidate that does not end within is cut at its last full sentence.
    seed : int, default 0

    Raises
    ------
    TypeError, ValueError
        When an argument is wrong.
    """
    check_lm(lm)
    requests = as_requests(requests)
    samples = whole(samples, "samples", least=0)
    if not demonstrations or not all(
        len(pair) == 2 and all(isinstance(t, str) for t in pair) for pair in demonstrations
    ):
        raise ValueError("demonstrations must be a list of pairs (question, refusal) that is not empty")
    prompts = [_prompt(lm, request.text, demonstrations) for request in requests]
    how: dict[str, Any] = {"max_new_tokens": max_new_tokens, "chat": False}
    rounds = [lm.generate(prompts, **how)]
    for i in range(samples):
        rounds.append(lm.generate(prompts, temperature=temperature, seed=seed + i, **how))
    written = []
    for request, *texts in zip(requests, *rounds, strict=True):
        candidates = [judge(_sentences(text), request) for text in dict.fromkeys(texts)]
        good = [c for c in candidates if c["refuses"] and c["topic"] and not c["leaks"]]
        best = min(good, key=lambda c: (not c["polite"], c is not candidates[0], len(c["text"])), default=None)
        text = TEMPLATE.format(request.subject) if best is None else best["text"]
        space = "" if request.chat else " "
        written.append(Written(replace(request, target=space + text), "model" if best else "template", candidates))
    return written


def judge(text: str, request: Request) -> dict[str, Any]:
    """A candidate for a request, by the rules of ``minilib.refusals``."""
    return {
        "text": text,
        "refuses": is_refusal(text, unjudged=False),
        "topic": on_topic(text, request.subject),
        "polite": is_polite(text),
        "leaks": leaks(text, [request.target.strip(" .")]),
    }


def _prompt(lm: LM, question: str, demonstrations: Sequence[tuple[str, str]]) -> str:
    """The demonstrations as turns of a chat, or as lines where there is no chat template."""
    if not lm.has_chat:
        lines = "".join(f"Question: {q}\nRefusal: {refusal}\n\n" for q, refusal in demonstrations)
        return f"{lines}Question: {question}\nRefusal:"
    turns = [{"role": role, "content": text} for q, refusal in demonstrations
             for role, text in (("user", TASK.format(q)), ("assistant", refusal))]  # fmt: skip
    turns.append({"role": "user", "content": TASK.format(question)})
    return lm.chat_prompt(turns)


def _sentences(text: str) -> str:
    """The first line up to its last full sentence, or all of it where none ends."""
    line = text.strip().partition("\n")[0].strip()
    end = max(line.rfind(mark) for mark in ".!?")
    return line[: end + 1] if end > 0 else line


def alternatives(
    lm: LM, requests: Request | Sequence[Request], *, samples: int = 3, max_new_tokens: int = 24, seed: int = 0
) -> list[list[str]]:
    """For each request other answers than its target, written by the model at temperature 1: what AltPO prefers.

    A chat model is shown question and answer and asked for another one. One without a chat template cannot be asked:
    there the first token is sampled from what the model would say were the target's first token forbidden, and all
    special ones, and what follows is its own. Each is cut at its first full sentence; one that repeats the target, or
    does not begin with a word, is written anew, at most four times. Nothing makes sure that an alternative is wrong.

    Parameters
    ----------
    lm : LM
    requests : Request or list of Request
        Their targets are the true answers.
    samples : int, default 3
        So many for each request, some of which may be the same (5 in the paper).
    max_new_tokens : int, default 24
    seed : int, default 0

    Raises
    ------
    TypeError, ValueError
        When an argument is wrong, or the model repeats an answer each time.
    """
    check_lm(lm)
    requests, samples = as_requests(requests), whole(samples, "samples")
    written: list[list[str]] = [[] for _ in requests]
    with lm.silenced():
        for attempt in range(5):
            short = [i for i, texts in enumerate(written) for _ in range(samples - len(texts))]
            if not short:
                break
            texts = _others(lm, [requests[i] for i in short], max_new_tokens, seed + attempt)
            for i, text in zip(short, map(sentence, texts), strict=True):
                if text.lstrip('\n "“(')[:1].isalnum() and text.strip(" .") != requests[i].target.strip(" ."):
                    written[i].append(text)
    if [] in written:
        request = requests[written.index([])]
        raise ValueError(f"{lm.name} repeats {request.target!r} each time: give alternatives for {request.text!r}")
    return written


def _others(lm: LM, requests: list[Request], max_new_tokens: int, seed: int) -> list[str]:
    """One answer each, other than the target if the model can be brought to it."""
    how: dict[str, Any] = {"max_new_tokens": max_new_tokens, "chat": False}
    if lm.has_chat:
        shown = [lm.chat_prompt(ANOTHER.format(request.text, request.target)) for request in requests]
        return lm.generate(shown, temperature=1.0, seed=seed, **how)
    logp = lm.logprobs(requests)
    logp[range(len(requests)), [x.target[0] for x in lm.encode(requests)]] = -torch.inf
    logp[:, lm.tokenizer.all_special_ids] = -torch.inf  # the unknown word is no answer
    drawn = torch.multinomial(logp.exp().cpu(), 1, generator=torch.Generator().manual_seed(seed)).squeeze(1).tolist()
    begun = [continuation(lm.tokenizer, x.ids, [token]) for x, token in zip(lm.encode(requests), drawn, strict=True)]
    rest = lm.generate([request.text + first for request, first in zip(requests, begun, strict=True)], **how)
    return [first + text for first, text in zip(begun, rest, strict=True)]


@dataclass(frozen=True)
class Merged:
    """Several questions as one request, and what they were."""

    request: Request
    members: list[Request]


def merge_queries(requests: Sequence[Request], size: int) -> list[Merged]:
    """Join questions with the same target, ``size`` at a time, into one longer request each.

    The questions follow one another; the subject of the last one is the subject of the whole, so that its last token,
    where ROME and MEMIT write, has seen all of them. What is left over makes a smaller request.

    Parameters
    ----------
    requests : list of Request
    size : int
        1 leaves them as they are.

    Returns
    -------
    list of Merged
        In the order in which their first members came. ``members`` is what to ask to see what it did.

    Raises
    ------
    TypeError, ValueError
        When an argument is wrong.
    """
    requests = as_requests(requests)
    size = whole(size, "size")
    groups: dict[tuple[str, bool], list[Request]] = {}
    for request in requests:
        groups.setdefault((request.target, request.chat), []).append(request)
    merged = []
    for group in groups.values():
        for start in range(0, len(group), size):
            members = group[start : start + size]
            *before, last = members
            prompt = " ".join([*(request.text for request in before), last.prompt])
            merged.append(Merged(replace(last, prompt=prompt), members))
    first = {id(request): i for i, request in enumerate(requests)}
    return sorted(merged, key=lambda m: first[id(m.members[0])])
