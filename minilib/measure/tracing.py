"""Locating a fact: causal tracing and the logit lens.

Causal tracing (Meng et al. 2022, arXiv 2202.05262, section 2) asks which activations carry a fact. Three runs of
the model on one prompt are compared by the probability of the true answer's first token:

- clean: the prompt as it is;
- corrupted: Gaussian noise is added to the embeddings of the subject's tokens;
- corrupted with restoration: the same noise, and at one place the activation of the clean run is put back.

What the restoration brings back, p(restored) − p(corrupted), is the indirect effect of that place; p(clean) −
p(corrupted) is the total effect. Both are averaged over several draws of the noise.

A place is a layer and a token. What lies left of the subject is the same in all three runs, so it is computed once and
kept as attention's keys and values; restoring there changes nothing. Below the restored layer the run is the corrupted
one, so only the blocks from there on are run, for all draws and tokens in one batch.

The logit lens (nostalgebraist 2020) reads the residual stream after each block as if it were the last.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm

from .. import forward, guards, hooks
from ..model import LM, check_lm
from ..requests import Request, whole

Kind = Literal["hidden", "mlp", "attention"]
ATTENTION = ("self_attn", "attn", "attention")  # what blocks call their attention


@dataclass(frozen=True)
class Trace:
    """Probabilities of the answer's first token in the three runs."""

    tokens: list[str]  # of the prompt
    subject: tuple[int, int]  # its first token, and the one after its last
    kind: Kind
    window: int  # how many layers were restored together
    clean: float
    corrupted: Float[Tensor, " draws"]
    restored: Float[Tensor, "draws layers tokens"]

    @property
    def mean(self) -> Float[Tensor, "layers tokens"]:
        """The probability with restoration, averaged over the draws of noise."""
        return self.restored.mean(0)

    @property
    def effect(self) -> Float[Tensor, "layers tokens"]:
        """The indirect effect of each place: what its restoration brings back, averaged over the draws."""
        return self.mean - self.corrupted.mean()

    @property
    def total_effect(self) -> float:
        """What the noise takes away: p(clean) − mean p(corrupted)."""
        return self.clean - self.corrupted.mean().item()


@torch.no_grad()
def causal_trace(
    lm: LM,
    request: Request,
    kind: Kind = "hidden",
    window: int | None = None,
    noise: float = 3.0,
    draws: int = 10,
    seed: int = 0,
    progress: bool = False,
) -> Trace:
    """Corrupt the subject, put one clean activation back, and see how much of the answer returns: for every place.

    Parameters
    ----------
    lm : LM
        Left unchanged.
    request : Request
        Its ``target`` is the true answer here, such as ``" Paris"``; the first of its tokens is what is traced.
    kind : {"hidden", "mlp", "attention"}, default "hidden"
        What is restored: a block's output, or what its MLP or its attention adds to the residual stream. Where the
        architecture has a norm behind these two (Gemma 2 and 3, OLMo 2), it is what enters that norm.
    window : int, optional
        For "mlp" and "attention": how many neighbouring layers are restored together, from ``window // 2`` below the
        place on, as many as the model has. By default the share that the authors take, 10 of 48 layers.
    noise : float, default 3.0
        Standard deviation of the noise, in standard deviations of the embedding table's entries. (The authors' code
        takes 3 standard deviations of the embeddings of the subjects in its data set.)
    draws : int, default 10
        How many draws of noise are averaged. Every place is tried with the same draws.
    seed : int, default 0
        Of the noise; the global random state is left as it was.
    progress : bool, default False
        Show a progress bar.

    Returns
    -------
    Trace
        Layers count from 0: row l belongs to block l. The embeddings themselves have no row.

    Raises
    ------
    TypeError, ValueError
        When an argument is wrong or a WISE edit is in force, before anything is run; or when the model is built in a
        way unknown to minilib.
    """
    check_lm(lm)
    if not isinstance(request, Request):
        raise TypeError(f"request must be a minilib.Request with the true answer as target, not {request!r}")
    draws, seed = whole(draws, "draws"), whole(seed, "seed", least=0)
    if isinstance(noise, bool) or not isinstance(noise, Real):
        raise TypeError(f"noise must be a number above 0, not {noise!r}")
    if not 0 < noise < math.inf:
        raise ValueError(f"noise must be above 0 and finite, not {noise!r}")
    modules = _modules(lm, kind)
    window = _window_size(lm, kind, window)
    if any(isinstance(guard, guards.PromptGuard) and guard.attached and not guard.silent for guard in lm.guards):
        raise ValueError(
            f"{lm.name} has a WISE memory in force, which decides on whole prompts; a trace runs parts of them: trace "
            "inside `with lm.unedited():`"
        )
    x = lm.encode(request)
    ids, answer, start, stop = x.ids, x.target[0], x.subject_start, x.subject + 1
    width = len(ids) - start

    with hooks.read(dict(enumerate(modules))) as clean:
        p_clean = _probabilities(lm, _stream(lm, lm.batch([ids]))[-1])[0, -1, answer].item()
    # From here on all tensors begin at the subject. One row for each token that is restored, times the draws.
    kept = [clean[layer].reshape(1, len(ids), -1)[0, start:] for layer in range(lm.n_layers)]
    rows = draws * width
    row, place = torch.arange(rows), torch.arange(width).repeat_interleave(draws)
    noised = _noise(lm, noise, (draws, stop - start), seed).repeat(width, 1, 1)
    embedding = lm.model.get_input_embeddings()
    inputs = forward.inputs(lm, [(ids[:start], ids[start:])] * rows)
    with hooks.calls(lm.blocks) as calls, hooks.replace(embedding, lambda x: _add(x, noised)):
        stream = [x[:draws].clone() for x in _stream(lm, inputs)]
    corrupted = _probabilities(lm, stream[-1][:, -1])[:, answer].cpu()

    restored = corrupted[:, None, None].repeat(1, lm.n_layers, len(ids))
    for layer in tqdm(range(lm.n_layers), desc="tracing", disable=not progress):
        layers = range(max(0, layer - window // 2), min(lm.n_layers, layer + (window + 1) // 2))
        put_back = {modules[i]: partial(_put, clean=kept[i], row=row, place=place) for i in layers}
        hidden = stream[layers.start].repeat(width, 1, 1)  # what enters the first of these blocks
        p = _probabilities(lm, _rerun(lm, hidden, layers.start, calls, put_back)[:, -1])[:, answer]
        restored[:, layer, start:] = p.reshape(width, draws).T.cpu()
    return Trace(_words(lm, ids), (start, stop), kind, window, p_clean, corrupted, restored)


def _put(output: Tensor, clean: Float[Tensor, "width d"], row: Tensor, place: Tensor) -> Tensor:
    """An output with the clean activation back in its place: another token in each row."""
    new = output.reshape(len(row), len(clean), -1).clone()
    new[row, place] = clean[place]
    return new.reshape(output.shape)


def _rerun(
    lm: LM, hidden: Float[Tensor, "rows width d"], first: int, calls: list, put_back: Mapping[nn.Module, Callable]
) -> Float[Tensor, "rows width d"]:
    """From what enters block ``first`` to what leaves the last one, with some modules' outputs replaced on the way."""
    with ExitStack() as stack, lm.evaluating():
        for module, function in put_back.items():
            stack.enter_context(hooks.replace(module, function))
        for block, (args, kwargs) in zip(lm.blocks[first:], calls[first:], strict=True):
            hidden = hooks.first(block(hidden, *args, **kwargs))
    return hidden


def _add(x: Float[Tensor, "rows width d"], noise: Float[Tensor, "rows subject d"]) -> Tensor:
    """The embeddings with noise on the subject, which stands first."""
    return torch.cat([x[:, : noise.shape[1]] + noise.to(x), x[:, noise.shape[1] :]], dim=1)


def _noise(lm: LM, noise: float, shape: tuple[int, int], seed: int) -> Float[Tensor, "draws subject d"]:
    """Gaussian, in standard deviations of what the embedding returns (Gemma 3 scales what stands in the table)."""
    embedding = lm.model.get_input_embeddings()
    scale = noise * embedding.weight.float().std().item() * float(getattr(embedding, "embed_scale", 1.0))
    return scale * torch.randn(*shape, embedding.weight.shape[1], generator=torch.Generator().manual_seed(seed))


def _modules(lm: LM, kind: Kind) -> list[nn.Module]:
    """In each block, the module whose output is restored."""
    if kind == "hidden":
        return list(lm.blocks)
    if kind == "mlp":
        return [lm.down_projection(layer) for layer in range(lm.n_layers)]
    if kind != "attention":
        raise ValueError(f"kind must be 'hidden', 'mlp' or 'attention', not {kind!r}")
    modules = [next((getattr(b, n) for n in ATTENTION if hasattr(b, n)), None) for b in lm.blocks]
    if None in modules:
        layer, names = modules.index(None), ", ".join(ATTENTION)
        raise ValueError(f"kind='attention': block {layer} of {lm.name} has no attention called {names}; use 'mlp'")
    return [module for module in modules if module is not None]


def _window_size(lm: LM, kind: Kind, window: int | None) -> int:
    if kind == "hidden":
        if window is not None:
            raise ValueError(f"window={window!r} is for kind 'mlp' or 'attention': a hidden state is restored alone")
        return 1
    return max(1, round(lm.n_layers * 10 / 48)) if window is None else whole(window, "window")


def _stream(lm: LM, inputs: Mapping[str, Any]) -> list[Float[Tensor, "rows tokens d"]]:
    """The residual stream of a run: what enters each block, and last what leaves the last one."""
    with hooks.read(dict(enumerate(lm.blocks)), at="input") as into, hooks.read({0: lm.blocks[-1]}) as out:
        with lm.evaluating():
            logits = lm.model(**inputs, use_cache=False).logits
    lm.check_logits(out[0][:1, -1], logits[:1, -1])
    return [*(into[layer] for layer in range(lm.n_layers)), out[0]]


def _probabilities(lm: LM, hidden: Float[Tensor, "... d"]) -> Float[Tensor, "... vocabulary"]:
    return lm.unembed(hidden).softmax(-1)


def _words(lm: LM, ids: list[int]) -> list[str]:
    return [lm.tokenizer.decode([token]) for token in ids]


@dataclass(frozen=True)
class Lens:
    """What the residual stream leans to: row 0 after the embeddings, row l + 1 after block l."""

    tokens: list[str]  # of the prompt
    words: list[list[str]]  # for each row and token, the likeliest next token
    probability: Float[Tensor, "layers+1 tokens"]  # and its probability
    target: Float[Tensor, "layers+1 tokens"] | None  # for a Request, that of the target's first token
    rank: Int[Tensor, "layers+1 tokens"] | None  # and its rank; 1 is the likeliest


@torch.no_grad()
def logit_lens(lm: LM, prompt: str | Request, chat: bool = False) -> Lens:
    """Read the residual stream after each block through the final norm and the head (nostalgebraist 2020).

    Parameters
    ----------
    lm : LM
        Left unchanged.
    prompt : str or Request
        A Request also gives the word to look for: the first token of its ``target``, here the true answer.
    chat : bool, default False
        Wrap a string in the chat template; a Request decides for itself.

    Returns
    -------
    Lens
        Its last row is what the model itself predicts.

    Raises
    ------
    TypeError, ValueError
        When an argument is wrong.
    """
    check_lm(lm)
    _, _, (ids,) = lm.as_prompts(prompt, chat)
    wanted = lm.encode_target(prompt.target)[0] if isinstance(prompt, Request) else None
    words, probability, target, rank = [], [], [], []
    for hidden in _stream(lm, lm.batch([ids])):
        p = _probabilities(lm, hidden[0])  # (tokens, vocabulary)
        top, token = p.max(-1)
        words.append(_words(lm, token.tolist()))
        probability.append(top)
        if wanted is not None:
            target.append(p[:, wanted])
            rank.append(1 + (p > p[:, wanted, None]).sum(-1))
    of_target = [torch.stack(x).cpu() if x else None for x in (target, rank)]
    return Lens(_words(lm, ids), words, torch.stack(probability).cpu(), *of_target)
