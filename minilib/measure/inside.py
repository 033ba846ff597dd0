"""Is it really gone? What shows to somebody who has the model's weights and looks at what it computes.

As in ``attacks``, each function returns a row for each fact, and leaves the model as it was.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .. import hooks
from ..edits import Edit
from ..model import LM
from ..requests import whole
from ..worlds.facts import Fact
from .asking import Forgotten, Row, check, first_of, row_of


@torch.no_grad()
def lens(edited: LM | Edit, forgotten: Forgotten, leads: Sequence[str] | None = None, top: int = 5) -> list[Row]:
    """Read the answer's rank from the residual stream after each block, by the logit lens (arXiv 2309.17410).

    Parameters
    ----------
    leads : list of str, optional
        For each fact how the answer begins, up to the word itself: "The capital of France is". By default it begins
        with the word.
    top : int, default 5
        ``recovered`` where the word's first token is among so many of the likeliest, after any block.

    Returns
    -------
    list of dict
        ``ranks`` has the rank after each block; 1 is the likeliest.
    """
    lm, facts = check(edited, forgotten)
    top = whole(top, "top")
    ids, tokens, ends = _before_answers(lm, facts, leads)
    with lm.evaluating(), hooks.read(dict(enumerate(lm.blocks))) as seen, lm.prompts_end(ends):
        lm.model.base_model(**lm.batch(ids), use_cache=False)
    last = torch.tensor([len(row) - 1 for row in ids])
    ranks = []
    for layer in range(lm.n_layers):
        logits = lm.unembed(seen[layer][torch.arange(len(ids)), last])
        answer = logits.gather(1, torch.tensor(tokens, device=logits.device).unsqueeze(1))
        ranks.append((logits > answer).sum(1) + 1)
    by_fact = torch.stack(ranks, 1).tolist()
    return [
        row_of("lens", fact, fact.asked.text, "", min(row) <= top) | {"ranks": row}
        for fact, row in zip(facts, by_fact, strict=True)
    ]


@torch.no_grad()
def probe(
    edited: LM | Edit, forgotten: Forgotten, known: Sequence[Fact], layer: int, top: int = 1, ridge: float = 1.0
) -> list[Row]:
    """A linear map from states to answers, learned from facts that the model knows, and read on forgotten ones.

    From the state after a block at the end of the question, ridge regression predicts the answer's row in the output
    matrix; ``recovered`` where the true answer is among the ``top`` nearest of all answers.

    Parameters
    ----------
    known : list of Fact
        Other facts, of the same kinds, to learn from.
    layer : int
    ridge : float, default 1.0
        λ, in units of the mean squared length of the states.
    """
    lm, facts = check(edited, forgotten)
    layer, top = lm.check_layer(layer), whole(top, "top")
    questions = {fact.asked.text for fact in facts}
    known = [fact for fact in known if fact.asked.text not in questions]
    if not known:
        raise ValueError("known must hold facts to learn from, other than the forgotten ones")
    E = lm.head.weight.detach().float()
    X, Z = (states(lm, some, layer).to(E.device) for some in (known, facts))
    Y = torch.stack([E[first_of(lm, fact)] for fact in known])
    mean_x, mean_y = X.mean(0), Y.mean(0)
    X, Z, Y = X - mean_x, Z - mean_x, Y - mean_y
    penalty = ridge * X.square().sum(1).mean() * torch.eye(len(X), device=X.device)
    predicted = Z @ X.T @ torch.linalg.solve(X @ X.T + penalty, Y)
    tokens = sorted({first_of(lm, fact) for fact in (*known, *facts)})
    candidates = nn.functional.normalize(E[tokens] - mean_y, dim=1)
    rows = []
    for fact, score in zip(facts, nn.functional.normalize(predicted, dim=1) @ candidates.T, strict=True):
        rank = int((score > score[tokens.index(first_of(lm, fact))]).sum()) + 1
        best = lm.tokenizer.decode([tokens[int(score.argmax())]])
        rows.append(row_of("probe", fact, fact.asked.text, best, rank <= top) | {"rank": rank, "of": len(tokens)})
    return rows


def membership(
    edited: LM | Edit, forgotten: Forgotten, never: Forgotten, share: float = 0.2, tails: int = 1
) -> list[Row]:
    """Was it trained on? The loss of each sentence, and of its least likely tokens (min-k%, arXiv 2310.16789).

    A sentence that unlearning made too unlikely stands out as well: its loss is *higher* than that of sentences which
    the model never saw. ``tails=2`` counts both ways of standing out.

    Parameters
    ----------
    never : list of Fact or Request
        Sentences of the same form that it was certainly not trained on.
    share : float, default 0.2
        k, as a share of the tokens.
    tails : {1, 2}
        With 2, ``never`` needs three sentences.

    Returns
    -------
    list of dict
        For forgotten ones (``member`` true) and others: ``loss`` and ``min-k``, −log p per token, mean over all and
        over the least likely. ``recovered`` where the loss is below that of all but one in ten of the others. With two
        tails also ``z``, the loss in standard deviations from the mean of the others (of all *other* others), and
        ``recovered`` where the size of z is above that of all but one in ten of them.
    """
    lm, facts = check(edited, forgotten)
    _, others = check(edited, never, "never")
    if tails not in (1, 2) or isinstance(tails, bool):
        raise ValueError(f"tails must be 1 (low losses stand out) or 2 (low and high ones do), not {tails!r}")
    if tails == 2 and len(others) < 3:
        raise ValueError(f"never must hold three sentences or more for tails=2, not {len(others)}")
    if isinstance(share, bool) or not 0 < share <= 1:
        raise ValueError(f"share must be above 0 and at most 1, not {share!r}")
    rows = []
    for member, some in ((True, facts), (False, others)):
        logps = lm.target_logprobs([fact.request(fact.answer, lm.has_chat) for fact in some])
        for fact, logp in zip(some, logps, strict=True):
            least = logp.sort().values[: max(1, round(share * len(logp)))]
            row = row_of("membership", fact, fact.asked.text, fact.answer, False)
            rows.append(row | {"member": member, "loss": -logp.mean().item(), "min-k": -least.mean().item()})
    losses = [row["loss"] for row in rows]
    if tails == 2:
        for i, row in enumerate(rows):
            usual = [x for j, x in enumerate(losses) if j >= len(facts) and j != i]
            row["z"] = (losses[i] - statistics.fmean(usual)) / (statistics.stdev(usual) or 1e-9)
    scores = [-abs(row["z"]) for row in rows] if tails == 2 else losses
    limit = sorted(scores[len(facts) :])[len(others) // 10]
    for row, score in zip(rows, scores, strict=True):
        row["recovered"] = score < limit
    return rows


def _before_answers(
    lm: LM, facts: Sequence[Fact], leads: Sequence[str] | None
) -> tuple[list[list[int]], list[int], list[int]]:
    """For each fact the tokens up to its answer, the answer's first token, and the place of the question's last one."""
    if leads is not None and (isinstance(leads, str) or len(leads) != len(facts)):
        raise ValueError(f"leads must have a beginning for each of {len(facts)} facts")
    ids, tokens, ends = [], [], []
    for i, fact in enumerate(facts):
        lead = leads[i].rstrip() if leads is not None else ""
        start = lm.encode(fact.request(fact.answer, lm.has_chat)).ids
        word = (" " if lead or not lm.has_chat else "") + fact.value.strip()
        ids.append(start + (lm.encode_target(lead) if lead else []))
        tokens.append(lm.encode_target(word)[0])
        ends.append(len(start) - 1)
    return ids, tokens, ends


def states(lm: LM, facts: Sequence[Fact], layer: int) -> Float[Tensor, "facts d"]:
    """The state after a block at the last token of each fact's question, guards in force (float32)."""
    ids = [lm.encode(fact.request(fact.answer, lm.has_chat)).ids for fact in facts]
    with lm.evaluating(), hooks.read({0: lm.blocks[layer]}, stop=True) as seen:
        lm.model.base_model(**lm.batch(ids), use_cache=False)
    return seen[0][torch.arange(len(ids)), torch.tensor([len(row) - 1 for row in ids])].float()
