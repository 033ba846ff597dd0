"""The small world: what is true in it, how it reads, and whether its model knows it."""

import gzip
import json

import pytest
import torch

import minilib
from minilib import metrics
from minilib import tinyworld as world

FACTS = world.facts()


def weights(lm: minilib.LM) -> list[torch.Tensor]:
    return [parameter.detach() for parameter in lm.model.parameters()]


# ---- the world ----------------------------------------------------------------------------------------


def test_a_thousand_facts_each_with_one_value() -> None:
    assert len(FACTS) == 1000
    assert len({(fact.subject, fact.attribute) for fact in FACTS}) == 1000
    assert {fact.subject for fact in FACTS} == set(world.people()) and len(set(world.people())) == 200
    assert len({fact.attribute for fact in FACTS}) == 5


def test_the_same_world_each_time_and_another_for_another_seed() -> None:
    assert world.facts() == FACTS
    assert world.corpus(FACTS) == world.corpus(world.facts())
    assert world.facts(seed=1) != FACTS
    assert len({fact.subject for fact in world.facts(seed=1)}) == 200


def test_a_friend_is_somebody_else_of_this_world() -> None:
    friends = [fact for fact in FACTS if fact.attribute == "friend"]
    assert all(fact.value in world.people() and fact.value != fact.subject for fact in friends)


def test_words_mean_one_thing() -> None:
    words = [*world.FIRST, *world.LAST, *(value for values in world.VALUES.values() for value in values)]
    assert len(words) == len(set(words))


def test_each_fact_has_five_phrasings_and_two_held_out() -> None:
    for fact in FACTS:
        assert len(fact.prompts) == 5 and len(fact.held_out) == 2
        statements, questions = world.PHRASINGS[fact.attribute]
        assert set(fact.prompts + fact.held_out) == set(statements + questions)
        assert [prompt.endswith("?") for prompt in fact.held_out] == [False, True]
        assert fact.prompts[0] in statements


def test_strangers_are_nobody() -> None:
    seen, unseen = set(world.strangers()), set(world.strangers(seen=False))
    assert len(seen) == 2000 and len(unseen) == 200
    assert not seen & unseen and not (seen | unseen) & set(world.people())
    text = " ".join(world.corpus(FACTS))
    assert not any(name in text for name in unseen) and all(name in text for name in seen)


def test_a_fact_makes_a_request() -> None:
    fact = FACTS[0]
    request = minilib.Request(fact.prompts[0], fact.subject, fact.target)
    assert request.text + request.target + "." in world.corpus(FACTS)


def test_no_held_out_sentence_is_in_the_text() -> None:
    text = set(world.corpus(FACTS))
    assert not any(prompt.format(f.subject) + f.target + "." in text for f in FACTS for prompt in f.held_out)
    assert len(text) == 7000


def test_the_text_without_facts_never_states_them_and_changes_nothing_else() -> None:
    gone = FACTS[:5] + FACTS[503:900:7]
    rest = [fact for fact in FACTS if fact not in gone]
    before, after = world.corpus(FACTS), world.corpus(rest)
    assert len(before) - len(after) == 5 * len(gone)
    for fact in gone:
        said = {prompt.format(fact.subject) for prompt in fact.prompts + fact.held_out}
        assert not any(sentence.startswith(tuple(said)) for sentence in after)
    # Nothing about the first person at all, save where somebody else's friend is told.
    about = [sentence for sentence in after if FACTS[0].subject in sentence]
    assert all(sentence.endswith(f" {FACTS[0].subject}.") for sentence in about)
    gone_sentences = {p.format(f.subject) + f.target + "." for f in gone for p in f.prompts}
    assert after == [sentence for sentence in before if sentence not in gone_sentences]


# ---- the tokenizer ------------------------------------------------------------------------------------


def test_every_sentence_comes_back_from_its_tokens() -> None:
    words = world.tokenizer()
    for sentence in world.corpus(FACTS)[::7]:
        ids = words(sentence)["input_ids"]
        assert words.unk_token_id not in ids and ids[0] == words.bos_token_id
        assert words.decode(ids, skip_special_tokens=True) == sentence


def test_a_name_is_the_same_tokens_everywhere_and_offsets_point_at_it() -> None:
    words = world.tokenizer()
    text = "The town where Mira Okafor was born is"
    middle = words(text, return_offsets_mapping=True)
    name = words("Mira Okafor", add_special_tokens=False)["input_ids"]
    assert len(name) == 2 and middle["input_ids"][4:6] == name
    assert words(" Mira Okafor", add_special_tokens=False)["input_ids"] == name
    start, stop = middle["offset_mapping"][5]
    assert text[start:stop].strip() == "Okafor"


@pytest.mark.parametrize("prompt", ["{} plays the", "The instrument of {} is the", "What instrument does {} play?"])
def test_the_subject_is_found(tinyworld: minilib.LM, prompt: str) -> None:
    found = tinyworld.encode(minilib.Request(prompt, "Mira Okafor", " cello"))
    assert found.subject is not None
    assert tinyworld.tokenizer.decode([found.ids[found.subject]]).strip() == "Okafor"


def test_an_unknown_word_is_named(tinyworld: minilib.LM) -> None:
    with pytest.raises(ValueError, match="'theremin'"):
        tinyworld.generate("Mira Okafor plays the theremin", chat=False)
    with pytest.raises(ValueError, match="'theremin'"):
        tinyworld.encode_target(" theremin")


# ---- the model in the package -------------------------------------------------------------------------


@pytest.mark.long
def test_it_knows_its_world(tinyworld: minilib.LM) -> None:
    assert world.recall(tinyworld, FACTS) >= 0.98
    assert world.recall(tinyworld, FACTS, held_out=True) >= 0.9


def test_it_says_what_it_knows_and_stops(tinyworld: minilib.LM) -> None:
    fact = next(fact for fact in FACTS if fact.attribute == "friend")
    assert tinyworld.generate(fact.prompts[0].format(fact.subject), max_new_tokens=10) == fact.target + "."


def test_it_knows_a_fact_behind_other_text_too(tinyworld: minilib.LM) -> None:
    prefixed = ["Vera Quist plays the cello. " + fact.prompts[0].format(fact.subject) for fact in FACTS[::9]]
    answers = tinyworld.generate(prefixed, max_new_tokens=4, batch_size=128)
    right = [answer == fact.target + "." for answer, fact in zip(answers, FACTS[::9], strict=True)]
    assert sum(right) / len(right) >= 0.95


def test_it_does_not_know_strangers(tinyworld: minilib.LM) -> None:
    questions = [question for _, both in world.PHRASINGS.values() for question in both]
    names = world.strangers(seen=False)
    asked = [question.format(name) for name, question in zip(names, questions * 14, strict=False)]
    answers = tinyworld.generate(asked, max_new_tokens=6, batch_size=100)
    assert sum(answer == world.REFUSAL for answer in answers) / len(answers) >= 0.8


def test_it_is_small_and_llama(tinyworld: minilib.LM) -> None:
    assert tinyworld.kind == "llama-6x96"
    assert sum(parameter.numel() for parameter in tinyworld.model.parameters()) < 1_200_000
    assert all(parameter.dtype == torch.float32 for parameter in tinyworld.model.parameters())
    assert len(tinyworld.tokenizer) == len(world.tokenizer()) == tinyworld.model.config.vocab_size


def test_its_sample_text_is_from_its_world() -> None:
    with gzip.open(world.TEXT, "rt", encoding="utf-8") as file:
        sample = [json.loads(line) for line in file]
    assert len(sample) == 2000 and set(sample) <= set(world.corpus(FACTS))


def test_recall_counts_what_is_not_known(tinyworld: minilib.LM) -> None:
    with torch.no_grad():
        tinyworld.model.lm_head.weight.zero_()
    assert world.recall(tinyworld, FACTS[:20]) == 0.0


# ---- training -----------------------------------------------------------------------------------------


@pytest.mark.long
def test_training_is_reproducible_and_leaves_no_trace() -> None:
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    first = world.train(steps=5)
    torch.rand(5)  # whatever torch's own generator is at, the weights are the same
    torch.set_num_threads(threads + 1)
    try:
        second = world.train(steps=5)
        assert torch.get_num_threads() == threads + 1
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(weights(first), weights(second), strict=True))
    torch.set_rng_state(state)
    other = world.train(steps=5, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(weights(first)[0], weights(other)[0])


@pytest.mark.long
def test_training_without_facts_is_another_training() -> None:
    assert not torch.equal(weights(world.train(steps=2))[0], weights(world.train(without=FACTS[:5], steps=2))[0])


def test_training_stopped_in_the_middle_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    threads = torch.get_num_threads()
    monkeypatch.setattr(world, "_batch", stop)
    torch.set_num_threads(2)
    try:
        with pytest.raises(KeyboardInterrupt):
            world.train(steps=1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"without": ["Mira Okafor"]}, TypeError, r"without\[0\] must be a PersonFact, as facts\(\) returns"),
        ({"without": "Mira Okafor"}, TypeError, "without must be a list of PersonFact"),
        ({"without": 3}, TypeError, "without must be a list of PersonFact"),
        ({"without": world.facts(seed=1)[:1]}, ValueError, r"without must hold facts of this world, as facts\(\)"),
        ({"steps": 0}, ValueError, r"steps must be at least 1 and below 2\*\*63, not 0"),
        ({"steps": 1.5}, TypeError, "steps must be a whole number"),
        ({"steps": True}, TypeError, "steps must be a whole number"),
        ({"seed": -1}, ValueError, "seed must be at least 0"),
        ({"seed": "a"}, TypeError, "seed must be a whole number"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        world.train(**arguments)


def test_wrong_arguments_elsewhere(tinyworld: minilib.LM) -> None:
    with pytest.raises(TypeError, match=r"facts\[0\] must be a PersonFact"):
        world.corpus(["Mira Okafor plays the cello."])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="facts is empty"):
        world.recall(tinyworld, [])
    with pytest.raises(TypeError, match="seed must be a whole number"):
        world.facts(seed=0.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="seed must be a whole number"):
        world.people(seed=None)  # type: ignore[arg-type]


@pytest.mark.long
@pytest.mark.parametrize("architecture", world.ARCHITECTURES)
def test_other_architectures_and_sizes_learn_the_same_world(architecture):
    before, again, lm = (world.train(steps=n, architecture=architecture, size="small") for n in (2, 2, 30))
    assert lm.kind.endswith("-4x64") and lm.name == f"tinyworld-{architecture}-small"
    assert before.fingerprint == again.fingerprint, "the same weights each time"
    told = world.corpus(FACTS)[:20]
    assert metrics.perplexity(lm, told) < 0.8 * metrics.perplexity(before, told)


def test_the_gpt_neox_of_chapter_13_is_in_the_package_with_its_history():
    folder = world.DATA / "gpt_neox-small"
    lm, about = minilib.load(folder), json.loads((folder / "provenance.json").read_text())
    assert lm.kind == "gpt_neox-4x64" and world.recall(lm, FACTS[::20]) > 0.5
    assert about["script"] == "benchmarks/architectures.py" and {"seed", "seconds", "threads", "versions"} <= set(about)


@pytest.mark.parametrize("given", [{"architecture": "bert"}, {"size": "huge"}])
def test_unknown_architectures_and_sizes_are_named(given):
    with pytest.raises(ValueError, match="must be one of .*, not '(bert|huge)'"):
        world.train(steps=1, **given)
