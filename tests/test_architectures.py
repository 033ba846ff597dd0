"""Every supported architecture: the memory that minilib writes to is the one that the model reads."""

import pytest
import torch
import transformers
from models import ARCHITECTURES, assert_same_weights, benchmark_script, random_lm, weights

import minilib
from minilib import edits, hooks, stored, values

STORED = stored.load("every_architecture")
SAMPLE = {
    outcome: [row for row in STORED["rows"] if row["outcome"] == outcome]
    for outcome in ("edited", "refused", "could not be made")
}
SAMPLE = {outcome: [rows[i * len(rows) // 12] for i in range(12)] for outcome, rows in SAMPLE.items()}
PROMPTS = ["The capital of France is", "Mira Okafor was born in the town of", "The capital"]
REQUEST = minilib.Request("The capital of {} is", "France", " Rome")


def test_a_written_delta_answers_as_a_hook_that_adds_it(any_lm):
    layer = 2
    d_out, d_k = any_lm.memory(layer).shape
    delta = torch.randn(d_out, d_k, generator=torch.Generator().manual_seed(1)) * 0.1
    before = weights(any_lm)
    original = any_lm.logprobs(PROMPTS)
    keys = {}
    down = any_lm.down_projection(layer)

    def keep(key):
        keys["k"] = key
        return key

    with hooks.replace(down, keep, at="input"), hooks.replace(down, lambda v: v + keys["k"] @ delta.T):
        hooked = any_lm.logprobs(PROMPTS)
    with edits.changing(any_lm, [any_lm.weight_name(layer)]):
        edits.add(any_lm, layer, delta)
    written = any_lm.logprobs(PROMPTS)
    assert (written - original).abs().max() > 1e-2
    torch.testing.assert_close(written, hooked, rtol=1e-4, atol=1e-5)
    changed = [name for name, p in any_lm.model.named_parameters() if not torch.equal(p, before[name])]
    assert changed == [any_lm.weight_name(layer)]


def test_padding_in_a_batch_changes_nothing(any_lm):
    alone = torch.cat([any_lm.logprobs(p) for p in PROMPTS])
    torch.testing.assert_close(any_lm.logprobs(PROMPTS), alone, rtol=1e-4, atol=1e-4)
    assert any_lm.generate(PROMPTS, max_new_tokens=5) == [any_lm.generate(p, max_new_tokens=5) for p in PROMPTS]


@pytest.mark.parametrize("place", ["mlp", "block"])
def test_the_objective_equals_a_whole_forward_pass(any_lm, place):
    """Prefix kept, blocks below skipped: the losses are those of the plain model with δ added by a hook."""
    layer, contexts = 1, ["{}", "Once again: {}"]
    requests = [
        REQUEST,
        minilib.Request("Is {} in the town", "Mira Okafor", " unknown to me"),
        minilib.Request("{} is", "Rome", " Lund"),
    ]
    objective = values.Objective(any_lm, requests, layer, place, weight_decay=0.1, kl_factor=0.5, contexts=contexts)
    delta = torch.randn(objective.v0.shape, generator=torch.Generator().manual_seed(2))
    found = objective(delta)
    module = any_lm.down_projection(layer) if place == "mlp" else any_lm.blocks[layer]
    for i, request in enumerate(requests):
        target = any_lm.encode_target(request.target)
        nll = 0.0
        for context in contexts:
            x = any_lm.encode(request, context=context)
            ids, subject = x.ids, x.subject
            logprobs = plain_logprobs(any_lm, ids + target[:-1], module, subject, delta[i])
            nll -= sum(logprobs[len(ids) - 1 + j, t] for j, t in enumerate(target)) / len(target) / len(contexts)
        x = any_lm.encode(minilib.Request("{} is a", request.subject, " x"))
        ids, subject = x.ids, x.subject
        edited = plain_logprobs(any_lm, ids, module, subject, delta[i])[subject]
        original = plain_logprobs(any_lm, ids, module, subject, delta[i] * 0)[subject]
        kl = 0.5 * (edited.exp() * (edited - original)).sum()
        torch.testing.assert_close(found["nll"][i], nll, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found["kl"][i], kl, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(found["decay"][i], 0.1 * delta[i].norm() / objective.v0[i].norm() ** 2)


def plain_logprobs(lm, ids, module, position, delta):
    def shift(output):
        output = output.clone()
        flat = output.reshape(-1, output.shape[-1])
        flat[position] += delta
        return flat.reshape(output.shape)

    with torch.no_grad(), hooks.replace(module, shift):
        return lm.model(torch.tensor([ids])).logits[0].log_softmax(-1)


def test_rome_raises_the_target_and_undoes_exactly(any_lm):
    before = weights(any_lm)
    layer = 1
    probability = any_lm.probability(REQUEST)
    texts = [f"{p} {i} and {q}" for i in range(6) for p in PROMPTS for q in PROMPTS]
    C = minilib.covariance.second_moment(any_lm, [layer], texts)
    C = {layer: C[layer] + 1e-3 * torch.eye(len(C[layer]))}
    edit = minilib.rome.edit(any_lm, REQUEST, layer=layer, covariance=C, lr=0.5, weight_decay=1e-3, steps=15)
    # Random weights, and a norm after the MLP bounds what one value can do.
    assert any_lm.probability(REQUEST) > 1.1 * probability
    ((name, delta),) = edit.deltas.items()
    assert delta.shape == any_lm.model.get_parameter(name).shape
    assert torch.linalg.matrix_rank(delta, rtol=1e-4) == 1
    edit.undo()
    assert_same_weights(any_lm, before)


def test_an_unknown_architecture_says_what_was_looked_for():
    lm = random_lm("llama")
    lm.model.model.layers[0].mlp = torch.nn.Identity()
    with pytest.raises(ValueError, match=r"model\.layers\.N\.mlp\.down_proj.*layout=minilib\.Layout"):
        minilib.LM(lm.model, lm.tokenizer)


def test_names_can_be_given_by_hand():
    lm = random_lm("gpt2")
    by_hand = minilib.LM(
        lm.model, lm.tokenizer, layout=minilib.Layout("transformer.h", "mlp.c_proj", "transformer.ln_f")
    )
    assert by_hand.weight_name(3) == "transformer.h.3.mlp.c_proj.weight"


@pytest.fixture(scope="module")
def every():
    """The script that tries each architecture of transformers."""
    return benchmark_script("every_architecture")


def test_the_table_is_covered(every):
    used = {random_lm(kind).layout for kind in ARCHITECTURES}
    tried = ("starcoder2", "persimmon", "xglm", "biogpt", "gpt_neox_japanese", "falcon", "mpt", "gemma3")
    assert used | {every.tiny(kind).layout for kind in tried} == set(minilib.architectures.LAYOUTS)


def test_the_page_shows_what_is_stored(every):
    assert every.PAGE.read_text("utf8") == every.page(STORED), "run benchmarks/every_architecture.py"


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(row["model_type"], marks=[pytest.mark.long] if i % 3 else [])
        for rows in SAMPLE.values()
        for i, row in enumerate(rows)
    ],
)
def test_an_architecture_fares_as_is_stored(every, name):
    """Twelve of each outcome, four of them fast tests, with the version of transformers that made the table."""
    made_with = STORED["provenance"]["versions"]["transformers"]
    if transformers.__version__ != made_with:
        pytest.skip(f"the table was made with transformers {made_with}, and this is {transformers.__version__}")
    found = every.outcome(name)
    (row,) = [row for row in STORED["rows"] if row["model_type"] == name]
    assert (found["outcome"], found["sentence"]) == (row["outcome"], row["sentence"]), found


def test_every_architecture_is_edited_or_refused_in_one_sentence(every):
    assert {row["outcome"] for row in STORED["rows"]} == {"edited", "refused", "could not be made"}
    for row in STORED["rows"]:
        if row["outcome"] == "refused":
            assert row["sentence"].startswith(row["architecture"]) and "\n" not in row["sentence"]


@pytest.mark.parametrize("kind", ["cohere", "nanochat"])
def test_training_refuses_logits_that_it_would_get_wrong(every, kind):
    """The search for a value refuses them too; training read them without the model's own factor or cap."""
    lm = every.tiny(kind)
    with pytest.raises(ValueError, match="turns its last hidden state into logits"):
        minilib.unlearning.npo(lm, every.REQUESTS, steps=1)


@pytest.mark.parametrize("alibi", ["bloom", "falcon"])
def test_positions_by_distance_are_exact(every, alibi):
    """Falcon has them where its configuration says so; what a block is given for them cannot be folded."""
    config = every.shrunk(every.CONFIG_MAPPING[alibi](**({"alibi": True} if alibi == "falcon" else {})), 600)
    lm = random_lm(lambda: config)
    for place, module in (("mlp", lm.down_projection(1)), ("block", lm.blocks[1])):
        every.check_objective(lm, place, module)
