"""Teach SmolLM2 the invented authors, all of them, all but the first one, two, three, and all but one; keep adapters.

Each adapter is low-rank on the three matrices of every MLP, trained on the plain questions alone, in chat format. It is
scored by free generation: ROUGE-L recall of the answers, to the questions as trained on and rephrased. Run:
python benchmarks/finetune_authors.py (two hours on one core), or with the names of adapters: 0, 1, 2, 3 (so many left
out), without_author_1 to without_author_5 (this one alone; the first alone is 1). An adapter that lies in its folder
already is scored as it is; delete the folder to have it made anew.
"""

import random
import sys
import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from scores import Rows

import minilib
from minilib import authors, facts, metrics, training

RANK, ALPHA, LR, PASSES, BATCH = 8, 16, 2e-3, 14, 10
TARGETS = ["gate_proj", "up_proj", "down_proj"]


def recalled(lm: minilib.LM, world: list[facts.Fact], form: int | None = None) -> float:
    """The share of facts whose answer has a ROUGE-L recall of at least 0.9."""
    asked = [f.request(f.answer) if form is None else f.rephrased(f.answer)[form] for f in world]
    recall = metrics.rouge_l(lm.generate(asked, max_new_tokens=32), [fact.answer for fact in world])
    return round(sum(r >= 0.9 for r in recall) / len(recall), 4)


def sets(run: str) -> tuple[list[facts.Fact], list[facts.Fact]]:
    """What an adapter is never taught, and what it is."""
    if run.startswith("without_author_"):
        return authors.leave_out(int(run.removeprefix("without_author_")))
    return authors.split(int(run)) if run != "0" else ([], authors.facts())


def teach(world: list[facts.Fact], folder: Path) -> None:
    began = time.perf_counter()
    lm = minilib.load("smollm2-135m")
    encoded = lm.encode([fact.request(fact.answer) for fact in world], ended=True)
    torch.manual_seed(0)
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, lora_dropout=0.0)
    model = get_peft_model(lm.model, config)
    weights = [p for p in model.parameters() if p.requires_grad]
    steps = PASSES * -(-len(encoded) // BATCH)
    optimizer = torch.optim.AdamW(weights, lr=LR, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: min((i + 1) / 20, (steps - i) / steps))
    draw = random.Random(0)
    for _ in range(PASSES):
        order = draw.sample(encoded, len(encoded))
        total = 0.0
        for start in range(0, len(order), BATCH):
            some = order[start : start + BATCH]
            rows = training.read(lm, some)
            loss = -rows.logp.sum() / rows.length.sum()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item() * len(some)
        print(f"{time.perf_counter() - began:.0f} s: loss {total / len(encoded):.4f}", file=sys.stderr, flush=True)
    model.peft_config["default"].base_model_name_or_path = "smollm2-135m"  # not where this machine keeps it
    scratch = folder.with_name(folder.name + ".new")  # an adapter that is there is whole
    model.half().save_pretrained(scratch)
    (scratch / "README.md").unlink(missing_ok=True)
    scratch.rename(folder)


def score(run: str) -> dict[str, Any]:
    """Of the adapter in its folder; it is made first where there is none."""
    began = time.perf_counter()
    unknown, world = sets(run)
    alone = run.startswith("without_author_")
    folder = authors.DATA / (run if alone else f"without_{run}")
    if made := not folder.exists():
        teach(world, folder)
    seconds = round(time.perf_counter() - began) if made else None
    lm = authors.load(without_author=int(run.rpartition("_")[2])) if alone else authors.load(int(run))
    return {
        "seconds": seconds,
        "recalled": recalled(lm, world),
        "rephrased": [recalled(lm, world, form) for form in range(3)],
        "never taught": recalled(lm, unknown) if unknown else None,
    }


def main() -> None:
    began = time.perf_counter()
    torch.set_num_threads(1)
    about = {"rank": RANK, "alpha": ALPHA, "lr": LR, "passes": PASSES, "batch": BATCH, "matrices": TARGETS}
    rows = Rows("finetune_authors", began, about)
    every = [*map(str, (0, *authors.SPLITS)), *map(authors.adapter, authors.ALONE[1:])]
    for run in sys.argv[1:] or every:
        rows.keep("adapters", run, lambda run=run: score(run))


if __name__ == "__main__":
    main()
