"""Is it really gone? Attacks that change what flows through the model, and leave its weights alone.

As in ``attacks``, each returns a row for each fact. Guards stay in force. For its false alarms, call an attack on an
oracle with the same other arguments: what a soft prompt learned from the shown facts helps to guess, too.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from numbers import Real

import torch
import transformers
from jaxtyping import Float
from torch import Tensor, nn

from .. import hooks
from ..answers import _only
from ..edits import Edit
from ..model import LM
from ..requests import Request, whole
from ..tokens import EncodedRequest
from .asking import Forgotten, Row, check, held_out, row_of, rows_of, say
from .inside import states

# ---- the direction of refusal -------------------------------------------------------------------------


def ablation(
    edited: LM | Edit,
    forgotten: Forgotten,
    answered: Forgotten,
    layer: int,
    refused: Forgotten | None = None,
    max_new_tokens: int = 24,
) -> list[Row]:
    """Take the direction in which refused questions differ from answered ones out of all states, and ask.

    After arXiv 2406.11717, where one direction carries all refusals that a model was trained to give.

    Parameters
    ----------
    edited : LM or Edit
    forgotten : list of Fact or Request
    answered : list of Fact or Request
        Questions that the model answers. Forgotten ones are left out.
    layer : int
        Where the difference is read: after this block. Which one serves best has to be tried. Below an edit there is
        nothing to see, and what is then taken out is the subject of the questions: the model talks nonsense.
    refused : list of Fact or Request, optional
        Questions that it refuses; by default the forgotten ones. Their answers are not used.
    """
    lm, facts = check(edited, forgotten)
    r = refusal_direction(lm, forgotten if refused is None else refused, answered, layer)
    with without(lm, r):
        said = say(lm, facts, max_new_tokens)
    return rows_of("refusal direction", facts, said)


@torch.no_grad()
def refusal_direction(edited: LM | Edit, refused: Forgotten, answered: Forgotten, layer: int) -> Float[Tensor, " d"]:
    """r, the mean state after a block at the last token of refused questions, less that of answered ones; length 1."""
    lm, no = check(edited, refused, "refused")
    layer = lm.check_layer(layer)
    questions = {fact.asked.text for fact in no}
    yes = [fact for fact in check(lm, answered, "answered")[1] if fact.asked.text not in questions]
    if not yes:
        raise ValueError("answered must hold questions other than the refused ones")
    r = states(lm, no, layer).mean(0) - states(lm, yes, layer).mean(0)
    if not r.norm() > 0:
        raise ValueError(f"refused and answered questions do not differ after block {layer}: read a later one")
    return r / r.norm()


@contextmanager
def without(lm: LM, r: Float[Tensor, " d"]) -> Iterator[None]:
    """For the time of the block, h − (h·r) r in the place of each state h that enters or leaves a block.

    The paper also does so between a block's attention and its MLP.
    """

    def project(h: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        u = (r / r.norm()).to(h)
        return h - (h @ u).unsqueeze(-1) * u

    with ExitStack() as stack:
        stack.enter_context(hooks.replace(lm.blocks[0], project, at="input"))
        for block in lm.blocks:
            stack.enter_context(hooks.replace(block, project))
        yield


# ---- a soft prompt ------------------------------------------------------------------------------------


def soft_prompt(
    edited: LM | Edit,
    forgotten: Forgotten,
    shown: Sequence[Request],
    tokens: int = 8,
    steps: int = 40,
    lr: float = 0.1,
    batch_size: int = 4,
    max_new_tokens: int = 24,
    seed: int = 0,
) -> list[Row]:
    """Put vectors in front of the question that make the model answer others, then ask (after arXiv 2402.09063).

    The vectors take the place of words' embeddings: no text would give them, so whoever attacks has the weights. Found
    for the forgotten question itself, they can make a model say whatever one likes (arXiv 2502.15836). So they are
    found on other facts, and what counts is what they recover beyond the same search on an oracle.

    Parameters
    ----------
    edited : LM or Edit
    forgotten : list of Fact or Request
    shown : list of Request
        Facts to learn on, with true answers as targets: some of the forgotten ones, which are then not asked.
    tokens : int, default 8
        How many vectors.
    steps : int, default 40
        Of Adam, on ``batch_size`` of the shown facts each.
    lr : float, default 0.1
        In units of the root mean square of the model's embeddings.
    batch_size, seed : int

    Returns
    -------
    list of dict
        ``loss`` is that of the last step: −log p per token of the shown answers.
    """
    lm, facts = check(edited, forgotten)
    facts = held_out(facts, shown)
    tokens, steps, batch_size = whole(tokens, "tokens"), whole(steps, "steps"), whole(batch_size, "batch_size")
    max_new_tokens = whole(max_new_tokens, "max_new_tokens")
    if isinstance(lr, bool) or not isinstance(lr, Real) or not 0 < lr < math.inf:
        raise ValueError(f"lr must be a positive number, not {lr!r}")
    asked = lm.encode([_from_its_start(fact.request(fact.answer, lm.has_chat)) for fact in facts])
    learned = lm.encode([_from_its_start(request) for request in shown], ended=True)
    longest = max(max(len(x.ids) for x in asked) + max_new_tokens, max(len(x.ids) + len(x.target) for x in learned))
    if longest + tokens > lm.context_length:
        raise ValueError(f"tokens={tokens} in front of a question are more than {lm.name} reads: give it fewer")
    soft, loss = _search(lm, learned, tokens, steps, lr, batch_size, seed)
    rows = []
    for fact, x in zip(facts, asked, strict=True):
        text = _continue(lm, _embedded(lm, x, soft), max_new_tokens)
        rows.append(row_of("soft prompt", fact, fact.asked.text, text, fact.answered_by(text)) | {"loss": loss})
    return rows


def _search(
    lm: LM, shown: Sequence[EncodedRequest], tokens: int, steps: int, lr: float, batch_size: int, seed: int
) -> tuple[Float[Tensor, "tokens d"], float]:
    """The vectors after some steps of Adam from words drawn at random, and the last loss."""
    E, draw = lm.model.get_input_embeddings().weight.detach(), random.Random(seed)
    with torch.inference_mode(False), torch.enable_grad(), lm.evaluating():
        start = E[[draw.randrange(len(E)) for _ in range(tokens)]]
        soft = start.float().clone().requires_grad_()
        optimizer = torch.optim.Adam([soft], lr=lr * E.float().square().mean().sqrt().item())
        for _ in range(steps):
            some = draw.sample(shown, min(batch_size, len(shown)))
            loss = _loss(lm, some, soft)
            (soft.grad,) = torch.autograd.grad(loss, [soft])  # of nothing else: the weights' gradients stay as they are
            optimizer.step()
    return soft.detach(), loss.item()


def _loss(lm: LM, some: Sequence[EncodedRequest], soft: Float[Tensor, "tokens d"]) -> Tensor:
    """−log p per token of the targets."""
    rows = [_embedded(lm, x, soft, x.target[:-1]) for x in some]
    mask = nn.utils.rnn.pad_sequence([row.new_ones(len(row), dtype=torch.long) for row in rows], batch_first=True)
    ends = [len(x.ids) + len(soft) - 1 for x in some]
    with lm.lock, hooks.read({"last": lm.blocks[-1]}) as seen, lm.prompts_end(ends):
        given = {"inputs_embeds": nn.utils.rnn.pad_sequence(rows, batch_first=True), "attention_mask": mask}
        lm.model.base_model(**given, use_cache=False)
    last = [h[end : end + len(x.target)] for h, end, x in zip(seen["last"], ends, some, strict=True)]
    steps = lm.unembed(torch.cat(last))
    return nn.functional.cross_entropy(steps, torch.tensor([t for x in some for t in x.target], device=steps.device))


def _from_its_start(request: Request) -> Request:
    """The same with its first word as the subject: ``subject_start`` is then where the question starts."""
    blank, word, rest = re.fullmatch(r"(\s*)(\S+)(.*)", request.text, re.DOTALL).groups()  # type: ignore[union-attr]
    return Request(blank + "{}" + rest, word, request.target, request.chat)


def _embedded(
    lm: LM, x: EncodedRequest, soft: Float[Tensor, "tokens d"], target: Sequence[int] = ()
) -> Float[Tensor, "tokens d"]:
    """A prompt as the embeddings of its tokens, with the vectors in front of the question."""
    with torch.no_grad():
        rows = lm.model.get_input_embeddings()(torch.tensor([*x.ids, *target], device=lm.device))
    return torch.cat([rows[: x.subject_start], soft.to(rows), rows[x.subject_start :]])


def _continue(lm: LM, row: Float[Tensor, "tokens d"], max_new_tokens: int) -> str:
    """What the model says behind a prompt of embeddings, greedily."""
    stops, pad = lm.stops(), lm.tokenizer.pad_token_id
    pad = (stops or [0])[0] if pad is None else pad
    config = transformers.GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=stops or None, pad_token_id=pad
    )
    with torch.no_grad(), lm.evaluating(), _only(lm.model, config):
        mask = torch.ones(1, len(row), dtype=torch.long, device=row.device)
        ids = lm.model.generate(inputs_embeds=row[None], attention_mask=mask, generation_config=config)
    text: str = lm.tokenizer.decode(ids[0], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text
