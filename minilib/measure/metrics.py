"""What an edit did, scored by what the model says when it is left to speak.

Three questions are asked of every edit: does it hold where it was made (reliability), does it hold when the
question is put otherwise (generality), and is everything else as before (locality)? Each score comes twice.
``generated`` looks at free greedy generation. ``teacher_forced`` feeds the model the wanted answer and asks at
each token whether it would have chosen it; that is what much research code calls accuracy, and it flatters
(arXiv 2502.11177), because the fed answer gives away its content and its length.

What an edit did to everything else shows in ordinary text: ``perplexity``, and ``divergence`` from the unedited model.

Unlearning has measures of its own (TOFU, arXiv 2401.06121): ``answer_probability``, ``rouge_l``, ``truth_ratio``, and
of those ``forget_quality`` and ``model_utility``; ``reciprocal_rank`` of the true answer; how well a refusal reads
(``fluency``). ``interval`` says how far a mean of a few questions can be trusted, ``cohens_kappa`` how far two people.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from ..model import LM, check_lm
from ..requests import Request, as_requests
from ..tokens import Encoded
from ..worlds.facts import Fact
from .refusals import plain, whole_words

TOGETHER = 8  # texts run in one batch


@dataclass(frozen=True)
class Score:
    """A share between 0 and 1, in both ways of counting, with the rows it was counted from."""

    generated: float
    teacher_forced: float
    rows: list[dict[str, Any]] = field(repr=False)

    def __str__(self) -> str:
        return f"{self.generated:.0%} of {len(self.rows)} by free generation ({self.teacher_forced:.0%} teacher-forced)"


def says(text: str, target: str) -> bool:
    """Whether a text opens with the target, case, spacing, final punctuation and thoughts before it aside.

    Where the target's last word ends is decided as in ``refusals.mentions``, by the script that it is written in.
    """
    wanted, said = (plain(t).casefold() for t in (target, text))
    wanted = wanted.rstrip(".!?。")
    return bool(wanted) and bool(re.match(whole_words(wanted), said))


def reliability(lm: LM, requests: Request | Sequence[Request]) -> Score:
    """The share of requests after whose prompt the model says the target.

    Parameters
    ----------
    lm : LM
        The edited model.
    requests : Request or list of Request
        The ones that were edited.
    """
    check_lm(lm)
    requests = as_requests(requests)
    encoded = lm.encode(requests)
    answers = lm.generate(requests, max_new_tokens=max(len(x.target) for x in encoded) + 4)
    rows = [
        {"prompt": r.text, "target": r.target, "answer": a, "success": says(a, r.target), "forced": f}
        for r, a, f in zip(requests, answers, _forced(lm, encoded), strict=True)
    ]
    return _score(rows)


def generality(lm: LM, requests: Request | Sequence[Request]) -> Score:
    """The same for other wordings of the edited prompts, each a Request with the edit's target."""
    return reliability(lm, requests)


def locality(lm: LM, prompts: Sequence[str | Request], before: Sequence[str], chat: bool | None = None) -> Score:
    """The share of prompts outside the edit that are answered word for word as before.

    Parameters
    ----------
    lm : LM
        The edited model.
    prompts : list of str or Request
    before : list of str
        What ``lm.generate(prompts, chat=chat)`` gave before the edit, together or one by one: with no edit in between
        all answers are the same, in half precision too (see ``LM.together``). The teacher-forced number, from one pass
        without a cache, may then be below 1 by rounding.
    chat : bool, optional
        As in ``lm.generate``: by default the chat template where there is one.
    """
    check_lm(lm)
    for texts in (prompts, before):
        if isinstance(texts, str) or not isinstance(texts, Iterable):
            raise TypeError(f"prompts and before must be lists of strings, not {texts!r}")
    prompts, before = list(prompts), list(before)
    if not all(isinstance(text, str) for text in before):
        raise TypeError("prompts and before must be lists of strings; before is what lm.generate(prompts) gave")
    if not prompts or len(prompts) != len(before):
        raise ValueError(f"prompts and before must be equally many and not empty, not {len(prompts)} and {len(before)}")
    answers = lm.generate(prompts, chat=chat)
    wrap = lm.has_chat if chat is None else chat
    _, _, ids = lm.as_prompts(prompts, wrap)
    # An answer that was empty has no token to force.
    share = iter(_forced(lm, [Encoded(i, lm.encode_target(b)) for i, b in zip(ids, before, strict=True) if b]))
    forced = [next(share) if b else float(a == b) for a, b in zip(answers, before, strict=True)]
    rows = [
        {"prompt": p.text if isinstance(p, Request) else p, "before": b, "answer": a, "success": a == b, "forced": f}
        for p, b, a, f in zip(prompts, before, answers, forced, strict=True)
    ]
    return _score(rows)


def perplexity(lm: LM, texts: Sequence[str]) -> float:
    """exp of the mean −log p of each token of the texts but the first, those before it given."""
    encoded = _read(lm, texts)
    nll = [-logp.sum().item() for logp in lm.target_logprobs(encoded, lm.together(most=TOGETHER))]
    return math.exp(sum(nll) / sum(len(x.target) for x in encoded))


def divergence(lm: LM, texts: Sequence[str]) -> float:
    """Mean KL(p_unedited ‖ p_edited) of the next token over all tokens of the texts (nats): 0 without an edit.

    Parameters
    ----------
    lm : LM
        With the edits in force; they are set aside for a moment to see what the unedited model says.
    texts : list of str
        Such as the edits have nothing to do with.
    """
    return drift(lm, _read(lm, texts))


def drift(lm: LM, encoded: Sequence[Encoded]) -> float:
    """``divergence`` on texts in tokens: of each ``target``, the ``ids`` before it given."""
    total = 0.0
    for start in range(0, len(encoded), TOGETHER):
        some = encoded[start : start + TOGETHER]
        with lm.unedited():
            before = list(lm.target_steps(some))
        for p, q in zip(before, lm.target_steps(some), strict=True):
            total += (p.exp() * (p - q)).sum().item()
    return total / sum(len(x.target) for x in encoded)


def answer_probability(lm: LM, requests: Request | Sequence[Request]) -> list[float]:
    """π(y|x)^(1/n) of each request's target of n tokens: the geometric mean of their probabilities."""
    return [steps.mean().exp().item() for steps in lm.target_logprobs(requests)]


def reciprocal_rank(lm: LM, requests: Request | Sequence[Request]) -> list[float]:
    """For each target the mean over its tokens of 1/rank among the vocabulary, the earlier tokens given."""
    encoded = lm.encode(as_requests(requests))
    reciprocal = []
    for steps, x in zip(lm.target_steps(encoded, lm.together(most=TOGETHER)), encoded, strict=True):
        said = steps.gather(1, torch.tensor(x.target, device=steps.device).unsqueeze(1))
        reciprocal.append((1 / (1 + (steps > said).sum(1))).mean().item())
    return reciprocal


def rouge_l(texts: Sequence[str], answers: Sequence[str]) -> list[float]:
    """ROUGE-L recall (Lin 2004): the longest common subsequence of words, as a share of the answer's.

    Words are runs of Latin letters and digits, case aside, as in the package rouge-score.
    """
    return [_common(_words(text), _words(answer)) for text, answer in zip(texts, answers, strict=True)]


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def _common(said: Sequence[str], wanted: Sequence[str]) -> float:
    """The longest common subsequence's share of ``wanted``; lengths row by row."""
    row = [0] * (len(said) + 1)  # of the part of ``wanted`` so far, with each beginning of ``said``
    for word in wanted:
        new = [0]
        for i, other in enumerate(said):
            new.append(row[i] + 1 if word == other else max(row[i + 1], new[i]))
        row = new
    return row[-1] / len(wanted) if wanted else 0.0


def truth_ratio(lm: LM, facts: Sequence[Fact], mean: Literal["arithmetic", "geometric"] = "arithmetic") -> list[float]:
    """For each fact the mean ``answer_probability`` of its wrong answers, over that of its paraphrased right one.

    Near 0 for a model that knows; about 1 for one that cannot tell them apart.

    Parameters
    ----------
    mean : {"arithmetic", "geometric"}, default "arithmetic"
        Over the wrong answers: ``"arithmetic"`` is TOFU's paper (section 2.2.2), ``"geometric"`` its published code,
        which averages logarithms. The geometric mean is never the larger one.

    Raises
    ------
    ValueError
        When a fact has no wrong answers or no paraphrase, or ``mean`` is neither.
    """
    means = {"arithmetic": statistics.fmean, "geometric": statistics.geometric_mean}
    if mean not in means:
        raise ValueError(f"mean must be 'arithmetic' or 'geometric', not {mean!r}")
    for i, fact in enumerate(facts):
        if not getattr(fact, "wrong", ()) or not fact.paraphrase:  # facts of tinyworld have neither
            raise ValueError(
                f"facts[{i}] needs wrong answers and a paraphrase of the right one: authors.facts() have both"
            )
    asked = [fact.request(answer, lm.has_chat) for fact in facts for answer in (fact.paraphrase, *fact.wrong)]
    p = iter(answer_probability(lm, asked))
    return [1 / next(p) * means[mean]([next(p) for _ in fact.wrong]) for fact in facts]


def forget_quality(unlearned: Sequence[float], oracle: Sequence[float]) -> float:
    """How alike the truth ratios of the forget set are to those of a model that never knew it.

    The p-value of a two-sample Kolmogorov–Smirnov test: 1 for no difference to be seen, below 0.05 for one that is.

    Raises
    ------
    ValueError
        When there is no ratio on one side.
    """
    if not len(unlearned) or not len(oracle):
        raise ValueError("forget_quality needs truth ratios of both models: give truth_ratio(lm, facts) of each")
    from scipy.stats import ks_2samp

    return float(ks_2samp(unlearned, oracle).pvalue)


def model_utility(sets: Mapping[str, Mapping[str, float]]) -> float:
    """The harmonic mean of all scores of all sets, each between 0 and 1: one that is bad makes the whole bad.

    Parameters
    ----------
    sets : mapping of mappings
        For each set (retain, real world, …) its scores by name: in TOFU the mean ``answer_probability``, the mean
        ``rouge_l`` and the mean of max(0, 1 − ``truth_ratio``).
    """
    scores = [value for one in sets.values() for value in one.values()]
    if not scores or not all(0 <= value <= 1 for value in scores):
        raise ValueError(f"sets must hold scores between 0 and 1, not {scores}")
    return statistics.harmonic_mean(scores)


def fluency(lm: LM, prompts: Sequence[str | Request], answers: Sequence[str]) -> list[float]:
    """Perplexity of each answer behind its prompt under the unedited model; inf for an empty one."""
    spoken = [(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True) if answer.strip()]
    if not spoken:
        return [math.inf for _ in answers]
    _, _, ids = lm.as_prompts([prompt for prompt, _ in spoken], lm.has_chat)
    encoded = [Encoded(row, lm.encode_target(answer)) for row, (_, answer) in zip(ids, spoken, strict=True)]
    with lm.unedited():
        logps = iter(lm.target_logprobs(encoded, lm.together(most=TOGETHER)))
    return [math.exp(-next(logps).mean().item()) if answer.strip() else math.inf for answer in answers]


def interval(values: Sequence[float], level: float = 0.95, seed: int = 0) -> tuple[float, float, float]:
    """Mean, and the ends of its bootstrap interval: the values drawn anew 2,000 times, with replacement."""
    if not values or not 0 < level < 1:
        raise ValueError(f"values must not be empty, and level between 0 and 1: {len(values)} values, level {level!r}")
    x = torch.tensor([float(value) for value in values], dtype=torch.float64)
    draws = torch.randint(len(x), (2000, len(x)), generator=torch.Generator().manual_seed(seed))
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = x[draws].mean(1).quantile(ends).tolist()
    return x.mean().item(), low, high


def cohens_kappa(first: Sequence[Any], second: Sequence[Any]) -> float:
    """How far two people's labels of the same things agree beyond chance: 1 always, 0 as chance has it.

    (p − e)/(1 − e), p the share on which they agree, e what their own shares of each label would give by chance
    (Cohen 1960). 1 where both give all things one and the same label.
    """
    pairs = list(zip(first, second, strict=True))
    if not pairs:
        raise ValueError("first and second must not be empty: give two labels of each thing")
    p = statistics.fmean(a == b for a, b in pairs)
    e = sum((list(first).count(x) / len(pairs)) * (list(second).count(x) / len(pairs)) for x in {*first, *second})
    return 1.0 if e == 1 else (p - e) / (1 - e)


def _read(lm: LM, texts: Sequence[str]) -> list[Encoded]:
    """Each text's first token, and the others."""
    check_lm(lm)
    if isinstance(texts, str) or not isinstance(texts, Sequence) or not all(isinstance(t, str) for t in texts):
        raise TypeError(f"texts must be a list of strings, not {texts!r}")
    rows = [lm.encode(text, chat=False).ids for text in texts]
    if not rows or min(map(len, rows)) < 2:
        raise ValueError("texts must not be empty, and each must have at least two tokens")
    return [Encoded(ids[:1], ids[1:]) for ids in rows]


def _forced(lm: LM, encoded: Sequence[Encoded]) -> list[float]:
    """For each prompt, the share of the target's tokens that are the likeliest, the earlier ones given."""
    steps = zip(lm.target_steps(encoded), encoded, strict=True)
    return [(s.argmax(-1).cpu() == torch.tensor(x.target)).float().mean().item() for s, x in steps]


def _score(rows: list[dict[str, Any]]) -> Score:
    return Score(sum(r["success"] for r in rows) / len(rows), sum(r["forced"] for r in rows) / len(rows), rows)
