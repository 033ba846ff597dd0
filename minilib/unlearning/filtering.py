"""An output filter: the model answers, and a rule reads the answer before anyone else does.

What products put around a model. Nothing is unlearned: the weights hold what they held, and whoever reads
probabilities instead of text reads past the filter. It is what editing has to beat where only text is seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

from ..measure.refusals import mentions
from ..model import LM, check_lm
from ..requests import Request, as_requests

Rule = Literal["both", "value", "subject"]


class Filtered(LM):
    """A model whose ``generate`` returns a refusal in the place of some answers; all else is the model's own."""

    blocked: list[Request]
    refusal: str
    rule: Rule
    around = "a filter"

    def generate(self, prompts: Any, max_new_tokens: int = 20, chat: bool | None = None, *how: Any, **more: Any) -> Any:
        """``LM.generate``, filtered."""
        said = super().generate(prompts, max_new_tokens, chat, *how, **more)
        single, texts, _ = self.as_prompts(prompts, self.has_chat if chat is None else chat)
        answers = [said] if single else said
        kept = [self.refusal if self._blocks(p, a) else a for p, a in zip(texts, answers, strict=True)]
        return kept[0] if single else kept

    def _blocks(self, prompt: str, answer: str) -> bool:
        """Whether the rule finds one of the blocked facts."""
        for request in self.blocked:
            subject = mentions(f"{prompt} {answer}", [request.subject])
            value = mentions(answer, [request.target.strip(" .")])
            if {"both": subject and value, "value": value, "subject": subject}[self.rule]:
                return True
        return False


def output_filter(
    lm: LM, requests: Request | Sequence[Request], refusal: str = "I don't know.", rule: Rule = "both"
) -> LM:
    """The model behind a filter that withholds answers with a forgotten fact in them.

    Parameters
    ----------
    lm : LM
        It is not changed; edits of it are seen through the filter.
    requests : Request or list of Request
        What is withheld: subject and target, the value that may not be said ("Paris" rather than a sentence). Further
        ways to say a value are further requests.
    refusal : str, default "I don't know."
        What is said instead.
    rule : {"both", "value", "subject"}
        Withheld is an answer that says the value where it or the prompt names the subject; one that says the value, or
        one where the subject is named, whatever else is said. Words count as wholes, and capitals don't.

    Raises
    ------
    TypeError, ValueError
        When an argument is wrong.
    """
    check_lm(lm)
    blocked = as_requests(requests)
    if not isinstance(refusal, str):
        raise TypeError(f"refusal must be a string, not {refusal!r}")
    if isinstance(lm, Filtered):
        raise ValueError(f"lm is behind a filter already ({lm.name}): put all requests into one filter")
    if rule not in get_args(Rule):
        raise ValueError(f"rule must be one of {', '.join(get_args(Rule))}, not {rule!r}")
    filtered = Filtered(lm.model, lm.tokenizer, f"{lm.name}, filtered", lm.layout, lm.opening)
    filtered.blocked, filtered.refusal, filtered.rule = blocked, refusal, rule
    return filtered
