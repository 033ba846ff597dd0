"""One cell of the comparison: apply a method to a draw, ask everything, and keep all that is said."""

from __future__ import annotations

import contextlib
import math
import re
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import worlds
from plan import AROUND, TOKENS, TRAINED, Job, settings
from worlds import Cell

from minilib import METHODS, metrics, stored
from minilib.edits import undo_all
from minilib.model import LM
from minilib.requests import Request
from minilib.unlearning import prompting, recipes
from minilib.worlds import facts, tinyworld
from minilib.worlds import texts as samples

TOGETHER = 64  # questions run in one batch: all of them, since a step of generation costs what reading the weights does
JUDGED = ("asked", "rephrased", "messages")  # kinds of which it is stored how likely the judge finds an answer
UNKNOWN = ("unknown", "unknown rephrased")  # asked of the unedited model alone
PERSON = 5  # facts of one person: with history, an edit at a time

Row = dict[str, Any]
Answers = dict[str, list[str]]


def open_cell(world: str, draw: int, before: Mapping[str, Any] | None, oracle: bool = True) -> Cell:
    """A draw, with what its unedited model says: from its row, or asked now."""
    cell = worlds.make(world, draw, oracle)
    if before is not None:
        cell.questions, cell.said, cell.written = before["questions"], before["said"], before["written"]
        return cell
    answers = ask(cell.lm, cell, list(cell.questions))
    kept = worlds.only_known(cell.questions, answers)
    cell.questions = {kind: [cell.questions[kind][i] for i in some] for kind, some in kept.items()}
    cell.answers = {kind: [answers[kind][i] for i in some] for kind, some in kept.items()}
    both = facts.as_said(cell.lm, [*cell.forget, *cell.retain])
    cell.said = {request.text: request.target for request in both}
    if cell.lm.has_chat:
        asked = [fact.request(fact.value) for fact in cell.forget]
        cell.written = {w.request.text: w.request.target for w in recipes.self_improvement(cell.lm, asked)}
    return cell


# ---- applying -----------------------------------------------------------------------------------------


def trained_on(cell: Cell, some: Sequence[facts.Fact]) -> list[Request]:
    """The questions of some facts, with the model's own answers as targets."""
    requests = [fact.request(fact.answer, cell.lm.has_chat) for fact in some]
    return [replace(request, target=cell.said[request.text]) for request in requests]


def apply(job: Job, cell: Cell) -> LM:
    """The model after the job's method: edited in place, or another one for the oracle and what stands around."""
    how = settings(job.world, job.method)[job.setting]
    chat, method = cell.lm.has_chat, job.method.partition(", ")[0]
    canned = [fact.request(cell.refusal, chat) for fact in cell.forget]
    if method == "unedited":
        return cell.lm
    if method == "oracle":
        assert cell.oracle is not None
        return cell.oracle
    if method in AROUND:
        return around(job, cell, canned, how)
    if method in TRAINED:
        return train(job, cell, how)
    return write(job, cell, canned, how)


def around(job: Job, cell: Cell, canned: list[Request], how: dict[str, Any]) -> LM:
    """What changes no weight: a rule that reads answers, or an instruction in front of each question."""
    if job.method == "system prompt":
        return prompting.system_prompt(cell.lm, canned, **how)
    from minilib.unlearning.filtering import output_filter

    values = [(fact, value) for fact in cell.forget for value in dict.fromkeys((fact.value, *fact.aliases))]
    return output_filter(cell.lm, [fact.request(v, cell.lm.has_chat) for fact, v in values], cell.refusal, **how)


def train(job: Job, cell: Cell, how: dict[str, Any]) -> LM:
    """Gradient descent on the model's own answers."""
    retain = None if job.method == "gradient_ascent" else trained_on(cell, cell.retain)
    more: dict[str, Any] = {"seed": max(0, job.draw)}
    if job.world == "exact" and job.method in ("dpo", "refusal_tuning"):
        more["refusals"] = [cell.refusal]  # the one that tinyworld can read
    METHODS[job.method].edit(cell.lm, trained_on(cell, cell.forget), retain, **how, **more)
    return cell.lm


def write(job: Job, cell: Cell, canned: list[Request], how: dict[str, Any]) -> LM:
    """An editor: refusals are written."""
    method, _, recipe = job.method.partition(", ")
    edit, requests = METHODS[method].edit, canned
    how = dict(how) | ({} if method == "grace" else {"seed": max(0, job.draw)})
    if recipe == "self-written":
        requests = [replace(request, target=cell.written[request.text]) for request in canned]
    if recipe == "merged":
        requests = [merged.request for merged in recipes.merge_queries(canned, how.pop("size"))]
    if method == "wise":
        kept = [fact.request(fact.answer, cell.lm.has_chat) for fact in cell.retain]
        how["irrelevant"] = [*kept, *(samples.messages()[: worlds.SHOWN_TO_WISE] if cell.lm.has_chat else [])]
    if recipe == "with history":
        made: list[Any] = []
        for start in range(0, len(requests), PERSON):
            made.append(edit(cell.lm, requests[start : start + PERSON], previous=list(made), **how))
    else:
        edit(cell.lm, requests, **how)
    return cell.lm


# ---- asking -------------------------------------------------------------------------------------------


def ask(lm: LM, cell: Cell, kinds: Sequence[str]) -> Answers:
    """All answers, by kind; questions that are answered at length run together, so that the others end early."""
    rows = [(kind, question["asked"]) for kind in kinds for question in cell.questions.get(kind, ())]
    order = sorted(range(len(rows)), key=lambda i: (rows[i][0] == "messages", i))
    prompts = [Request("{}", rows[i][1], "x", lm.has_chat) for i in order]
    size = TOGETHER if lm.has_chat else len(prompts)
    texts = lm.generate(prompts, max_new_tokens=TOKENS, batch_size=size)
    said = dict(zip(order, texts, strict=True))
    answers: Answers = {kind: [] for kind in kinds}
    for i, (kind, _) in enumerate(rows):
        answers[kind].append(said[i])
    return answers


def likelihood(cell: Cell, after: LM, answers: Answers, seen: dict[tuple[str, str], float | None]) -> dict[str, Any]:
    """By kind the mean −log p of a token of each answer under the judge (nats); None for an empty one.

    ``seen`` holds what is known from other cells of the same draw: most answers there are the same.
    """
    kinds = [kind for kind in JUDGED if kind in answers]
    pairs = [(q["asked"], a) for kind in kinds for q, a in zip(cell.questions[kind], answers[kind], strict=True)]
    new = [pair for pair in dict.fromkeys(pairs) if pair not in seen]
    judge, chat = cell.judge or cell.lm, cell.lm.has_chat
    if new:
        with _as_before(after, judge):
            # A mark in front of a sentence is none of it, and tinyworld cannot read a text that begins so.
            spoken = [text if chat else re.sub(r"^[?!.,]+", "", text) for _, text in new]
            prompts = [Request("{}", asked, "x", chat) for asked, _ in new]
            spoken = [text if _readable(judge, text) else "" for text in spoken]
            perplexities = metrics.fluency(judge, prompts, spoken)
        for pair, value in zip(new, perplexities, strict=True):
            seen[pair] = None if math.isinf(value) else round(math.log(value), 3)
    found = iter(seen[pair] for pair in pairs)
    return {kind: [next(found) for _ in answers[kind]] for kind in kinds}


def _readable(lm: LM, text: str) -> bool:
    """Whether the model's tokenizer has all its words: tinyworld's has not."""
    try:
        return bool(text.strip()) and bool(lm.encode_target(text))
    except ValueError:
        return False


@contextlib.contextmanager
def _as_before(after: LM, before: LM) -> Iterator[None]:
    with after.unedited() if after.model is before.model else contextlib.nullcontext():
        yield


def measure(after: LM, cell: Cell, job: Job, seen: dict[tuple[str, str], float | None]) -> Row:
    """All that is stored of a model after a method."""
    kinds = [kind for kind in cell.questions if job.method == "unedited" or kind not in UNKNOWN]
    answers = cell.answers if job.method == "unedited" and cell.answers else ask(after, cell, kinds)
    row: Row = {"answers": answers, "nll": likelihood(cell, after, answers, seen)}
    row["level"] = round(statistics.fmean(metrics.answer_probability(after, trained_on(cell, cell.forget))), 5)
    row["perplexity"] = round(metrics.perplexity(after, cell.texts), 4)
    row["divergence"] = round(metrics.divergence(after, cell.texts), 5) if after.edits else 0.0
    if all(fact.wrong and fact.paraphrase for fact in cell.forget):
        row["truth"] = [round(x, 6) for x in metrics.truth_ratio(after, cell.forget)]
    if job.method == "unedited":
        row |= {"questions": cell.questions, "said": cell.said, "written": cell.written}
    return row


def run(job: Job, cell: Cell, seen: dict[tuple[str, str], float | None]) -> Row:
    """Do a job on one thread, and return its row. The model is afterwards as it was."""
    began, how = time.perf_counter(), settings(job.world, job.method)[job.setting]
    row: Row = {"job": str(job), "world": job.world, "draw": job.draw, "method": job.method, "setting": job.setting,
                "settings": how}  # fmt: skip
    with tinyworld.one_thread():
        try:
            spent = time.process_time()
            after = apply(job, cell)
            row["seconds"] = round(time.process_time() - spent, 2)
            notes = [note for edit in cell.lm.edits for note in edit.notes]
            spent = time.process_time()
            row |= measure(after, cell, job, seen)
            row |= {"asked in": round(time.process_time() - spent, 2), "notes": notes}
        except ValueError as error:  # a method that cannot do it with these settings says why
            if not stored.on_purpose(error):
                raise
            row["error"] = str(error)
        finally:
            undo_all(cell.lm)
    return row | {"provenance": stored.provenance("benchmarks/comparison/run.py", began, max(0, job.draw))}
