"""What the page with the live model fetches: weights, facts, and of each layer C's eigenvectors and every fact's δ.

Computed when the book is built, kept until the library changes. Takes three minutes on one core.
"""

import hashlib
import json
import multiprocessing
import os
import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
import wasmtime
from common import ROOT, say
from torch import Tensor

import minilib
from minilib import Request, covariance, memit, rome, stored, tinyworld, values
from minilib.edits import settle

SOURCE = ROOT / "book" / "_static" / "live"
TARGET = ROOT / "book" / "_static" / "live_data"
ROWS, COLUMNS = 4, 8  # of the kernel: what it multiplies has to be a multiple


def tensors(lm: minilib.LM) -> dict[str, Tensor]:
    """The weights as the page reads them: each matrix transposed, (in × out)."""
    model: Any = lm.model.model
    found = {"embed": model.embed_tokens.weight, "norm": model.norm.weight[None]}
    head = lm.head.weight.T
    found["head"] = torch.nn.functional.pad(head, (0, -head.shape[1] % COLUMNS))
    for i, block in enumerate(model.layers):
        attention, mlp = block.self_attn, block.mlp
        qkv = [attention.q_proj, attention.k_proj, attention.v_proj]
        found[f"qkv{i}"] = torch.cat([m.weight for m in qkv]).T
        found[f"out{i}"] = attention.o_proj.weight.T
        found[f"up{i}"] = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]).T
        found[f"down{i}"] = mlp.down_proj.weight.T
        found[f"norm1{i}"] = block.input_layernorm.weight[None]
        found[f"norm2{i}"] = block.post_attention_layernorm.weight[None]
    return {name: x.detach().float().contiguous() for name, x in found.items()}


def asked(fact: tinyworld.Fact) -> str:
    """The question by which the page asks, and edits, a fact."""
    return fact.prompts[3]


def about(lm: minilib.LM, placed: dict[str, list[int]]) -> dict[str, Any]:
    """Sizes, words and facts."""
    config: Any = lm.model.config
    words = [lm.tokenizer.decode([i]).strip() for i in range(config.vocab_size)]
    rows = []
    for fact in tinyworld.facts():
        request = Request(asked(fact), fact.subject, f" {fact.value}")
        ids, subject, _ = lm.encode(request)
        others = [fact.prompts[4], *fact.held_out]
        rows.append({
            "subject": fact.subject, "attribute": fact.attribute, "value": fact.value,
            "answer": lm.encode_target(f" {fact.value}")[0], "ids": ids, "at": subject, "text": request.text,
            "reworded": [[r.text, lm.encode(r).ids] for r in (Request(p, fact.subject, " I") for p in others)],
        })  # fmt: skip
    padded = lm.head.weight.shape[0] + -lm.head.weight.shape[0] % COLUMNS
    return {
        "d": config.hidden_size, "dk": config.intermediate_size, "heads": config.num_attention_heads,
        "layers": config.num_hidden_layers, "vocabulary": config.vocab_size, "padded": padded,
        "eps": config.rms_norm_eps, "theta": config.rope_parameters["rope_theta"],
        "refusal": lm.encode_target(tinyworld.REFUSAL)[0], "words": words, "tensors": placed, "facts": rows,
    }  # fmt: skip


def search(lm: minilib.LM, presets: dict[str, dict[str, Any]]) -> dict[str, Any]:
    settings = settle(lm, presets, {})
    return {name: settings[name] for name in values.SEARCH}


def of_layer(layer: int, C: Tensor) -> bytes:
    """Eigenvalues, eigenvectors in rows, and δ = v* − v₀ of all facts for ROME and for MEMIT, one after the other."""
    torch.set_num_threads(1)  # a layer a process: in so small a model threads wait for each other
    lm = minilib.load("tinyworld")
    w, U = torch.linalg.eigh(C.double())
    requests = [Request(asked(f), f.subject, tinyworld.REFUSAL) for f in tinyworld.facts()]
    deltas = []
    for presets, place in ((rome.PRESETS, "mlp"), (memit.PRESETS, "block")):
        for start in range(0, len(requests), 200):
            found = values.find(lm, requests[start : start + 200], layer, place, **search(lm, presets))
            deltas.append((found.v_star - found.v0).flatten())
    return torch.cat([w.flatten(), U.T.flatten(), *deltas]).float().numpy().tobytes()


def build() -> None:
    """Make what is missing or was made by another version of what it rests on."""
    used = ("covariance", "keys", "lm", "memit", "rome", "tinyworld", "values")
    files = [*(ROOT / "minilib" / f"{name}.py" for name in used), *sorted(tinyworld.FOLDER.glob("*")), Path(__file__)]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    made = TARGET / "made"
    if made.is_file() and made.read_text() == digest:
        copy_small(TARGET)
        return
    say("Computing what the live model needs: v* of every fact in every layer (two minutes)")
    lm = minilib.load("tinyworld")
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder, "live")
        scratch.mkdir()
        placed, parts, at = {}, [], 0
        for name, x in tensors(lm).items():
            placed[name] = [at, *x.shape]
            parts.append(x.flatten())
            at += x.numel()
        (scratch / "model.bin").write_bytes(torch.cat(parts).numpy().tobytes())
        (scratch / "model.json").write_text(json.dumps(about(lm, placed)), encoding="utf8")
        layers = list(range(lm.n_layers - 1))  # no later token reads what the last block computes at the subject
        C = covariance.second_moment(lm, layers)
        with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
            made_of = pool.map(of_layer, layers, [C[layer] for layer in layers])
            for layer, content in zip(layers, made_of, strict=True):
                (scratch / f"layer{layer}.bin").write_bytes(content)
        copy_small(scratch)
        (scratch / "made").write_text(digest)
        shutil.rmtree(TARGET, ignore_errors=True)
        shutil.copytree(scratch, TARGET)


def copy_small(folder: Path) -> None:
    """What is made in no time, every time: the kernel, and the playground's stored answers."""
    shutil.copy(stored.RESULTS / "playground.json", folder)
    (folder / "matmul.wasm").write_bytes(wasmtime.wat2wasm((SOURCE / "matmul.wat").read_text()))


if __name__ == "__main__":
    build()
