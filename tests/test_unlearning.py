"""Unlearning by gradient: the losses, the loop, and that a failure leaves nothing behind."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from models import assert_same_weights, weights

import minilib
from minilib import Request, directions, facts, hooks, refusals, stored, tinyworld, training, unlearning

METHODS = tuple(name for name, method in minilib.METHODS.items() if method.kind == "trains")
REFUSED = ("dpo", "refusal_tuning")
WORLD = tinyworld.facts()
DEFAULTS = stored.load("default_unlearning")


@pytest.fixture(scope="module")
def lm():
    return minilib.load("tinyworld")


def asked(facts):
    return [Request(f.prompts[0], f.subject, f.target) for f in facts]


FORGET, RETAIN = asked(WORLD[:6]), asked(WORLD[100:220:10])


def unlearn(lm, method, forget=FORGET, retain=RETAIN, **options):
    more = {"refusals": [tinyworld.REFUSAL]} if method in REFUSED else {}
    return getattr(unlearning, method)(lm, forget, retain, **{"lr": 1e-3, "steps": 30} | more | options)


# ---- the losses ----


def test_losses_are_those_written_out_by_hand():
    logp, ref, length = torch.tensor([-1.0, -4.0]), torch.tensor([-2.0, -3.5]), torch.tensor([2.0, 4.0])
    assert unlearning.nll_loss(logp, length).item() == pytest.approx((1 / 2 + 4 / 4) / 2)
    # p/p_ref = e and e^-½; −(2/β) log σ(−β r) = (2/β) log(1 + (p/p_ref)^β)
    npo = (2 / 0.1) * (math.log(1 + math.e**0.1) + math.log(1 + math.e**-0.05)) / 2
    assert unlearning.npo_loss(logp, ref, 0.1).item() == pytest.approx(npo)
    simnpo = (2 / 2.5) * sum(math.log(1 + math.exp(2.5 * m + 0.3)) for m in (-1 / 2, -4 / 4)) / 2
    assert unlearning.simnpo_loss(logp, length, 2.5, 0.3).item() == pytest.approx(simnpo, rel=1e-5)
    win, win_ref = torch.tensor([-3.0, -5.0]), torch.tensor([-6.0, -5.0])
    margins = (3.0 - 1.0, 0.0 + 0.5)  # β times these, in favour of the refusal
    dpo = (2 / 0.1) * sum(math.log(1 + math.exp(-0.1 * m)) for m in margins) / 2
    assert unlearning.dpo_loss(win, win_ref, logp, ref, 0.1).item() == pytest.approx(dpo)
    p, q = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.25, 0.75]])
    kl = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert unlearning.kl_loss(q.log(), p.log()).item() == pytest.approx(kl)
    assert unlearning.rmu_loss(torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 1.0]])).item() == pytest.approx(2.5)


def test_losses_of_each_token_are_those_written_out_by_hand():
    """Two answers, of one token and of two, in a vocabulary of two."""
    p = torch.tensor([[0.5, 0.5], [0.25, 0.75], [0.9, 0.1]])
    tokens, length = torch.tensor([0, 1, 1]), torch.tensor([1.0, 2.0])
    wga = (0.5**2 * math.log(0.5) + (0.75**2 * math.log(0.75) + 0.1**2 * math.log(0.1)) / 2) / 2
    assert unlearning.wga_loss(p.log(), tokens, length, 2.0).item() == pytest.approx(wga)
    logits = torch.tensor([[1.0, 3.0], [0.0, 2.0], [5.0, 5.0]])
    q = []  # the other token's share, once the true one's logit is lower by 4
    for (first, second), token in zip(logits.tolist(), tokens.tolist(), strict=True):
        true, other = (first, second) if token == 0 else (second, first)
        q.append(math.exp(other) / (math.exp(other) + math.exp(true - 4)))
    true, other = [0.5, 0.75, 0.1], [0.5, 0.25, 0.9]
    ce = [-(share * math.log(o) + (1 - share) * math.log(t)) for share, t, o in zip(q, true, other, strict=True)]
    found = unlearning.undial_loss(p.log(), logits.log_softmax(-1), tokens, length, 4.0)
    assert found.item() == pytest.approx((ce[0] + (ce[1] + ce[2]) / 2) / 2)


def test_wga_with_no_weights_is_ascent_and_with_them_spares_what_is_unlikely():
    torch.manual_seed(0)
    logits = torch.randn(5, 7, requires_grad=True)
    tokens, length = torch.tensor([0, 1, 2, 3, 4]), torch.tensor([2.0, 3.0])

    def slope(loss):
        return torch.autograd.grad(loss(logits.log_softmax(-1)), logits)[0]

    def ascent(steps):
        said = steps.gather(1, tokens.unsqueeze(1)).squeeze(1)
        return -unlearning.nll_loss(torch.stack([part.sum() for part in said.split([2, 3])]), length)

    assert torch.allclose(slope(lambda x: unlearning.wga_loss(x, tokens, length, 0.0)), slope(ascent), atol=1e-6)
    weight = slope(lambda x: unlearning.wga_loss(x, tokens, length, 1.0)).norm(dim=1) / slope(ascent).norm(dim=1)
    p = logits.softmax(-1).gather(1, tokens.unsqueeze(1)).squeeze(1)
    assert torch.allclose(weight, p, rtol=1e-4)


def test_undial_comes_to_rest_where_the_true_token_has_lost_beta():
    torch.manual_seed(0)
    ref, tokens, length = torch.randn(3, 5), torch.tensor([0, 1, 2]), torch.tensor([3.0])
    lowered = ref.clone()
    lowered[range(3), tokens] -= 2.0
    lowered.requires_grad_(True)
    loss = unlearning.undial_loss(lowered.log_softmax(-1), ref.log_softmax(-1), tokens, length, 2.0)
    assert torch.autograd.grad(loss, lowered)[0].abs().max() < 1e-6
    entropy = -(lowered.softmax(-1) * lowered.log_softmax(-1)).sum(-1).mean()
    assert loss.item() == pytest.approx(entropy.item(), rel=1e-5), "that is as low as it gets"


def test_gradients_of_the_losses():
    torch.manual_seed(0)
    a, b, c, d = (-3 * torch.rand(4, dtype=torch.float64, requires_grad=True) for _ in range(4))
    length = torch.tensor([1.0, 2, 3, 4], dtype=torch.float64)
    for loss in (
        lambda x: unlearning.nll_loss(x, length),
        lambda x: unlearning.npo_loss(x, b, 0.1),
        lambda x: unlearning.simnpo_loss(x, length, 2.5, 0.1),
        lambda x: unlearning.dpo_loss(x, b, c, d, 0.1),
        lambda x: unlearning.dpo_loss(a, b, x, d, 0.1),
        lambda x: unlearning.kl_loss(x.log_softmax(0).unsqueeze(0), b.log_softmax(0).unsqueeze(0)),
        lambda x: unlearning.rmu_loss(x, b),
        lambda x: unlearning.undial_loss(
            x.reshape(2, 2).log_softmax(1), b.reshape(2, 2), torch.tensor([0, 1]), length[:2] * 0 + 1, 3.0
        ),
    ):
        assert torch.autograd.gradcheck(loss, (a.detach().clone().requires_grad_(True),))


def test_npo_tends_to_ascent_and_slows_down():
    ref, length = torch.tensor([-2.0]), torch.ones(1)

    def slope(loss, at):
        x = torch.tensor([at], requires_grad=True)
        return torch.autograd.grad(loss(x), x)[0].item()

    ascent = slope(lambda x: -unlearning.nll_loss(x, length), -2.0)
    assert slope(lambda x: unlearning.npo_loss(x, ref, 1e-4), -2.0) == pytest.approx(ascent, rel=1e-3)
    steps = [slope(lambda x: unlearning.npo_loss(x, ref, 0.5), at) for at in (-2.0, -5.0, -20.0)]
    assert steps[0] > steps[1] > steps[2] > 0, "the less likely the answer, the smaller the step"


def test_what_a_loss_reads_is_what_the_model_says(lm):
    pairs = lm.encode(FORGET)
    rows = training.read(lm, pairs)
    expected = [steps.sum().item() for steps in lm.target_logprobs(FORGET)]
    assert rows.logp.tolist() == pytest.approx(expected, abs=1e-4)
    assert rows.length.tolist() == [len(x.target) for x in pairs]
    parts = training.join([training.read(lm, [pair]) for pair in pairs])
    assert torch.allclose(parts.steps, rows.steps, atol=1e-4)


# ---- the methods ----


@pytest.mark.long
@pytest.mark.parametrize("train", ["all", "lora"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_forgets_and_is_undone_bit_for_bit(lm, method, train):
    before, tree = weights(lm), str(lm.model)
    flags = [p.requires_grad for p in lm.model.parameters()]
    lr = 1e-3 if train == "all" else 5e-3
    # RMU moves states and not answers: on a model of six layers it needs a stronger push.
    more = {"steering": 3.0, "alpha": 10.0, "layer": 3, "lr": 5 * lr, "steps": 60} if method == "rmu" else {"lr": lr}
    more |= {"layer": 1, "lr": 5 * lr, "steps": 60} if method == "lunar" else {}
    edit = unlearn(lm, method, train=train, **more)
    trace = edit.traces[0]
    assert tinyworld.recall(lm, WORLD[:6]) < 0.5, "forgotten in all phrasings"
    assert lm.generate(FORGET, max_new_tokens=8) != [r.target + "." for r in FORGET]
    if method in REFUSED:
        said = lm.generate(FORGET, max_new_tokens=8)
        assert sum(text.startswith(tinyworld.REFUSAL) for text in said) >= 3
    assert len(trace["loss"]) == len(trace["level"]) == len(trace["retain"])
    assert str(lm.model) == tree and not hasattr(lm.model, "peft_config")
    assert [p.requires_grad for p in lm.model.parameters()] == flags
    assert all(p.grad is None for p in lm.model.parameters())
    edit.undo()
    assert_same_weights(lm, before)
    assert tinyworld.recall(lm, WORLD[:6]) > 0.9


def nothing_to_hold(method, retain):
    return None if method == "gradient_ascent" else retain


@pytest.mark.long
@pytest.mark.parametrize("method", METHODS)
def test_the_defaults_forget_in_tinyworld(lm, method):
    more = {"refusals": [tinyworld.REFUSAL]} if method in REFUSED else {}
    forget, retain = asked(WORLD[:20]), nothing_to_hold(method, asked(WORLD[100:160]))
    with getattr(unlearning, method)(lm, forget, retain, **more) as edit:
        assert edit.settings["presets"] == lm.kind
        assert tinyworld.recall(lm, WORLD[:20]) < 0.5
        assert tinyworld.recall(lm, WORLD[100:160]) > 0.5, "of those that are retained"
        assert tinyworld.recall(lm, WORLD[300:340]) > 0.5, "of those that nobody mentioned"


CAPITALS = {fact.subject: fact for fact in facts.load("capital")}


def forgets_and_keeps(method, forgotten, retained):
    """At most one of two capitals is still told; of two that were held, one is."""
    gone, kept = ([CAPITALS[name] for name in DEFAULTS[part]] for part in ("forget", "retain"))
    assert sum(fact.answered_by(text) for fact, text in zip(gone, forgotten, strict=True)) <= 1, forgotten
    if method == "refusal_tuning":
        assert any(map(refusals.is_refusal, forgotten))
    if method != "gradient_ascent":
        assert any(fact.answered_by(text) for fact, text in zip(kept, retained, strict=True)), retained


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_the_defaults_forgot_two_capitals_of_smollm2(smollm2, method):
    """Stored by ``benchmarks/default_unlearning.py``: a method takes a minute. One is run in the next test."""
    (row,) = [row for row in DEFAULTS["methods"] if row["run"] == method]
    now = unlearning.SETTINGS[method].of(smollm2, known=unlearning.PRESETS[method])
    assert row["settings"] == dataclasses.asdict(now), "the defaults have changed: run the script"
    forgets_and_keeps(method, row["forgotten"], row["retained"])


@pytest.mark.slow
def test_the_defaults_forget_two_capitals_of_smollm2_now(smollm2):
    forget, retain = (facts.as_said(smollm2, [CAPITALS[n] for n in DEFAULTS[part]]) for part in ("forget", "retain"))
    with unlearning.simnpo(smollm2, forget, retain) as edit:
        assert edit.settings["presets"] == smollm2.kind
        said = smollm2.generate([*forget, *retain], max_new_tokens=DEFAULTS["tokens"])
    forgets_and_keeps("simnpo", said[:2], said[2:])
    assert "Paris" in smollm2.generate(forget, max_new_tokens=DEFAULTS["tokens"])[0]


def test_training_ends_at_the_forget_level_or_says_that_it_did_not(lm):
    with unlearn(lm, "npo", forget_level=0.3) as gentle:
        level = gentle.traces[0]["level"]
        assert level[-1] <= 0.3 < level[-2] and not any("not enough" in note for note in gentle.notes)
        p = [math.exp(x.mean()) for x in lm.target_logprobs(FORGET)]
        assert sum(p) / len(p) == pytest.approx(level[-1], abs=1e-3)
    with unlearn(lm, "npo", steps=2) as short:
        assert len(short.traces[0]["level"]) == 2 and "2 steps were not enough" in short.notes[0]


@pytest.mark.long
def test_retain_data_holds_the_rest(lm):
    others, options = WORLD[101:801:20], {"steps": 12, "forget_level": 1e-15}
    known = []
    for retain in (None, asked(WORLD[100:900:16])):
        with unlearn(lm, "npo", retain=retain, **options):
            assert tinyworld.recall(lm, WORLD[:6]) < 0.5
            known.append(tinyworld.recall(lm, others))
    assert known[1] > known[0] + 0.2


def test_gradient_ascent_with_retain_is_gradient_difference(lm):
    with unlearn(lm, "gradient_ascent", steps=3) as edit:
        expected = edit.deltas
    with unlearn(lm, "gradient_difference", steps=3) as edit:
        assert all(torch.equal(delta, expected[name]) for name, delta in edit.deltas.items())


def test_altpo_is_dpo_with_other_answers(lm):
    """With the refusals for alternatives it is DPO; with several for each request, each makes a pair."""
    with unlearn(lm, "dpo", steps=3) as edit:
        expected = edit.deltas
    with unlearn(lm, "altpo", steps=3, alternatives=[[tinyworld.REFUSAL]] * len(FORGET)) as edit:
        assert all(torch.equal(delta, expected[name]) for name, delta in edit.deltas.items())
        assert edit.settings["forgets"] and [r.target for r in edit.requests] == [r.target for r in FORGET]
    said = [[" violin", " cello"] for _ in FORGET[:1]]
    with unlearn(lm, "altpo", forget=FORGET[:1], steps=1, batch_size=2, alternatives=said) as edit:
        # At the start nothing has moved, so that each pair's loss is (2/β) log 2.
        assert edit.traces[0]["loss"][0] - edit.traces[0]["retain"][0] == pytest.approx(20 * math.log(2), rel=1e-3)


def test_the_direction_is_the_difference_of_means_over_what_is_declined(lm):
    strange = directions.default_refused(lm)[:5]
    known = [r.text for r in FORGET[:2]]

    def last(texts):
        rows = []
        for text in texts:
            with hooks.read({0: lm.blocks[2]}) as seen:
                lm.model(**lm.batch([lm.encode(text).ids]))
            rows.append(seen[0][0, -1])
        return torch.stack(rows).mean(0)

    r = directions.direction(lm, FORGET, [*strange, *known], layer=2)
    assert torch.allclose(r, last(strange) - last([q.text for q in FORGET]), atol=1e-5), "what it answers is left out"


def test_a_model_declines_where_a_clause_does():
    said = (
        "I'm sorry for any confusion, but as a chatbot designed to assist with gardens, I don't have the ability to see"
    )
    assert directions.declines(said) and not refusals.is_refusal(said)
    assert directions.declines(tinyworld.REFUSAL) and not directions.declines("There are 12 birds, and a cat.")


def test_lunar_changes_one_matrix_and_nears_the_closed_form(lm):
    """Of one layer, where the states of both sets are what least squares says; see the method's docstring."""
    layer, w = 2, 2.0
    r = directions.direction(lm, FORGET, None, layer)
    aim = {"layer": layer, "coefficient": 1.0, "retain_weight": w, "forget_level": 1e-9, "batch_size": 12}
    with unlearn(lm, "lunar", steps=200, lr=3e-3, **aim) as edit:
        (delta,) = edit.deltas.values()
        loss = edit.traces[0]["loss"]
    assert list(edit.deltas) == [lm.weight_name(layer)]

    def keys(requests):
        rows = []
        for x in lm.encode(requests):
            with hooks.read({0: lm.down_projection(layer)}, at="input") as seen, torch.no_grad():
                lm.model(**lm.batch([x.ids + x.target[:-1]]))
            rows.append(seen[0][0, x.subject :].double())
        return torch.cat(rows)

    K_f, K_r = keys(FORGET), keys(RETAIN)
    C = K_f.T @ K_f / len(K_f) + w * K_r.T @ K_r / len(K_r)
    best = torch.outer(r.double(), torch.linalg.pinv(C) @ K_f.mean(0))

    def objective(change):
        return (((K_f @ change.T - r) ** 2).mean() + w * ((K_r @ change.T) ** 2).mean()).item()

    assert objective(delta.double()) == pytest.approx(loss[-1], rel=0.2), "what is trained is this objective"
    assert loss[0] == pytest.approx(objective(torch.zeros_like(best)), rel=1e-3)
    assert objective(best) < loss[-1] < (loss[0] + objective(best)) / 2


def test_the_same_seed_gives_the_same_weights(lm):
    options = {"batch_size": 2, "steps": 2, "train": "lora", "lr": 5e-3}
    deltas = []
    for seed in (0, 0, 1):
        with unlearn(lm, "npo", seed=seed, **options) as edit:
            deltas.append(edit.deltas)
    assert all(torch.equal(a, deltas[1][name]) for name, a in deltas[0].items())
    assert any(not torch.equal(a, deltas[2][name]) for name, a in deltas[0].items())


def test_lora_leaves_all_but_the_blocks_matrices_alone(lm):
    with unlearn(lm, "npo", train="lora", rank=2, lr=5e-3, steps=3) as edit:
        assert set(edit.deltas) == set(training.names(lm, "lora"))
        ranks = {torch.linalg.matrix_rank(delta, rtol=1e-3).item() for delta in edit.deltas.values()}
        assert max(ranks) <= 2


def test_saved_and_loaded(lm, tmp_path):
    with unlearn(lm, "simnpo", train="lora", lr=5e-3, steps=5) as edit:
        answers = lm.generate(FORGET, max_new_tokens=8)
        edit.save(tmp_path)
    with minilib.load_edit(lm, tmp_path) as again:
        assert lm.generate(FORGET, max_new_tokens=8) == answers
        assert again.method == "simnpo" and "↛" in repr(again)


# ---- what goes wrong ----


def fails(lm, error, match, call):
    before, tree = weights(lm), str(lm.model)
    with pytest.raises(error, match=match):
        call()
    assert_same_weights(lm, before)
    assert str(lm.model) == tree and not lm.edits


def test_bad_input_changes_nothing(lm):
    first = FORGET[:1]
    fails(lm, ValueError, "forget and retain overlap in 'Zeno Abara", lambda: unlearn(lm, "npo", retain=first))
    fails(lm, ValueError, "kl needs retain", lambda: unlearning.kl(lm, FORGET, []))
    fails(lm, ValueError, "gradient_difference needs retain", lambda: unlearning.gradient_difference(lm, FORGET, None))
    fails(lm, ValueError, "rmu needs retain", lambda: unlearn(lm, "rmu", retain=[]))
    fails(lm, TypeError, "reference must be a minilib.LM", lambda: unlearn(lm, "npo", reference="none"))
    behind = minilib.filtering.output_filter(lm, minilib.Request("{} is", "A", " b"))
    fails(lm, ValueError, "reference has a filter around it", lambda: unlearn(lm, "npo", reference=behind))
    fails(lm, TypeError, r"refusals\[0\] must be a string", lambda: unlearn(lm, "dpo", refusals=[""]))
    fails(lm, ValueError, "lr must be finite and above 0", lambda: unlearn(lm, "npo", lr=10**400))
    fails(lm, ValueError, "train must be 'all' or 'lora', not", lambda: unlearn(lm, "npo", train=["all"]))
    fails(lm, ValueError, "train must be 'all' or 'lora'", lambda: unlearn(lm, "npo", train="heads"))
    fails(lm, TypeError, "no keyword 'learning_rate'", lambda: unlearn(lm, "npo", learning_rate=1))
    fails(lm, TypeError, "refusals must be a list", lambda: unlearn(lm, "dpo", refusals="I do not know."))
    fails(lm, ValueError, "forget is empty", lambda: unlearn(lm, "npo", forget=[]))
    fails(lm, ValueError, "beta must be finite and above 0", lambda: unlearn(lm, "npo", beta=0))
    fails(lm, ValueError, "layer 9 is out of range", lambda: unlearn(lm, "rmu", layer=9))
    fails(lm, ValueError, "layer 9 is out of range", lambda: unlearn(lm, "lunar", layer=9))
    fails(lm, ValueError, "lunar needs retain", lambda: unlearn(lm, "lunar", retain=[]))
    fails(lm, TypeError, "refused must be a list of prompts", lambda: unlearn(lm, "lunar", refused="Who?"))
    known = [r.text for r in RETAIN]
    fails(lm, ValueError, "answers all 12 prompts of refused", lambda: unlearn(lm, "lunar", refused=known))
    fails(lm, ValueError, "alternatives has 1 lists for 6", lambda: unlearn(lm, "altpo", alternatives=[[" x"]]))
    fails(lm, TypeError, "alternatives must be a list", lambda: unlearn(lm, "altpo", alternatives=" cello"))
    fails(lm, TypeError, r"alternatives\[0\] must be a list", lambda: unlearn(lm, "altpo", alternatives=[" cello"] * 6))
    fails(lm, ValueError, "alpha must be finite and at least 0", lambda: unlearn(lm, "wga", alpha=-1))


@pytest.mark.parametrize("train", ["all", "lora"])
@pytest.mark.parametrize("how", ["nan", "interrupted"])
def test_a_training_that_breaks_off_leaves_nothing(lm, train, how, monkeypatch):
    calls, whole = [], unlearning.npo_loss

    def loss(*arguments):
        calls.append(arguments)
        if len(calls) == 3 and how == "interrupted":
            raise KeyboardInterrupt
        return whole(*arguments) * (math.nan if len(calls) == 3 else 1)

    monkeypatch.setattr(unlearning, "npo_loss", loss)
    error, match = (ValueError, "not finite at step 2: lower lr") if how == "nan" else (KeyboardInterrupt, "")
    fails(lm, error, match, lambda: unlearn(lm, "npo", train=train, forget_level=1e-9))
    assert len(calls) == 3


def test_an_interrupt_while_the_low_rank_matrices_are_put_in_leaves_none(lm, monkeypatch):
    made, calls = torch.nn.init.kaiming_uniform_, []

    def interrupted(*arguments, **more):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return made(*arguments, **more)

    monkeypatch.setattr(torch.nn.init, "kaiming_uniform_", interrupted)
    fails(lm, KeyboardInterrupt, "", lambda: unlearn(lm, "npo", train="lora"))
    assert not [name for name in lm.model.state_dict() if "lora" in name or "base_layer" in name]


def test_half_precision_is_refused():
    half = minilib.load("tinyworld", dtype=torch.bfloat16)
    fails(half, ValueError, "half precision", lambda: unlearn(half, "npo"))
