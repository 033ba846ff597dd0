"""Each method on models of 0.1 to 7 billion parameters on a GPU: its seconds, and its memory.

SmolLM2 has its own weights; the larger ones have the shape of published models and random weights, for neither memory
nor time depends on what the numbers are. Vocabularies are at least as large as SmolLM2's, whose tokenizer reads for
all. What does not fit is stored as such. Run: python benchmarks/on_gpu.py (ten minutes on a GPU of 80 GB)
"""

import json
import subprocess
import sys
import time
from dataclasses import asdict
from typing import Any

import torch
import transformers

import minilib
from minilib import METHODS, covariance, facts, footprint, grace, stored, texts, unlearning, wise

FACTS = 5
STEPS = 3  # of training: enough to need all that training needs
FIRST = 2  # of the layers that are written to
HEADS = {"1 B": (32, 8), "3 B": (24, 8), "7 B": (32, 32)}


def of_size(size: str) -> minilib.LM:
    """SmolLM2, or a Llama of another size with random weights."""
    small = minilib.load("smollm2-135m", device="cuda", progress=False)
    if size == "0.1 B":
        return small
    shape = footprint.SHAPES[size]
    heads, groups = HEADS[size]
    config = transformers.LlamaConfig(
        vocab_size=max(shape.vocabulary, small.head.weight.shape[0]), hidden_size=shape.d,
        intermediate_size=shape.d_k, num_hidden_layers=shape.layers, num_attention_heads=heads,
        num_key_value_heads=groups, tie_word_embeddings=size != "7 B",
    )  # fmt: skip
    tokenizer = small.tokenizer
    del small
    torch.cuda.empty_cache()
    with torch.device("cuda"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    return minilib.LM(model, tokenizer, name=size)


def spectrum(d_k: int) -> torch.Tensor:
    """Second moments with many small eigenvalues, as real ones have."""
    X = torch.randn(d_k, d_k, device="cuda") * torch.logspace(0, -3, d_k, device="cuda")
    return X.T @ X / d_k + 1e-6 * torch.eye(d_k, device="cuda")


def run(size: str, method: str) -> dict[str, Any]:
    """The method on five refusals: GB of the loaded model and above it, and seconds."""
    torch.manual_seed(0)
    lm = of_size(size)
    some = facts.recorded()[: 2 * FACTS]
    requests = [f.request("I don't know.") for f in some[:FACTS]]
    told, retain = ([f.request(f.answer) for f in part] for part in (some[:FACTS], some[FACTS:]))
    lm.generate(requests[:1], max_new_tokens=1)
    torch.cuda.synchronize()
    loaded = torch.cuda.memory_allocated()
    window = [FIRST] if method == "rome" else list(range(FIRST, FIRST + 5))
    how: dict[str, Any] = {"seed": 0}
    if method in ("rome", "memit", "alphaedit"):
        if size == "0.1 B":
            how["covariance"] = covariance.second_moment(lm, window)
        else:
            how["covariance"] = {layer: spectrum(lm.memory(0).shape[1]) for layer in window}
        how |= {"layer": FIRST} if method == "rome" else {"layers": window}
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    if method in ("rome", "memit", "alphaedit"):
        METHODS[method].edit(lm, requests, **how)
    elif method == "grace":
        grace.edit(lm, requests, layer=3 * lm.n_layers // 4)
    elif method == "wise":
        wise.edit(lm, requests, irrelevant=texts.messages()[:64], layer=3 * lm.n_layers // 4, **how)
    else:
        train = "lora" if "lora" in method else "all"
        unlearning.npo(lm, told, retain, steps=STEPS, batch_size=4, train=train, **how)
    torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    return {
        "shape": asdict(footprint.of(lm)),
        "loaded": round(loaded / 1e9, 3),
        "above": round((torch.cuda.max_memory_allocated() - loaded) / 1e9, 3),
        "seconds": round(seconds, 2),
    }


def main() -> None:
    if sys.argv[1:2] == ["--run"]:
        print(json.dumps(run(*sys.argv[2:4])))
        return
    began = time.perf_counter()
    total = torch.cuda.mem_get_info()[1]
    device = {"name": torch.cuda.get_device_name(), "GB": round(total / 1e9, 1)}
    rows, shapes = [], {}
    for size in footprint.SHAPES:
        for method in footprint.METHODS:
            row: dict[str, Any] = {"size": size, "method": method}
            ran = subprocess.run(
                [sys.executable, __file__, "--run", size, method], capture_output=True, text=True, check=False
            )
            if ran.returncode == 0:
                row |= json.loads(ran.stdout.splitlines()[-1])
                shapes[size] = row.pop("shape")
            elif "OutOfMemoryError" in ran.stderr:
                row |= {"fits": False}
            else:
                raise RuntimeError(ran.stderr[-3000:])
            rows.append(row)
            print(row, file=sys.stderr, flush=True)
            stored.save(
                "on_gpu", {"rows": rows, "shapes": shapes, "facts": FACTS, "gpu": device}, "benchmarks/on_gpu.py", began
            )


if __name__ == "__main__":
    main()
