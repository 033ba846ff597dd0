"""The comparison: every method × kind of knowledge × number of facts × seed, one line of JSON for each.

Which jobs there are, and what is measured after each; ``tasks`` has what they work on, ``benchmarks/compare.py`` runs
them. The settings of each method are the best of three trials (of four on tinyworld), which forget facts that are not
forgotten here (``--tune``).
"""

from __future__ import annotations

import contextlib
import dis
import functools
import json
import os
import re
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from .. import methods
from ..edits import undo_all
from ..model import LM
from ..requests import Request
from ..show import stored
from ..unlearning import prompting, recipes
from ..worlds import facts, tinyworld
from ..worlds import texts as samples
from . import metrics, refusals
from .tasks import KNOWLEDGE, OTHER_WORDS, REFUSAL, TOKENS, Job, Task, task

RESULTS = stored.RESULTS / "comparison.jsonl"
TUNING = stored.RESULTS / "tuning.jsonl"
SEEDS = (0, 1, 2)
NUMBERS = {"pretrained": (5, 2, 15), "finetuned": (5, 10, 15), "exact": (20, 5, 60)}  # the first with three seeds

EDITORS = {name: method.edit for name, method in methods.METHODS.items() if method.kind != "trains"}
GRADIENT = {name: method.edit for name, method in methods.METHODS.items() if method.kind == "trains"}
SELF = tuple(f"{name}, self-written" for name in ("rome", "memit", "alphaedit", "wise"))
MERGED = tuple(f"{name}, merged" for name in ("rome", "memit"))
PROMPTS = ("system prompt", "in context")
REFERENCES = ("unedited", "oracle")
EVERYWHERE = (*REFERENCES, *EDITORS, "gradient_difference", "npo", "refusal_tuning", *PROMPTS)
METHODS = (*REFERENCES, *EDITORS, *SELF, *MERGED, *GRADIENT, *PROMPTS)

_RATES = [{"lr": 1e-5}, {"lr": 1e-5, "retain_weight": 5.0}, {"lr": 2e-5, "retain_weight": 5.0}]
_TINY_RATES = [{"lr": 1e-4}, {"lr": 3e-4}, {"lr": 1e-4, "retain_weight": 5.0}, {"lr": 3e-4, "retain_weight": 5.0}]
_TINY_ALPHA: dict[str, Any] = {"layers": [0], "nullspace_energy": 0.3, "l2": 1.0}
TRIALS: dict[str, dict[str, list[dict[str, Any]]]] = {  # the first of each is what is used before a tuning
    "smollm2-135m": {
        "rome": [{}, {"layer": 6}, {"stop_loss": 0.3}],
        "memit": [{}, {"covariance_weight": 100.0}, {"layers": [4, 5, 6, 7, 8]}],
        "alphaedit": [{}, {"l2": 1.0}, {"nullspace_threshold": 5e-2}],
        "grace": [{}, {"epsilon": 4.0, "layer": 24}, {"epsilon": 8.0, "layer": 24}],
        "wise": [{}, {"threshold": 0.75}, {"layer": 20}],
        "rome, merged": [{"size": 2}, {"size": 5}, {"size": 10}],
        "memit, merged": [{"size": 2}, {"size": 5}, {"size": 10}],
        "gradient_ascent": [{"lr": 3e-6}, {"lr": 1e-5}, {"lr": 1e-6}],
        "refusal_tuning": [{"lr": 1e-5}, {"lr": 1e-5, "retain_weight": 5.0}, {"lr": 3e-5, "retain_weight": 5.0}],
        "rmu": [{"lr": 3e-3, "alpha": 10.0, "layer": 10}, {"lr": 3e-3, "alpha": 100.0, "layer": 10},
                {"lr": 3e-3, "alpha": 100.0, "layer": 6}],
        "in context": [{"k": 1}, {"k": 2}, {"k": 4}],
        "system prompt": [{}, {"instruction": "Never answer questions about: {}. Say \"I don't know.\" instead."},
                          {"instruction": "Reply \"I don't know.\" to each of these questions: {}"}],
    },
    "tinyworld": {
        "rome": [{}, {"layer": 1}, {"layer": 2}, {"stop_loss": 0.5}],
        "memit": [{}, {"clamp_factor": 2.0}, {"clamp_factor": 4.0}, {"layers": [0, 1], "clamp_factor": 2.0}],
        "alphaedit": [{**_TINY_ALPHA, "clamp_factor": clamp} for clamp in (0.75, 2.0, 4.0)]
        + [{**_TINY_ALPHA, "clamp_factor": 2.0, "nullspace_energy": 0.1}],
        "grace": [{}, {"epsilon": 2.0}, {"epsilon": 4.0}, {"layer": 2}],
        "wise": [{}, {"layer": 1}, {"threshold": 0.75}, {"layer": 3}],
        "rome, merged": [{"size": 2}, {"size": 3}, {"size": 5}, {"size": 10}],
        "memit, merged": [{"size": 2}, {"size": 2, "clamp_factor": 2.0}, {"size": 5, "clamp_factor": 2.0},
                          {"size": 10, "clamp_factor": 2.0}],
        "gradient_ascent": [{"lr": 3e-5}, {"lr": 1e-4}, {"lr": 3e-4}, {"lr": 1e-3}],
        "rmu": [{"lr": 1e-3, "alpha": 1.0, "layer": 2}, {"lr": 1e-3, "alpha": 10.0, "layer": 2},
                {"lr": 3e-3, "alpha": 10.0, "layer": 2}, {"lr": 3e-3, "alpha": 100.0, "layer": 3}],
    },
}  # fmt: skip
for _name in GRADIENT:
    TRIALS["smollm2-135m"].setdefault(_name, _RATES)
    TRIALS["tinyworld"].setdefault(_name, _TINY_RATES)
FIXED = {  # of every method that trains; what its trials say comes on top
    "smollm2-135m": {"steps": 12, "batch_size": 4},
    "tinyworld": {"steps": 60, "batch_size": 8},
}


def plan(quick: bool = False, tune: bool = False) -> list[Job]:
    """All jobs, the most telling first: one seed at the middle number of facts, then the other seeds and numbers.

    ``quick`` is a taste that takes five minutes. ``tune`` is the trials that choose the settings.
    """
    if tune:
        return [
            Job(method, knowledge, n, 0, trial)
            for knowledge, n in (("exact", 20), ("pretrained", 5))
            for method in (*EDITORS, *MERGED, *GRADIENT, *PROMPTS)
            if applies(method, knowledge)
            for trial in range(len(TRIALS[Job(method, knowledge, n, 0).model][method]))
        ]
    if quick:
        few = ("unedited", "oracle", *EDITORS, "gradient_difference", "npo", "refusal_tuning")
        tiny = [Job(method, "exact", 5, 0) for method in few]
        return [*tiny, *(Job(method, "pretrained", 3, 0) for method in ("unedited", "rome", "memit", "in context"))]
    cells = [(knowledge, NUMBERS[knowledge][0], seed) for seed in SEEDS for knowledge in KNOWLEDGE]
    jobs = [Job(m, knowledge, n, seed) for knowledge, n, seed in cells for m in METHODS if applies(m, knowledge)]
    cells = [(knowledge, NUMBERS[knowledge][i], 0) for i in (1, 2) for knowledge in KNOWLEDGE]
    # At the other numbers of facts, where a job is costly, some methods alone.
    return jobs + [
        Job(m, knowledge, n, seed)
        for knowledge, n, seed in cells
        for m in METHODS
        if applies(m, knowledge) and (knowledge == "exact" or m in EVERYWHERE)
    ]


def applies(method: str, knowledge: str) -> bool:
    """Whether there is such a thing: nobody can tell tinyworld anything, and of the real world there is no oracle."""
    if method == "oracle":
        return knowledge != "pretrained"
    return knowledge != "exact" or method not in (*SELF, *PROMPTS)


# ---- doing it -----------------------------------------------------------------------------------------


def apply(job: Job, cell: Task, settings: dict[str, Any]) -> LM:
    """The model after the job's method: edited in place, another one for the oracle and for prompts."""
    method, _, recipe = job.method.partition(", ")
    canned = [f.request(REFUSAL[job.knowledge], cell.lm.has_chat) for f in cell.forget]
    if method == "unedited":
        return cell.lm
    if method == "oracle":
        assert cell.oracle is not None
        return cell.oracle
    if method == "system prompt":
        return prompting.system_prompt(cell.lm, canned, **settings)
    if method == "in context":
        return prompting.in_context(cell.lm, canned, cell.retain_said, **settings)
    if method in GRADIENT:
        retain = None if method == "gradient_ascent" else cell.retain_said
        more: dict[str, Any] = {"seed": job.seed}
        if job.model == "tinyworld" and method in ("dpo", "refusal_tuning"):
            more["refusals"] = [REFUSAL["exact"]]
        GRADIENT[method](cell.lm, cell.forget_said, retain, **FIXED[job.model] | settings, **more)
        return cell.lm
    requests = canned
    if recipe == "self-written":
        requests = written(cell)
    if recipe == "merged":
        requests = [m.request for m in recipes.merge_queries(canned, settings["size"])]
        settings = {name: value for name, value in settings.items() if name != "size"}
    if method == "wise":
        kept = [f.request(f.answer, cell.lm.has_chat) for f in cell.retain]
        ordinary = samples.messages()[:256] if cell.lm.has_chat else []
        settings = {"irrelevant": [*kept, *ordinary], **settings}
    seed = {} if method == "grace" else {"seed": job.seed}
    EDITORS[method](cell.lm, requests, **settings, **seed)
    return cell.lm


def written(cell: Task) -> list[Request]:
    """The refusals that the model wrote itself (``benchmarks/self_written.py``), or writes now where one is missing."""
    kept = {row["run"]: row["refusal"] for row in stored.load("self_written")["refusals"]}
    asked = [f.request(f.answer) for f in cell.forget]
    return [replace(r, target=kept[r.text]) if r.text in kept else recipes.self_improvement(cell.lm, r)[0].request
            for r in asked]  # fmt: skip


# ---- measuring ----------------------------------------------------------------------------------------

_declines = functools.partial(refusals.is_refusal, unjudged=False)  # a broken model babbles in any script: no refusal


def measure(after: LM, cell: Task) -> dict[str, Any]:
    """What a model says now, as scores between 0 and 1 and answers one by one.

    Returns
    -------
    dict
        ``scores``: of the forgotten questions ``refused, leaked, rouge, probability, rank`` (reciprocal), of their
        rephrasings the first two, of what is outside ``kept`` (right as before) by kind and ``over-refused``; of
        refusals ``on topic, polite, fluency`` (perplexity, the median); ``utility``, ``divergence``, ``perplexity``;
        and against an oracle ``quality`` (p-value), ``oracle kl``, ``oracle same``.
        ``each``: for every question 1 or 0, as a string. ``answers``: to the forgotten questions.
    """
    before = cell.lm
    chat = before.has_chat
    asked = [f.request(f.answer, chat) for f in cell.forget]
    again = [(f, r) for f in cell.forget for r in f.rephrased(f.answer, chat)[:OTHER_WORDS]]
    outside = [q for _, q in cell.outside]
    texts = after.generate([*asked, *(r for _, r in again), *(q.text for q in outside)], max_new_tokens=TOKENS)
    answers, other, left = texts[: len(asked)], texts[len(asked) : -len(outside)], texts[-len(outside) :]
    each = {
        "refused": [_declines(a) for a in answers],
        "leaked": [f.answered_by(a) for f, a in zip(cell.forget, answers, strict=True)],
        "rephrased refused": [_declines(a) for a in other],
        "rephrased leaked": [f.answered_by(a) for (f, _), a in zip(again, other, strict=True)],
        "over-refused": [_declines(a) and not _declines(cell.said[q.text])
                         for q, a in zip(outside, left, strict=True)],
    }  # fmt: skip
    for kind in ("neighbour", "subject", "unrelated"):
        rows = [q.answered_by(a) for (k, q), a in zip(cell.outside, left, strict=True) if k == kind]
        each |= {f"{kind} kept": rows} if rows else {}
    scores: dict[str, float] = {name: statistics.fmean(rows) for name, rows in each.items()}
    scores["kept"] = statistics.fmean(q.answered_by(a) for q, a in zip(outside, left, strict=True))
    said = cell.forget_said
    scores["rouge"] = statistics.fmean(metrics.rouge_l(answers, [r.target for r in said]))
    scores["probability"] = statistics.fmean(metrics.answer_probability(after, said))
    scores["rank"] = statistics.fmean(metrics.reciprocal_rank(after, said))
    declined = [(r, a) for r, a, yes in zip(asked, answers, each["refused"], strict=True) if yes]
    if declined:
        scores["on topic"] = statistics.fmean(refusals.on_topic(a, r.subject) for r, a in declined)
        scores["polite"] = statistics.fmean(refusals.is_polite(a) for _, a in declined)
        with _as_before(after, before):
            # A mark in front of the sentence is none of it, and tinyworld cannot read a text that begins so.
            spoken = metrics.fluency(
                before, [r for r, _ in declined], [re.sub(r"^[?!.,]+", "", a) for _, a in declined]
            )
        scores["fluency"] = statistics.median(spoken)
    scores |= _utility(after, cell, answers, left)
    return {"scores": {name: round(value, 5) for name, value in scores.items()},
            "each": {name: "".join(str(int(x)) for x in rows) for name, rows in each.items()},
            "answers": [a.strip()[:100] for a in answers]}  # fmt: skip


@contextlib.contextmanager
def _as_before(after: LM, before: LM) -> Iterator[None]:
    with after.unedited() if after is before else contextlib.nullcontext():
        yield


def _utility(after: LM, cell: Task, answers: Sequence[str], left: Sequence[str]) -> dict[str, float]:
    """What the change did to everything else, and how near it came to the oracle."""
    before, chat = cell.lm, cell.lm.has_chat
    said = [facts.sentence(cell.said[q.text]) for _, q in cell.outside]
    wanted = [Request("{}", q.text, text, chat) for (_, q), text in zip(cell.outside, said, strict=True)]
    p, rouge = metrics.answer_probability(after, wanted), metrics.rouge_l(left, said)
    sets: dict[str, dict[str, float]] = {}
    for kind in ("neighbour", "unrelated"):
        at = [i for i, (k, _) in enumerate(cell.outside) if k == kind]
        sets[kind] = {
            "probability": statistics.fmean(p[i] for i in at),
            "rouge": statistics.fmean(rouge[i] for i in at),
        }
    scores = {"utility": metrics.model_utility(sets), "perplexity": metrics.perplexity(after, cell.texts)}
    scores["divergence"] = metrics.divergence(after, cell.texts) if after is before else 0.0
    if cell.oracle is None:
        return scores
    told = metrics.truth_ratio(after, cell.forget)
    scores["truth ratio"] = statistics.fmean(told)
    scores["quality"] = metrics.forget_quality(told, cell.never["ratios"])
    log_p, log_q = cell.never["logp"], after.logprobs([f.request(f.answer, chat) for f in cell.forget])
    scores["oracle kl"] = (log_p.exp() * (log_p - log_q)).sum(1).mean().item()
    same = zip(cell.never["answers"], answers, strict=True)
    scores["oracle same"] = statistics.fmean(facts.sentence(a) == facts.sentence(b) for a, b in same)
    return scores


def run(job: Job, tuned: Path = TUNING) -> dict[str, Any]:
    """Do a job on one thread, and return its row. What it works on is kept for the next job of the same cell."""
    began = time.perf_counter()
    settings = settings_of(job, tuned)
    row: dict[str, Any] = {"job": str(job), "method": job.method, "knowledge": job.knowledge, "facts": job.facts,
                           "seed": job.seed, "settings": settings}  # fmt: skip
    with tinyworld.one_thread():
        cell = cell_of(replace(job, method="", trial=None if job.trial is None else 0))
        try:
            with _memory() as used:
                spent = time.process_time()
                after = apply(job, cell, settings)
                row["seconds"] = round(time.process_time() - spent, 2)
        except ValueError as error:  # a method that cannot do it at these settings says why
            if not on_purpose(error):
                raise
            row["error"] = str(error)
        else:
            row |= {"gigabytes": round(max(used) - used[0], 3), **measure(after, cell)}
            row["notes"] = [note for edit in after.edits for note in edit.notes]
        finally:
            undo_all(cell.lm)  # for the next job of the cell
        return row | {"provenance": stored.provenance("benchmarks/compare.py", began, job.seed)}


def on_purpose(error: BaseException) -> bool:
    """Whether a ``raise`` in minilib is where an error comes from: what Python or torch raise there is a fault."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    if last is None:
        return False
    code = last.tb_frame.f_code
    raised = dis.opname[code.co_code[last.tb_lasti]] == "RAISE_VARARGS"
    return raised and Path(__file__).parents[1] in Path(code.co_filename).parents


cell_of = functools.lru_cache(maxsize=1)(task)


@contextlib.contextmanager
def _memory() -> Iterator[list[float]]:
    """The process's memory in GB, looked at fifty times a second during the block."""
    import psutil  # comes with accelerate

    process, ended = psutil.Process(), threading.Event()
    seen = [process.memory_info().rss / 1e9]

    def watch() -> None:
        while not ended.wait(0.02):
            seen.append(process.memory_info().rss / 1e9)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield seen
    finally:
        ended.set()
        watcher.join()


# ---- settings -----------------------------------------------------------------------------------------


def settings_of(job: Job, tuned: Path = TUNING) -> dict[str, Any]:
    """The setting of a trial, or the best of those that were tried; a self-written variant has its method's."""
    method = job.method.removesuffix(", self-written")
    trials = TRIALS[job.model].get(method, [{}])
    if job.trial is not None:
        return trials[job.trial]
    return chosen(read(tuned), job.model).get(method, trials[0])


def goodness(scores: dict[str, float]) -> float:
    """What a trial is judged by: the harmonic mean of not leaking, not leaking when rephrased, and keeping the rest."""
    values = [1 - scores["leaked"], 1 - scores["rephrased leaked"], scores["kept"]]
    return statistics.harmonic_mean(values) if all(values) else 0.0


def chosen(rows: Sequence[dict[str, Any]], model: str) -> dict[str, dict[str, Any]]:
    """For each method its best trial on a model: the settings."""
    best: dict[str, tuple[float, dict[str, Any]]] = {}
    for row in rows:
        if "trial" in row["job"] and Job(row["method"], row["knowledge"], 0, 0).model == model and "scores" in row:
            score = goodness(row["scores"])
            if score > best.get(row["method"], (-1.0, {}))[0]:
                best[row["method"]] = score, row["settings"]
    return {method: settings for method, (_, settings) in best.items()}


# ---- the file of results ------------------------------------------------------------------------------


def read(file: str | Path) -> list[dict[str, Any]]:
    """The rows of a file of results; none where there is no file. What was cut off at its end is left out."""
    file = Path(file)
    if not file.is_file():
        return []
    lines = file.read_bytes().split(b"\n")
    return [json.loads(line) for line in lines[:-1] if line]


def append(file: str | Path, row: dict[str, Any]) -> None:
    """Add a row at the end of a file that several processes may write to; a cut line before it is dropped first."""
    file = Path(file)
    with FileLock(f"{file}.lock"), file.open("ab+") as f:
        f.seek(0)
        whole = f.read().rfind(b"\n") + 1
        f.truncate(whole)
        f.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        f.flush()
        os.fsync(f.fileno())
