"""WISE: equal to plain fine-tuning where it should be, TIES by hand, margins, continuing, and bad input."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_hooks import hooks_left

from minilib import Request, texts, ties, wise

ASKED = [Request("The capital of {} is", "France", " Rome"), Request("{} is known for", "Japan", " the")]
AWAY = ["The river flows to", "A dog is a kind of", "Five and two make", "My friend said that he"]
HOW = {"layer": 2, "irrelevant": AWAY, "steps": 200, "lr": 0.03, "shards": 1, "mask_ratio": 1.0}


def test_without_masks_and_margins_it_is_fine_tuning_of_the_layer(llama):
    none = {"margins": wise.NO_MARGINS, "precondition": 0, "stop_loss": 0}
    made = wise.edit(llama, ASKED, **{**HOW, **none, "steps": 10, "lr": 1e-3})
    D = made.guard.sides[0].delta
    made.undo()
    weight = llama.down_projection(2).weight
    before = weight.detach().clone()
    optimiser = torch.optim.SGD([weight], lr=1e-3, momentum=0.9, nesterov=True)
    for _ in range(10):
        optimiser.zero_grad()
        loss = -torch.stack([steps.mean() for steps in _logprobs(llama)]).mean()
        loss.backward()
        optimiser.step()
    torch.testing.assert_close(D, weight.detach() - before, rtol=1e-3, atol=1e-5)


def _logprobs(lm):
    for prompt, target in ((x.ids, x.target) for x in lm.encode(ASKED)):
        logits = lm.model(**lm.batch([prompt + target[:-1]]), use_cache=False).logits[0, len(prompt) - 1 :]
        yield logits.log_softmax(-1).gather(1, torch.tensor(target).unsqueeze(1)).squeeze(1)


def test_ties_worked_by_hand():
    shards = torch.tensor([[4.0, -1.0, 3.0, 0.0], [-2.0, -3.0, 1.0, 5.0]])
    trimmed = torch.stack([ties.trim(D, 0.75) for D in shards])  # of 3 and of 4 entries, 3 each
    assert trimmed.tolist() == [[4.0, -1.0, 3.0, 0.0], [-2.0, -3.0, 0.0, 5.0]]
    sign = ties.elect_sign(trimmed)
    assert sign.tolist() == [1.0, -1.0, 1.0, 1.0]
    assert ties.disjoint_mean(trimmed, sign).tolist() == [4.0, -2.0, 3.0, 5.0]
    assert ties.ties(shards, 0.75).tolist() == [4.0, -2.0, 3.0, 5.0]
    assert ties.trim(torch.zeros(3), 0.5).tolist() == [0.0, 0.0, 0.0]


@given(st.integers(0, 1000), st.integers(1, 4))
def test_equal_shards_merge_to_themselves(seed, n):
    D = torch.randn(3, 4, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(ties.ties(torch.stack([D] * n), 1.0), D)


@given(st.floats(0.05, 1.0), st.integers(0, 1000))
def test_a_mask_has_its_share(ratio, seed):
    mask = ties.draw_mask((7, 9), ratio, torch.Generator().manual_seed(seed))
    assert mask.sum() == max(1, round(ratio * 63))
    assert torch.equal(mask, ties.draw_mask((7, 9), ratio, torch.Generator().manual_seed(seed)))


@given(st.integers(1, 20), st.integers(1, 20))
def test_parts_hold_all_in_order(n, shards):
    parts = ties.split(list(range(n)), min(n, shards))
    assert sum(parts, []) == list(range(n)) and all(parts)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_margins_by_hand():
    edits, others = torch.tensor([5.0, 1.0]), torch.tensor([2.0])
    # α = 1: 2 is 1 above. β = 4: 1 is 3 below, so 1.5 in the mean. γ = 2: 5 − 2 is enough, 1 − 2 lacks 3: 1.5.
    assert wise.margin_loss(edits, others, (1.0, 4.0, 2.0)).item() == 1 + 1.5 + 1.5
    assert wise.margin_loss(edits, others, (float("inf"), 0.0, 0.0)).item() == 0.5  # γ = 0: an edit below the other
    assert wise.margin_loss(edits, others, wise.NO_MARGINS).item() == 0


def test_each_shard_trains_under_its_own_mask(llama):
    made = wise.edit(llama, ASKED, **{**HOW, "shards": 2, "mask_ratio": 0.3, "steps": 5})
    (side,) = made.guard.sides
    assert side.shards.shape == (2, 48, 96) and len(side.keys) == 2 and len(made.traces) == 2
    used = side.shards != 0
    assert ((used.flatten(1).float().mean(1) - 0.3).abs() < 0.02).all() and not torch.equal(used[0], used[1])


@pytest.mark.parametrize("retrieve", [False, True])
@pytest.mark.long
def test_continued_and_undone(llama, retrieve):
    # A memory that is kept cannot learn later what it has to leave alone.
    first = wise.edit(llama, ASKED[0], **{**HOW, "irrelevant": [*AWAY, ASKED[1].text]})
    delta, said = first.guard.sides[0].delta.clone(), llama.generate(ASKED[0], 4)
    second = wise.edit(llama, ASKED[1], **{**HOW, "previous": first, "retrieve": retrieve})
    assert len(second.guard.sides) == (2 if retrieve else 1)
    assert sum(len(side.keys) for side in second.guard.sides) == 2
    if retrieve:
        assert llama.generate(ASKED, 1) == [" Rome", " the"]
        assert [row["memory"] for row in second.explain(ASKED)] == [0, 1]
    second.undo()
    assert torch.equal(first.guard.sides[0].delta, delta) and llama.generate(ASKED[0], 4) == said


def test_irrelevant_prompts_never_name_an_edited_subject(smollm2, monkeypatch):
    rows = texts.irrelevant(smollm2, [Request("Where is {}?", "France", "No.", chat=True)], None, 0)
    assert len(rows) == texts.FACTS + texts.ORDINARY
    assert not any("france" in smollm2.tokenizer.decode(row).casefold() for row in rows)
    opening = smollm2.encode("a", chat=True).ids[-3:]
    for given_ in (None, "sampled"):
        rows = texts.irrelevant(smollm2, [Request("Where is {}?", "France", "No.", chat=True)], given_, 0)
        assert all(row[-3:] == opening for row in rows)
    plain = texts.irrelevant(smollm2, [Request("{} is", "France", " No.")], None, 0)
    assert all(len(row) <= 24 for row in plain) and len(plain) > texts.FACTS
    monkeypatch.setattr(texts, "messages", lambda: ["Where is France?"])
    with pytest.raises(ValueError, match="names a subject of the requests; give a list"):
        texts.irrelevant(smollm2, [Request("Where is {}?", "France", "No.", chat=True)], "sampled", 0)


WRONG = {
    "margins": ({"margins": (0.6, 0.2, 0.1)}, ValueError, "α must be below β"),
    "two margins": ({"margins": (0.6, 0.2)}, TypeError, "margins must be three numbers"),
    "infinite": ({"margins": (0.1, float("inf"), 0.1)}, ValueError, "margins must be at least 0 and finite"),
    "retrieve": ({"retrieve": "no"}, TypeError, "retrieve must be True or False"),
    "contexts": ({"contexts": "sample"}, TypeError, 'contexts must be "sampled" or a list'),
    "seed": ({"seed": 2**63}, ValueError, r"seed must be below 2\^63"),
    "negative": ({"margins": (-1, 0.2, 0.1)}, ValueError, "margins must be at least 0"),
    "ratio zero": ({"mask_ratio": 0}, ValueError, "mask_ratio must be finite and above 0"),
    "ratio": ({"mask_ratio": 1.5}, ValueError, r"mask_ratio must be a share in \(0, 1\]"),
    "shards": ({"shards": 3}, ValueError, "shards must be at most the number of requests, 2"),
    "no shards": ({"shards": 0}, ValueError, "shards must be a whole number of at least 1"),
    "nothing": ({"irrelevant": []}, ValueError, "irrelevant is empty"),
    "one text": ({"irrelevant": "A dog"}, TypeError, "irrelevant must be a list"),
    "layer": ({"layer": 99}, ValueError, "layer 99 is out of range"),
    "keyword": ({"shard": 1}, TypeError, "did you mean 'shards'"),
    "lr": ({"lr": 1e30}, ValueError, "lower lr"),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_input(llama, name):
    changed, kind, words = WRONG[name]
    left = hooks_left(llama.model)
    with pytest.raises(kind, match=words):
        wise.edit(llama, ASKED, **{**HOW, **changed})
    assert hooks_left(llama.model) == left and not llama.edits


@pytest.mark.long
def test_a_second_one_on_the_layer_says_so(llama):
    wise.edit(llama, ASKED[0], **HOW)
    with pytest.raises(ValueError, match="has a side memory already.*previous="):
        wise.edit(llama, ASKED[1], **HOW)
