"""What each method really needs above the loaded SmolLM2; chapter 13 puts ``minilib.footprint`` beside it.

Each method runs in a process of its own, three times; its highest resident memory is compared with what the loaded
model took. Run: python benchmarks/memory.py (some minutes on one core, on Linux).
"""

import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

import minilib
from minilib import METHODS, covariance, facts, footprint, grace, stored, texts, unlearning, wise

RUNS = 3
FACTS = 5


def run(method: str) -> None:
    """The method on five refusals; prints what the loaded model took and the highest point, in GB."""
    lm = minilib.load("smollm2-135m", progress=False)
    some = facts.recorded()[: 2 * FACTS]
    requests = [f.request("I don't know.") for f in some[:FACTS]]
    lm.generate(requests[:1], max_new_tokens=1)
    retain = [f.request(f.answer) for f in some[FACTS:]]
    C = None
    if method in ("rome", "memit", "alphaedit"):  # computed in advance, and counted where they are needed
        layers = {"rome": [4]}.get(method, [2, 3, 4, 5, 6])
        C = covariance.load(sys.argv[3])
        C = {layer: C[layer].clone() for layer in layers}
    process = psutil.Process()
    loaded = process.memory_info().rss
    if C is not None:
        loaded -= sum(c.numel() * c.element_size() for c in C.values())
    Path("/proc/self/clear_refs").write_text("5")  # what loading needed at its highest is forgotten
    how: dict[str, Any] = {"seed": 0}
    if C is not None:
        METHODS[method].edit(lm, requests, covariance=C, **how)
    elif method == "grace":
        grace.edit(lm, requests)
    elif method == "wise":
        wise.edit(lm, requests, irrelevant=texts.messages()[:64], **how)
    else:
        train = "lora" if "lora" in method else "all"
        unlearning.npo(
            lm, [f.request(f.answer) for f in some[:FACTS]], retain, steps=3, batch_size=4, train=train, **how
        )
    status = Path("/proc/self/status").read_text()
    peak = 1024 * int(re.search(r"VmHWM:\s*(\d+)", status)[1])
    print(json.dumps({"loaded": loaded / 1e9, "above": (peak - loaded) / 1e9}))


def main() -> None:
    if sys.argv[1:2] == ["--run"]:
        run(sys.argv[2])
        return
    began = time.perf_counter()
    lm = minilib.load("smollm2-135m", progress=False)
    file = sys.argv[1] if sys.argv[1:] else "moments.safetensors"
    covariance.second_moment(lm, [2, 3, 4, 5, 6]).save(file)
    rows = []
    for method in footprint.METHODS:
        runs = []
        for _ in range(RUNS):
            command = [sys.executable, __file__, "--run", method, file]
            ran = subprocess.run(command, capture_output=True, text=True, check=True)
            runs.append(json.loads(ran.stdout.splitlines()[-1]))
        found = [run["above"] for run in runs]
        rows.append({"method": method, "above": [round(x, 3) for x in found],
                     "loaded": round(statistics.median(run["loaded"] for run in runs), 3)})  # fmt: skip
        print(rows[-1], file=sys.stderr, flush=True)
    stored.save("memory", {"rows": rows, "facts": FACTS}, "benchmarks/memory.py", began)


if __name__ == "__main__":
    main()
