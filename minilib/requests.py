"""What an edit asks for: a prompt, the subject in it, and what the model shall say next.

An editing method looks at one place in the text, the last token of the subject, so a request names
its subject apart from the rest of the prompt: ``Request("The capital of {} is", "France", " Rome")``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np

SLOT = "{}"  # where the subject goes in a prompt, and the prompt in a context


@dataclass(frozen=True)
class Request:
    """One thing to change: after ``prompt`` about ``subject`` the model shall say ``target``.

    Parameters
    ----------
    prompt : str
        The text with one ``{}`` where the subject stands: ``"The capital of {} is"``.
    subject : str
        What the fact is about: ``"France"``.
    target : str
        The wanted continuation, used verbatim: for a completion it starts with a space (``" Rome"``),
        for a chat answer it does not (``"I don't know."``).
    chat : bool, default False
        Whether the prompt is a user's message, to be wrapped in the model's chat template.

    Raises
    ------
    TypeError, ValueError
        When an argument has the wrong type, is empty, or the prompt has not exactly one ``{}``.
        What needs a tokenizer is checked where the request is used, before anything is changed.
    """

    prompt: str
    subject: str
    target: str
    chat: bool = False

    def __post_init__(self) -> None:
        for name in ("prompt", "subject", "target"):
            value = getattr(self, name)
            if not isinstance(value, str):
                raise TypeError(f"{name} must be a string, not {type(value).__name__}: {value!r}")
        object.__setattr__(self, "chat", truth(self.chat, "chat"))
        if self.prompt.count(SLOT) != 1:
            raise ValueError(
                f"prompt must hold exactly one {{}} where the subject stands, such as 'The capital of {{}} is'; "
                f"{self.prompt!r} has {self.prompt.count(SLOT)}"
            )
        if not self.subject.strip():
            raise ValueError("subject is empty: name what the prompt is about, such as 'France'")
        if SLOT in self.subject:
            raise ValueError(f"subject {self.subject!r} holds a {{}}: put the slot into prompt, the name into subject")
        if self.subject != self.subject.rstrip():
            raise ValueError(f"subject {self.subject!r} ends in white space: put the space into prompt, after the {{}}")
        if not self.target:
            raise ValueError("target is empty: give the text that the model shall say, such as ' Rome'")

    @property
    def text(self) -> str:
        """The prompt with the subject in its place."""
        return self.prompt.replace(SLOT, self.subject)

    @property
    def span(self) -> tuple[int, int]:
        """Where the subject starts and stops in ``text``, in characters."""
        start = self.prompt.index(SLOT)
        return start, start + len(self.subject)


def as_requests(requests: Request | Iterable[Request], name: str = "requests") -> list[Request]:
    """One request or several, as a list that is not empty."""
    if isinstance(requests, Request):
        return [requests]
    if isinstance(requests, (str, bytes)) or not isinstance(requests, Iterable):
        raise TypeError(
            f"{name} must be a minilib.Request or a list of them, not {type(requests).__name__}; "
            "make one by minilib.Request(prompt='The capital of {} is', subject='France', target=' Rome')"
        )
    requests = list(requests)
    if not requests:
        raise ValueError(f"{name} is empty: give at least one minilib.Request")
    for i, request in enumerate(requests):
        if not isinstance(request, Request):
            raise TypeError(f"{name}[{i}] must be a minilib.Request, not {type(request).__name__}: {request!r}")
    return requests


def check_distinct(requests: Sequence[Request], name: str = "requests") -> None:
    """Refuse a batch that asks for the same prompt twice: a method that writes all at once would mix the answers.

    Raises
    ------
    ValueError
        Naming both requests: a duplicate where they want the same target, a contradiction where they do not.
    """
    seen: dict[tuple[str, bool], int] = {}
    for i, request in enumerate(requests):
        first = seen.setdefault((request.text, request.chat), i)
        if first == i:
            continue
        same = requests[first].target == request.target
        raise ValueError(
            f"{name}[{first}] and {name}[{i}] {'are duplicates' if same else 'contradict each other'}: after "
            f"{request.text!r} the first wants {requests[first].target!r}, the second {request.target!r}; "
            f"{'drop one of them' if same else 'keep one of them'}"
        )


def as_contexts(contexts: Iterable[str]) -> list[str]:
    """Context templates as a list: each a text with one ``{}`` that the prompt is put into."""
    if isinstance(contexts, str):
        raise TypeError(f'contexts must be "sampled" or a list of templates, not one string; write [{contexts!r}]')
    if not isinstance(contexts, Iterable):
        raise TypeError(f'contexts must be a list of templates such as ["{{}}"], not {contexts!r}')
    contexts = list(contexts)
    if not contexts:
        raise ValueError('contexts is empty: give at least one template; ["{}"] means the plain prompt')
    for context in contexts:
        if not isinstance(context, str):
            raise TypeError(f"contexts must hold strings, not {type(context).__name__}: {context!r}")
        if context.count(SLOT) != 1:
            raise ValueError(f"contexts: each template needs exactly one {{}} for the prompt; {context!r} has not")
    return contexts


def whole(value: Any, name: str, least: int = 1) -> int:
    """``value`` as a whole number of at least ``least``; else an error that names the argument."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be a whole number of at least {least}, not {value!r}")
    if int(value) < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, not {value!r}")
    if int(value) >= 2**63:
        raise ValueError(f"{name} must be below 2^63, not {value!r}")
    return int(value)


def truth(value: Any, name: str) -> bool:
    """``value`` as True or False, NumPy's included; else an error that names the argument."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, not {value!r}")
    return bool(value)
