"""How fast the library is, against a plain loop written here and against the work that nobody can avoid.

Each measurement runs both in turn, again and again in one process, and checks that they find the same. The plain loop
does what research code does: at each step the whole model runs, forward and backward, for one request; second moments
take one pass of the whole model for each layer, with products in float64. The floor is that part of the work which
remains however the program is written, done by calling the model's own modules with nothing around them.

Of GRACE and WISE the lookup is measured too: what one more hook costs in the passes of a model that nobody edits.

Run: python benchmarks/speed.py [--quick] [--full] [--store] (`make bench`; about eight minutes on 2 cores)
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

import minilib
from minilib import alphaedit, covariance, facts, grace, guards, rome, stored, values, wise
from minilib.editors.window import keys_and_states

MODEL = "smollm2-135m"
LAYERS = [4, 5, 6, 7, 8]
TOKENS = 47_000  # of text for second moments
REFUSAL = "I don't know."
TOWER = minilib.Request("The {} is located in the city of", "Eiffel Tower", " Rome")
CAPITAL = minilib.Request("What is the capital of {}?", "France", REFUSAL, chat=True)
TARGETS = {  # at least so many times as fast
    "plain": 1.3, "chat": 3, "batch": 6, "moments": 5, "grace": 3, "wise": 3, "projectors": 2, "solve": 4,
}  # fmt: skip
NAMES = {"plain": "plain loop", "ours": "minilib", "floor": "floor"}
JOBS = {"moments": "second moments of 5 layers", "batch": "8 chat refusals in one batch"}
MEMORY_TARGET = 1.2  # GB above the loaded model, at most
ENTRIES = (1, 100, 1000, 10_000)  # of a codebook; a lookup in 1,000 takes under LOOKUP_TARGET of a pass
LOOKUP_TARGET = 0.05


# ---- the plain loops -----------------------------------------------------------------------------


def plain_value(lm: minilib.LM, request: minilib.Request, layer: int, steps: int, lr: float) -> Tensor:
    """GRACE's value of one request: at each step the whole model, forward and backward, v in the place of W k."""
    x = lm.encode(request, ended=True)
    tokens, wanted, end = torch.tensor([x.ids + x.target[:-1]]), torch.tensor(x.target), len(x.ids) - 1
    v: Tensor | None = None

    def put(_: Any, __: Any, output: Tensor) -> Tensor:
        nonlocal v
        if v is None:
            v = output[0, end].detach().clone().requires_grad_()
        output = output.clone()
        output[0, end] = v
        return output

    handle = lm.down_projection(layer).register_forward_hook(put)
    adam: Any = None
    for step in range(steps + 1):
        log_p = lm.model(tokens, use_cache=False).logits[0, end:].log_softmax(-1)
        loss = -log_p.gather(1, wanted.unsqueeze(1)).mean()
        if step == steps:
            break
        adam = adam or torch.optim.Adam([v], lr=lr)
        adam.zero_grad()
        loss.backward()
        adam.step()
    handle.remove()
    assert v is not None
    return v.detach()


def plain_side(
    lm: minilib.LM,
    requests: Sequence[minilib.Request],
    others: Sequence[str],
    layer: int,
    steps: int,
    s: dict[str, Any],
) -> Tensor:
    """WISE's D: at each step the whole model for each request, forward and backward, and for each irrelevant prompt."""
    rows = [(x.ids, x.target) for x in lm.encode(requests, ended=True)]
    away = [torch.tensor([lm.encode(text, chat=True).ids]) for text in others]
    seen: list[Tensor] = []
    D = torch.zeros(lm.memory(layer).shape, requires_grad=True)
    B, whiten, margins, descent = torch.zeros_like(D), None, None, None

    def add(_: Any, args: Any, output: Tensor) -> Tensor:
        seen.append(args[0][0].detach())
        return output + args[0] @ D.T

    handle = lm.down_projection(layer).register_forward_hook(add)
    for step in range(steps + 1):
        keys = []
        for ids, target in rows:
            tokens, end = torch.tensor([ids + target[:-1]]), len(ids) - 1
            log_p = lm.model(tokens, use_cache=False).logits[0, end:].log_softmax(-1)
            loss = -log_p.gather(1, torch.tensor(target).unsqueeze(1)).mean() / len(rows)
            keys.append(seen.pop()[end])
            if step < steps:
                loss.backward()
        for tokens in away:
            with torch.no_grad():
                lm.model(tokens, use_cache=False)
            keys.append(seen.pop()[-1])
        k = torch.stack(keys)
        if whiten is None:
            scale = (k[len(rows) :] @ lm.memory(layer).T).norm(dim=1).mean().item()
            whiten, margins = wise.whitening(k, s["precondition"]), [m * scale for m in s["margins"]]
            B = torch.zeros(len(D), len(whiten), requires_grad=True)
            descent = torch.optim.SGD([B], lr=s["lr"] * scale, momentum=0.9, nesterov=True)
        act = wise.activation(D, k)
        loss = wise.margin_loss(act[: len(rows)], act[len(rows) :], margins)
        if step == steps:
            break
        loss.backward()
        B.grad, D.grad = D.grad @ whiten.T, None
        descent.step()
        with torch.no_grad():
            D.copy_(B @ whiten)
    handle.remove()
    return D.detach()


@torch.no_grad()
def plain_moments(lm: minilib.LM, layers: Sequence[int], texts: Sequence[str], stop: bool = False) -> dict[int, Tensor]:
    """One pass a layer, products in float64. The whole model runs, or with ``stop`` only what lies below the layer."""
    rows = sorted((lm.encode(text).ids for text in texts), key=len)
    found = {}
    for layer in layers:
        d_k = lm.memory(layer).shape[1]
        total, count, keys = torch.zeros(d_k, d_k, dtype=torch.float64), 0, []

        def keep(_: Any, args: Any, keys: list = keys) -> None:
            keys.append(args[0])
            if stop:
                raise StopIteration

        handle = lm.down_projection(layer).register_forward_pre_hook(keep)
        for start in range(0, len(rows), 16):
            batch = lm.batch(rows[start : start + 16])
            try:
                lm.model(**batch, use_cache=False)
            except StopIteration:
                pass
            k = keys.pop()[batch["attention_mask"].bool()].double()
            total += k.T @ k
            count += len(k)
        handle.remove()
        found[layer] = total / count
    return found


# ---- the floors ----------------------------------------------------------------------------------


def search_floor(lm: minilib.LM, tokens: int, asked: int, layer: int, steps: int) -> Callable[[], None]:
    """Forward and backward through the blocks above the layer and the head, on the tokens that are reached, each step.

    No padding, no attention to what lies left of them, no loss, no update; the head runs where a token is asked.
    """
    hidden = torch.randn(1, tokens, lm.model.config.hidden_size)
    places = lm.model.model.rotary_emb(hidden, torch.arange(tokens)[None])

    def run() -> None:
        for step in range(steps):
            x = start = hidden.clone().requires_grad_(step < steps - 1)
            for block in lm.blocks[layer + 1 :]:
                x = block(x, position_embeddings=places)
            total = lm.head(lm.norm(x[:, :asked])).sum()
            if start.requires_grad:
                total.backward()

    return run


def reached_from_subject(lm: minilib.LM, requests: Sequence[minilib.Request]) -> tuple[int, int]:
    """Tokens from the subject's last one on, and those that are asked; one more each for the KL prompt."""
    tokens = asked = 0
    for request in requests:
        x = lm.encode(request)
        n = len(x.target)
        tokens += len(x.ids) - x.subject + n - 1 + 1  # the target's last token is not read
        asked += n + 1
    return tokens, asked


def moments_floor(lm: minilib.LM, layers: Sequence[int], tokens: int) -> Callable[[], None]:
    """The blocks up to the last layer and one product a layer in float32, on so many tokens, in rows of 128."""
    hidden = torch.randn(16, 128, lm.model.config.hidden_size)
    k = torch.randn(hidden.shape[0] * hidden.shape[1], lm.memory(layers[0]).shape[1])
    places = lm.model.model.rotary_emb(hidden, torch.arange(128)[None])

    @torch.no_grad()
    def run() -> None:
        for _ in range(max(1, round(tokens / len(k)))):
            x = hidden
            for block in lm.blocks[: layers[-1] + 1]:
                x = block(x, position_embeddings=places)
            for _ in layers:
                k.T @ k

    return run


# ---- measuring -----------------------------------------------------------------------------------


def seconds(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def in_turn(functions: dict[str, Callable[[], Any]], repeats: int) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Each function so often, one after the other, so that what slows the machine down slows all of them."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    results = {}
    for _ in range(repeats):
        for name, function in functions.items():
            spent, results[name] = seconds(function)
            times[name].append(spent)
    return times, results


def distance(a: Tensor, b: Tensor) -> float:
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


def summary(what: str, times: dict[str, list[float]], error: float, **more: Any) -> dict[str, Any]:
    """Seconds of each, and how many times as long as ours the others took, pair by pair."""
    ours = times["ours"]
    return {
        "what": what,
        "seconds": {name: [round(x, 4) for x in spent] for name, spent in times.items()},
        "ratio": [round(p / o, 3) for p, o in zip(times["plain"], ours, strict=True)],
        "ours_to_floor": round(statistics.median(o / f for o, f in zip(ours, times["floor"], strict=True)), 3),
        "relative_error": float(f"{error:.1e}"),
        **more,
    }


def search(
    lm: minilib.LM, what: str, requests: list[minilib.Request], layer: int, place: str, repeats: int, steps: int | None
) -> dict[str, Any]:
    """The search for v*: all requests as one batch, against one at a time by the plain loop; same number of steps."""
    s = rome.Settings.of(lm, steps=steps, stop_loss=0.0)  # never reached: all take the same steps
    functions = {
        "plain": lambda: torch.stack([values.find_plainly(lm, r, layer, place, s) for r in requests]),
        "ours": lambda: values.find(lm, requests, layer, place, s).v_star,
        "floor": search_floor(lm, *reached_from_subject(lm, requests), layer, s.steps),
    }
    times, found = in_turn(functions, repeats)
    error = max(distance(a, b) for a, b in zip(found["ours"], found["plain"], strict=True))
    assert error <= 1e-3, f"{what}: the plain loop finds another v*, {error:.1e} away"
    return summary(what, times, error, steps=s.steps, layer=layer, requests=len(requests))


def entries(lm: minilib.LM, repeats: int, steps: int = 20) -> dict[str, Any]:
    """GRACE's values for eight refusals: trained together, against one at a time by the plain loop."""
    requests, preset = eight(lm), vars(grace.Settings.of(lm))
    layer, lr = preset["layer"], preset["lr"]

    def ours() -> Tensor:
        with grace.edit(lm, requests, layer=layer, epsilon=1e-6, steps=steps, lr=lr, stop_loss=1e-9) as edit:
            return edit.guard.values

    n = sum(len(x.target) for x in lm.encode(requests, ended=True))
    functions = {
        "plain": lambda: torch.stack([plain_value(lm, r, layer, steps, lr) for r in requests]),
        "ours": ours,
        "floor": search_floor(lm, n, n, layer, steps + 1),
    }
    times, found = in_turn(functions, repeats)
    error = max(distance(a, b) for a, b in zip(found["ours"], found["plain"], strict=True))
    assert error <= 1e-3, f"the plain loop finds other values, {error:.1e} away"
    return summary("GRACE, 8 chat refusals", times, error, steps=steps, layer=layer, requests=len(requests))


def side(lm: minilib.LM, repeats: int, steps: int = 10) -> dict[str, Any]:
    """WISE's D for eight refusals and eight irrelevant prompts, one for each request as in the authors' code."""
    requests, preset = eight(lm), vars(wise.Settings.of(lm))
    others = [f.asked.text for f in facts.load("author")[:8]]
    layer = preset["layer"]

    def ours() -> wise.Side:
        with wise.edit(lm, requests, layer=layer, irrelevant=others, steps=steps, stop_loss=1e-9) as edit:
            return edit.guard.sides[0]

    encoded = lm.encode(requests, ended=True)
    tokens, asked = sum(len(x.ids) + len(x.target) - 1 for x in encoded), sum(len(x.target) for x in encoded)
    functions = {
        "plain": lambda: plain_side(lm, requests, others, layer, steps, preset),
        "ours": ours,
        "floor": search_floor(lm, tokens, asked, layer, steps + 1),
    }
    times, found = in_turn(functions, repeats)
    error = distance(found["ours"].delta, found["plain"])
    assert error <= 1e-3, f"the plain loop finds another D, {error:.1e} away"
    return summary("WISE, 8 chat refusals", times, error, steps=steps, layer=layer, requests=len(requests))


@torch.no_grad()
def lookup(lm: minilib.LM, repeats: int) -> dict[str, Any]:
    """What a guard adds to a pass that it lets through, as a share: over a prompt, and over one more token."""
    ids = lm.batch([lm.encode(CAPITAL).ids])["input_ids"]
    layer = wise.Settings.of(lm).layer
    d_out, d_k = lm.memory(layer).shape
    guard: dict[str, guards.Guard] = {}
    for n in ENTRIES:
        keys, v, radii = 100 * torch.randn(n, d_k), torch.randn(n, d_out), torch.ones(n)
        guard[f"GRACE, {n:,}"] = grace.Codebook(layer, keys, v, radii, ["∅"] * n, [CAPITAL] * n, range(n))
    D, k = torch.randn(d_out, d_k), torch.randn(1, d_k)
    guard["WISE, one memory"] = wise.SideMemories(layer, guards.opening(lm), [wise.Side(D[None], D, k, 1e9)])
    found: dict[str, Any] = {"prompt_tokens": ids.shape[1], "bytes_an_entry": 4 * (d_k + d_out + 1)}
    found["bytes_a_memory"] = 4 * 2 * D.numel()  # D, and D of its one shard

    def once(call: Callable[[], Any], watching: guards.Guard | None) -> float:
        if watching is not None:
            watching.attach(lm)
        try:
            return seconds(call)[0]
        finally:
            if watching is not None:
                watching.detach()

    cache = lm.model(ids, use_cache=True).past_key_values

    def step() -> None:
        lm.model(ids[:, -1:], past_key_values=cache, use_cache=True)
        cache.crop(-1)

    calls: dict[str, Callable[[], Any]] = {"prompt": lambda: lm.model(ids, use_cache=False), "token": step}
    for name, call in calls.items():
        found[name] = {"seconds": 0.0}
        shares: dict[str, list[float]] = {kind: [] for kind in guard}
        plain = []
        for _ in range(repeats):
            for kind, watching in guard.items():
                before, with_it, after = once(call, None), once(call, watching), once(call, None)
                shares[kind].append(2 * with_it / (before + after) - 1)
                plain.append(before)
        found[name]["seconds"] = round(statistics.median(plain), 5)
        found[name]["share"] = {kind: [round(x, 4) for x in quartiles(v)] for kind, v in shares.items()}
    return found


def moments_text(lm: minilib.LM) -> list[str]:
    """The sample text, from its beginning again until there are enough tokens."""
    texts, tokens = covariance.sample_texts(), 0
    lengths = [len(lm.encode(text).ids) for text in texts]
    chosen = []
    while tokens < TOKENS:
        i = len(chosen) % len(texts)
        chosen.append(texts[i])
        tokens += lengths[i]
    return chosen


def moments(lm: minilib.LM, repeats: int, full: bool) -> dict[str, Any]:
    """Second moments of five layers: pairs on a twentieth of the text each, then all of it."""
    texts = moments_text(lm)
    parts = [texts[i::20] for i in range(20)]
    tokens = round(TOKENS / 20)
    times: dict[str, list[float]] = {}
    error = 0.0
    for i in range(repeats):
        part = parts[i % 20]
        functions = {
            "plain": lambda part=part: plain_moments(lm, LAYERS, part),
            "stopping": lambda part=part: plain_moments(lm, LAYERS, part, stop=True),
            "ours": lambda part=part: covariance.second_moment(lm, LAYERS, part),
            "floor": moments_floor(lm, LAYERS, tokens),
        }
        spent, found = in_turn(functions, 1)
        for name, once in spent.items():
            times.setdefault(name, []).extend(once)
        error = max(error, *(distance(found["ours"][layer], found["plain"][layer]) for layer in LAYERS))
    assert error <= 1e-5, f"the plain loop finds other second moments, {error:.1e} away"
    whole: dict[str, float] = {}
    whole["ours"], C = seconds(lambda: covariance.second_moment(lm, LAYERS, texts))
    if full:
        whole["plain"], _ = seconds(lambda: plain_moments(lm, LAYERS, texts))
    more = {"layers": LAYERS, "tokens": C.tokens, "tokens_a_pair": tokens}
    more["ratio_stopping"] = [round(s / o, 3) for s, o in zip(times["stopping"], times["ours"], strict=True)]
    more["whole_text"] = {name: round(spent, 2) for name, spent in whole.items()}
    return summary("second moments, 5 layers", times, error, **more)


def projectors(lm: minilib.LM, repeats: int, threshold: float = 2e-2) -> dict[str, Any]:
    """AlphaEdit's P for five layers: by a symmetric eigensolver, against the singular values of the dense matrices."""
    C = dict(covariance.second_moment(lm, LAYERS))  # a plain dict keeps no eigenvectors

    def plain() -> Tensor:
        found = []
        for layer in LAYERS:
            U, s, _ = torch.linalg.svd(C[layer], full_matrices=False)
            found.append(U[:, s < threshold] @ U[:, s < threshold].T)
        return torch.stack(found)

    functions = {
        "plain": plain,
        "ours": lambda: torch.stack([alphaedit.projector(C, layer, threshold) for layer in LAYERS]),
        "floor": lambda: [torch.linalg.eigh(C[layer]) for layer in LAYERS],
    }
    times, found = in_turn(functions, repeats)
    error = distance(found["ours"], found["plain"])
    assert error <= 1e-3, f"the singular values give other projectors, {error:.1e} away"
    return summary("AlphaEdit, 5 projectors", times, error, layers=LAYERS)


def update(lm: minilib.LM, repeats: int, l2: float = 10.0) -> dict[str, Any]:
    """AlphaEdit's update for eight requests at one layer, against the dense system of the authors' code."""
    layer, C = LAYERS[0], covariance.second_moment(lm, LAYERS[:1])
    P = alphaedit.projector(C, layer)
    k, h = keys_and_states(lm, eight(lm), layer, [minilib.requests.SLOT], last=layer)
    K1, R = k[:, 0].T.double(), h[:, 0].T.double()

    def plain() -> Tensor:
        p, k1, r = P.float(), K1.float(), R.float()
        return torch.linalg.solve(p @ (k1 @ k1.T) + l2 * torch.eye(len(p)), p @ k1 @ r.T).T

    functions = {
        "plain": plain,
        "ours": lambda: R @ alphaedit.spread(K1, K1[:, :0], P, l2),
        "floor": lambda: P @ K1,
    }
    times, found = in_turn(functions, 10 * repeats)
    error = distance(found["ours"], found["plain"])
    assert error <= 1e-3, f"the dense system gives another update, {error:.1e} away"
    return summary("AlphaEdit, one update for 8", times, error, layer=layer, requests=K1.shape[1])


def eight(lm: minilib.LM) -> list[minilib.Request]:
    """Refusals of the first eight facts about capitals."""
    return [minilib.Request(f.question, f.subject, REFUSAL, chat=True) for f in facts.load("capital")[:8]]


MEASURES = {
    "plain": lambda lm, n, full: search(lm, "ROME, plain prompt", [TOWER], 5, "mlp", n, None),
    "chat": lambda lm, n, full: search(lm, "ROME, chat refusal", [CAPITAL], 4, "mlp", n, None),
    "batch": lambda lm, n, full: search(
        lm, "8 chat refusals, one batch", eight(lm), LAYERS[-1], "block", min(n, 3), 20
    ),
    "moments": lambda lm, n, full: moments(lm, min(n, 3), full),
    "grace": lambda lm, n, full: entries(lm, min(n, 3)),
    "wise": lambda lm, n, full: side(lm, min(n, 3)),
    "projectors": lambda lm, n, full: projectors(lm, n),
    "solve": lambda lm, n, full: update(lm, n),
}


# ---- memory --------------------------------------------------------------------------------------


def memory_of(job: str) -> dict[str, float]:
    """In a process of its own: resident memory (GB) of the loaded model, and what the job adds at its highest."""
    script = [sys.executable, __file__, "--memory-job", job]
    ran = subprocess.run(script, capture_output=True, text=True, check=True)
    return json.loads(ran.stdout.splitlines()[-1])


def memory_job(job: str) -> None:
    """Load the model, run it once so that all of it is there, then the job; print both numbers."""
    import psutil  # comes with accelerate

    lm = minilib.load(MODEL, progress=False)
    lm.generate("Hello", max_new_tokens=1)
    loaded = psutil.Process().memory_info().rss / 1e9
    if job == "moments":
        covariance.second_moment(lm, LAYERS, covariance.of_model(lm))
    else:
        values.find(lm, eight(lm), LAYERS[-1], "block", rome.Settings.of(lm, steps=3))
    # Kilobytes, on macOS bytes. A peak while loading that was higher makes the number too large, never too small.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e9 if sys.platform == "darwin" else 1e6 / 1.024)
    print(json.dumps({"loaded": round(loaded, 3), "above": round(peak - loaded, 3)}))


# ---- showing -------------------------------------------------------------------------------------


def quartiles(x: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    if len(x) == 1:
        return x[0], x[0], x[0]
    low, middle, high = statistics.quantiles(x, n=4, method="inclusive")
    return low, middle, high


def table(found: dict[str, Any]) -> str:
    """The results as aligned text: medians, and quartiles in brackets."""
    rows = [["", "plain loop", "minilib", "floor", "times as fast", "target", "minilib / floor"]]
    for key, row in found["measures"].items():
        spent = {name: "{1:.2f} s [{0:.2f}–{2:.2f}]".format(*quartiles(x)) for name, x in row["seconds"].items()}
        ratio = "{1:.1f} [{0:.1f}–{2:.1f}]".format(*quartiles(row["ratio"]))
        target = f"≥ {TARGETS[key]}"
        rows.append(
            [row["what"], spent["plain"], spent["ours"], spent["floor"], ratio, target, f"{row['ours_to_floor']:.2f}"]
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    for key, row in found["measures"].items():
        if key == "moments":
            ratio = "{1:.1f} [{0:.1f}–{2:.1f}]".format(*quartiles(row["ratio_stopping"]))
            lines.append(f"second moments against one pass a layer that stops at the layer: {ratio} times as fast")
            whole = ", ".join(f"{NAMES[name]} {spent:.0f} s" for name, spent in row["whole_text"].items())
            lines.append(f"second moments of all {row['tokens']} tokens, once: {whole}")
    for job, m in found["memory"].items():
        gb = f"{m['above']:.2f} GB above the loaded model's {m['loaded']:.2f}"
        lines.append(f"memory, {JOBS[job]}: {gb} (at most {MEMORY_TARGET})")
    for call in ("prompt", "token") if "lookup" in found else ():
        ms = found["lookup"][call]["seconds"] * 1000
        lines.append(
            f"a lookup in the pass over a {call} ({ms:.0f} ms) adds, up to 1,000 entries ≤ {LOOKUP_TARGET:.0%}:"
        )
        for kind, share in found["lookup"][call]["share"].items():
            lines.append("    {0}: {2:.1%} [{1:.1%}–{3:.1%}]".format(kind, *share))
    return "\n".join(lines)


def one_thread(lm: minilib.LM) -> dict[str, Any]:
    """The two short searches with a single thread: a second one helps the plain loop more, as it multiplies more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return {key: MEASURES[key](lm, 2, False) for key in ("plain", "chat")}
    finally:
        torch.set_num_threads(threads)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two pairs each instead of five or three")
    parser.add_argument("--full", action="store_true", help="the plain second moments on all of the text too, once")
    parser.add_argument("--store", action="store_true", help="keep the results for the page on performance")
    parser.add_argument("--only", choices=list(MEASURES), help="one measurement alone")
    parser.add_argument("--memory-job", choices=list(JOBS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_job:
        memory_job(options.memory_job)
        return
    started = time.perf_counter()
    # First, while this process is small: on Linux a new process starts with its parent's peak as its own.
    memory = {} if options.only else {job: memory_of(job) for job in JOBS}
    lm = minilib.load(MODEL)
    lm.model.requires_grad_(False)  # the plain loop too is spared the gradients of weights
    values.find(
        lm, [TOWER], 5, "mlp", values.Search(steps=2, lr=0.5, weight_decay=0.5, clamp_factor=4.0, kl_factor=0.0625)
    )  # warm up
    found: dict[str, Any] = {"measures": {}, "memory": memory}
    for key in [options.only] if options.only else MEASURES:
        print(f"[{time.perf_counter() - started:3.0f} s] {key}", file=sys.stderr, flush=True)
        found["measures"][key] = MEASURES[key](lm, 2 if options.quick else 5, options.full)
    if not options.only or options.only == "grace":
        found["lookup"] = lookup(lm, 5 if options.quick else 40)
    made = None
    if options.store and options.only:  # the other measurements stay as they are stored
        earlier = stored.load("speed")
        made = earlier.pop("provenance")
        found = {
            **earlier,
            **found,
            "measures": {**earlier["measures"], **found["measures"]},
            "memory": earlier["memory"],
        }
    elif options.store:
        found["one_thread"] = one_thread(lm)
    print(f"{torch.get_num_threads()} threads, {time.perf_counter() - started:.0f} seconds\n{table(found)}")
    if options.store:
        print(f"stored in {stored.save('speed', found, 'benchmarks/speed.py', started, earlier=made).name}")


if __name__ == "__main__":
    main()
