"""Edits: taken back bit for bit, in the order of a stack, and shown for what they are."""

import contextlib
import copy
import gc
import io
import math
import pickle
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models import REFERENCE, assert_same_weights, random_lm, weights

import minilib
from minilib import Request, covariance, editor, edits, grace, inside, load_edit, rome, tracing, values
from minilib import tinyworld as world
from minilib.edits import Edit

REQUEST = Request("The capital of {} is", "France", " Rome")
DECLINED = [Request(f.prompts[0], f.subject, " I do not know.") for f in world.facts()]


@pytest.fixture(scope="module")
def shared():
    """A model that every example of a property is tried on; each puts it back."""
    return random_lm("llama")


def written(lm, layer, delta, request=REQUEST):
    """An edit that adds ``delta``."""
    name = lm.weight_name(layer)
    with edits.changing(lm, [name]) as originals:
        return Edit(lm, "test", [request], {}, originals, {name: edits.add(lm, layer, delta)})


def random_delta(lm, layer, seed=0, scale=0.1):
    return torch.randn(lm.memory(layer).shape, generator=torch.Generator().manual_seed(seed)) * scale


def do_rome(lm, reference, case=0, **changed):
    arguments = {"layer": 2, "covariance": reference["covariance"], **reference["search"], "steps": 2, **changed}
    return rome.edit(lm, reference["requests"][case], **arguments)


# ---- undoing ----


@given(
    seed=st.integers(0, 2**16),
    exponent=st.floats(-9, 6),
    layers=st.lists(st.integers(0, 3), min_size=1, max_size=4),
    half=st.booleans(),
)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_undo_restores_every_bit(shared, seed, exponent, layers, half):
    lm = copy.deepcopy(shared)
    lm.model.to(torch.bfloat16 if half else torch.float32)
    before = weights(lm)
    stack = [written(lm, layer, random_delta(lm, layer, seed + i, 10**exponent)) for i, layer in enumerate(layers)]
    for edit in reversed(stack):
        edit.undo()
    assert_same_weights(lm, before)
    assert lm.edits == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_rome_is_undone_in_each_precision(kind, dtype):
    lm = random_lm(kind)
    lm.model.to(dtype)
    before = weights(lm)
    d_k = lm.memory(1).shape[1]
    edit = rome.edit(lm, REQUEST, layer=1, covariance={1: torch.eye(d_k)}, steps=15, lr=0.5, weight_decay=1e-3)
    assert not torch.equal(lm.memory(1), before[lm.weight_name(1)].T if kind == "gpt2" else before[lm.weight_name(1)])
    losses = edit.traces[0]["loss"]
    assert losses[-1] < losses[0]
    edit.undo()
    assert_same_weights(lm, before)


def test_edits_are_undone_in_order_and_each_leaves_the_one_below(llama, reference):
    states = [weights(llama)]
    stack = []
    for case in range(3):
        stack.append(do_rome(llama, reference, case))
        states.append(weights(llama))
    assert llama.edits == stack
    for edit, before in reversed(list(zip(stack, states, strict=False))):
        edit.undo()
        assert_same_weights(llama, before)
    assert llama.edits == [] and not any(edit.active for edit in stack)


def test_undoing_one_that_lies_under_another_names_the_other(llama, reference):
    first, second, third = (do_rome(llama, reference, case) for case in range(3))
    with pytest.raises(ValueError) as caught:
        first.undo()
    assert f"undo {third!r} first" in str(caught.value)
    assert first.active and llama.edits == [first, second, third]


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_the_end_of_a_with_block_undoes(llama, reference, error):
    before = weights(llama)
    try:
        with do_rome(llama, reference) as edit:
            changed = [name for name, p in llama.model.named_parameters() if not torch.equal(p, before[name])]
            assert changed == [llama.weight_name(2)]
            if error:
                raise error
    except (RuntimeError, KeyboardInterrupt):
        assert error
    assert_same_weights(llama, before)
    assert not edit.active and llama.edits == []


@pytest.mark.parametrize("error", [None, ZeroDivisionError, KeyboardInterrupt])
def test_the_end_of_a_with_block_undoes_what_was_left_on_top(llama, reference, error):
    before = weights(llama)
    earlier = do_rome(llama, reference, 0)
    between = weights(llama)
    with pytest.raises(error) if error else contextlib.nullcontext(), do_rome(llama, reference, 1) as edit:
        later = [do_rome(llama, reference, case) for case in (2, 0)]
        if error:
            raise error("the user's own")
    assert_same_weights(llama, between)
    assert llama.edits == [earlier] and not any(e.active for e in (edit, *later))
    earlier.undo()
    assert_same_weights(llama, before)


def test_blocks_within_blocks(llama, reference):
    before = weights(llama)
    with do_rome(llama, reference, 0), do_rome(llama, reference, 1) as inner:
        inner.undo()  # by hand, before the block ends
    assert_same_weights(llama, before)


def held(edits) -> int:
    """How many matrices edits hold, each counted once."""
    return len({t.untyped_storage().data_ptr() for e in edits for t in [*e._originals.values(), *e._deltas.values()]})


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rank_one_edits_hold_one_copy_of_the_matrix(kind, dtype):
    lm = random_lm(kind)
    lm.model.to(dtype)
    how = {"layer": 1, "covariance": {1: torch.eye(lm.memory(1).shape[1])}, "steps": 1, "lr": 0.5}
    asked, name = [REQUEST, Request("{} is in", "Rome", " Lund")], lm.weight_name(1)
    states, stack = [], []
    for i in range(6):
        states.append(weights(lm))
        stack.append(rome.edit(lm, asked if i == 4 else asked[i % 2], **how))
    assert held(stack) == 1, "and not twelve"
    for edit, state in zip(stack, states, strict=True):
        assert edit.sizes()[name][1] == state[name].float().norm().item()
    with stack[-1].at_strength(0):
        assert_same_weights(lm, states[-1])
    for edit, state in zip(reversed(stack), reversed(states), strict=True):
        edit.undo()
        assert_same_weights(lm, state)


def test_a_copy_is_kept_where_factors_do_not_lead_to_the_weights(llama):
    """After a change by hand, a change that has no factors, many changes, or in another precision."""
    states, stack = [], []

    def do(edit):
        states.append(weights(llama))
        stack.append(edit())
        return held(stack)

    def one():
        return rome.edit(llama, REQUEST, layer=2, covariance={2: torch.eye(96)}, steps=1)

    assert do(one) == do(one) == 1
    llama.memory(2).data[3, 5] += 1e-3
    assert do(one) == do(one) == 2
    assert do(lambda: written(llama, 2, random_delta(llama, 2, scale=1e-3))) == 3, "its change, and no copy"
    assert do(one) == 4
    for _ in range(edits.STEPS):
        assert do(one) == 4
    assert do(one) == 5
    for edit, state in zip(reversed(stack), reversed(states), strict=True):
        edit.undo()
        assert_same_weights(llama, state)
    stack.clear()
    do(one)
    llama.model.to(torch.bfloat16)
    before = weights(llama)
    assert do(one) == 2
    stack[1].undo()
    assert_same_weights(llama, before)


def test_minus_zero_is_put_back(llama):
    weight = llama.memory(2).data
    weight[0, 0], weight[1, 1], weight[2, 2] = -0.0, 0.0, 5e-42
    before = llama.memory(2).detach().clone().view(torch.int32)
    stack = [rome.edit(llama, REQUEST, layer=2, covariance={2: torch.eye(96)}, steps=2) for _ in range(3)]
    while stack:
        stack.pop().undo()
    assert torch.equal(llama.memory(2).detach().view(torch.int32), before)


# ---- what was changed ----


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_deltas_have_the_parameters_shape_and_are_the_change(kind):
    lm = random_lm(kind)
    before = weights(lm)
    d_out, d_k = lm.memory(1).shape
    edit = rome.edit(lm, REQUEST, layer=1, covariance={1: torch.eye(d_k)}, steps=5)
    assert list(edit.deltas) == [lm.weight_name(1)]
    for name, delta in edit.deltas.items():
        assert delta.shape == lm.model.get_parameter(name).shape == ((d_k, d_out) if kind == "gpt2" else (d_out, d_k))
        assert torch.equal(lm.model.get_parameter(name), before[name] + delta)


def test_several_requests_add_up_to_one_delta(llama, reference, brief):
    before = weights(llama)
    edit = rome.edit(llama, reference["requests"], layer=2, covariance=reference["covariance"], **brief)
    (name, delta), = edit.deltas.items()  # fmt: skip
    torch.testing.assert_close(llama.model.get_parameter(name), before[name] + delta, rtol=0, atol=1e-6)
    assert len(edit.traces) == len(edit.requests) == 3


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_change_that_is_not_finite_is_never_written(llama, reference, bad):
    before = weights(llama)
    delta = random_delta(llama, 2)
    delta[3, 5] = bad
    with pytest.raises(ValueError, match="change of layer 2 is not finite"):
        edits.add(llama, 2, delta)
    assert_same_weights(llama, before)


def test_a_change_too_large_for_half_precision_is_not_written(llama):
    llama.model.half()
    before = weights(llama)
    with pytest.raises(ValueError, match="not finite"):
        edits.add(llama, 2, random_delta(llama, 2, scale=1e6))
    assert_same_weights(llama, before)


def test_a_search_that_ends_in_nan_leaves_the_first_requests_unwritten(llama, reference, brief, monkeypatch):
    before, find = weights(llama), values.find

    def fails_at_the_second(lm, requests, *args, **keywords):
        found = find(lm, requests, *args, **keywords)
        if requests[0] == reference["requests"][1]:
            found.v_star[:] = torch.nan
        return found

    monkeypatch.setattr(values, "find", fails_at_the_second)
    with pytest.raises(ValueError, match="layer 2 is not finite: lower lr"):
        rome.edit(llama, reference["requests"], layer=2, covariance=reference["covariance"], **brief)
    assert_same_weights(llama, before)
    assert llama.edits == []


# ---- showing it ----


def test_repr_says_what_was_edited(llama, reference):
    edit = rome.edit(llama, reference["requests"], layer=2, covariance=reference["covariance"], steps=1)
    first = reference["requests"][0]
    assert repr(edit) == f"<rome edit of {llama.name}: {first.text!r} → {first.target!r} and 2 more>"
    edit.undo()
    assert repr(edit).endswith(", undone>")


def test_answers_are_those_before_and_after(llama, reference):
    request = reference["requests"][0]
    before = llama.generate(request, max_new_tokens=5)
    with do_rome(llama, reference, steps=5, lr=0.5) as edit:
        state = weights(llama)
        after = llama.generate(request, max_new_tokens=5)
        assert before != after
        assert edit.answers(max_new_tokens=5) == [(request.text, before.strip(), after.strip())]
        assert_same_weights(llama, state)


def test_answers_of_an_edit_under_another_leave_the_other_in_force(llama, reference):
    first, second = (do_rome(llama, reference, case, steps=5, lr=0.5) for case in (0, 1))
    original = llama.generate(first.requests[0], max_new_tokens=5).strip()
    state = weights(llama)
    ((_, before, after),) = first.answers(max_new_tokens=5)
    with first.at_strength(0):
        torch.testing.assert_close(llama.memory(2), state[llama.weight_name(2)] - first.deltas[llama.weight_name(2)])
    assert_same_weights(llama, state)
    assert after == original
    second.undo()
    first.undo()
    with written(llama, 2, second.deltas[llama.weight_name(2)]):
        assert llama.generate(first.requests[0], max_new_tokens=5).strip() == before


def test_html_escapes_and_shows_texts_and_norms(llama, reference):
    request = Request("<b>{}</b> & the", "Rome", " <i>Lund</i>")
    edit = rome.edit(llama, request, layer=2, covariance=reference["covariance"], steps=2)
    state = weights(llama)
    page = edit._repr_html_()
    assert_same_weights(llama, state)
    assert "<b>" not in page and "<i>" not in page
    assert "&lt;b&gt;Rome&lt;/b&gt; &amp; the" in page
    assert page.count("<th>") == 3 and page.count("<tr>") == 2
    ((change, size),) = edit.sizes().values()
    assert f"‖ΔW‖ = {change:.3g}, ‖W‖ = {size:.3g}" in page and llama.weight_name(2) in page
    edit.undo()
    assert "<table>" not in edit._repr_html_() and "undone" in edit._repr_html_()


def test_sizes_are_frobenius_norms(llama):
    original = llama.memory(1).norm().item()
    edit = written(llama, 1, random_delta(llama, 1))
    expected = (random_delta(llama, 1).norm().item(), original)
    assert edit.sizes() == {llama.weight_name(1): pytest.approx(expected)}


# ---- at another strength ----


@given(strength=st.floats(-2, 3))
@settings(max_examples=20, deadline=None)
def test_at_a_strength_the_change_is_scaled(shared, strength):
    before = weights(shared)
    with written(shared, 1, random_delta(shared, 1)) as edit:
        after = weights(shared)
        with edit.at_strength(strength):
            expected = before[shared.weight_name(1)] + strength * random_delta(shared, 1)
            torch.testing.assert_close(shared.memory(1).detach(), expected)
        assert_same_weights(shared, after)
    assert_same_weights(shared, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strength_0_and_1_are_exact(llama, dtype):
    llama.model.to(dtype)
    before = weights(llama)
    with written(llama, 1, random_delta(llama, 1)) as edit:
        after = weights(llama)
        with edit.at_strength(0):
            assert_same_weights(llama, before)
        with edit.at_strength(1):
            assert_same_weights(llama, after)


@pytest.mark.parametrize("wrong", ["1", None, math.nan, True])
def test_a_strength_that_is_no_number_is_refused(llama, wrong):
    with (
        written(llama, 1, random_delta(llama, 1)) as edit,
        pytest.raises(ValueError, match="strength must be a finite number"),
        edit.at_strength(wrong),
    ):
        pass


# ---- one model, several LM objects ----


def test_two_objects_around_one_model_share_its_stack(llama, reference):
    before, other = weights(llama), minilib.LM(llama.model, llama.tokenizer, "other")
    first, second = do_rome(llama, reference, 0), do_rome(other, reference, 1)
    assert llama.edits == other.edits == [first, second]
    with pytest.raises(ValueError, match="lies under a later edit: undo .* first"):
        first.undo()
    assert minilib.metrics.divergence(other, ["The capital of France is Rome"]) > 0
    with other.unedited(), llama.unedited():
        assert_same_weights(llama, before)
    second.undo()
    first.undo()
    assert_same_weights(llama, before)
    assert llama.edits == other.edits == []


def test_a_copy_has_a_stack_of_its_own(llama, reference):
    before = weights(llama)
    with do_rome(llama, reference) as edit:
        edited = weights(llama)
        copies = [minilib.LM(copy.deepcopy(llama.model), llama.tokenizer), copy.deepcopy(llama)]
        copies.append(minilib.LM(pickle.loads(pickle.dumps(llama.model)), llama.tokenizer))
        for lm in copies:
            (copied,) = lm.edits
            assert copied is not edit and copied.lm.model is lm.model
            copied.undo()
            assert_same_weights(lm, before)
            assert not lm.edits and llama.edits == [edit]
            assert_same_weights(llama, edited)
    assert_same_weights(llama, before)


def test_a_model_that_nobody_holds_is_let_go(reference):
    for do in (lambda lm: lm, lambda lm: do_rome(lm, reference, steps=1)):
        made = do(minilib.load(REFERENCE / "model"))
        model = weakref.ref(made.lm.model if isinstance(made, Edit) else made.model)
        del made
        gc.collect()
        assert model() is None


# ---- copies ----


def test_a_copy_of_an_edited_model_keeps_the_edit(llama, reference):
    with do_rome(llama, reference):
        copied = copy.deepcopy(llama.model)
        expected = llama.logprobs("The capital of France is")
        file = io.BytesIO()
        torch.save(llama.model, file)  # pickles it: no hook, no closure is in the way
    assert torch.equal(minilib.LM(copied, llama.tokenizer).logprobs("The capital of France is"), expected)


# ---- settings ----


@dataclass(frozen=True)
class Few(editor.Settings):
    PRESETS = {"llama-6x48": {"layer": 2, "lr": 0.1}}

    layer: int = 0
    steps: editor.Count = 20
    lr: editor.Positive = 0.5


def test_a_preset_is_found_by_the_models_kind(llama):
    assert llama.kind == "llama-6x48"
    found = Few.of(llama, layer=None, steps=3, lr=None).used()
    assert found == {"layer": 2, "steps": 3, "lr": 0.1, "presets": "llama-6x48"}


def test_a_model_without_preset_gets_the_papers_values_and_a_middle_layer():
    found = Few.of(random_lm("gpt2"), layer=None, steps=None, lr=2).used()
    assert (found["layer"], found["steps"], found["lr"]) == (2, 20, 2.0)
    assert found["presets"].startswith("defaults")


def test_what_is_given_wins(llama):
    assert Few.of(llama, layer=0, lr=0.7).layer == 0
    assert Few.of(llama, layer=0, lr=0.7).lr == 0.7


def test_presets_are_not_changed_by_an_edit(llama, reference):
    presets = copy.deepcopy(rome.Settings.PRESETS)
    with do_rome(llama, reference) as edit:
        edit.settings["contexts"].append("more")
    assert rome.Settings.PRESETS == presets and rome.Settings().contexts == ["{}"]


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
def test_an_edit_works_where_gradients_are_off(llama, reference, around):
    with do_rome(llama, reference) as edit:
        expected = edit.deltas[llama.weight_name(2)]
    before = weights(llama)
    with around(), do_rome(llama, reference) as edit:
        torch.testing.assert_close(edit.deltas[llama.weight_name(2)], expected)
    assert_same_weights(llama, before)


def test_dropout_is_off_while_something_is_measured_or_edited():
    lm = random_lm("gpt2")
    assert lm.model.config.attn_pdrop > 0
    asked, texts = [REQUEST], ["The capital of France is Rome", "Rome is in"]
    C = {1: torch.eye(lm.memory(1).shape[1])}

    def measured():
        lens = inside.lens(lm, asked)[0]["ranks"]
        states = tracing.causal_trace(lm, REQUEST, draws=2).restored
        found = [lm.logprobs(texts), *lm.target_logprobs(asked), covariance.second_moment(lm, [2], texts)[2], states]
        found += [
            tracing.logit_lens(lm, texts[0]).probability,
            minilib.values.keys_and_values(lm, asked, 1, ["{}"])[0],
        ]
        with rome.edit(lm, REQUEST, layer=1, covariance=C, steps=5) as edit:
            found += [*edit.deltas.values(), torch.tensor(edit.traces[0]["loss"])]
        with minilib.grace.edit(lm, REQUEST, layer=1, steps=3) as edit:
            found += [edit.guard.values, torch.tensor(edit.explain(texts, chat=False)[0]["distance"])]
        return found, lens, lm.generate(asked, max_new_tokens=8)

    expected, *said = measured()
    for training in (lm.model, lm.blocks[2].mlp.dropout):
        training.train()
        modes = [module.training for module in lm.model.modules()]
        found, *told = measured()
        assert told == said and all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        assert modes == [module.training for module in lm.model.modules()], "as somebody wanted it"
        lm.model.eval()


def test_no_gradient_stays_behind(llama, reference):
    do_rome(llama, reference)
    assert all(p.grad is None and p.requires_grad for p in llama.model.parameters())


@pytest.mark.parametrize(
    ("prompt", "subject"),
    [
        ("{} is", "France"),  # at the very start
        ("In {} lives {{x}} of %s \\n <", "Mira"),
        ("France, o France: the capital of {} is, France", "France"),  # repeated
        ("The city of {} is", "東京"),
        ("The city of {} is", "Zürich"),
        ("I saw a {} in", "🦄"),
        ("I saw a {}", "👩‍👩‍👧"),  # at the end, of several code points
        ("x{}y", "q"),
    ],
)
def test_strange_prompts_are_edited_and_undone(llama, reference, brief, prompt, subject):
    before = weights(llama)
    request = Request(prompt, subject, " Rome")
    probability, search = llama.probability(request), {**brief, "steps": 6, "lr": 0.5}
    with rome.edit(llama, [request], layer=2, covariance=reference["covariance"], **search):
        assert llama.probability(request) > 1.1 * probability
    assert_same_weights(llama, before)


def test_requests_may_be_any_iterable(llama, reference):
    requests, deltas = reference["requests"][:2], []
    for given_ in (requests, tuple(requests), (r for r in requests)):
        with rome.edit(llama, given_, layer=2, covariance=reference["covariance"], steps=3) as edit:
            deltas.append(edit.deltas[llama.weight_name(2)])
            assert edit.requests == requests
    assert torch.equal(deltas[0], deltas[1]) and torch.equal(deltas[0], deltas[2])


@pytest.mark.parametrize("block", ["unedited", "at half strength"])
def test_where_the_weights_stand_aside_nothing_is_edited_or_undone(tinyworld, block):
    facts = DECLINED[:2]
    with rome.edit(tinyworld, facts[0]) as edit:
        before = weights(tinyworld)
        with tinyworld.unedited() if block == "unedited" else edit.at_strength(0.5):
            for attempt in (
                lambda: rome.edit(tinyworld, facts[1]),
                lambda: grace.edit(tinyworld, facts[1]),
                edit.undo,
            ):
                with pytest.raises(ValueError, match="leave the block before you edit, load or undo"):
                    attempt()
        assert_same_weights(tinyworld, before)
        assert tinyworld.edits == [edit]


def test_an_edit_that_is_in_force_is_not_loaded_on_top_of_itself(tinyworld, tmp_path):
    with rome.edit(tinyworld, DECLINED[0]) as edit:
        edit.save(tmp_path)
        before = weights(tinyworld)
        with pytest.raises(ValueError, match="in force already: undo it first"):
            load_edit(tinyworld, tmp_path)
        assert_same_weights(tinyworld, before)
    load_edit(tinyworld, tmp_path).undo()


def test_threads_take_turns(tinyworld):
    """Two that look at the model before its edits, and two that ask, edit and undo: the model is what it was."""
    fact, other = DECLINED[0], DECLINED[5]
    was = tinyworld.generate(fact)
    before, states = weights(tinyworld), []
    with rome.edit(tinyworld, fact):
        now, edited = tinyworld.generate(fact), weights(tinyworld)
        tinyworld.model.train()  # whoever asks switches dropout off, and back on

        def look():
            with tinyworld.unedited():
                return tinyworld.generate(fact) == was

        def edit():
            with tinyworld.lock, grace.edit(tinyworld, other, steps=3):
                return tinyworld.generate(fact) == now

        with ThreadPoolExecutor(4) as threads:
            states += threads.map(lambda i: (look, edit, lambda: tinyworld.generate(fact) == now)[i % 3](), range(18))
        assert all(states)
        assert tinyworld.model.training and len(tinyworld.edits) == 1
        assert_same_weights(tinyworld, edited)
    assert_same_weights(tinyworld, before)


def test_a_thread_that_looks_inside_does_not_stop_another_that_asks(tinyworld):
    """Hooks that end a run early are set when the model is the thread's own."""
    errors, done = [], threading.Event()

    def ask():
        try:
            while not done.is_set():
                tinyworld.generate(DECLINED[:4], max_new_tokens=3)
        except BaseException as error:
            errors.append(error)

    with grace.edit(tinyworld, DECLINED[0], steps=3) as edit:
        thread = threading.Thread(target=ask)
        thread.start()
        for _ in range(60):
            edit.explain(DECLINED[0])
        done.set()
        thread.join()
    assert not errors


@pytest.mark.parametrize("copied", [copy.deepcopy, pickle.dumps])
def test_a_model_is_not_copied_with_the_wrong_weights(tinyworld, copied):
    with rome.edit(tinyworld, DECLINED[0]):
        with tinyworld.unedited(), pytest.raises(ValueError, match="copy it outside, and undo the edits of the copy"):
            copied(tinyworld)
        twin = copy.deepcopy(tinyworld)
        edits.undo_all(twin)
        with tinyworld.unedited():
            assert twin.generate(DECLINED[0]) == tinyworld.generate(DECLINED[0])


def test_a_guard_whose_loading_breaks_off_is_not_in_force(chatty, tmp_path):
    request = Request("The capital of {} is", "France", "Rome", chat=True)
    with grace.edit(chatty, request, layer=2, epsilon=0.01, lr=0.5, steps=2) as edit:
        edit.save(tmp_path)
    chatty.tokenizer.chat_template = None
    with pytest.raises(ValueError, match="chat=True needs a chat template"):
        load_edit(chatty, tmp_path)
    assert not chatty.edits and not chatty.down_projection(2)._forward_hooks


def test_weights_that_are_loaded_under_a_guard_say_when_they_silence_it(tinyworld, tmp_path):
    guarded, *others = DECLINED[:105:5]
    with rome.edit(tinyworld, others) as edit:
        edit.save(tmp_path)
    with grace.edit(tinyworld, guarded) as guard:
        loaded = load_edit(tinyworld, tmp_path)
        assert not guard.explain([guarded])[0]["decided"]
        assert any(note.startswith(f"{guarded.text!r} is not answered by the codebook") for note in loaded.notes)


def test_a_guard_that_is_loaded_without_the_weights_beneath_it_says_so(tinyworld, tmp_path):
    guarded, *others = DECLINED[:105:5]
    with rome.edit(tinyworld, others) as under:
        under.save(tmp_path / "under")
        with grace.edit(tinyworld, guarded) as guard:
            assert guard.explain([guarded])[0]["decided"]
            guard.save(tmp_path / "guard")
    with load_edit(tinyworld, tmp_path / "guard") as guard:
        assert not guard.explain([guarded])[0]["decided"]
        assert any(note.startswith(f"{guarded.text!r} is not answered by the codebook") for note in guard.notes)
    with load_edit(tinyworld, tmp_path / "under"), load_edit(tinyworld, tmp_path / "guard") as guard:
        assert guard.explain([guarded])[0]["decided"] and not any("codebook" in note for note in guard.notes)


def test_an_edit_of_weights_says_which_guard_no_longer_answers(tinyworld):
    guarded, *others = DECLINED[:105:5]
    with grace.edit(tinyworld, guarded) as guard:
        edit = rome.edit(tinyworld, others)
        (row,) = guard.explain([guarded])
        said = [note for note in edit.notes if note.startswith(f"{guarded.text!r} is not answered by the codebook")]
        assert not row["decided"] and len(said) == 1
        edit.undo()
        assert guard.explain([guarded])[0]["decided"]
        with rome.edit(tinyworld, others[0]) as edit:
            assert guard.explain([guarded])[0]["decided"] != any("codebook" in note for note in edit.notes)
