"""Tinyworld as four architectures of three sizes, and every method on each: does the ranking hold elsewhere?

Each model is trained from scratch (``minilib.tinyworld.train``) and kept in the user's cache. On four people who are
not measured, each editor is tried at every layer and each trained method at the settings of `trials.py`; the
best are then measured on three draws of four people. Run: python benchmarks/architectures.py --processes 2 (an hour on
2 cores), with names such as gpt2-small for these alone. It goes on where it stopped, model by model. With --again
alphaedit that method alone is tried and measured once more. With --pack gpt_neox-small it trains that model alone and
puts it into the package, where chapter 13 finds it.
"""

import argparse
import json
import random
import statistics
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any

import torch
import trials
from filelock import FileLock
from scores import Rows, key_distance

from minilib import alphaedit, covariance, grace, load, memit, rome, stored, tasks, tinyworld, wise
from minilib.edits import undo_all
from minilib.model import LM
from minilib.storage import cache_folder

STEPS = {"small": 3400, "medium": 1700, "large": 1275}
MODELS = [f"{architecture}-{size}" for size in STEPS for architecture in tinyworld.ARCHITECTURES]
METHODS = ("unedited", *trials.EDITORS, *trials.GRADIENT)
FACTS, SEEDS = 20, (0, 1, 2)
ONE_LAYER = {"rome": rome, "grace": grace, "wise": wise}
WINDOW = {"memit": memit, "alphaedit": alphaedit}
REACH = (0.1, 0.25, 0.5)  # GRACE's ε, in units of the median distance between the keys of two questions
RIDGE = 0.01  # AlphaEdit's l2, in units of the mean squared length of ordinary keys; 1 to 1.5 on the packaged model
PLAIN = "llama-6x96"  # whose presets are varied


def trained(name: str) -> tuple[LM, float]:
    """One of the models and the seconds that its training took, from the cache where it was trained before."""
    folder = cache_folder() / "architectures" / f"{name}-{STEPS[name.split('-')[1]]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    note = folder / "seconds.txt"
    with FileLock(f"{folder}.lock"):
        if not note.is_file():
            architecture, size = name.split("-")
            began = time.process_time()
            model = tinyworld.train(steps=STEPS[size], architecture=architecture, size=size)
            seconds = time.process_time() - began
            model.save_pretrained(folder)
            note.write_text(f"{seconds:.1f}")
    return load(str(folder)), float(note.read_text())


def pack(name: str) -> None:
    """Put one of the models into the package, and beside it how it was made."""
    torch.set_num_threads(1)
    model, seconds = trained(name)
    folder = tinyworld.DATA / name
    model.save_pretrained(folder)
    about = stored.provenance("benchmarks/architectures.py", time.perf_counter() - seconds)
    (folder / "provenance.json").write_text(json.dumps(about, indent=1) + "\n", "utf8")


def settings(model: LM, method: str, C: covariance.SecondMoments) -> Iterator[dict[str, Any]]:
    """What is tried of a method: every layer, or the trials of the comparison."""
    chosen = trials.chosen("tinyworld").get(method, {})
    layers = range(model.n_layers)
    if method in WINDOW:
        for layer in layers:
            preset = dict(WINDOW[method].Settings.PRESETS[PLAIN])
            preset.pop("nullspace_threshold", None)  # in the units of one model's keys; the trial's energy has none
            # l2 has the units of squared keys: of this layer's.
            l2 = {"l2": round(RIDGE * C[layer].trace().item(), 4)} if method == "alphaedit" else {}
            yield preset | chosen | l2 | {"layers": [layer]}
    elif method == "grace":
        asked = [tasks.as_question(f, random.Random(0)).asked.text for f in tinyworld.facts()[::25]]
        for layer in layers:
            far = key_distance(model, layer, asked)
            if far == 0:  # a first MLP beside its attention sees the "?" alone, always the same
                continue
            for reach in REACH:
                yield grace.Settings.PRESETS[PLAIN] | {"layer": layer, "epsilon": round(reach * far, 4)}
    elif method in ONE_LAYER:
        for layer in layers:
            yield ONE_LAYER[method].Settings.PRESETS[PLAIN] | chosen | {"layer": layer}
    elif method in trials.GRADIENT:
        yield from trials.RATES.get(method, trials.ANY_RATES)
    else:
        yield {}


def measured(method: str, seed: int, found: tasks.Task, C: Any, given: dict[str, Any]) -> dict[str, Any]:
    """A method's scores at given settings; where it cannot do it, why."""
    began = time.process_time()
    more = {"covariance": C} if method in ("rome", "memit", "alphaedit") else {}
    try:
        after = trials.apply(method, found, given | more, seed)
        seconds = time.process_time() - began
        sizes = [change / weight for edit in after.edits for change, weight in edit.sizes().values()]
    except ValueError as error:
        if not stored.on_purpose(error):
            raise
        return {"error": str(error)}
    else:
        marks = tasks.measure(after, found)
    finally:
        undo_all(found.lm)
    return {
        "score": round(tasks.score(marks), 4),
        "refused": round(statistics.fmean(marks["refused"]), 4),
        "each": {name: "".join(str(int(x)) for x in marks[name])
                 for name in ("leaked", "rephrased leaked", "neighbour kept", "unrelated kept")},
        "seconds": round(seconds, 2),
        "size": round(max(sizes, default=0.0), 4),  # ‖ΔW‖ / ‖W‖, of the matrix that changed most
    }  # fmt: skip


def tried(method: str, found: tasks.Task, C: Any) -> dict[str, Any]:
    """All settings of a method on the facts for tuning, and the best of them."""
    model = found.lm
    tries = []
    for given in settings(model, method, C):
        row = measured(method, 0, found, C, given)  # where a layer cannot be written to, the row says why
        tries.append(({"score": row["score"]} if "score" in row else {"error": row["error"]}, given))
    varied = ("layer", "layers", "epsilon", "lr", "retain_weight", "alpha")
    return {
        "trials": [{k: v for k, v in given.items() if k in varied} | row for row, given in tries],
        "best": max(tries, key=lambda trial: trial[0].get("score", -1.0))[1],
    }


def scored(model: LM, methods: Sequence[str]) -> dict[str, Any]:
    """The trials of some methods on a model, and their rows."""
    C = covariance.second_moment(model, list(range(model.n_layers)), texts=covariance.sample_texts("tinyworld"))
    found = tasks.exact(FACTS, 0, model, tuning=True)
    tries = {method: tried(method, found, C) for method in methods}
    rows = []
    for seed in SEEDS:
        found = tasks.exact(FACTS, seed, model)
        for method in methods:
            given = tries[method]["best"]
            rows.append({"method": method, "seed": seed, **measured(method, seed, found, C, given)})
    return {"trials": tries, "rows": rows}


def again(name: str, method: str) -> dict[str, Any]:
    """One method on one model."""
    torch.set_num_threads(1)
    return scored(trained(name)[0], [method])


def renewed(row: dict[str, Any], made: dict[str, Any]) -> dict[str, Any]:
    """A model's row, with a method's trials and scores in the place of those that it had."""
    new = [r["method"] for r in made["rows"]]
    rows = [r for r in row["rows"] if r["method"] not in new] + made["rows"]
    order = sorted(rows, key=lambda r: (r["seed"], METHODS.index(r["method"])))
    return row | {"trials": row["trials"] | made["trials"], "rows": order}


def one(name: str) -> dict[str, Any]:
    """Everything about one model."""
    torch.set_num_threads(1)
    model, seconds = trained(name)
    world = tinyworld.facts()
    about = {
        "steps": STEPS[name.split("-")[1]],
        "parameters": sum(p.numel() for p in model.model.parameters()),
        "recall": round(tinyworld.recall(model, world), 4),
        "held out": round(tinyworld.recall(model, world, held_out=True), 4),
        "seconds": seconds,
    }
    return about | scored(model, METHODS)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(MODELS)} (default: all)")
    parser.add_argument("--processes", type=int, default=1, help="at once")
    parser.add_argument("--again", choices=METHODS, help="measure this method once more on models that are there")
    parser.add_argument("--pack", choices=MODELS, help="only put this model into the package")
    given = parser.parse_args()
    if given.pack:
        return pack(given.pack)
    began = time.perf_counter()
    about = {"facts": FACTS, "reach": list(REACH)} | ({} if given.again else {"methods": list(METHODS)})
    rows = Rows("architectures", began, about)
    done = {row["run"]: row for row in rows.found.get("models", [])}
    left = [name for name in given.models or MODELS if (name in done) == bool(given.again)]
    failed = False
    with ProcessPoolExecutor(given.processes, get_context("spawn")) as pool:
        running = {
            pool.submit(again, name, given.again) if given.again else pool.submit(one, name): name for name in left
        }
        for future in as_completed(running):
            try:
                made = future.result()
                if given.again:
                    made = renewed(done[running[future]], made)
                    rows.found["models"] = [r for r in rows.found["models"] if r["run"] != running[future]]
                rows.keep("models", running[future], lambda made=made: made)
            except Exception:  # the other models go on, and the next call tries this one again
                failed = True
                print(f"{running[future]} failed:\n{traceback.format_exc()}", file=sys.stderr)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
