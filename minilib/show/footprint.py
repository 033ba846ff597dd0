"""How much memory a method needs, by formula: before a larger model is loaded, not after it has run out.

Counted is what grows with the model: its weights, second moments and what is solved with them, the copies that undo
needs, the change itself, gradients, the two moments of Adam, and the activations of a training step. The rest (Python,
libraries, what an allocator keeps) is some hundred megabytes. ``benchmarks/memory.py`` compares each formula with
what a process really used on SmolLM2, ``benchmarks/on_gpu.py`` with what up to 7 billion parameters took on a GPU.

>>> from minilib import footprint
>>> shape = footprint.SHAPES["7 B"]
>>> sum(footprint.parts("npo", shape).values()) > 4 * footprint.parts("rome", shape)["weights"]
True
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..model import LM

METHODS = ("rome", "memit", "alphaedit", "grace", "wise", "npo", "npo, lora")
"""``npo`` stands for all losses of ``minilib.unlearning`` but RMU, which trains three layers."""
SEEN, TOLD = 20, 6  # tokens of a request from its subject on, and those of its target
UPPER = {"grace": 0.25, "wise": 0.25}  # of the blocks lie above the layer
SINGLE, DOUBLE = 4, 8  # bytes of a number in float32 and float64


@dataclass(frozen=True)
class Shape:
    """What of a model decides how much memory it needs.

    Attributes
    ----------
    parameters : int
    layers, d, d_k, vocabulary : int
        Blocks, width of the residual stream, width of the MLP, tokens.
    """

    parameters: int
    layers: int
    d: int
    d_k: int
    vocabulary: int


SHAPES = {
    "0.1 B": Shape(134_515_008, 30, 576, 1536, 49_152),  # SmolLM2-135M
    "1 B": Shape(1_235_814_400, 16, 2048, 8192, 128_256),  # Llama 3.2 1B
    "3 B": Shape(3_212_749_824, 28, 3072, 8192, 128_256),  # Llama 3.2 3B
    "7 B": Shape(6_738_415_616, 32, 4096, 11_008, 32_000),  # Llama 2 7B
}
"""Published models of about that size, from their configurations."""


def of(lm: LM) -> Shape:
    """The shape of a loaded model."""
    rows, d_k = lm.memory(0).shape
    parameters = sum(p.numel() for p in lm.model.parameters())
    return Shape(parameters, lm.n_layers, rows, d_k, lm.head.weight.shape[0])


def parts(
    method: str,
    shape: Shape,
    weight_bytes: int = SINGLE,
    requests: int = 5,
    window: int = 5,
    tokens: int = 400,
    rank: int = 8,
) -> dict[str, float]:
    """Bytes at the highest point of an edit, by what they hold; ``sum(...values())`` is what the machine must have.

    Parameters
    ----------
    method : str
        One of ``METHODS``.
    shape : Shape
    weight_bytes : int, default 4
        2 in bfloat16. Moments, keys and values, and all that is solved stay in float32 and float64.
    requests : int, default 5
        Of an editor, in one call: of each some twenty tokens are seen by what is searched for.
    window : int, default 5
        Layers that MEMIT and AlphaEdit write to.
    tokens : int, default 400
        Read in one training step: of four questions with their answers, and of as many that are retained.
    rank : int, default 8
        Of LoRA.

    Raises
    ------
    ValueError
        When the method is another one, or a number is not positive.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, not {method!r}")
    numbers = {"weight_bytes": weight_bytes, "requests": requests, "window": window, "tokens": tokens, "rank": rank}
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ValueError(f"{name} must be a whole number above 0, not {number!r}")
    W, square, N = shape.d * shape.d_k, shape.d_k**2, shape.parameters
    need: dict[str, float] = {"weights": weight_bytes * N}
    layers = min(window, shape.layers) if method in ("memit", "alphaedit") else 1
    blocks = N - shape.vocabulary * shape.d  # what LoRA changes
    if method in ("rome", "memit", "alphaedit"):
        need["second moments"] = SINGLE * square * layers
        need["for undo"] = weight_bytes * W * layers
        need["the change"] = SINGLE * W * layers
        # P or a Cholesky factor of each layer; while one is made C in float64, or eigenvectors and their product
        need["solving"] = DOUBLE * square * layers + square * (SINGLE + 2 * DOUBLE if method == "alphaedit" else DOUBLE)
    elif method == "wise":
        # Highest where two shards are merged: listed, stacked, trimmed and stacked again, and what TIES makes of them
        need["side memory"] = 15 * SINGLE * W
    elif method == "npo":
        need["for undo"] = weight_bytes * N
        need["gradients"] = weight_bytes * N
        need["Adam's moments"] = 2 * weight_bytes * N
    elif method == "npo, lora":
        need["for undo"] = need["the change"] = weight_bytes * blocks
        # Seven matrices a block, each with two thin ones, their gradients and two moments of them
        need["low-rank matrices"] = 4 * weight_bytes * rank * shape.layers * (11 * shape.d + 3 * shape.d_k)
    need["activations"] = _activations(method, shape, weight_bytes, requests, tokens)
    return need


def _activations(method: str, shape: Shape, weight_bytes: int, requests: int, tokens: int) -> float:
    """What backward needs of each block (norms, attention, the MLP) and of the logits, of the tokens that are read."""
    if method == "rome":  # one after another
        requests = 1
    read, told = (tokens, tokens) if method.startswith("npo") else (SEEN * requests, TOLD * requests)
    share = UPPER.get(method, 1.0)
    block = 12 * shape.d + 4 * shape.d_k
    return weight_bytes * (read * share * shape.layers * block + told * 4 * shape.vocabulary)


def table(weight_bytes: int = SINGLE, shapes: Mapping[str, Shape] = SHAPES) -> list[list[str]]:
    """GB for each method, a column for each shape."""
    return [
        [method, *(f"{sum(parts(method, shape, weight_bytes).values()) / 1e9:.1f}" for shape in shapes.values())]
        for method in METHODS
    ]
