"""Causal tracing and the logit lens: equal to whole runs with hooks on every architecture, and honest at their ends."""

import contextlib
import inspect
import math

import numpy
import pytest
import torch
from models import assert_same_weights, random_lm, weights
from test_hooks import hooks_left

import minilib
from minilib import Request, hooks, stored, tracing

REQUEST = Request("The capital of {} is the town of", "Mira Okafor", " Rome")
FIRST = Request("{} is the capital of", "Rome", " France")  # nothing stands left of the subject
ATTENTION = {"gpt2": "attn", "gptj": "attn", "gpt_neox": "attention"}
DRAWS = 2


def subject_span(lm, request):
    x = lm.encode(request)
    ids, last, start = x.ids, x.subject, x.subject_start
    return ids, start, last + 1


def plainly(lm, request, kind, window, noise, draws, seed):
    """Whole runs of the model, one for each draw, layer and token: clean, corrupted and restored probabilities.

    The runs of a layer are the rows of one batch: all have the same tokens, so nothing is padded.
    """
    ids, start, stop = subject_span(lm, request)
    answer = lm.encode_target(request.target)[0]
    embedding = lm.model.get_input_embeddings()
    tokens = torch.tensor([ids])
    ratio = (embedding(tokens)[0] / embedding.weight[tokens[0]]).mean().item()  # Gemma 3 scales its embeddings
    generator = torch.Generator().manual_seed(seed)
    d = embedding.weight.shape[1]
    drawn = torch.randn(draws, stop - start, d, generator=generator) * noise * embedding.weight.std() * ratio
    modules = {
        "hidden": list(lm.blocks),
        "mlp": [lm.down_projection(layer) for layer in range(lm.n_layers)],
        "attention": [getattr(block, ATTENTION.get(lm.name, "self_attn")) for block in lm.blocks],
    }[kind]
    rows = [(n, token) for n in range(draws) for token in range(len(ids))]

    def probability(rows=1):
        return lm.model(tokens.expand(rows, -1)).logits[:, -1].softmax(-1)[:, answer]

    def patch(output, i):
        """Each run has the clean activation at the one token that it is about."""
        output = output.clone()
        whole = output.reshape(len(rows), len(ids), -1)
        for row, (_, token) in enumerate(rows):
            whole[row, token] = clean[i].reshape(len(ids), -1)[token]
        return whole.reshape(output.shape)

    def corrupt(x):
        x = x.clone()
        for row, (n, _) in enumerate(rows):
            x[row, start:stop] += drawn[n]
        return x

    with torch.no_grad():
        with hooks.read(dict(enumerate(modules))) as clean:
            p_clean = probability().item()
        restored = torch.zeros(draws, lm.n_layers, len(ids))
        with hooks.replace(embedding, corrupt):
            corrupted = probability(len(rows)).reshape(draws, len(ids))[:, 0]
            for layer in range(lm.n_layers):
                near = [i for i in range(lm.n_layers) if layer - window // 2 <= i < layer - window // 2 + window]
                with contextlib.ExitStack() as patches:
                    for i in near:
                        patches.enter_context(hooks.replace(modules[i], lambda x, i=i: patch(x, i)))
                    restored[:, layer] = probability(len(rows)).reshape(draws, len(ids))
    return p_clean, corrupted, restored


@pytest.mark.parametrize(("kind", "window"), [("hidden", None), ("mlp", 1), ("attention", 3)])
def test_it_equals_whole_runs_with_hooks(any_lm, kind, window):
    before = weights(any_lm)
    for request in (REQUEST, FIRST):
        trace = tracing.causal_trace(any_lm, request, kind, window, draws=DRAWS, seed=3)
        clean, corrupted, restored = plainly(any_lm, request, kind, window or 1, 3.0, DRAWS, 3)
        assert trace.clean == pytest.approx(clean, rel=1e-3, abs=1e-7)
        torch.testing.assert_close(trace.corrupted, corrupted, rtol=1e-3, atol=1e-7)
        torch.testing.assert_close(trace.restored, restored, rtol=1e-3, atol=1e-7)
        assert (trace.effect.abs() > 1e-6).any()  # there was something to compare
    assert_same_weights(any_lm, before)
    assert not hooks_left(any_lm.model)


def test_the_corners_are_known(llama):
    ids, start, stop = subject_span(llama, REQUEST)
    trace = tracing.causal_trace(llama, REQUEST, draws=3)
    assert trace.subject == (start, stop) and len(trace.tokens) == len(ids)
    assert "".join(trace.tokens[start:stop]).strip() == "Mira Okafor"
    assert trace.restored.shape == (3, llama.n_layers, len(ids))
    torch.testing.assert_close(trace.restored[:, -1, -1], torch.full((3,), trace.clean))  # the end restored is all
    same = trace.corrupted[:, None]
    torch.testing.assert_close(trace.restored[:, -1, :-1], same.expand(3, len(ids) - 1))  # nobody reads it any more
    assert torch.equal(trace.restored[:, :, :start], same[:, :, None].expand(3, llama.n_layers, start))  # left of it
    torch.testing.assert_close(trace.mean, trace.restored.mean(0))
    torch.testing.assert_close(trace.effect, trace.restored.mean(0) - trace.corrupted.mean())
    assert trace.total_effect == pytest.approx(trace.clean - trace.corrupted.mean().item())
    assert trace.clean == pytest.approx(llama.logprobs(REQUEST)[0, llama.encode_target(" Rome")[0]].exp().item())


def test_the_noise_is_its_own_and_repeats(llama):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    one = tracing.causal_trace(llama, REQUEST, draws=2)
    assert torch.equal(torch.rand(3), expected)  # the global random state was left alone
    two = tracing.causal_trace(llama, REQUEST, draws=2)
    other = tracing.causal_trace(llama, REQUEST, draws=2, seed=1)
    assert torch.equal(one.restored, two.restored) and not torch.equal(one.corrupted, other.corrupted)
    louder = tracing.causal_trace(llama, REQUEST, draws=2, noise=numpy.float32(6))
    assert not torch.equal(one.corrupted, louder.corrupted)
    quiet = tracing.causal_trace(llama, REQUEST, draws=2, noise=1e-9)
    torch.testing.assert_close(quiet.corrupted, torch.full((2,), quiet.clean))


def test_the_default_window_is_the_authors_share():
    lm = random_lm("llama")
    assert tracing.causal_trace(lm, REQUEST, "mlp", draws=1).window == 1  # 4 layers · 10 / 48
    assert tracing._window_size(minilib.load("tinyworld"), "mlp", None) == 1
    wide = tracing.causal_trace(lm, REQUEST, "mlp", window=99, draws=1)  # more than there are: all of them
    assert torch.equal(wide.restored[:, 0], wide.restored[:, -1])


def test_in_a_chat_the_subject_is_found(chatty):
    request = Request("What is {}?", "Mira Okafor", "Rome", chat=True)
    trace = tracing.causal_trace(chatty, request, draws=2)
    start, stop = trace.subject
    assert "".join(trace.tokens[start:stop]).strip() == "Mira Okafor"
    clean, corrupted, restored = plainly(chatty, request, "hidden", 1, 3.0, 2, 0)
    torch.testing.assert_close(trace.restored, restored, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("subject", ["France", "Mira Okafor", "🦄", "  Rome", "a"])
@pytest.mark.parametrize("prompt", ["{}", "The capital of {} is", "({})"])
def test_the_first_token_of_the_subject(llama, prompt, subject):
    request = Request(prompt, subject, " x")
    x = llama.encode(request)
    ids, last, start = x.ids, x.subject, x.subject_start
    assert 0 <= start <= last
    text = request.text[: request.span[0] + 1]
    until = lambda n: llama.tokenizer.decode(ids[:n])  # noqa: E731
    assert len(until(start)) <= request.span[0] or "\ufffd" in until(start)  # none of it was read before,
    assert until(last + 1).startswith(text)


def test_a_lens_ends_in_what_the_model_says(any_lm):
    lens = tracing.logit_lens(any_lm, REQUEST)
    ids = any_lm.encode(REQUEST).ids
    answer = any_lm.encode_target(REQUEST.target)[0]
    with torch.no_grad():
        p = any_lm.model(torch.tensor([ids])).logits[0].softmax(-1)
    assert lens.probability.shape == (any_lm.n_layers + 1, len(ids)) == lens.target.shape == lens.rank.shape
    torch.testing.assert_close(lens.probability[-1], p.max(-1).values, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(lens.target[-1], p[:, answer], rtol=1e-3, atol=1e-7)
    assert lens.words[-1] == [any_lm.tokenizer.decode([token]) for token in p.argmax(-1).tolist()]
    assert lens.rank[-1].tolist() == (1 + (p > p[:, answer, None]).sum(-1)).tolist()
    assert len(lens.words) == any_lm.n_layers + 1 and len(lens.tokens) == len(ids)


def test_a_lens_of_a_text_has_no_target(chatty):
    lens = tracing.logit_lens(chatty, "The capital of France is")
    assert lens.target is None and lens.rank is None
    assert len(tracing.logit_lens(chatty, "Rome", chat=True).tokens) > len(tracing.logit_lens(chatty, "Rome").tokens)


WRONG = {
    "lm is no LM": (lambda lm: tracing.causal_trace(lm.model, REQUEST), TypeError, "lm must be a minilib.LM"),
    "a string": (lambda lm: tracing.causal_trace(lm, "France"), TypeError, "request must be a minilib.Request"),
    "kind": (lambda lm: tracing.causal_trace(lm, REQUEST, "attn"), ValueError, "kind must be 'hidden'"),
    "window 0": (lambda lm: tracing.causal_trace(lm, REQUEST, "mlp", 0), ValueError, "window must be a whole number"),
    "window 1.5": (lambda lm: tracing.causal_trace(lm, REQUEST, "mlp", 1.5), TypeError, "window must be a whole"),
    "window of hidden": (lambda lm: tracing.causal_trace(lm, REQUEST, window=3), ValueError, "window=3 is for kind"),
    "noise 0": (lambda lm: tracing.causal_trace(lm, REQUEST, noise=0), ValueError, "noise must be above 0"),
    "noise NaN": (lambda lm: tracing.causal_trace(lm, REQUEST, noise=math.nan), ValueError, "noise must be above 0"),
    "noise inf": (lambda lm: tracing.causal_trace(lm, REQUEST, noise=math.inf), ValueError, "and finite"),
    "noise a word": (lambda lm: tracing.causal_trace(lm, REQUEST, noise="3"), TypeError, "noise must be a number"),
    "draws 0": (lambda lm: tracing.causal_trace(lm, REQUEST, draws=0), ValueError, "draws must be a whole number"),
    "draws True": (lambda lm: tracing.causal_trace(lm, REQUEST, draws=True), TypeError, "draws must be a whole"),
    "seed": (lambda lm: tracing.causal_trace(lm, REQUEST, seed=-1), ValueError, "seed must be a whole number"),
    "no chat template": (
        lambda lm: tracing.causal_trace(lm, Request("What is {}?", "Rome", "x", chat=True)),
        ValueError,
        "needs a chat template",
    ),
    "lens of a number": (lambda lm: tracing.logit_lens(lm, 3), TypeError, "prompts must be a string"),
    "lens of a model": (lambda lm: tracing.logit_lens(lm.model, "Rome"), TypeError, "lm must be a minilib.LM"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_is_named_before_anything_runs(llama, case):
    call, error, message = WRONG[case]
    llama.model.forward = None  # anything that ran would fail otherwise
    with pytest.raises(error, match=message):
        call(llama)


def test_an_attention_of_another_name_is_missed_by_name(llama):
    block = llama.blocks[1]
    block.mixer = block.self_attn
    del block.self_attn
    with pytest.raises(ValueError, match="block 1 .* has no attention called self_attn, attn, attention"):
        tracing.causal_trace(llama, REQUEST, "attention")


def test_an_error_on_the_way_leaves_no_hook(llama):
    def fail(*_):
        raise ValueError("on purpose")

    handle = llama.blocks[2].register_forward_hook(fail)
    with pytest.raises(ValueError, match="on purpose"):
        tracing.causal_trace(llama, REQUEST)
    handle.remove()
    assert not hooks_left(llama.model)


def test_the_page_can_show_the_method():
    assert len(inspect.getsource(tracing._put).splitlines()) < 10


@pytest.mark.slow
def test_smollm2_has_the_fact_at_the_subject_and_at_the_end(smollm2):
    request = Request("The capital of {} is", "France", " Paris")
    trace = tracing.causal_trace(smollm2, request, draws=4)
    assert trace.clean > 0.3 and trace.total_effect > 0.2
    assert trace.effect[5, trace.subject[1] - 1] > 0.4 * trace.total_effect  # early: the subject's last token
    assert trace.effect[25, -1] > 0.4 * trace.total_effect  # late: the last token
    assert trace.effect[25, trace.subject[1] - 1] < 0.4 * trace.total_effect
    lens = tracing.logit_lens(smollm2, request)
    assert lens.words[-1][-1] == " Paris" and lens.rank[0, -1] > 100


def test_the_stored_average_is_that_of_its_facts():
    found = stored.load("trace_average")
    rows = found["facts"]
    assert len(rows) == 30 and len({(row["relation"], row["subject"]) for row in rows}) == 30
    assert found["provenance"]["script"] == "benchmarks/trace_average.py"
    for kind, by_place in found["average"].items():
        for place in ("last subject token", "last token"):
            curves = torch.tensor([row[kind][place] for row in rows])
            torch.testing.assert_close(torch.tensor(by_place[place]["mean"]), curves.mean(0), rtol=0, atol=2e-4)
            torch.testing.assert_close(torch.tensor(by_place[place]["sd"]), curves.std(0), rtol=0, atol=2e-4)


def test_the_stored_edits_are_of_traced_facts():
    found = stored.load("edit_every_layer")
    traced = {(row["relation"], row["subject"]) for row in stored.load("trace_average")["facts"]}
    for row in found["completion"] + found["refusal"]:
        assert (row["relation"], row["subject"]) in traced
        for name in ("reliability", "generality", "locality", "probability"):
            assert len(row[name]) == len(found["layers"]) and all(0 <= x <= 1 for x in row[name])
