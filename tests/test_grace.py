"""GRACE: the codebook's arithmetic against a slow version, one batch against one at a time, and bad input."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import random_lm
from test_hooks import hooks_left

from minilib import Request, grace, rome
from minilib import tinyworld as world

TARGETS = ["a", "b"]
points = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8), st.sampled_from(TARGETS)), min_size=1, max_size=12)


def requests(targets):
    return [Request(f"{{}} is number {i}", "This", target) for i, target in enumerate(targets)]


def slowly(keys, targets, epsilon):
    """Algorithm 1, one key after another, in plain numbers."""
    book = []
    for key, target in zip(keys.tolist(), targets, strict=True):
        distance = [sum((a - b) ** 2 for a, b in zip(key, entry["key"], strict=True)) ** 0.5 for entry in book]
        i = min(range(len(book)), key=lambda j: distance[j], default=None)
        near = i is not None and distance[i] <= book[i]["radius"] + epsilon
        if near and book[i]["target"] == target:
            book[i]["radius"] = max(book[i]["radius"], distance[i] * 1.01)
        elif i is not None and distance[i] == 0:
            book[i]["target"] = target
        else:
            radius = epsilon
            if near:
                radius = min(epsilon, distance[i] / 2)
                book[i]["radius"] = min(book[i]["radius"], distance[i] / 2)
            book.append({"key": key, "target": target, "radius": radius})
    return book


@given(points, st.sampled_from([0.5, 1.0, 2.0, 3.7]))
def test_the_arithmetic_is_that_of_a_slow_version(rows, epsilon):
    keys = torch.tensor([row[:2] for row in rows], dtype=torch.float32)
    targets = [row[2] for row in rows]
    book, _ = grace.place(None, 0, keys, torch.zeros(len(keys), 1), requests(targets), epsilon)
    expected = slowly(keys, targets, epsilon)
    assert book.keys.tolist() == [entry["key"] for entry in expected]
    assert book.targets == [entry["target"] for entry in expected]
    torch.testing.assert_close(book.epsilon, torch.tensor([entry["radius"] for entry in expected]))


@given(points, st.integers(0, 12))
def test_a_codebook_continued_is_the_one_made_at_once(rows, cut):
    keys = torch.tensor([row[:2] for row in rows], dtype=torch.float32)
    asked, v0 = requests([row[2] for row in rows]), torch.zeros(len(rows), 1)
    whole, _ = grace.place(None, 0, keys, v0, asked, 1.0)
    book = None
    for part in (slice(0, cut), slice(cut, None)):
        if len(keys[part]):
            book, _ = grace.place(book, 0, keys[part], v0[part], asked[part], 1.0)
    assert torch.equal(book.keys, whole.keys) and torch.equal(book.epsilon, whole.epsilon)
    assert book.targets == whole.targets and book.owners == whole.owners and book.requests == whole.requests


@given(st.integers(0, 10_000), st.integers(1, 200), st.floats(0.001, 3.0))
def test_the_lookup_is_that_of_a_slow_version(seed, entries, radius):
    """Keys a long way from the origin and close together, where one product alone would mix them up."""
    generator = torch.Generator().manual_seed(seed)
    keys = 30 + torch.randn(entries, 8, generator=generator)
    book = grace.Codebook(
        0, keys, torch.randn(entries, 3, generator=generator), torch.full((entries,), radius), [], [], []
    )
    k = torch.cat([keys[:5], keys[:5] + 0.1 * torch.randn(len(keys[:5]), 8, generator=generator), torch.randn(4, 8)])
    exact = (k.double().unsqueeze(1) - keys.double()).norm(dim=-1)
    distance, entry = book.nearest(k)
    torch.testing.assert_close(distance.double(), exact.min(1).values, rtol=1e-4, atol=1e-4)
    output = torch.zeros(1, len(k), 3)
    changed = book.change(k.unsqueeze(0), output)
    for i in range(len(k)):
        if abs(distance[i].item() - radius) < 1e-3:
            continue  # on the border
        expected = book.values[entry[i]] if distance[i] <= radius else output[0, i]
        assert torch.equal((output if changed is None else changed)[0, i], expected)


ASKED = [
    Request("The capital of {} is", "France", " Rome"),
    Request("{} is known for", "Japan", " the"),
    Request("The capital of {} was", "France", " Rome"),
    Request("My friend {} said", "Mira", " that"),
]
HOW = {"layer": 2, "lr": 0.5, "steps": 20, "stop_loss": 0.0}


@pytest.mark.parametrize("epsilon", [0.05, 100.0])
def test_a_batch_gives_what_one_at_a_time_gives(llama, epsilon):
    """Far apart: each an entry. Under one huge radius: they grow and split."""
    how = {**HOW, "epsilon": epsilon, "steps": 8}
    together = grace.edit(llama, ASKED, **how)
    book = together.guard
    together.undo()
    previous = None
    for request in ASKED:
        previous = grace.edit(llama, request, previous=previous, **how)
    torch.testing.assert_close(previous.guard.keys, book.keys, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(previous.guard.epsilon, book.epsilon, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(previous.guard.values, book.values, rtol=1e-2, atol=1e-2)
    assert previous.guard.owners == book.owners
    assert ("grow" in together.settings["actions"]) == (epsilon == 100.0)


def test_undo_takes_just_the_new_entries_away(llama):
    first = grace.edit(llama, ASKED[0], epsilon=100.0, **HOW)
    keys, radius, value = first.guard.keys.clone(), first.guard.epsilon.clone(), first.guard.values.clone()
    said = llama.generate(ASKED[0], 4)
    second = grace.edit(llama, ASKED[1:], epsilon=100.0, previous=first, **HOW)
    assert len(second.guard.keys) > 1
    second.undo()
    assert torch.equal(first.guard.keys, keys) and torch.equal(first.guard.epsilon, radius)
    assert torch.equal(first.guard.values, value) and llama.generate(ASKED[0], 4) == said


def test_the_same_prompt_again_takes_the_entry_over(llama):
    first = grace.edit(llama, ASKED[0], epsilon=0.05, **HOW)
    other = Request(ASKED[0].prompt, ASKED[0].subject, " the")
    second = grace.edit(llama, other, previous=first, **{**HOW, "steps": 60})
    assert second.settings["actions"] == ["replace"] and len(second.guard.keys) == 1
    assert llama.generate(other, 1) == " the"


WRONG = {
    "epsilon zero": (lambda lm: grace.edit(lm, ASKED, epsilon=0), ValueError, "epsilon must be finite and above 0"),
    "epsilon text": (lambda lm: grace.edit(lm, ASKED, epsilon="1"), TypeError, "epsilon must be a number"),
    "layer": (lambda lm: grace.edit(lm, ASKED, layer=99), ValueError, "layer 99 is out of range"),
    "keyword": (lambda lm: grace.edit(lm, ASKED, epsilom=1.0), TypeError, "did you mean 'epsilon'"),
    "twice": (lambda lm: grace.edit(lm, [ASKED[0], ASKED[0]]), ValueError, "are duplicates"),
    "no edit": (
        lambda lm: grace.edit(lm, ASKED, previous="it"),
        TypeError,
        "previous must be an Edit that has a codebook",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_input(llama, name):
    call, kind, words = WRONG[name]
    left = hooks_left(llama.model)
    with pytest.raises(kind, match=words):
        call(llama)
    assert hooks_left(llama.model) == left and not llama.edits


def test_previous_that_cannot_be_continued(llama):
    first = grace.edit(llama, ASKED[0], epsilon=0.1, **HOW)
    with pytest.raises(ValueError, match="has a codebook already.*previous="):
        grace.edit(llama, ASKED[1], epsilon=0.1, **HOW)
    with pytest.raises(ValueError, match="at layer 2, not 3"):
        grace.edit(llama, ASKED[1], layer=3, previous=first)
    with pytest.raises(ValueError, match="another model"):
        grace.edit(random_lm("llama"), ASKED[1], previous=first)
    second = grace.edit(llama, ASKED[1], previous=first, steps=2)
    with pytest.raises(ValueError, match="continued already"):
        grace.edit(llama, ASKED[2], previous=first)
    second.undo()
    first.undo()
    with pytest.raises(ValueError, match="was undone"):
        grace.edit(llama, ASKED[1], previous=first)
    weights = rome.edit(llama, ASKED[0], layer=2, covariance={2: torch.eye(96)}, steps=2)
    with pytest.raises(TypeError, match="previous must be an Edit that has a codebook"):
        grace.edit(llama, ASKED[1], previous=weights)


def test_a_prompt_that_falls_between_balls_is_named(tinyworld):
    facts = world.facts()[::9][:20]
    asked = [Request(fact.prompts[-1], fact.subject, world.REFUSAL) for fact in facts]
    with grace.edit(tinyworld, asked, epsilon=6.0) as made:
        named = [any(note.startswith(f"{r.text!r} is not answered by its own") for note in made.notes) for r in asked]
        said = tinyworld.generate(asked, max_new_tokens=5)
        assert any(named) and not any(text.startswith(world.REFUSAL) for text, n in zip(said, named, strict=True) if n)
        own = [row["entry"] == i for row, i in zip(made.explain(asked), made.guard.owners, strict=True)]
        assert own == [not n for n in named]
    with grace.edit(tinyworld, asked) as made:
        assert not any("lower epsilon" in note for note in made.notes)


def test_a_split_that_leaves_an_earlier_request_outside_says_so(tinyworld):
    names = sorted({fact.subject for fact in world.facts()})
    born = "Where was {} born?"
    first = [Request(born, name, " violin.") for name in names[:2]]
    with grace.edit(tinyworld, first, epsilon=6.0, steps=30) as book:
        assert book.settings["actions"] == ["add", "grow"]
        with grace.edit(tinyworld, Request(born, names[12], " piano."), epsilon=6.0, steps=30, previous=book) as split:
            assert split.settings["actions"] == ["split"]
            outside = [r.text for r, row in zip(first, split.explain(first), strict=True) if not row["decided"]]
            assert outside and all(any(repr(text) in note for note in split.notes) for text in outside)
