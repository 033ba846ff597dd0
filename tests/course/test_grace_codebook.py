"""Assignment 05: the right answers pass, and each wrong one is told what it did."""

import pytest
import torch
from answers import fails, passes

from minilib import grace, guards, hooks
from minilib.course import grace_codebook

pytestmark = pytest.mark.long


def nearest(book, k):
    distances = (torch.stack([entry["key"] for entry in book]) - k).norm(dim=1)
    i = int(distances.argmin())
    return distances[i].item(), i


def lookup(book, k, output):
    distance, i = nearest(book, k)
    return book[i]["value"] if distance <= book[i]["epsilon"] else output


def write_entry(book, k, v, target, epsilon, grown=1.0, old=min, new=min, whose=nearest, **wrong):
    radius, done = epsilon, "add"
    if book:
        d, i = whose(book, k)
        near = d <= book[i]["epsilon"] + wrong.get("reach", epsilon)
        if near and wrong.get("same", str.__eq__)(book[i]["target"], target):
            book[i]["epsilon"] = wrong.get("grow", max)(book[i]["epsilon"], grown * d)
            return "grow"
        if near:
            done = "split"
            for entry in book if wrong.get("also") else [book[i]]:
                entry["epsilon"] = old(entry["epsilon"], d / 2)
            radius = new(epsilon, d / 2)
    entry = {"key": k, "value": wrong.get("value", v), "epsilon": radius, "target": target}
    if wrong.get("elsewhere"):
        book = [*book, entry]
    else:
        book.append(entry)
    return done


def nearest_by(book, k, measure):
    """The distance and place of the entry that is nearest by a measure of distance and radius."""
    d = (torch.stack([entry["key"] for entry in book]) - k).norm(dim=1)
    i = int(measure(d, torch.tensor([entry["epsilon"] for entry in book])).argmin())
    return d[i].item(), i


def surface(book, k):
    return nearest_by(book, k, lambda d, e: d - e)


def make_hook(book, look=lookup):
    def hook(module, args, output):
        keys, outputs = args[0].flatten(0, -2), output.flatten(0, -2)
        return torch.stack([look(book, k, o) for k, o in zip(keys, outputs, strict=True)]).view_as(output)

    return hook


def key_of(lm, layer, prompt, at="input", token=-1):
    tokens = torch.tensor([lm.encode(prompt, chat=lm.has_chat).ids])
    with hooks.read({"k": lm.down_projection(layer)}, at=at, stop=True) as seen:
        lm.model(tokens)
    return seen["k"][0, token]


def guarded(lm, layer, book, prompts):
    handle = lm.down_projection(layer).register_forward_hook(make_hook(book))
    try:
        return lm.generate(prompts)
    finally:
        handle.remove()


def left_behind(lm, layer, book, prompts, careful=False):
    handle = lm.down_projection(layer).register_forward_hook(make_hook(book))
    said = lm.generate(prompts)
    if careful:
        handle.remove()
    return said


def wrote(lm, layer, book, prompts):
    lm.memory(layer).data += 1e-3
    return guarded(lm, layer, book, prompts)


def whole_rows(book):
    def hook(module, args, output):
        new = make_hook(book)(module, args, output)
        for row, changed in zip(new, (new != output).any(-1), strict=True):
            row[:] = row[changed.nonzero()[0, 0]] if changed.any() else row
        return new

    return hook


def read_and_left(lm, layer, prompt):
    lm.down_projection(layer).register_forward_hook(lambda *_: None)
    return key_of(lm, layer, prompt)


def added(book, k, output):
    found = lookup(book, k, output)
    return output if found is output else output + found


def any_ball(book, k, output):
    inside = [entry["value"] for entry in book if (entry["key"] - k).norm() <= entry["epsilon"]]
    return inside[0] if inside else output


RIGHT = {
    "nearest": nearest,
    "lookup": lookup,
    "write_entry": write_entry,
    "hook": make_hook,
    "key_of": key_of,
    "guarded": guarded,
}
ALSO_RIGHT = [
    ("nearest", lambda book, k: torch.cdist(k[None], torch.stack([e["key"] for e in book]))[0].min(0)),
    ("write_entry", lambda *given: write_entry(*given, grown=1.01)),
    ("hook", lambda book: lambda module, args, output: output.copy_(make_hook(book)(module, args, output))),
]


def look(test):
    def wrong(book, k, output):
        d, i = nearest(book, k)
        return book[i]["value"] if test(d, i, [entry["epsilon"] for entry in book]) else output

    return wrong


def first(book, k):
    return nearest(book[:1], k)


def keep(a, b):
    return a


def falls_through(book, k, v, target, epsilon):
    """After the first entry it goes on, and finds that very entry near."""
    if not book:
        book.append({"key": k, "value": v, "epsilon": epsilon, "target": target})
    return write_entry(book, k, v, target, epsilon)


WRONG = [
    ("nearest", lambda book, k: (nearest(book, k)[0] ** 2, nearest(book, k)[1]), "squared distance"),
    ("nearest", lambda book, k: nearest(book, k)[::-1], "wrong way round"),
    ("nearest", lambda book, k: nearest(book, k)[0], "two numbers"),
    ("nearest", lambda book, k: (torch.stack([e["key"] for e in book]) - k).norm(dim=1).max(0), "farthest"),
    ("nearest", lambda book, k: (torch.stack([e["key"] for e in book]) - k).norm(dim=0).min(0), "each key: `dim=1`"),
    ("nearest", lambda book, k: (torch.stack([e["key"] for e in book]) - k).abs().sum(1).min(0), "squares and a root"),
    ("nearest", lambda book, k: (nearest(book, k)[0], nearest(book, k)[1] + 1), "from 0"),
    ("nearest", lambda book, k: None, "returns nothing"),
    ("nearest", lambda book, k: (nearest(book, k)[0], book[nearest(book, k)[1]]), "the entry's place in the list"),
    ("nearest", lambda book, k: nearest_by(book, k, lambda d, e: d / e), "Leave out the radii|divided by the radii"),
    ("nearest", lambda book, k: [e["key"].sub_(k) for e in book] and (1.0, 0), "argument number 1 in place"),
    ("nearest", lambda book, k: book.sort(key=lambda e: (e["key"] - k).norm()) or nearest(book, k), "in place"),
    ("lookup", look(lambda d, i, e: d**2 <= e[i]), "squared distance"),
    ("lookup", look(lambda d, i, e: d < e[i]), "≤, not <"),
    ("lookup", look(lambda d, i, e: d > e[i]), "wrong way round"),
    ("lookup", look(lambda d, i, e: d >= e[i]), "wrong way round"),
    ("lookup", look(lambda d, i, e: d <= 1), "radius of that same entry"),
    ("lookup", lambda *given: None if lookup(*given) is given[2] else lookup(*given), "outside all balls"),
    ("lookup", lambda book, k, output: lookup(book[-1:], k, output), "not the last"),
    ("lookup", look(lambda d, i, e: d <= max(e)), "radius of that same entry"),
    ("lookup", look(lambda d, i, e: True), "outside the ball too"),
    ("lookup", lambda book, k, output: output, "Nothing was looked up"),
    ("lookup", added, "added"),
    ("lookup", any_ball, "only the nearest entry"),
    ("lookup", lambda book, k, output: nearest(book, k), "must return a vector"),
    ("write_entry", lambda *given: write_entry(*given, reach=0.0), "balls would touch"),
    ("write_entry", lambda *given: write_entry(*given, old=keep), "old one was not shrunk"),
    ("write_entry", lambda *given: write_entry(*given, new=keep), "new one was not shrunk"),
    ("write_entry", lambda *given: write_entry(*given, old=keep, new=keep), "neither"),
    ("write_entry", lambda *given: write_entry(*given, old=lambda e, d: d), "A ball grew in a split"),
    ("write_entry", lambda *given: write_entry(*given, old=lambda e, d: e / 2), "halved the radii"),
    ("write_entry", lambda *given: write_entry(*given, grow=keep), "has not grown"),
    ("write_entry", lambda *given: write_entry(*given, grow=lambda e, d: d), "has shrunk"),
    ("write_entry", lambda *given: write_entry(*given, grow=lambda e, d: e + d), "by\\* d"),
    ("write_entry", lambda *given: write_entry(*given, whose=first), "nearest entry has another target"),
    ("write_entry", lambda *given: write_entry(*given, elsewhere=True), "makes another"),
    ("write_entry", lambda *given: write_entry(*given, value=given[1]), "not its own"),
    ("write_entry", lambda *given: None, "returns nothing"),
    ("write_entry", lambda *given: write_entry(*given, whose=surface), "nearest \\*key\\* is too far|wrong ball"),
    ("write_entry", lambda *given: write_entry(*given, also=True), "Two balls were shrunk"),
    ("write_entry", lambda *given: write_entry(*given, old=lambda e, d: min(e, d / 2 - 1e-4)), r"0\.\d*9"),
    ("write_entry", lambda *given: write_entry(*given, same=lambda a, b: a is b), "the targets are the same"),
    ("write_entry", lambda book, *given: nearest(book, given[0]) and "add", "empty codebook"),
    ("write_entry", falls_through, "after the first entry the function must return"),
    ("write_entry", lambda *given: given[0].append((1, 2)) or "add", "dictionary of key"),
    ("write_entry", lambda *given: given[0].append({}) or "add", "dictionary of key"),
    ("hook", lambda book: lambda module, args, output: None, "as before"),
    ("hook", whole_rows, "All tokens"),
    ("hook", lambda book: make_hook(book, added), "added"),
    ("hook", lambda book: lambda module, args, output: make_hook(book)(module, (output,), output), "stops with"),
    ("hook", lambda book: make_hook(book)(None, (torch.zeros(1, 1, 6),), torch.zeros(1, 1, 4)), "a function"),
    ("key_of", lambda *given: key_of(*given, at="output"), "as wide as a value"),
    ("key_of", lambda *given: key_of(*given, token=slice(None)), "all tokens"),
    ("key_of", lambda *given: key_of(*given, token=0), "first token"),
    ("key_of", lambda *given: key_of(*given, token=slice(None)).mean(0), "mean over all tokens"),
    ("key_of", lambda lm, layer, prompt: key_of(lm, layer + 1, prompt), "another layer"),
    ("key_of", read_and_left, "left behind"),
    ("key_of", lambda lm, layer, prompt: guards.keys(lm, layer, [lm.encode(prompt).ids])[0][-1], "chat template"),
    ("key_of", lambda *given: key_of(*given).tolist(), "must be a tensor"),
    ("guarded", left_behind, "left behind"),
    ("guarded", lambda *given: left_behind(*given, careful=True), "finally"),
    ("guarded", lambda lm, layer, book, prompts: lm.generate(prompts), "unguarded"),
    ("guarded", wrote, "changes no weight"),
    ("guarded", lambda lm, layer, book, prompts: guarded(lm, layer, book, prompts)[0], "Return the list"),
    ("guarded", lambda lm, layer, book, prompts: [" I do not know."] * len(prompts), "in no ball"),
]  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_the_right_answer_passes_for_any_numbers(name):
    passes(getattr(grace_codebook, f"check_{name}"), RIGHT[name])


@pytest.mark.parametrize(("name", "answer"), ALSO_RIGHT)
def test_another_right_answer_passes(name, answer):
    passes(getattr(grace_codebook, f"check_{name}"), answer)


@pytest.mark.parametrize(("name", "wrong", "message"), WRONG)
def test_a_wrong_answer_is_told_what_is_wrong(name, wrong, message):
    fails(getattr(grace_codebook, f"check_{name}"), wrong, message)


def test_the_codebook_agrees_with_the_library():
    book, K, outputs = grace_codebook.overlapping(1)
    columns = (torch.stack([entry[name] for entry in book]).float() for name in ("key", "value"))
    radii = torch.tensor([entry["epsilon"] for entry in book])
    theirs = grace.Codebook(0, *columns, radii, [entry["target"] for entry in book], [], [])
    changed = theirs.change(K.float(), outputs.float())
    torch.testing.assert_close(changed, grace_codebook.answers(book, K, outputs).float())
