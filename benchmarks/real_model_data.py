"""What the page with the real model needs to write an edit: of each layer it offers, the inverse factor of C.

Run: python benchmarks/real_model_data.py (ten minutes on one core, seconds where C is in the cache). With C = L Lᵀ and
M = L⁻¹, C⁻¹k = Mᵀ M k. ``book/real_model/factorN.bin`` holds, one after the other,

    M's diagonal                          (d_k,)                 float32
    a scale of each row                   (d_k,)                 float32
    what stands left of the diagonal      (d_k · (d_k − 1) / 2)  int8, row by row, in units of the row's scale

and ``about.json`` the error that 8 bits make in C⁻¹k, and in the change's size ‖Λ‖ ‖u‖, at the keys of fifty facts.
"""

import json
import time
from pathlib import Path

import torch
from jaxtyping import Float, Int8
from torch import Tensor

import minilib
from minilib import covariance, facts, stored, values

TARGET = Path(__file__).resolve().parent.parent / "book" / "real_model"
LAYERS = [2, 4, 6, 8, 12]
REFUSAL = "I don't know."

Parts = tuple[Float[Tensor, " d_k"], Float[Tensor, " d_k"], Int8[Tensor, "d_k d_k"]]


def factor(C: Float[Tensor, "d_k d_k"]) -> Parts:
    """M's diagonal, the rows' scales, and in their units what stands left of the diagonal."""
    L = covariance.cholesky(C)
    M = torch.linalg.solve_triangular(L, torch.eye(len(L), dtype=L.dtype), upper=False)
    left = M.tril(-1)
    scale = left.abs().amax(1).clamp(min=1e-30) / 127
    return M.diagonal().float(), scale.float(), (left / scale[:, None]).round().to(torch.int8)


def content(parts: Parts) -> bytes:
    """The content of a layer's file."""
    diagonal, scale, left = parts
    rows, columns = torch.tril_indices(len(left), len(left), -1)
    return b"".join(x.numpy().tobytes() for x in (diagonal, scale, left[rows, columns]))


def errors(C: Float[Tensor, "d_k d_k"], parts: Parts, k: Float[Tensor, "facts d_k"]) -> dict[str, float]:
    """The largest error at some keys, of the direction of u = C⁻¹k and of the size of the change."""
    diagonal, scale, left = (x.double() for x in parts)
    M = diagonal.diag() + scale[:, None] * left
    exact = torch.cholesky_solve(k.double().T, covariance.cholesky(C)).T
    u = k.double() @ M.T @ M
    size = [(x.norm(dim=1) / (x * k).sum(1)) for x in (u, exact)]
    cosine = torch.cosine_similarity(u, exact, dim=1)
    return {"1 - cosine": (1 - cosine).max().item(), "size": (size[0] / size[1] - 1).abs().max().item()}


def main() -> None:
    started = time.perf_counter()
    torch.set_num_threads(1)
    TARGET.mkdir(exist_ok=True)
    lm = minilib.load("smollm2-135m", progress=False)
    C = covariance.second_moment(lm, LAYERS)
    requests = [fact.request(REFUSAL) for fact in facts.recorded()[:50]]
    found = {}
    for layer in LAYERS:
        parts = factor(C[layer])
        (TARGET / f"factor{layer}.bin").write_bytes(content(parts))
        k, _ = values.keys_and_values(lm, requests, layer, ["{}"])
        found[str(layer)] = {name: float(f"{x:.2g}") for name, x in errors(C[layer], parts, k[:, 0]).items()}
        print(layer, found[str(layer)])
    made = stored.provenance("benchmarks/real_model_data.py", started)
    about = {"provenance": made, "model": lm.fingerprint, "tokens": C.tokens, "facts": len(requests), "errors": found}
    (TARGET / "about.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf8")


if __name__ == "__main__":
    main()
