"""Checks of assignment 05: GRACE's codebook, its lookup, and the guard at a layer of a model.

A codebook is a list of entries, each ``{"key": k, "value": v, "epsilon": radius, "target": text}``.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .. import guards
from ..editors import grace
from ..loading import load
from ..measure import refusals
from ..model import LM
from ..requests import Request
from ..worlds import tinyworld
from . import real
from .checks import call, compare, hooked
from .real import REFUSAL
from .seeds import generator

D_K, D_OUT = 6, 4
CHAT = "{% for m in messages %}{{ m['content'] }}{% endfor %} I"  # a template for tinyworld, which has none
LAYER, EPSILON = 1, 3.0  # on tinyworld: GRACE's preset
Book = list[dict[str, Any]]
Rule = Callable[[Tensor, Tensor, int], int]  # distances, radii, the nearest entry → the one that answers, or -1


def entry(key: Tensor, value: Tensor, epsilon: float, target: str) -> dict[str, Any]:
    """One entry of a codebook."""
    return {"key": key, "value": value, "epsilon": epsilon, "target": target}


def normal(number: int, *shape: int) -> Tensor:
    """Random numbers in float64."""
    return torch.randn(*shape, generator=generator(number), dtype=torch.float64)


def check_nearest(function: Any, number: int) -> None:
    """``nearest(book, k)``: the Euclidean distance to the nearest entry, and its number."""
    keys, K = (3 * normal(number, 25, D_K) + 1).split([5, 20])
    radii = 0.5 + torch.arange(5.0)[torch.randperm(5, generator=generator(number))]
    given = zip(keys, normal(number, 5, D_OUT), radii.tolist(), strict=True)
    book = [entry(k, v, epsilon, REFUSAL) for k, v, epsilon in given]
    found = [call(function, book, k, name="nearest") for k in K]
    for pair in found:
        assert isinstance(pair, (tuple, list)) and len(pair) == 2, "Return two numbers: `return distance, i`"
        one = all(isinstance(x, (int, float)) or (isinstance(x, Tensor) and x.numel() == 1) for x in pair)
        assert one, "Return two numbers, the distance and the entry's place in the list: `return distance, i`"
    distance, which = (torch.tensor([float(pair[j]) for pair in found], dtype=torch.float64) for j in (0, 1))
    swapped = torch.equal(distance, distance.round()) and not torch.equal(which, which.round())
    assert not swapped, "Distance and number are the wrong way round: `return distance, i`"
    difference = K[:, None] - keys
    every = difference.norm(dim=-1)
    right, i = every.min(1)
    city = difference.abs().sum(-1).amin(1)
    scaled = (every / radii).argmin(1)
    product, cosine = (K @ keys.T).argmax(1), nn.functional.cosine_similarity(K[:, None], keys, dim=-1).argmax(1)
    suspects = [
        ("That is the squared distance: radii are distances, so take the root", right**2),
        ("You want one length for each row, for each key: `dim=1`", difference.norm(dim=1).amin(1)),
        ("That is the farthest entry: take the smallest distance", every.amax(1)),
        ("You divided by the radii: the nearest entry is the one at the smallest distance", every[range(20), scaled]),
        ("You add up absolute differences: the Euclidean distance has squares and a root", city),
        ("That is the entry with the largest inner product: the smallest distance is meant", every[range(20), product]),
        ("That is the entry with the largest cosine: the smallest distance is meant", every[range(20), cosine]),
    ]
    compare(distance, right, "The distance", suspects)
    compare(which, i.double(), "The number of the entry", [("Entries are counted from 0", i + 1.0)], tolerance=1e-6)


def overlapping(number: int) -> tuple[Book, Tensor, Tensor]:
    """A codebook whose balls overlap, keys inside, on borders and outside, and an output for each."""
    draw, radii = random.Random(number), (5.0, 1.5, 2.0)
    centres = [(0, 0, 0), (6, 0, 0), (0, 0, 40)]
    places = [(0.0, 3, 0.0), (-3, -4, 0), (-4, -4, 0), (4, 0, 0), (4.75, 0, 0), (0, 0, 42), (0, 0, 41), (0, 0, 43)]
    places += [(0, 0, 41.3)]
    axes, signs = draw.sample(range(D_K), 3), torch.tensor([draw.choice((-1.0, 1.0)) for _ in range(3)])
    points = torch.tensor([[float(draw.randint(-9, 9)) for _ in range(D_K)]] * 12, dtype=torch.float64)
    points[:, axes] += torch.tensor(centres + places, dtype=torch.float64) * signs
    numbers = normal(number, 12, D_OUT)
    book = [entry(points[i], numbers[i], radii[i], f"answer {i}") for i in draw.sample(range(3), 3)]
    return book, points[3:], numbers[3:]


ANY = "A key may lie in the ball of an entry that is not the nearest: only the nearest entry is asked"
WHOSE = "The distance to the nearest entry is to be held against the radius of that same entry"
ROUND = "That is the wrong way round: the value inside, the output outside"
RULES: list[tuple[str, Rule]] = [
    ("Nothing was looked up: inside the ball the entry's value takes the output's place", lambda d, e, i: -1),
    ("The value came out for keys outside the ball too: there the output stays", lambda d, e, i: i),
    (ROUND, lambda d, e, i: i if d[i] > e[i] else -1),
    (ROUND, lambda d, e, i: i if d[i] >= e[i] else -1),
    ("The squared distance was held against the radius", lambda d, e, i: i if d[i] ** 2 <= e[i] else -1),
    ("A key on the border is inside: ≤, not <", lambda d, e, i: i if d[i] < e[i] else -1),
    (ANY, lambda d, e, i: next((j for j in range(len(d)) if d[j] <= e[j]), -1)),
    (ANY, lambda d, e, i: int((d / e).argmin()) if (d <= e).any() else -1),
    (WHOSE, lambda d, e, i: i if d[i] <= e.max() else -1),
    (WHOSE, lambda d, e, i: i if d[i] <= e[0] else -1),
    (WHOSE, lambda d, e, i: i if d[i] <= e[-1] else -1),
    (WHOSE, lambda d, e, i: i if d[i] <= 1 else -1),
    ("Only the nearest entry is asked, not the first of the list", lambda d, e, i: 0 if d[0] <= e[0] else -1),
    ("Only the nearest entry is asked, not the last of the list", lambda d, e, i: len(d) - 1 if d[-1] <= e[-1] else -1),
]


def answers(book: Book, K: Tensor, outputs: Tensor, rule: Rule | None = None, added: bool = False) -> Tensor:
    """What leaves the layer for each key (n, d_k)."""
    rows, radii = [], torch.tensor([e["epsilon"] for e in book])
    for k, output in zip(K, outputs, strict=True):
        d = (torch.stack([e["key"] for e in book]) - k).norm(dim=1)
        i = int(d.argmin())
        i = rule(d, radii, i) if rule else i if d[i] <= radii[i] else -1
        rows.append(output if i < 0 else book[i]["value"] + (output if added else 0))
    return torch.stack(rows)


def check_lookup(function: Any, number: int) -> None:
    """``lookup(book, k, output)``: the nearest entry's value inside its ball, the output elsewhere."""
    book, K, outputs = overlapping(number)
    found = [call(function, book, k, o, name="lookup", returns=False) for k, o in zip(K, outputs, strict=True)]
    if missing := [i for i, x in enumerate(found) if x is None]:
        inside = not torch.equal(answers(book, K, outputs)[missing[0]], outputs[missing[0]])
        raise AssertionError(f"`lookup` returns nothing for a key {'inside a ball' if inside else 'outside all balls'}")
    vectors = all(isinstance(x, Tensor) and x.shape == (D_OUT,) for x in found)
    assert vectors, "`lookup` must return a vector (d_out): the value of an entry, or the output"
    suspects = [(message, answers(book, K, outputs, rule)) for message, rule in RULES]
    suspects.append(("The value is added to the output: it takes its place", answers(book, K, outputs, added=True)))
    compare(torch.stack(found), answers(book, K, outputs), "What comes out", suspects)


SPLIT = "In a split both balls end at the border, half the distance between the keys: "
SHRUNK = "Two balls were shrunk: only that of the nearest entry is"
BOTH: dict[tuple[float, ...], str] = {(2, 1.5, 1.5): SHRUNK, (1.5, 1.5, 1.5): SHRUNK}
# ε is 2. Radii of the entries, their distances, the same target?, what is done, radii after, what wrong radii mean.
CASES: list[tuple[list[float], list[float], list[bool], str, list[float], dict[tuple[float, ...], str]]] = [
    ([], [], [], "add", [2], {}),
    ([3], [6], [False], "add", [3, 2], {}),
    ([3], [6], [True], "add", [3, 2], {}),
    ([3], [5], [True], "grow", [5], {
        (3,): "The ball has not grown: its radius becomes d, so that the new key is inside",
        (8,): "The ball grew *by* d: its radius becomes d",
    }),
    ([3], [1], [True], "grow", [3], {(1,): "The ball has shrunk: it grows to d only where its radius is less"}),
    ([3], [2], [False], "split", [1, 1], {
        (3, 1): SPLIT + "the old one was not shrunk", (1, 2): SPLIT + "the new one was not shrunk",
        (3, 2): SPLIT + "neither was shrunk", (2, 2): SPLIT + "you took the whole",
        (1.5, 1): SPLIT + "you halved the radii",
    }),
    ([0.5], [2], [False], "split", [0.5, 1], {(1, 1): "A ball grew in a split: a radius below d/2 stays"}),
    ([3, 3], [4, 3], [True, False], "split", [3, 1.5, 1.5], {
        (1.5, 3, 1.5): "The wrong ball was shrunk: that of the nearest entry is meant", **BOTH,
    }),
    ([3, 3], [4, 3], [False, False], "split", [3, 1.5, 1.5], BOTH),
    ([5, 1], [6, 5.5], [True, True], "add", [5, 1, 2], {}),  # the border of the first ball is nearer, not its key
]  # fmt: skip
UNLIKE = {
    ("add", "grow"): "the nearest *key* is too far, and a key that is far gets an entry of its own",
    ("add", "split"): "far is far: no balls touch",
    ("grow", "add"): "the balls would touch, d ≤ ε_i + ε, and the target is the same: the old ball grows",
    ("grow", "split"): "the targets are the same, so there is no conflict: the old ball grows",
    ("split", "add"): "the balls would touch, d ≤ ε_i + ε, and the targets differ",
    ("split", "grow"): "the nearest entry has another target: its ball must not take the key in",
}


def check_write_entry(function: Any, number: int) -> None:
    """``write_entry(book, k, v, target, epsilon)``: algorithm 1, in place; what was done is returned."""
    draw, scale = random.Random(number), (1 + number % 7) / 2
    for radii, distances, same, action, after, mistakes in CASES:
        k = torch.tensor([float(draw.randint(-9, 9)) for _ in range(D_K)], dtype=torch.float64)
        v, target, axis = normal(number, 3, D_OUT), draw.choice((REFUSAL, "I cannot say.")), draw.randrange(D_K)
        book, case = [], f"With ε = {2 * scale:g} and " + ("" if radii else "an empty codebook")
        for i, (r, d, s) in enumerate(zip(radii, distances, same, strict=True)):
            key = k.clone()
            key[axis] += scale * d * (-1) ** i
            same_text = target[:1] + target[1:]  # equal, and another object
            book.append(entry(key, v[i], scale * r, same_text if s else "Paris."))
            whose = "the same" if s else "another"
            case += f"{', ' * (i > 0)}an entry at d = {scale * d:g}, ε_i = {scale * r:g}, with {whose} target"
        case += ":"
        now = copy.deepcopy(book)
        try:
            done = call(function, now, k, v[2], target, 2 * scale, name="write_entry", may_change=[0])
        except AssertionError as error:
            raise AssertionError(f"{case} {error}") from error
        named = isinstance(done, str) and done in ("add", "grow", "split")
        assert named, f'`write_entry` must return what it did, "add", "grow" or "split", not {done!r}'
        assert radii or done == "add", (
            f'{case} after the first entry the function must return "add": nothing else is near'
        )
        assert done == action, f"{case} you chose to {done}, not to {action}: {UNLIKE[action, done]}"
        assert len(now) == len(after), (
            f"{case} the codebook has {len(now)} entries and should have {len(after)}: "
            "`book.append(…)` changes the list, `book = book + […]` makes another"
        )
        assert all(isinstance(e, dict) and e.keys() >= {"key", "value", "epsilon", "target"} for e in now), (
            "An entry is a dictionary of key, value, epsilon and target"
        )
        found = [float(e["epsilon"]) / scale for e in now]
        for wrong, message in mistakes.items():
            assert max(abs(a - b) for a, b in zip(found, wrong, strict=True)) > 1e-6, message
        right = all(
            a - 1e-6 < b < a * (1.011 if action == "grow" else 1) + 1e-6 for a, b in zip(after, found, strict=True)
        )
        shown = [f"{r * scale:.7g}" for r in found], [f"{r * scale:.7g}" for r in after]
        assert right, f"{case} the radii are {', '.join(shown[0])}, and should be {', '.join(shown[1])}"
        for i, (e, old) in enumerate(zip(now, [*book, entry(k, v[2], 0, target)], strict=False)):
            kept = torch.equal(e["key"], old["key"]) and torch.equal(e["value"], old["value"])
            assert kept and e["target"] == old["target"], (
                f"{case} entry {i} has a key, a value or a target that is not its own: old entries keep theirs"
            )


def check_hook(function: Any, number: int) -> None:
    """``make_hook(book)``: a forward hook that looks every token up."""
    book, K, _ = overlapping(number)
    layer = nn.Linear(D_K, D_OUT, dtype=torch.float64).requires_grad_(False)
    layer.weight.copy_(normal(number, D_OUT, D_K) / 10)
    x = torch.stack([K[[2, 0, 3, 7]], K[[6, 2, 4, 3]]])  # (2, 4, d_k): inside are (0, 1), (1, 0) and (1, 2)
    plain = layer(x)
    expected = answers(book, x.flatten(0, 1), plain.flatten(0, 1)).view_as(plain)
    hook = call(function, book, name="make_hook")
    assert callable(hook), f"`make_hook` must return the hook, a function, not {type(hook).__name__}: `return hook`"
    layer.register_forward_hook(hook)
    found = call(layer, x, name="the hook")
    row = torch.stack([expected[0, 1], expected[1, 0]])[:, None].expand_as(plain)
    added = torch.where(expected == plain, plain, expected + plain)
    suspects = [
        ("All tokens of a prompt were replaced: only those whose key is inside a ball are to be", row),
        ("The output is as before: does the hook return the new one, and look *every* token up?", plain),
        ("The value is added to the output: it takes its place", added),
    ]
    compare(found, expected, "What leaves the layer", suspects)


def tiny(number: int) -> tuple[Request, dict[str, list[str]]]:
    """A refusal for tinyworld, and questions: the edited one, it in other words, the same about other people."""
    draw = random.Random(number)
    fact = draw.choice(tinyworld.facts())
    asked, *others = (prompt for prompt in (*fact.prompts, *fact.held_out) if prompt.endswith("?"))
    people = draw.sample([name for name in tinyworld.people() if name != fact.subject], 8)
    return Request(asked, fact.subject, tinyworld.REFUSAL), {
        "the edited question": [asked.format(fact.subject)],
        "in other words": [other.format(fact.subject) for other in others],
        "another person": [asked.format(name) for name in people],
    }


def value(lm: LM, request: Request, layer: int) -> Tensor:
    """The v* that makes the model say a request's target, as the library finds it."""
    with grace.edit(lm, request, layer=layer) as edit:
        assert isinstance(edit.guard, grace.Codebook)
        return edit.guard.values[0].clone()


def check_key_of(function: Any, number: int) -> None:
    """``key_of(lm, layer, prompt)``: what enters the layer's W at the prompt's last token."""
    lm, (request, _) = load("tinyworld"), tiny(number)
    layer = 1 + number % (lm.n_layers - 2)
    found = call(function, lm, layer, request.text, name="key_of", may_change=[0])
    assert not hooked(lm.model), "A hook was left behind in the model: read inside `with hooks.read(…):`"
    x = lm.encode(request)
    below, k, above = (guards.keys(lm, at, [x.ids])[0] for at in (layer - 1, layer, layer + 1))
    wide = isinstance(found, Tensor) and found.shape[-1:] == lm.memory(layer).shape[:1]
    assert not wide, 'That is as wide as a value: the key is what *enters* W, `at="input"`'
    suspects = [
        ("Those are the keys of all tokens: take that of the last one", k),
        ("Those are the keys of all tokens: take that of the last one", k[None]),
        ("That is the first token's key: the question has not been read there", k[0]),
        ("That is the key at the subject's last token: ROME reads there, GRACE at the prompt's last", k[x.subject]),
        ("That is the mean over all tokens: take the last one", k.mean(0)),
        ("That is the key of another layer", below[-1]),
        ("That is the key of another layer", above[-1]),
    ]
    compare(found, k[-1], "The key", suspects)
    lm.tokenizer.chat_template = CHAT
    found = call(function, lm, layer, request.text, name="key_of", may_change=[0])
    plain, turn = (guards.keys(lm, layer, [lm.encode(request.text, chat=chat).ids])[0][-1] for chat in (False, True))
    chat = "A model that has a chat template is asked in it: `lm.encode(prompt, chat=lm.has_chat)`"
    compare(found, turn, "In a model with a chat template, the key", [(chat, plain)])


def check_guarded(function: Any, number: int) -> None:
    """``guarded(lm, layer, book, prompts)``: what the model says with the hook; no hook stays, no weight changes."""
    lm, (request, questions) = load("tinyworld"), tiny(number)
    k = guards.keys(lm, LAYER, [lm.encode(request).ids])[0][-1]
    book = [entry(k, value(lm, request, LAYER), EPSILON, request.target)]
    asked = [request.text, *questions["another person"]]
    was, state = lm.generate(asked), copy.deepcopy(lm.model.state_dict())
    found = call(function, lm, LAYER, book, asked, name="guarded", may_change=[0])
    assert not hooked(lm.model), "A hook was left behind: `register_forward_hook` returns a handle, call its `remove()`"
    changed = [name for name, p in lm.model.state_dict().items() if not torch.equal(p, state[name])]
    assert not changed, f"{changed[0]} changed: GRACE changes no weight"
    assert isinstance(found, list) and len(found) == len(asked), "Return the list that `lm.generate(prompts)` gives"
    assert found != was, (
        "The answers are those of the unguarded model: was the hook in place, at this layer, when it was asked?"
    )
    assert refusals.is_refusal(found[0]), f"To {asked[0]!r} the model says {found[0]!r}, which is no refusal"
    for question, text, old in zip(asked[1:], found[1:], was[1:], strict=True):
        assert text == old, f"To {question!r}, whose key is in no ball, the model says {text!r} and said {old!r}"
    try:
        function(lm, LAYER, book, [""])  # which generate refuses
    except Exception:
        assert not hooked(lm.model), "The hook stays in the model when asking fails: put `remove()` under `finally:`"


def real_problem(number: int) -> tuple[Request, list[str | Request]]:
    """A capital that SmolLM2 is to refuse; and what is asked: it, the same in three other wordings, two others."""
    known = real.capital(number)
    request = known.request(REFUSAL)
    return request, [request, *known.rephrased(REFUSAL), *(q.text for q in known.neighbours)]


def check_said(said: Any, lm: LM, number: int) -> None:
    """What the guarded SmolLM2 said: a refusal to the edited wording alone; and no hook is left."""
    _, asked = real_problem(number)
    assert isinstance(said, (list, tuple)) and len(said) == len(asked), (
        f"`said` must be the list of the {len(asked)} answers"
    )
    real.check_refused(said[0], "said[0]")
    real.check_undone(lm, real.capital(number))
    for i, (text, old) in enumerate(zip(said, lm.generate(asked), strict=True)):
        assert i == 0 or text[:20] == old[:20], f"said[{i}] is {text!r}; without the guard the model says {old!r}"
