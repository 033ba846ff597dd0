"""Assignment 02: the right answers pass, and each wrong one is told what it did."""

import pytest
import torch
from answers import fails, passes

import minilib
from minilib import hooks
from minilib.course import tracing_steps

pytestmark = pytest.mark.long


def spoil(x, first, noise):
    new = x.clone()
    new[:, first : first + noise.shape[1]] += noise
    return new


def probability(logits, answer):
    return logits[:, -1].softmax(-1)[:, answer]


@torch.no_grad()
def corrupted(lm, ids, first, noise, answer, spoil=spoil):
    with hooks.replace(lm.model.get_input_embeddings(), lambda x: spoil(x, first, noise)):
        return probability(lm.model(**lm.batch([ids] * len(noise))).logits, answer)


@torch.no_grad()
def clean_states(lm, ids, at="output", module=lambda lm, layer: lm.blocks[layer]):
    with hooks.read({i: module(lm, i) for i in range(lm.n_layers)}, at=at) as seen:
        lm.model(**lm.batch([ids]))
    return torch.stack([seen[i][0] for i in range(lm.n_layers)])


def restored(lm, ids, first, noise, answer, clean, layer, token):
    def put_back(hidden):
        hidden = hidden.clone()
        hidden[:, token] = clean[layer, token]
        return hidden

    with hooks.replace(lm.blocks[layer], put_back):
        return corrupted(lm, ids, first, noise, answer)


def left_behind(lm, ids, first, noise, answer):
    lm.model.get_input_embeddings().register_forward_hook(lambda m, a, x: spoil(x, first, noise))
    return probability(lm.model(**lm.batch([ids] * len(noise))).logits, answer)


def silent(lm, ids, first, noise, answer):
    with hooks.replace(lm.model.get_input_embeddings(), lambda x: None):
        return probability(lm.model(**lm.batch([ids] * len(noise))).logits, answer)


def behind_a_block(lm, ids, first, noise, answer):
    with hooks.replace(lm.blocks[0], lambda x: spoil(x, first, noise)):
        return probability(lm.model(**lm.batch([ids] * len(noise))).logits, answer)


def with_transformers(lm, ids):
    lm.model(**lm.batch([ids]), output_hidden_states=True)
    return clean_states(lm, ids)


def into_the_weights(lm, ids, first, noise, answer):
    p = corrupted(lm, ids, first, noise, answer)
    lm.model.get_input_embeddings().weight.data[ids[first]] += noise[0, 0]
    return p


def whole_layer(lm, ids, first, noise, answer, clean, layer, token):
    with hooks.replace(lm.blocks[layer], lambda hidden: clean[layer].expand_as(hidden)):
        return corrupted(lm, ids, first, noise, answer)


RIGHT = {
    "noise_scale": lambda table, level: level * table.std(),
    "spoil": spoil,
    "probability": probability,
    "corrupted": corrupted,
    "clean_states": clean_states,
    "restored": restored,
    "effects": lambda restored, corrupted: (restored - corrupted[:, None, None]).mean(0),
}
WRONG = [
    ("noise_scale", lambda table, level: table.std(), "one standard deviation"),
    ("noise_scale", lambda table, level: level * table.var(), "the variance"),
    ("noise_scale", lambda table, level: level * table.std(0), "each dimension"),
    ("noise_scale", lambda table, level: level, "off by|times what it should be"),
    ("spoil", lambda x, first, noise: spoil(x, 0, noise), "beginning of the prompt"),
    ("spoil", lambda x, first, noise: spoil(x, first + 1, noise), "too far right"),
    ("spoil", lambda x, first, noise: x + noise[:, :1], "on all tokens"),
    ("spoil", lambda x, first, noise: spoil(x, first, -noise), "subtracted"),
    ("spoil", lambda x, first, noise: spoil(x, first, torch.cat([noise, noise[:, :2]], 1)), "off by|shape"),
    ("spoil", lambda x, first, noise: spoil(x, first, noise[:1]), "its own noise"),
    ("spoil", lambda x, first, noise: x[:, first : first + noise.shape[1]].add_(noise), "in place"),
    ("probability", lambda logits, answer: logits[:, -1, answer], "Those are logits"),
    ("probability", lambda logits, answer: probability(logits, answer).log(), "log-probabilities"),
    ("probability", lambda logits, answer: logits[:, 0].softmax(-1)[:, answer], "first token"),
    ("probability", lambda logits, answer: logits[:, -1].softmax(0)[:, answer], "over the rows"),
    ("probability", lambda logits, answer: probability(logits, answer).mean(), "averaged over the rows"),
    ("corrupted", lambda lm, i, f, z, a: probability(lm.model(**lm.batch([i] * len(z))).logits, a), "clean run"),
    ("corrupted", lambda lm, i, f, z, a: corrupted(lm, i, f, z, a).mean(), "averaged over the draws"),
    ("corrupted", lambda lm, i, f, z, a: corrupted(lm, i, f, z[:1].expand_as(z), a), "the first for all"),
    ("corrupted", lambda lm, i, f, z, a: corrupted(lm, i, 0, z, a), "beginning of the prompt"),
    ("corrupted", lambda lm, i, f, z, a: 1 - corrupted(lm, i, f, z, a), "off by|clean run"),
    ("corrupted", silent, "does its function return something"),
    ("corrupted", behind_a_block, "behind the embedding"),
    ("corrupted", left_behind, "still in the model"),
    ("corrupted", into_the_weights, "weights are not"),
    ("corrupted", lambda lm, i, f, z, a: None, "returns nothing"),
    ("clean_states", lambda lm, ids: clean_states(lm, ids, at="input"), "enters each block"),
    ("clean_states", lambda lm, ids: clean_states(lm, ids, module=minilib.LM.down_projection), "the MLPs add"),
    ("clean_states", lambda lm, ids: clean_states(lm, ids)[:, -1], "last token alone"),
    ("clean_states", lambda lm, ids: list(clean_states(lm, ids)), "no tensor yet"),
    ("restored", whole_layer, "not the whole layer"),
    ("restored", lambda *a: corrupted(*a[:5]), "Nothing comes back"),
    ("restored", lambda *a: restored(*a[:6], a[6] + 1, a[7]), "too high"),
    ("restored", lambda *a: restored(*a[:6], (a[6] - 1) % 6, a[7]), "too low"),
    ("restored", lambda *a: restored(*a) - corrupted(*a[:5]), "what it brings back"),
    ("restored", lambda *a: restored(*a).mean(), "averaged over the draws"),
    ("effects", lambda restored, corrupted: restored.mean(0), "subtract the one without"),
    ("effects", lambda restored, corrupted: corrupted.mean() - restored.mean(0), "sign"),
    ("effects", lambda restored, corrupted: (restored - corrupted).mean(0), "along the tokens"),
    ("effects", lambda restored, corrupted: (restored.mean(0) - corrupted.mean()).abs(), "may be negative"),
    ("effects", lambda restored, corrupted: (restored.mean(0) - corrupted.mean()).clamp(min=0), "may be negative"),
    ("effects", lambda restored, corrupted: restored.mean(1) - corrupted.mean(), "over layers"),
]


@pytest.mark.parametrize("name", RIGHT)
def test_the_right_answer_passes_for_any_numbers(name):
    passes(getattr(tracing_steps, f"check_{name}"), RIGHT[name])


def test_hooks_that_transformers_leaves_behind_are_not_the_students():
    passes(tracing_steps.check_clean_states, with_transformers)


def test_both_standard_deviations_pass_where_the_variance_is_near():
    for number in (64, 1183, 1989):
        tracing_steps.check_noise_scale(lambda table, level: level * table.std(correction=0), number)


@pytest.mark.parametrize(("name", "wrong", "message"), WRONG)
def test_a_wrong_answer_is_told_what_is_wrong(name, wrong, message):
    fails(getattr(tracing_steps, f"check_{name}"), wrong, message)
