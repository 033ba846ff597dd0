"""Editing again and again: a stream of requests in chunks, measured after each, resumed after a kill.

What is asked to be forgotten comes one request after another. ``run`` applies a stream with any method and keeps its
state in a folder: each chunk's edit as ``Edit.save`` writes it, and the table of what was measured.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from filelock import FileLock, Timeout
from torch import Tensor
from tqdm.auto import tqdm

from . import covariance, storage
from .edit_files import load_edit
from .edits import Edit
from .measure import metrics
from .model import LM, check_lm
from .requests import Request, as_requests, whole
from .saving import FILE
from .tokens import Encoded
from .worlds.texts import tokens_of

COLLAPSE = 0.02  # nats a token on ordinary text: at this SmolLM2 has lost half of its answers to other questions
WATCHED = 2, 128  # on so many sample texts, and the first so many tokens of each
Measure = Callable[[LM, list[Request]], dict[str, Any]]


@dataclass
class Stream:
    """A stream that was applied.

    Attributes
    ----------
    edits : list of Edit
        One for each chunk, in force.
    rows : list of dict
        Before the first chunk and after each: ``edits`` (requests so far), ``seconds`` of the chunk's edit, and what
        was measured. ``pandas.DataFrame(stream.rows)`` plots it.
    collapsed : str
        Why the stream was stopped before its end; "" otherwise.
    """

    edits: list[Edit]
    rows: list[dict[str, Any]]
    collapsed: str = ""

    def undo(self) -> None:
        """Take all of it back, the latest first. The folder stays."""
        while self.edits:
            self.edits[-1].undo()
            self.edits.pop()


def run(
    lm: LM,
    requests: Sequence[Request],
    edit: Callable[..., Edit],
    folder: str | Path,
    *,
    chunk: int = 1,
    measure: Measure | None = None,
    on_collapse: Literal["note", "stop"] = "note",
    progress: bool = False,
    **settings: Any,
) -> Stream:
    """Apply requests in chunks, each on top of the last, and measure after each.

    A method that can continue earlier edits (``previous=``) is given them: all, or the latest, as it takes them.

    Parameters
    ----------
    lm : LM
        Changed in place.
    requests : list of Request
        In the order in which they come.
    edit : function
        A method's: ``minilib.alphaedit.edit`` or any other.
    folder : str or Path
        The state. If it holds the beginning of this very stream, that is loaded and gone on from.
    chunk : int, default 1
        So many requests an edit.
    measure : function, optional
        ``measure(lm, requests_so_far)`` gives a dict of numbers, kept as JSON; in the folder it is known by its name.
    on_collapse : {"note", "stop"}, default "note"
        After each chunk, ``divergence`` from the unedited model on ordinary text is measured, and joins the row. Above
        ``COLLAPSE`` the chunk's edit gets a note, or the stream ends there, with all that was done in force and saved.
    progress : bool, default False
        Show a progress bar.
    **settings
        For ``edit``: the same in each chunk.

    Returns
    -------
    Stream

    Raises
    ------
    TypeError, ValueError
        When an argument is wrong, or the folder holds another stream, or belongs to another run that still goes on.
        Whatever ends the run early leaves the model as it was before, and the folder as far as it came: call again.
    """
    check_lm(lm)
    requests = as_requests(requests)
    if not callable(edit) or not hasattr(edit, "__qualname__"):
        raise TypeError(
            f"edit must be a method's edit function, such as minilib.rome.edit, not {edit!r}; its settings go to run"
        )
    if measure is not None and not callable(measure):
        raise TypeError(f"measure must be a function of (lm, requests so far), not {measure!r}")
    chunk = whole(chunk, "chunk")
    if on_collapse not in ("note", "stop"):
        raise ValueError(f"on_collapse must be 'note' or 'stop', not {on_collapse!r}")
    if "previous" in settings:
        raise TypeError("previous is given by the stream itself: leave it out")
    takes = inspect.signature(edit).parameters.get("previous")
    folder = Path(folder)
    about = {
        "method": f"{edit.__module__}.{edit.__qualname__}",
        "model": lm.fingerprint,
        "on": [[e.method, [dataclasses.asdict(r) for r in e.requests], e.settings] for e in lm.edits],
        "requests": [dataclasses.asdict(request) for request in requests],
        "chunk": chunk,
        "settings": settings,
        "around": [lm.around, lm.opening(requests[0].text) if lm.opening else []],
        "measure": getattr(measure, "__qualname__", None if measure is None else type(measure).__qualname__),
    }
    about = json.loads(json.dumps(about, default=_digest))
    chunks = [requests[i : i + chunk] for i in range(0, len(requests), chunk)]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with lm.lock, FileLock(folder / "lock", timeout=0):
            return _run(lm, chunks, edit, folder, about, takes, measure, on_collapse, progress, settings)
    except Timeout as error:
        raise ValueError(f"folder {str(folder)!r} belongs to a run that still goes on") from error


def _run(
    lm: LM,
    chunks: list[list[Request]],
    edit: Callable[..., Edit],
    folder: Path,
    about: dict[str, Any],
    takes: inspect.Parameter | None,
    measure: Measure | None,
    on_collapse: str,
    progress: bool,
    settings: dict[str, Any],
) -> Stream:
    rows, spent = _state(folder, about)
    stream = Stream([], rows)
    under = len(lm.edits)
    texts, tokens = WATCHED
    ids = [tokens_of(lm, text, chat=False) for text in covariance.of_model(lm)[:texts]]
    ordinary = [Encoded(row[:1], row[1 : min(tokens, lm.context_length)]) for row in ids if len(row) > 1]
    if on_collapse == "stop" and not ordinary:
        raise ValueError(f"on_collapse='stop' needs text that {lm.name} can read, and no sample text is: choose 'note'")
    try:
        for i in tqdm(range(len(chunks) + 1), desc="chunks", disable=not progress):
            if i:
                place = folder / f"{i:04}"
                if (place / FILE).is_file():
                    made = load_edit(lm, place)
                else:
                    # A method's default says what it takes: a list of all earlier edits, or the latest one.
                    latest = stream.edits[-1] if stream.edits else None
                    earlier = list(stream.edits) if takes and takes.default == () else latest
                    started = time.perf_counter()
                    made = edit(lm, chunks[i - 1], **settings, **({"previous": earlier} if takes else {}))
                    # Before the edit is there: after a kill its seconds are known too.
                    spent = {**spent, str(i): round(time.perf_counter() - started, 3)}
                    _write(folder, {"about": about, "rows": stream.rows, "spent": spent})
                    made.save(place)
                stream.edits.append(made)
            if len(stream.rows) <= i:
                done = [request for some in chunks[:i] for request in some]
                row = {"edits": len(done), "seconds": spent.get(str(i), 0.0)}
                if ordinary:  # a model of few words may not read the sample text
                    row["divergence"] = round(metrics.drift(lm, ordinary), 6)
                stream.rows.append(row | ({} if measure is None else _numbers(measure(lm, done))))
                _write(folder, {"about": about, "rows": stream.rows, "spent": spent})
            if i and stream.rows[i].get("divergence", 0.0) > COLLAPSE:
                far = (
                    f"ordinary text has moved by {stream.rows[i]['divergence']:.3g} nats a token, above {COLLAPSE:g}: "
                )
                note = far + "questions that have nothing to do with the edits are answered otherwise; undo some"
                stream.edits[-1].notes.append(note)
                if on_collapse == "stop":
                    stream.collapsed = note
                    break
    except BaseException:  # KeyboardInterrupt too
        while len(lm.edits) > under:
            lm.edits[-1].undo()
        raise
    return stream


def _numbers(measured: Any) -> dict[str, Any]:
    """What ``measure`` returned, as the file will give it back."""
    try:
        numbers = dict(json.loads(json.dumps(measured)))
    except (TypeError, ValueError) as error:
        raise TypeError(f"measure must return a dict of numbers, which JSON can hold, not {measured!r}") from error
    if taken := sorted(numbers.keys() & {"edits", "seconds", "divergence"}):
        raise ValueError(f"measure returns {', '.join(taken)}, which the stream's own rows have: choose other names")
    return numbers


def _state(folder: Path, about: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Of the stream in the folder, if it is this one, the rows and the seconds of each chunk; none in a new folder."""
    file = folder / "sequence.json"
    if not file.is_file():
        return [], {}
    try:
        kept = json.loads(file.read_text("utf8"))
        rows, spent, before = list(kept["rows"]), dict(kept.get("spent", {})), dict(kept["about"])
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"folder {str(folder)!r} holds no stream that can be read (damaged?): {error}") from error
    other = [name for name, value in about.items() if before.get(name) != value]
    if other:
        other = [{"on": "edits in force", "around": "things around the model"}.get(name, name) for name in other]
        raise ValueError(
            f"folder {str(folder)!r} holds another stream, of other {', '.join(other)}: choose another folder, or "
            "delete it"
        )
    return rows, spent


def _write(folder: Path, state: dict[str, Any]) -> None:
    with storage.whole(folder / "sequence.json") as scratch:
        scratch.write_text(json.dumps(state, indent=1, ensure_ascii=False), "utf8")


def _digest(value: Any) -> str:
    """What stands for a setting that is no JSON: a tensor's contents, a model's fingerprint, NumPy's number itself."""
    if isinstance(value, LM):
        return value.fingerprint
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Tensor):
        data = value.detach().cpu().contiguous().float().numpy().tobytes()
        return hashlib.sha256(data).hexdigest()[:16]
    return repr(value)
