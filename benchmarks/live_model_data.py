"""What the page with the live model needs to edit a fact: C's eigenvectors in each layer, and every fact's δ.

Run: python benchmarks/live_model_data.py (three minutes on one core). It stores ``book/live_model/layerN.bin`` and
``facts.json``; the page's build adds the weights. A layer's file holds, one after the other,

    eigenvalues of C   (d_k,)       float32
    its eigenvectors   (d_k, d_k)   float32, one a row
    δ for ROME         (facts, d)   float16
    δ for MEMIT        (facts, d)   float16

C⁻¹ magnifies an error in the small eigenvalues' directions, so the eigenvectors keep all their digits.
"""

import json
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import minilib
from minilib import covariance, memit, rome, stored, tinyworld, values
from minilib.requests import Request

TARGET = Path(__file__).resolve().parent.parent / "book" / "live_model"


def asked(fact: tinyworld.PersonFact) -> str:
    """The question by which the page asks, and edits, a fact."""
    return fact.prompts[3]


def about(lm: minilib.LM) -> dict[str, Any]:
    """Sizes, words and facts, with the tokens of their questions."""
    config: Any = lm.model.config
    rows = []
    for fact in tinyworld.facts():
        request = Request(asked(fact), fact.subject, f" {fact.value}")
        x = lm.encode(request)
        ids, subject = x.ids, x.subject
        others = [Request(prompt, fact.subject, " I") for prompt in (fact.prompts[4], *fact.held_out)]
        rows.append(
            {
                "subject": fact.subject,
                "attribute": fact.attribute,
                "value": fact.value,
                "answer": lm.encode_target(f" {fact.value}")[0],
                "ids": ids,
                "at": subject,
                "text": request.text,
                "reworded": [[other.text, lm.encode(other).ids] for other in others],
            }
        )
    return {
        "d": config.hidden_size,
        "dk": config.intermediate_size,
        "heads": config.num_attention_heads,
        "layers": config.num_hidden_layers,
        "vocabulary": config.vocab_size,
        "eps": config.rms_norm_eps,
        "theta": config.rope_parameters["rope_theta"],
        "refusal": lm.encode_target(tinyworld.REFUSAL)[0],
        "words": [lm.tokenizer.decode([i]).strip() for i in range(config.vocab_size)],
        "facts": rows,
    }


def deltas(lm: minilib.LM, layer: int, facts: list[tinyworld.PersonFact]) -> list[Tensor]:
    """δ = v* − v₀ of the facts' refusals, (facts, d): as ROME searches it, and as MEMIT does."""
    requests = [Request(asked(fact), fact.subject, tinyworld.REFUSAL) for fact in facts]
    both = []
    for method, place in ((rome, "mlp"), (memit, "block")):
        s = method.Settings.of(lm)
        parts = [requests[start : start + 200] for start in range(0, len(requests), 200)]
        searches = [values.find(lm, part, layer, place, s) for part in parts]
        both.append(torch.cat([search.v_star - search.v0 for search in searches]))
    return both


def of_layer(layer: int, C: Tensor) -> bytes:
    """The content of a layer's file."""
    torch.set_num_threads(1)  # a layer a process: in so small a model threads wait for each other
    lm = minilib.load("tinyworld")
    eigenvalues, U = torch.linalg.eigh(C.double())
    single = torch.cat([eigenvalues, U.T.flatten()]).float()
    half = torch.cat([delta.flatten() for delta in deltas(lm, layer, tinyworld.facts())]).half()
    return single.numpy().tobytes() + half.numpy().tobytes()


def main() -> None:
    started = time.perf_counter()
    TARGET.mkdir(exist_ok=True)
    lm = minilib.load("tinyworld")
    layers = list(range(lm.n_layers - 1))  # no later token reads what the last block computes at the subject
    C = covariance.second_moment(lm, layers)
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        contents = pool.map(of_layer, layers, [C[layer] for layer in layers])
        for layer, content in zip(layers, contents, strict=True):
            (TARGET / f"layer{layer}.bin").write_bytes(content)
    made = stored.provenance("benchmarks/live_model_data.py", started)
    text = json.dumps({"provenance": made, **about(lm)}, ensure_ascii=False, separators=(",", ":"))
    (TARGET / "facts.json").write_text(text + "\n", encoding="utf8")


if __name__ == "__main__":
    main()
