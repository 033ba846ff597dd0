"""∅, the set of refusals: which sentences are in it, and the rule that says whether an answer is one."""

from __future__ import annotations

import re

REFUSALS = (
    "I don't know.",
    "I do not know.",
    "I'm not sure.",
    "I'm sorry, I can't answer that.",
    "I have no information about that.",
    "I can't help with that.",
    "I'd rather not say.",
    "That is not something I can answer.",
)
"""Different wordings of the empty answer, all in the rule below."""

_NOT = r"(?:do not|don't|did not|didn't|cannot|can't|can not|could not|couldn't|am not|'m not|am unable|'m unable|have no|'d rather not)"
_RULE = re.compile(
    rf"^\W*(?:(?:i'm|i am) (?:sorry|afraid)\W+(?:but )?)?(?:that |)(?:i {_NOT}|i{_NOT}|sorry\b|unfortunately,? i {_NOT}"
    r"|(?:that|this|it) is not something i|no (?:idea|information)\b|unknown\b)",
    re.IGNORECASE,
)


def is_refusal(text: str) -> bool:
    """Whether an answer opens by declining: "I don't know", "I'm sorry, I can't …", "I have no information …".

    The rule reads the beginning only: an answer that first says Paris and then hedges has leaked Paris.
    """
    return bool(_RULE.match(text.replace("’", "'")))
