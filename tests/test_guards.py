"""What GRACE and WISE share: they answer where people really use a model, and leave no trace where they do not."""

import copy
import gc
import hashlib
import io
import pickle
import tempfile
from pathlib import Path

import pytest
import torch
from models import ARCHITECTURES, assert_same_weights, random_lm, weights
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_hooks import hooks_left

import minilib
from minilib import Request, grace, guards, hooks, rome, tracing, wise

ASKED = [Request("The capital of {} is", "France", " Rome"), Request("{} is known for", "Japan", " the")]
AWAY = ["The river flows to", "A dog is a kind of", "Five and two make", "My friend said that he", "In the year of the"]
HOW = {
    "grace": {"epsilon": 0.05, "lr": 0.5, "steps": 80},
    "wise": {"irrelevant": AWAY, "steps": 150, "lr": 0.03, "shards": 1, "mask_ratio": 1.0},
}
LAYER = 2
KEPT = tempfile.TemporaryDirectory()  # what was trained, of this process


def edit(method: str, lm, requests=ASKED, **changed):
    """The edit, trained once for all tests that ask for it on an unedited model, and loaded after that."""
    asked = [requests] if isinstance(requests, Request) else list(requests)
    how = {"layer": LAYER, **HOW[method], **changed}
    train = {"grace": grace, "wise": wise}[method].edit
    if lm.edits or {"previous", "stop_loss"} & set(changed):
        return train(lm, requests, **how)
    key = hashlib.sha256(repr((method, asked, how, lm.fingerprint, lm.has_chat)).encode()).hexdigest()
    folder = Path(KEPT.name) / key
    if folder.is_dir():
        return minilib.load_edit(lm, folder)
    made = train(lm, requests, **how)
    made.save(folder)
    return made


def logits(lm, texts=AWAY, side="right"):
    rows = [lm.encode(text).ids for text in texts]
    batch = lm.batch(rows, side=side)
    with torch.no_grad():
        out = lm.model(**batch, use_cache=False).logits
    return [row[mask.bool()] for row, mask in zip(out, batch["attention_mask"], strict=True)]


def by_hand(lm, prompt: str, steps: int, cache: bool) -> list[int]:
    """Greedy generation by calling the model, one token after another, from a cache or from the beginning."""
    ids = list(lm.encode(prompt).ids)
    start, kept = len(ids), None
    with torch.no_grad():
        for _ in range(steps):
            if cache:
                fed = torch.tensor([ids if kept is None else ids[-1:]])
                out = lm.model(input_ids=fed, use_cache=True, past_key_values=kept)
                kept = out.past_key_values
            else:
                out = lm.model(input_ids=torch.tensor([ids]), use_cache=False)
            ids.append(int(out.logits[0, -1].argmax()))
    return ids[start:]


@pytest.fixture(params=["grace", "wise"])
def method(request):
    return request.param


def test_the_target_is_said_and_everything_else_bit_for_bit_as_before(llama, method):
    before, weights_before, left = logits(llama), weights(llama), hooks_left(llama.model)
    made = edit(method, llama)
    assert not made.deltas and made.sizes() == {}
    assert llama.generate([r.text for r in ASKED], 3, chat=False)[0].startswith(" Rome")
    assert llama.generate([r.text for r in ASKED], 6, chat=False)[1].startswith(" the")
    assert all(torch.equal(a, b) for a, b in zip(logits(llama), before, strict=True))
    assert_same_weights(llama, weights_before)
    tree = [name for name, _ in llama.model.named_modules()]
    made.undo()
    assert hooks_left(llama.model) == left and tree == [name for name, _ in llama.model.named_modules()]
    assert all(torch.equal(a, b) for a, b in zip(logits(llama), before, strict=True))


def test_cache_batch_and_padding_make_no_difference(llama, method):
    edit(method, llama)
    prompts = [r.text for r in ASKED] + AWAY
    together = llama.generate(prompts, 6, chat=False)
    assert together == [llama.generate(p, 6, chat=False) for p in prompts]
    assert together == llama.generate(prompts[::-1], 6, chat=False, batch_size=2)[::-1]
    for prompt, text in zip(prompts, together, strict=True):
        ids = by_hand(llama, prompt, 6, cache=True)
        assert llama.tokenizer.decode(llama.encode(prompt).ids + ids).endswith(text)
    for a, b in zip(logits(llama, prompts, "left"), logits(llama, prompts, "right"), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_without_the_head_it_is_on_as_well(kind, method):
    """Whoever looks inside runs the blocks alone."""
    lm = random_lm(kind)
    made = edit(method, lm, ASKED, layer=1, steps=4)  # enough to be seen
    batch, states = lm.batch([lm.encode(r.text).ids for r in ASKED]), []
    for run in (lm.model, lm.model.base_model):
        with torch.no_grad(), hooks.read({0: lm.blocks[-1]}) as seen:
            run(**batch, use_cache=False)
        states.append(seen[0])
    with torch.no_grad(), hooks.read({0: lm.blocks[-1]}) as seen, lm.silenced():
        lm.model.base_model(**batch, use_cache=False)
    assert torch.equal(*states) and not torch.equal(states[0], seen[0])
    made.undo()


def test_a_block_by_hand_is_an_error_where_a_prompt_has_to_be_known(llama):
    edit("wise", llama)
    hidden = torch.zeros(1, 3, llama.memory(LAYER).shape[1])
    with pytest.raises(ValueError, match="a block was called by hand, so its side memory does not know"):
        llama.down_projection(LAYER)(hidden)
    with llama.unedited():
        llama.down_projection(LAYER)(hidden)


def test_a_trace_runs_parts_of_prompts_and_refuses_what_decides_on_whole_ones(llama):
    edit("wise", llama)
    with pytest.raises(ValueError, match="WISE memory in force, which decides on whole prompts"):
        tracing.causal_trace(llama, ASKED[0], draws=1)
    with llama.unedited():
        tracing.causal_trace(llama, ASKED[0], draws=1)


def test_grace_needs_no_cache(llama):
    edit("grace", llama)
    for r in ASKED:
        assert by_hand(llama, r.text, 5, cache=False) == by_hand(llama, r.text, 5, cache=True)


@pytest.mark.long
def test_in_chat_wise_needs_none_either(chatty, method):
    asked = [Request("What is the capital of {}?", "France", "the", chat=True)]
    before = chatty.generate(asked, 6)[0]
    edit(method, chatty, asked)
    ids = list(chatty.encode(asked[0]).ids)
    said = chatty.generate(asked, 6)[0]
    for _ in range(6):
        with torch.no_grad():
            ids.append(int(chatty.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    assert chatty.tokenizer.decode(ids).endswith(said) and said != before


def test_scoring_and_generating_agree(llama, method):
    """Teacher-forced, the answer stands in the same call as the prompt."""
    edit(method, llama)
    assert all(p > 0.3 for p in llama.probability(ASKED))
    torch.testing.assert_close(
        torch.stack([steps[0] for steps in llama.target_logprobs(ASKED)]).exp(),
        torch.stack([llama.logprobs(r.text)[0, llama.encode_target(r.target)[0]] for r in ASKED]).exp(),
        rtol=1e-3,
        atol=1e-4,
    )


def test_a_copy_and_a_pickle_are_edited_too(llama, method):
    made = edit(method, llama)
    said = llama.generate(ASKED, 5)
    copies = [copy.deepcopy(llama.model), pickle.loads(pickle.dumps(llama.model))]
    file = io.BytesIO()
    torch.save(llama.model, file)
    file.seek(0)
    copies.append(torch.load(file, weights_only=False))
    made.undo()
    assert llama.generate(ASKED, 5) != said
    for model in copies:
        assert minilib.LM(model, llama.tokenizer).generate(ASKED, 5) == said


@pytest.mark.long
def test_it_moves_between_precisions(llama, method):
    edit(method, llama, **({"threshold": 0.8} if method == "wise" else {"epsilon": 0.5}))
    llama.model.to(torch.bfloat16)
    assert all(row["decided"] for row in llama.edits[0].explain(ASKED))
    assert [text.startswith(r.target[:5]) for text, r in zip(llama.generate(ASKED, 4), ASKED, strict=True)] == [
        True
    ] * 2


def test_a_cache_that_is_dropped_is_forgotten(llama):
    made = edit("wise", llama)
    llama.generate(ASKED, 5)
    gc.collect()
    assert len(made.guard._held) == 0


def test_a_cache_continued_for_other_rows_is_an_error(llama):
    edit("wise", llama)
    ids = torch.tensor([llama.encode(ASKED[0].text).ids])
    with torch.no_grad():
        cache = llama.model(input_ids=ids, use_cache=True).past_key_values
        cache.batch_repeat_interleave(2)
        with pytest.raises(ValueError, match="filled for 1 prompts and is continued for 2"):
            llama.model(input_ids=ids[:, :1].expand(2, 1), past_key_values=cache, use_cache=True)


@pytest.mark.parametrize("first", ["rome", "grace", "wise"])
@pytest.mark.parametrize("second", ["rome", "grace", "wise"])
@pytest.mark.long
def test_one_on_another_and_undone_in_order(llama, reference, first, second):
    """At the same layer where two of a kind are not refused."""
    before, start = weights(llama), logits(llama)
    other = Request("The tower stands in {} and", "Spain", " Rome")
    layers = {"rome": 2, "grace": 2, "wise": 2}

    def do(method, request, layer):
        if method == "rome":
            how = {**reference["search"], "steps": 8, "lr": 0.5, "covariance": reference["covariance"], "layer": layer}
            return rome.edit(llama, request, **how)
        away = {"irrelevant": [*AWAY, (other if request is ASKED[0] else ASKED[0]).text]} if method == "wise" else {}
        return edit(method, llama, request, layer=layer, steps=60, **away)

    one = do(first, ASKED[0], layers[first])
    between, weights_between = logits(llama, [ASKED[0].text, *AWAY]), weights(llama)
    unlikely = llama.probability(other)
    two = do(second, other, 1 if second == first else layers[second])
    assert llama.probability(other) > 1.5 * unlikely
    with pytest.raises(ValueError, match="lies under a later edit"):
        one.undo()
    two.undo()
    assert all(torch.equal(a, b) for a, b in zip(logits(llama, [ASKED[0].text, *AWAY]), between, strict=True))
    assert_same_weights(llama, weights_between)
    one.undo()
    assert all(torch.equal(a, b) for a, b in zip(logits(llama), start, strict=True))
    assert_same_weights(llama, before)
    assert not llama.edits


def test_what_is_searched_in_the_weights_does_not_depend_on_guards(llama, reference, method):
    how = {**reference["search"], "covariance": reference["covariance"], "layer": 3}
    alone = rome.edit(llama, ASKED[0], **how)
    deltas = alone.deltas
    alone.undo()
    edit(method, llama)
    for name, delta in rome.edit(llama, ASKED[0], **how).deltas.items():
        assert torch.equal(delta, deltas[name])


def test_unedited_and_strength_zero_are_the_model_before(llama, method):
    before = logits(llama, [r.text for r in ASKED])
    made = edit(method, llama)
    for block in (llama.unedited(), made.at_strength(0)):
        with block:
            assert all(torch.equal(a, b) for a, b in zip(logits(llama, [r.text for r in ASKED]), before, strict=True))
    with made.at_strength(1):
        assert not torch.equal(logits(llama, [ASKED[0].text])[0], before[0])
    with pytest.raises(ValueError, match="strength must be 0 or 1 for"):
        made.at_strength(0.5).__enter__()
    (prompt, was, now), _ = made.answers(max_new_tokens=2)
    assert prompt == ASKED[0].text and now.startswith("Rome") and not was.startswith("Rome")


def test_saved_and_loaded(llama, method, tmp_path):
    made = edit(method, llama)
    said, edited = llama.generate(ASKED, 5), logits(llama, [ASKED[0].text])[0]
    made.save(tmp_path)
    made.undo()
    again = minilib.load_edit(llama, tmp_path)
    assert llama.generate(ASKED, 5) == said and torch.equal(logits(llama, [ASKED[0].text])[0], edited)
    assert again.requests == made.requests and again.settings == made.settings and again.method == method
    with pytest.raises(ValueError, match="undo it before loading another"):
        minilib.load_edit(llama, tmp_path)
    again.undo()
    with pytest.raises(ValueError, match="another model"):
        minilib.load_edit(random_lm("llama"), tmp_path)


@pytest.mark.long
def test_a_continued_edit_is_loaded_on_its_beginning_or_alone(llama, method, tmp_path):
    one = edit(method, llama, ASKED[:1])
    first = llama.generate(ASKED[0], 5)
    two = edit(method, llama, ASKED[1:], previous=one)
    said = llama.generate(ASKED, 5)
    one.save(tmp_path / "one")
    two.save(tmp_path / "two")
    two.undo()
    one.undo()
    minilib.load_edit(llama, tmp_path / "one")
    second = minilib.load_edit(llama, tmp_path / "two")
    assert llama.generate(ASKED, 5) == said
    second.undo()
    assert llama.generate(ASKED[0], 5) == first
    llama.edits[0].undo()
    minilib.load_edit(llama, tmp_path / "two")
    assert llama.generate(ASKED, 5) == said


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
@pytest.mark.long
def test_where_gradients_are_off_it_is_made_asked_and_loaded_as_ever(llama, method, around, tmp_path):
    with around():
        made = edit(method, llama)
        said = llama.generate(ASKED, 5)
        made.save(tmp_path)
        made.undo()
        again = minilib.load_edit(llama, tmp_path)
        assert llama.generate(ASKED, 5) == said
        assert all(row["decided"] for row in again.explain(ASKED))
    assert llama.generate(ASKED, 5) == said
    llama.model(**llama.batch([llama.encode(ASKED[0]).ids])).logits.sum().backward()  # gradients flow past it
    with around():
        again.undo()
    llama.model.zero_grad()


@pytest.mark.long
def test_a_memory_put_in_force_through_another_object_is_seen(llama, method, tmp_path):
    other = minilib.LM(llama.model, llama.tokenizer)
    with edit(method, other):
        assert llama.guards == other.guards != []
        with pytest.raises(ValueError, match="has a memory beside its weights"):
            llama.save_pretrained(tmp_path / "plain")
        with llama.unedited():
            before = llama.probability(ASKED)
        assert llama.probability(ASKED) != before, "what is asked through one object is answered by the other's edit"
        assert llama.probability(ASKED) == other.probability(ASKED)
    assert not list(tmp_path.iterdir())


@pytest.mark.long
def test_a_copy_can_be_taken_back(llama, method):
    before = logits(llama, [r.text for r in ASKED])
    first = edit(method, llama, ASKED[:1])
    edit(method, llama, ASKED[1:], previous=first)
    said, left = llama.generate(ASKED, 5), hooks_left(llama.model)
    for lm in (copy.deepcopy(llama), minilib.LM(pickle.loads(pickle.dumps(llama.model)), llama.tokenizer)):
        while lm.edits:
            lm.edits[-1].undo()
        assert hooks_left(lm.model) == 0
        assert all(torch.equal(a, b) for a, b in zip(logits(lm, [r.text for r in ASKED]), before, strict=True))
    assert llama.generate(ASKED, 5) == said and hooks_left(llama.model) == left


def test_a_damaged_file_is_an_error_and_changes_nothing(llama, method, tmp_path):
    edit(method, llama).save(tmp_path)
    llama.edits[0].undo()
    file = tmp_path / "edit.safetensors"
    with safe_open(file, "pt") as stored:
        text = stored.metadata()["edit"]
    left = hooks_left(llama.model)
    for broken in (text.replace('"layer": 2', '"layer": 77'), text.replace('"guard": {', '"guards": {')):
        save_file(load_file(file), file, {"edit": broken})
        with pytest.raises(ValueError, match="damaged"):
            minilib.load_edit(llama, tmp_path)
    assert hooks_left(llama.model) == left and not llama.edits


@pytest.mark.long
def test_without_a_continued_edit_the_one_before_it_answers(llama):
    first = edit("grace", llama, ASKED[:1])
    before, said = logits(llama, [ASKED[1].text]), llama.generate(ASKED[0], 2)
    left = hooks_left(llama.model)
    second = edit("grace", llama, ASKED[1:], previous=first)
    with second.at_strength(0):
        assert llama.generate(ASKED[0], 2) == said == " Rome" + said[5:]
        assert torch.equal(logits(llama, [ASKED[1].text])[0], before[0])
    assert llama.generate(ASKED, 1) == [" Rome", " the"] and hooks_left(llama.model) == left
    second.undo()
    first.undo()


@pytest.mark.long
def test_a_continued_guard_keeps_its_place_before_another_on_the_layer(llama):
    def asked():
        return logits(llama, [ASKED[0].text])[0]

    first = edit("grace", llama, ASKED[:1])
    alone = asked()
    edit("wise", llama, ASKED[:1])
    both = asked()
    assert not torch.equal(both, alone), "WISE adds to the value that GRACE put in, so the order matters"
    second = edit("grace", llama, ASKED[1:], previous=first)
    assert torch.equal(asked(), both)
    second.undo()
    assert torch.equal(asked(), both)


def test_an_interrupted_training_leaves_nothing(llama, method, monkeypatch):
    before, left = logits(llama), hooks_left(llama.model)
    start = logits(llama, [ASKED[0].text])
    first = edit(method, llama, ASKED[:1], steps=10)  # enough to be seen
    between = logits(llama, [ASKED[0].text])
    assert not torch.equal(between[0], start[0])
    calls = []

    def stop(*args, **kwargs):
        calls.append(1)
        if len(calls) > 3:
            raise KeyboardInterrupt
        return step(*args, **kwargs)

    optimiser = {"grace": torch.optim.Adam, "wise": torch.optim.SGD}[method]
    step = optimiser.step
    monkeypatch.setattr(optimiser, "step", stop)
    with pytest.raises(KeyboardInterrupt):
        edit(method, llama, ASKED[1:], previous=first, stop_loss=0.0)
    assert llama.edits == [first] and not first.guard.silent
    assert torch.equal(logits(llama, [ASKED[0].text])[0], between[0])
    first.undo()
    assert hooks_left(llama.model) == left
    assert all(torch.equal(a, b) for a, b in zip(logits(llama), before, strict=True))


@pytest.mark.long
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_architecture(kind, method):
    lm = random_lm(kind)
    before = logits(lm)
    made = edit(method, lm, ASKED, layer=1, steps=20)
    loss = [trace["loss"] for trace in made.traces]
    assert loss and all(x[-1] < x[0] for x in loss)
    assert all(torch.equal(a, b) for a, b in zip(logits(lm), before, strict=True))
    made.undo()


def test_explain_says_what_is_decided(llama, method):
    made = edit(method, llama)
    rows = made.explain([ASKED[0], *AWAY], chat=False)
    assert [row["decided"] for row in rows] == [True] + [False] * len(AWAY)
    assert rows[0]["prompt"] == ASKED[0].text
    assert llama.generate(ASKED[0], 2).startswith(" Ro")  # looking changes nothing
    made.undo()
    with pytest.raises(ValueError, match="was undone"):
        made.explain(AWAY)
    with pytest.raises(ValueError, match="nothing to explain"):
        rome.edit(llama, ASKED[0], layer=2, covariance={2: torch.eye(96)}, steps=2).explain(AWAY)


def test_the_opening_of_an_answer(chatty, llama, word_level):
    ids = guards.opening(chatty)
    assert ids and chatty.encode("Hello", chat=True).ids[-len(ids) :] == ids
    assert chatty.tokenizer.decode(ids).endswith("[assistant] a")
    assert guards.opening(word_level) == []
