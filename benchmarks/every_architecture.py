"""Every causal architecture of transformers, made tiny: is it edited exactly, or refused in one sentence?

Of each the default configuration is shrunk, a model with random weights is made of it, and ``check`` compares what the
library computes with plain passes of the whole model. A refusal is a ValueError or TypeError of the library. Anything
else is a fault of the library, and the script ends with an error. What is found is stored, and shown on the page
``book/which_models.md``, which this script writes. Each architecture has a process of its own, with
limits on its time and memory. Run: python benchmarks/every_architecture.py --processes 2 (ten minutes on 2 cores), with
names such as bloom for these alone.
"""

import argparse
import multiprocessing
import resource
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import minilib
from minilib import alphaedit, grace, hooks, loading, memit, rome, stored, unlearning, values, wise
from minilib.edits import undo_all

NAMES = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
SECONDS, GIGABYTES, PARAMETERS = 120, 12, 5_000_000  # limits of each
LAYER, LAYERS = 1, [1, 2]  # of four
SMALL: dict[int, str] = {
    32: """hidden_size n_embd d_model dim n_embed embed_dim emb_dim word_embed_proj_dim embedding_size embed_proj_dim
        hidden_size_per_layer_input attention_hidden_size lru_width decoder_hidden_size encoder_hidden_size""",
    64: """intermediate_size ffn_dim n_inner d_ff decoder_ffn_dim encoder_ffn_dim ffn_hidden_size dim_ff dff
        moe_intermediate_size mlp_hidden_size mamba_d_ssm feed_forward_size inner_dim ffn_intermediate_size
        shared_expert_intermediate_size shared_intermediate_size expert_ffn_hidden_size intermediate_size_mlp
        block_ff_dim""",
    4: """num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_decoder_layers
        num_encoder_layers num_attention_heads n_head n_heads num_heads decoder_attention_heads
        encoder_attention_heads num_kda_heads num_experts n_routed_experts num_local_experts moe_num_experts
        mamba_n_heads rotary_dim""",
    2: """num_key_value_heads num_kv_heads n_kv_heads num_experts_per_tok num_experts_per_token moe_top_k
        linear_num_key_heads linear_num_value_heads""",
    8: "head_dim kv_channels linear_key_head_dim linear_value_head_dim v_head_dim qk_nope_head_dim qk_rope_head_dim",
    16: "kv_lora_rank q_lora_rank vision_dim",
    256: "max_position_embeddings n_positions max_target_positions max_seq_len n_ctx",
}  # fmt: skip
SIZES = {name: size for size, names in SMALL.items() for name in names.split()}


class NotMade(Exception):
    """No tiny model could be made of an architecture."""


def tiny(name: str) -> minilib.LM:
    """A model of an architecture with few random weights, and tinyworld's tokenizer."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(loading.TINYWORLD)
    try:
        config = shrunk(CONFIG_MAPPING[name](), len(tokenizer))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = transformers.AutoModelForCausalLM.from_config(config).float()
            for path, parameter in model.named_parameters():
                if "norm" not in path and "ln_" not in path:  # large enough that answers depend on the prompt
                    parameter.data.normal_(0, 0.15)
        if (size := sum(p.numel() for p in model.parameters())) > PARAMETERS:
            raise NotMade(f"it has {size / 1e6:.0f}M parameters when it is shrunk")
    except NotMade:
        raise
    except Exception as error:
        raise NotMade(f"{type(error).__name__}: {first_line(error)}") from error
    return minilib.LM(model, tokenizer, name=name)


def shrunk(default: transformers.PretrainedConfig, vocabulary: int) -> transformers.PretrainedConfig:
    """A configuration of the same kind with small sizes, in those inside it too."""
    fields = default.to_dict()
    given: dict[str, Any] = {name: SIZES[name] for name in fields if name in SIZES}
    inside = {name: getattr(default, name, None) for name in default.sub_configs}
    given |= {name: shrunk(sub, vocabulary) for name, sub in inside.items() if sub is not None}
    given |= {name: vocabulary for name, size in fields.items() if "vocab" in name and isinstance(size, int) and size}
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "decoder_start_token_id": 0}
    given |= {name: token for name, token in ends.items() if name in fields}
    if "kv_lora_rank" in given and "num_key_value_heads" in given:  # latent attention has a key for each head
        given["num_key_value_heads"] = given["num_attention_heads"]
    if "attention_types" in fields:  # GPT-Neo's
        given["attention_types"] = [[["global", "local"], 2]]
    return type(default)(**given)


def first_line(error: BaseException) -> str:
    return (str(error).strip().split("\n") or [""])[0][:300]


# ---- what exact means ---------------------------------------------------------------------------------


REQUESTS = [
    minilib.Request("The town where {} was born is", "Zeno Abara", " Lundby"),
    minilib.Request("{} has a best friend called", "Omar Becker", " Astrid Kruse"),
]
CONTEXTS = ["{}", "In the evening, {}"]
PROMPTS = ["The instrument of Zeno Abara is the", "Where was Mara Adler born?", "The pet"]


def check(model: minilib.LM) -> None:
    """That searches and edits are exact on this model; an AssertionError says which is not."""
    alone = torch.cat([model.logprobs(prompt) for prompt in PROMPTS])
    close(model.logprobs(PROMPTS), alone, "padding in a batch")
    for place, module in (("mlp", model.down_projection(LAYER)), ("block", model.blocks[LAYER])):
        check_objective(model, place, module)
    singly = [model.generate(prompt, max_new_tokens=3) for prompt in PROMPTS]
    assert model.generate(PROMPTS, max_new_tokens=3) == singly, "padding changes what is generated"
    C = {layer: torch.eye(model.memory(layer).shape[1]) for layer in LAYERS}
    check_edit(model, lambda: rome.edit(model, REQUESTS[0], layer=LAYER, covariance=C, steps=3))
    for method, more in ((memit, {}), (alphaedit, {"nullspace_threshold": 2.0})):
        layers = LAYERS if model.post_norm(LAYER) is None else [LAYER]
        how = {"layers": layers, "covariance": C, "steps": 3, **more}
        check_edit(model, lambda method=method, how=how: method.edit(model, REQUESTS, **how))
    before = model.logprobs(PROMPTS)
    grace.edit(model, REQUESTS, layer=LAYER, epsilon=1e-3, steps=2)
    wise.edit(model, REQUESTS, layer=2, irrelevant=PROMPTS, steps=2)
    unlearning.npo(model, REQUESTS, steps=2)
    undo_all(model)
    assert torch.equal(model.logprobs(PROMPTS), before), "undo leaves something behind"


def check_objective(model: minilib.LM, place: Any, module: torch.nn.Module) -> None:
    """The search's loss is that of a plain pass with δ added by a hook, at δ = 0 and elsewhere."""
    objective = values.Objective(model, REQUESTS, LAYER, place, weight_decay=0.0, kl_factor=0.5, contexts=CONTEXTS)
    noise = torch.randn(objective.v0.shape, generator=torch.Generator().manual_seed(2))
    for delta in (torch.zeros_like(objective.v0), noise * objective.v0.norm(dim=1, keepdim=True) / 6):
        nll = torch.zeros(len(REQUESTS))
        for i, request in enumerate(REQUESTS):
            target = model.encode_target(request.target)
            for context in CONTEXTS:
                x = model.encode(request, context=context)
                ids, subject = x.ids, x.subject
                said = plain(model, ids + target[:-1], module, subject, delta[i])[len(ids) - 1 :]
                nll[i] -= said.gather(1, torch.tensor(target).unsqueeze(1)).mean() / len(CONTEXTS)
        with torch.no_grad():
            close(objective(delta)["nll"], nll, f"the objective at the {place}")


def plain(model: minilib.LM, ids: Sequence[int], module: torch.nn.Module, subject: int, delta: Tensor) -> Tensor:
    """Log-probabilities at each token of a plain pass, δ added to what a module returns at one token."""

    def shift(output: Tensor) -> Tensor:
        output = output.clone()
        output.reshape(-1, output.shape[-1])[subject] += delta
        return output

    with torch.no_grad(), hooks.replace(module, shift):
        return model.model(torch.tensor([ids]), use_cache=False).logits[0].float().log_softmax(-1)


def check_edit(model: minilib.LM, edit: Any) -> None:
    """The edited model answers as the unedited one with a hook that adds ΔW k."""
    before = model.logprobs(PROMPTS)
    with edit() as made:
        after = model.logprobs(PROMPTS)
    with ExitStack() as stack:
        for layer in range(model.n_layers):
            delta = made.deltas.get(model.weight_name(layer))
            if delta is not None:
                stack.enter_context(added(model, layer, delta.T if model.transposed(layer) else delta))
        hooked = model.logprobs(PROMPTS)
    assert (after - before).abs().max() > 1e-4, f"{made.method} changes nothing"
    close(after, hooked, made.method)
    assert torch.equal(model.logprobs(PROMPTS), before), f"{made.method} is not undone"


@contextmanager
def added(model: minilib.LM, layer: int, delta: Tensor) -> Iterator[None]:
    """ΔW k joins what the down-projection returns."""
    down, seen = model.down_projection(layer), {}

    def keep(k: Tensor) -> Tensor:
        seen["k"] = k
        return k

    with hooks.replace(down, keep, at="input"), hooks.replace(down, lambda v: v + seen["k"] @ delta.T):
        yield


def close(found: Tensor, expected: Tensor, what: str) -> None:
    apart = (found - expected).abs().max().item()
    assert apart < 3e-3, f"{what} is off by {apart:.2g}"


# ---- each in a process of its own -----------------------------------------------------------------------


def outcome(name: str) -> dict[str, Any]:
    """What becomes of an architecture: edited, refused, could not be made, or a fault."""
    began = time.perf_counter()
    row: dict[str, Any] = {"model_type": name, "architecture": MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[name]}
    try:
        check(tiny(name))
        row |= {"outcome": "edited", "sentence": ""}
    except NotMade as error:
        row |= {"outcome": "could not be made", "sentence": str(error)}
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        ours = isinstance(error, (ValueError, TypeError)) and "minilib" in frames[-1].filename
        row |= {"outcome": "refused" if ours else "fault", "sentence": first_line(error)}
        if not ours:
            row["sentence"] = f"{type(error).__name__}: {first_line(error)}"
            row["where"] = "\n".join(f"{f.filename.rpartition('/')[2]}:{f.lineno} {f.name}" for f in frames[-8:])
    return row | {"seconds": round(time.perf_counter() - began, 1)}


def limited(name: str, pipe: Any) -> None:
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (GIGABYTES * 2**30, GIGABYTES * 2**30))
    pipe.send(outcome(name))


def tried(names: Sequence[str], processes: int) -> list[dict[str, Any]]:
    """The outcomes of architectures, several tried at once."""
    outcome("llama")  # what it imports, each process finds imported
    context = multiprocessing.get_context("fork")
    left, running, rows = list(reversed(names)), {}, []
    while left or running:
        while left and len(running) < processes:
            name = left.pop()
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=limited, args=(name, sender))
            process.start()
            sender.close()
            running[name] = process, receiver, time.perf_counter()
        for name, (process, receiver, began) in list(running.items()):
            late = time.perf_counter() - began > SECONDS
            if not (receiver.poll() or late or not process.is_alive()):
                continue
            try:
                row = receiver.recv() if receiver.poll() else None
            except EOFError:
                row = None
            process.kill()
            process.join()
            rows.append(row or {"model_type": name, "architecture": MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[name],
                                "outcome": "could not be made", "seconds": round(time.perf_counter() - began, 1),
                                "sentence": f"its process ended, or took over {SECONDS} s"})  # fmt: skip
            print(rows[-1], file=sys.stderr, flush=True)
            del running[name]
        time.sleep(0.05)
    return sorted(rows, key=lambda row: str(row["model_type"]))


# ---- the page -------------------------------------------------------------------------------------------

PAGE = Path(__file__).resolve().parent.parent / "book" / "which_models.md"
INTRO = """# Which models?

Will the library edit *your* model? We call an edit exact if two things hold: the loss that the search computes is the
loss of the whole model, and adding $\\Delta$ to the matrix changes the answers as it should. An architecture that
nobody tried can break either.

So we tried them. transformers {transformers} knows {count} kinds of causal language model. Of each, a tiny one with
random weights was made by shrinking its default configuration. `benchmarks/every_architecture.py` then compared the
search's loss with a plain pass of the whole model, with and without a δ (a vector that is added at one place). It wrote
edits by ROME, MEMIT and AlphaEdit, and compared the edited models with the unedited ones to which a hook adds
$\\Delta k$ at the same place. Last, it ran GRACE, WISE and NPO, and undid everything. In models with a norm behind the
MLP, such as Gemma 2 and 3, MEMIT and AlphaEdit were checked with one layer, since they refuse a window there (chapter
{{doc}}`13 </notebooks/13_other_models>`).

The names are those that stand as `model_type` in a model's `config.json`. A tiny model has the default settings of its
architecture. What a checkpoint sets otherwise, such as a factor on the residual stream, is checked again whenever a
model is edited.
"""
EDITED = """## Edited exactly: {count}

{names}.
"""
REFUSED = """## Refused: {count}

The error gives the reason in one sentence, before anything is changed.

| The model… | `model_type` |
|---|---|
{rows}
"""
NOT_MADE = """## Not tried: {count}

A tiny model could not be made of these default configurations: {names}.
"""


def page(found: dict[str, Any]) -> str:
    """The page of the book that shows the stored outcomes."""
    names: dict[str, list[str]] = {}
    reasons: dict[str, list[str]] = {}
    for row in found["rows"]:
        name = f"`{row['model_type']}`"
        names.setdefault(row["outcome"], []).append(name)
        if row["outcome"] == "refused":
            reason = row["sentence"].removeprefix(row["architecture"]).strip()
            if "at none of" in reason:  # with a long list
                reason = "has its MLP memories at none of the places that minilib knows"
            reasons.setdefault(reason, []).append(name)
    most_first = sorted(reasons.items(), key=lambda reason: -len(reason[1]))
    rows = "\n".join(f"| {reason} | {', '.join(some)} |" for reason, some in most_first)
    count = {outcome: len(some) for outcome, some in names.items()}
    versions = found["provenance"]["versions"]
    parts = [
        INTRO.format(transformers=versions["transformers"], count=len(found["rows"])),
        EDITED.format(count=count["edited"], names=", ".join(names["edited"])),
        REFUSED.format(count=count["refused"], rows=rows),
        NOT_MADE.format(count=count["could not be made"], names=", ".join(names["could not be made"])),
    ]
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="model types such as bloom (default: all)")
    parser.add_argument("--processes", type=int, default=1, help="at once")
    given = parser.parse_args()
    began = time.perf_counter()
    rows = tried(given.names or NAMES, given.processes)
    faults = [row["model_type"] for row in rows if row["outcome"] == "fault"]
    if given.names:
        kept = [row for row in stored.load("every_architecture")["rows"] if row["model_type"] not in given.names]
        rows = sorted([*kept, *rows], key=lambda row: str(row["model_type"]))
    if not faults:
        stored.save("every_architecture", {"rows": rows}, "benchmarks/every_architecture.py", began)
        PAGE.write_text(page(stored.load("every_architecture")), "utf8")
    else:
        sys.exit(f"neither edited exactly nor refused: {', '.join(faults)}")


if __name__ == "__main__":
    main()
