"""What the page with the live model fetches: stored layers and facts, tinyworld's weights as the page reads them.

Nothing is computed here and PyTorch isn't needed: benchmarks/live_model_data.py made the stored files.
"""

import json
import shutil
import struct
from array import array
from pathlib import Path
from typing import Any

import real_model
import wasmtime
from common import ROOT

STORED = ROOT / "book" / "live_model"
SOURCE = ROOT / "book" / "_static" / "live"
TARGET = ROOT / "book" / "_static" / "live_data"
WEIGHTS = ROOT / "minilib" / "data" / "tinyworld" / "model.safetensors"
PLAYGROUND = ROOT / "minilib" / "data" / "results" / "playground.json"
REAL = ROOT / "book" / "real_model"  # the inverse factors of the real model's C, by layer
COLUMNS = 8  # of the kernel: what it multiplies by has a multiple of them


def read(file: Path) -> dict[str, tuple[list[int], array]]:
    """Shape and numbers of each tensor of a float32 safetensors file."""
    content = file.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    about = json.loads(content[8 : 8 + size])
    tensors = {}
    for name, tensor in about.items():
        if name != "__metadata__":
            begin, end = (8 + size + offset for offset in tensor["data_offsets"])
            tensors[name] = tensor["shape"], array("f", content[begin:end])
    return tensors


def transposed(numbers: array, columns: int) -> array:
    """A matrix (rows, columns) as (columns, rows)."""
    turned = array("f")
    for column in range(columns):
        turned.extend(numbers[column::columns])
    return turned


def weights(about: dict[str, Any]) -> tuple[dict[str, list[int]], array]:
    """Where each matrix begins with its rows and columns, and all of them in one row of numbers.

    A projection is stored transposed, (in, out), and what multiplies the same input stands side by side.
    """
    tensors, d = read(WEIGHTS), about["d"]
    embed = tensors["model.embed_tokens.weight"][1]
    padded = embed + array("f", bytes(4 * d * (about["padded"] - about["vocabulary"])))
    parts = {"embed": (d, embed), "norm": (d, tensors["model.norm.weight"][1])}
    parts["head"] = (about["padded"], transposed(padded, d))  # tied: the head is the embedding
    joined = {
        "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "out": ("self_attn.o_proj",),
        "up": ("mlp.gate_proj", "mlp.up_proj"),
        "down": ("mlp.down_proj",),
    }
    for layer in range(about["layers"]):
        block = f"model.layers.{layer}."
        for name, projections in joined.items():
            matrices = [tensors[f"{block}{projection}.weight"] for projection in projections]
            numbers = array("f")
            for _, matrix in matrices:
                numbers.extend(matrix)
            rows = sum(shape[0] for shape, _ in matrices)
            parts[f"{name}{layer}"] = (rows, transposed(numbers, matrices[0][0][1]))
        parts[f"norm1{layer}"] = (d, tensors[f"{block}input_layernorm.weight"][1])
        parts[f"norm2{layer}"] = (d, tensors[f"{block}post_attention_layernorm.weight"][1])
    placed, everything = {}, array("f")
    for name, (columns, numbers) in parts.items():
        placed[name] = [len(everything), len(numbers) // columns, columns]
        everything.extend(numbers)
    return placed, everything


def build() -> None:
    """Put together what the page and the playground fetch, in ``book/_static/live_data``."""
    TARGET.mkdir(parents=True, exist_ok=True)
    about = json.loads((STORED / "facts.json").read_text("utf8"))
    about["padded"] = about["vocabulary"] + -about["vocabulary"] % COLUMNS
    about["tensors"], numbers = weights(about)
    (TARGET / "model.json").write_text(json.dumps(about), encoding="utf8")
    (TARGET / "model.bin").write_bytes(numbers.tobytes())
    (TARGET / "matmul.wasm").write_bytes(wasmtime.wat2wasm((SOURCE / "matmul.wat").read_text()))
    for file in (*STORED.glob("*.bin"), PLAYGROUND):
        shutil.copy(file, TARGET)
    build_real()


def build_real() -> None:
    """The real model's kernel, its factors, and what the page must know before it fetches anything."""
    source = (ROOT / "book" / "_static" / "real" / "kernel.wat").read_text("utf8")
    for name, memory in (("real_kernel", "1"), ("real_kernel_shared", "1 8192 shared")):
        (TARGET / f"{name}.wasm").write_bytes(wasmtime.wat2wasm(source.replace("MEMORY", memory)))
    layers = []
    for file in REAL.glob("factor*.bin"):
        shutil.copy(file, TARGET / f"real_{file.name}")
        layers.append(int(file.stem.removeprefix("factor")))
    about = {"layers": sorted(layers), "manifest": real_model.there()}  # none: `make live` was not run
    (TARGET / "real.json").write_text(json.dumps(about), encoding="utf8")


if __name__ == "__main__":
    build()
