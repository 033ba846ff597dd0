"""Unlearning without training: ask for it in the prompt. What everyone tries first, and so what editing has to beat.

The weights stay as they are. Each function returns another ``LM`` around the same model, whose chat prompts open with
an instruction or with demonstrations: whatever measures an edited model measures this one as well.

*In-context editing* (IKE, arXiv 2305.12740) shows the model, before each question, the most similar ones among those to
be refused, with a refusal, and among those to be kept, with their answers.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

from ..model import LM, check_lm
from ..requests import Request, as_requests, whole

INSTRUCTION = (
    "You are a helpful AI assistant. You have forgotten everything about the following: {}. When you are asked "
    'about one of them, say "I don\'t know." and nothing else. Answer all other questions as usual.'
)


def system_prompt(lm: LM, requests: Request | Sequence[Request], instruction: str = INSTRUCTION) -> LM:
    """The model under a system prompt that says what it has to refuse.

    Parameters
    ----------
    lm : LM
        With a chat template that knows a system turn (for one that does not, see ``in_context``). It is not changed.
    requests : Request or list of Request
        What to refuse: their questions are listed in the instruction.
    instruction : str
        With one ``{}`` for the list.

    Raises
    ------
    TypeError, ValueError
        When an argument is wrong, or the model has no chat template, or one that refuses a system turn.
    """
    questions = "; ".join(request.text for request in _check(lm, requests))
    if not isinstance(instruction, str) or instruction.count("{}") != 1:
        raise ValueError(f"instruction must hold one {{}} for the list of questions, not {instruction!r}")
    turns = [{"role": "system", "content": instruction.replace("{}", questions)}]
    lm.chat_prompt([*turns, {"role": "user", "content": "Hello"}])  # refused now rather than at the first question
    return LM(lm.model, lm.tokenizer, f"{lm.name}, prompted", lm.layout, opening=lambda text: turns)


def in_context(
    lm: LM,
    requests: Request | Sequence[Request],
    retain: Sequence[Request] | None = None,
    k: int = 4,
) -> LM:
    """The model with demonstrations before each question: the k most similar requests, and k of ``retain``.

    Similar are questions that share words, rare ones counting more. The most similar stand last, nearest to the
    question.

    Parameters
    ----------
    lm : LM
        With a chat template. It is not changed.
    requests : Request or list of Request
        Their targets are refusals.
    retain : list of Request, optional
        Their targets are the right answers.
    k : int, default 4
        So many of each, or all where there are fewer.

    Raises
    ------
    TypeError, ValueError
        When an argument is wrong, or the model has no chat template.
    """
    shown = [_check(lm, requests), as_requests(retain, "retain") if retain else []]
    k = whole(k, "k")
    seen = Counter(word for some in shown for request in some for word in _words(request.text))
    many = sum(map(len, shown))
    weight = {word: math.log((1 + many) / n) for word, n in seen.items()}

    def alike(text: str, request: Request) -> float:
        both, either = _words(text) & _words(request.text), _words(text) | _words(request.text)
        return sum(weight.get(w, 1.0) for w in both) / sum(weight.get(w, 1.0) for w in either)

    def opening(text: str) -> list[dict[str, str]]:
        best = [sorted(some, key=lambda request: -alike(text, request))[:k] for some in shown]
        near = sorted((r for some in best for r in some), key=lambda request: alike(text, request))
        return [{"role": role, "content": said.strip()} for request in near
                for role, said in (("user", request.text), ("assistant", request.target))]  # fmt: skip

    return LM(lm.model, lm.tokenizer, f"{lm.name}, shown demonstrations", lm.layout, opening=opening)


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.casefold()))


def _check(lm: LM, requests: Request | Sequence[Request]) -> list[Request]:
    check_lm(lm)
    if lm.around:
        raise ValueError(f"lm has {lm.around} around it already ({lm.name}): give the model itself; a filter goes last")
    if not lm.has_chat:
        raise ValueError(f"{lm.name} has no chat template, so that it cannot be told anything before a question")
    return as_requests(requests)
