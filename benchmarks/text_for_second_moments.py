"""Which text, and how much, for second moments: the spectra, and the edits made with them.

Four texts of the same length are compared: what SmolLM2 wrote itself (the library's sample text), English that people
wrote, which comes with every Python (the documentation of the standard library's modules and their functions),
the questions of ``facts.py`` in the chat format, and tokens drawn at random. Then the sample text is cut shorter.

v* does not depend on the text: it is searched for once for each fact. Only the direction C⁻¹k* of the write differs.
Run: python benchmarks/text_for_second_moments.py (about four minutes on 2 cores)
"""

import inspect
import pydoc
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scores import REFUSAL, outside
from torch import Tensor
from tqdm import tqdm

import minilib
from minilib import covariance, edits, facts, refusals, rome, stored, values

MODEL = "smollm2-135m"
LAYERS = [4, 8]
EDITED = 4  # where the edits are made: the layer of ROME's preset
RANKS = 60
LENGTHS = [1_000, 2_000, 4_000, 8_000, 16_000]
COMPARED = 16_000  # tokens of each of the four texts
# Large modules of every Python from 3.11 to 3.13 whose documentation is prose.
MODULES = (
    "argparse asyncio collections concurrent.futures contextlib csv ctypes datetime decimal difflib doctest "
    "email.message enum fractions functools heapq http.client imaplib inspect ipaddress itertools json logging mailbox "
    "multiprocessing optparse os pathlib pdb pickle random re shutil smtplib socket sqlite3 ssl statistics string "
    "subprocess tarfile tempfile threading trace turtle typing unittest urllib.request uuid xml.etree.ElementTree "
    "zipfile"
).split()


def cut(lm: minilib.LM, texts: Sequence[str], tokens: int) -> list[str]:
    """The first texts, until there are so many tokens; the last one is shortened."""
    chosen: list[str] = []
    left = tokens
    for text in texts:
        ids = lm.encode(text, any_length=True).ids
        chosen.append(text if len(ids) <= left else lm.tokenizer.decode(ids[:left]))
        left -= len(ids)
        if left <= 0:
            break
    return chosen


def shuffled(texts: Sequence[str], seed: int = 0) -> list[str]:
    """In an order that mixes temperatures and formats, so that a part of it is like the whole."""
    texts = list(texts)
    random.Random(seed).shuffle(texts)
    return texts


def documentation() -> list[str]:
    """What people wrote about the standard library: docstrings of over 200 characters, each once."""
    found: dict[str, None] = {}
    for name in MODULES:
        module = pydoc.locate(name)
        things = [module, *(x for _, x in inspect.getmembers(module))]
        for thing in list(things):
            if inspect.isclass(thing):
                things += [x for _, x in inspect.getmembers(thing)]
        for thing in things:
            text = inspect.getdoc(thing) if inspect.ismodule(thing) or callable(thing) else None
            if text and len(text) > 200:
                found[text] = None
    return list(found)


def questions() -> list[str]:
    """The questions about facts, their rephrasings and their neighbours, for the chat template."""
    found: dict[str, None] = {}
    for fact in facts.FACTS:
        asked = [template.replace("{}", fact.subject) for template in (fact.question, *fact.rephrasings)]
        for text in [*asked, *(q.text for q in fact.neighbours), fact.unrelated.text]:
            found[text] = None
    return list(found)


def texts_of(lm: minilib.LM) -> dict[str, list[str]]:
    """The four texts, of the same length."""
    sample = shuffled(covariance.sample_texts())
    chat = [lm.tokenizer.decode(lm.encode(text, chat=True).ids) for text in questions()]
    vocabulary = lm.model.config.vocab_size
    draw = torch.Generator().manual_seed(0)
    noise = [
        lm.tokenizer.decode(torch.randint(vocabulary, (140,), generator=draw).tolist()) for _ in range(COMPARED // 100)
    ]
    all_texts = {"sample": sample, "documentation": shuffled(documentation()), "questions": shuffled(chat)}
    return {name: cut(lm, texts, COMPARED) for name, texts in {**all_texts, "random": noise}.items()}


def ranks(d_k: int) -> list[int]:
    """Ranks spread evenly on a logarithmic scale, from 1 to d_k."""
    return sorted({round(d_k ** (i / (RANKS - 1))) for i in range(RANKS)})


def spectrum(C: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, the largest first, and the eigenvectors as columns."""
    eigenvalues, vectors = torch.linalg.eigh(C.double())
    return eigenvalues.flip(0), vectors.flip(1)


def compare(C: Tensor, reference: Tensor, V: Tensor) -> dict[str, float]:
    """How far C is from the reference, whose eigenvectors are V, and how much of its main directions it shares.

    ``frobenius``: ‖C − C₀‖ / ‖C₀‖, both scaled to trace 1, so that longer keys alone make no difference.
    ``top``, ``bottom``: the mean squared cosine between the spaces of the 100 largest, or smallest, eigenvalues.
    """
    a, b = C.double() / C.double().trace(), reference.double() / reference.double().trace()
    _, U = spectrum(C)
    top = ((U[:, :100].T @ V[:, :100]) ** 2).sum() / 100
    bottom = ((U[:, -100:].T @ V[:, -100:]) ** 2).sum() / 100
    found = {"frobenius": ((a - b).norm() / b.norm()).item(), "top": top.item(), "bottom": bottom.item()}
    return {name: round(x, 4) for name, x in found.items()}


@dataclass
class Case:
    """A fact to refuse: what is needed to write it with any C, and what is asked before and after."""

    edited: list[minilib.Request]  # the edited question, then its three rephrasings
    others: list[str]  # two neighbours and an unrelated question
    before: list[str]
    k_star: Tensor
    residual: Tensor  # v* − W k*


def case(lm: minilib.LM, fact: facts.Fact) -> Case:
    edited = [fact.request(REFUSAL), *fact.rephrased(REFUSAL)]
    others = outside([fact])
    preset = vars(rome.Settings.of(lm))
    names = ("steps", "lr", "weight_decay", "clamp_factor", "kl_factor", "stop_loss")
    found = values.find(lm, edited[:1], EDITED, "mlp", values.Search(**{name: preset[name] for name in names}))
    k, Wk = values.keys_and_values(lm, edited[:1], EDITED, ["{}"])
    return Case(edited, others, say(lm, others), k[0, 0], found.v_star[0] - Wk[0, 0])


def say(lm: minilib.LM, asked: Sequence[str | minilib.Request]) -> list[str]:
    return lm.generate(list(asked), max_new_tokens=14)


def edits_with(lm: minilib.LM, C: Tensor, cases: Sequence[Case]) -> dict[str, Any]:
    """Each fact refused on its own: what the model says then, by free generation, and the size of the change."""
    L = covariance.cholesky(C)
    size = lm.memory(EDITED).norm().item()
    rows: list[dict[str, float]] = []
    for one in cases:
        u = torch.cholesky_solve(one.k_star.double().unsqueeze(1), L).squeeze(1).float()  # C⁻¹ k*
        delta = torch.outer(one.residual, u) / (u @ one.k_star)
        with edits.changing(lm, [lm.weight_name(EDITED)]) as originals:
            edits.add(lm, EDITED, delta)
            after = say(lm, [*one.edited, *one.others])
            lm.memory(EDITED).data.copy_(originals[lm.weight_name(EDITED)])
        refused = [refusals.is_refusal(text, unjudged=False) for text in after[:4]]
        same = [a == b for a, b in zip(after[4:], one.before, strict=True)]
        rows.append(
            {
                "reliability": float(refused[0]),
                "generality": sum(refused[1:]) / 3,
                "locality": sum(same) / 3,
                "change": delta.norm().item() / size,
            }
        )
    means = {name: round(sum(row[name] for row in rows) / len(rows), 4) for name in rows[0]}
    return {**means, "changes": [round(row["change"], 5) for row in rows]}


def main() -> None:
    started = time.perf_counter()
    lm = minilib.load(MODEL)
    texts = texts_of(lm)
    chosen = facts.recorded()[:8]
    cases = [case(lm, fact) for fact in tqdm(chosen, desc="v*", file=sys.stderr)]
    moments = {name: covariance.second_moment(lm, LAYERS, of, progress=True) for name, of in texts.items()}
    sample = shuffled(covariance.sample_texts())
    full = covariance.second_moment(lm, LAYERS, sample, progress=True)
    shorter = {n: covariance.second_moment(lm, LAYERS, cut(lm, sample, n)) for n in LENGTHS} | {full.tokens: full}
    bases = {layer: spectrum(full[layer])[1] for layer in LAYERS}
    d_k = full[LAYERS[0]].shape[0]
    found: dict[str, Any] = {
        "ranks": ranks(d_k),
        "facts": [f"{fact.relation}: {fact.subject}" for fact in chosen],
        "texts": {name: {"tokens": moments[name].tokens, "layers": {}} for name in texts},
        "lengths": {str(n): {"tokens": C.tokens, "layers": {}} for n, C in shorter.items()},
    }
    jobs = [(found["texts"][name], moments[name]) for name in texts] + [
        (found["lengths"][str(n)], C) for n, C in shorter.items()
    ]
    for entry, C in tqdm(jobs, file=sys.stderr):
        for layer in LAYERS:
            eigenvalues, _ = spectrum(C[layer])
            row: dict[str, Any] = {
                "spectrum": [float(f"{eigenvalues[r - 1].item():.4g}") for r in found["ranks"]],
                "trace": round(C[layer].double().trace().item(), 4),
                "distance": compare(C[layer], full[layer], bases[layer]),
            }
            try:
                covariance.cholesky(C[layer])
            except ValueError as error:
                row["refused"] = str(error)
            else:
                if layer == EDITED:
                    row["edits"] = edits_with(lm, C[layer], cases)
            entry["layers"][str(layer)] = row
    file = stored.save("text_for_second_moments", found, "benchmarks/text_for_second_moments.py", started)
    print(f"stored in {file.name}")


if __name__ == "__main__":
    main()
