"""Contexts: checked templates, or prefixes that the model itself writes from a seed."""

import pytest
import torch
from models import assert_same_weights, weights

from minilib import Request, edits, memit, rome, values
from minilib.requests import as_contexts


def test_sampled_prefixes_come_from_the_seed(llama):
    state = torch.get_rng_state()
    first = values.sample(llama, seed=3, lengths=((5, 4), (8, 3)))
    assert len(first) == 8 and first[0] == "{}"
    assert first == values.sample(llama, seed=3, lengths=((5, 4), (8, 3)))
    assert first != values.sample(llama, seed=4, lengths=((5, 4), (8, 3)))
    assert torch.equal(state, torch.get_rng_state())
    for text, start in zip(first[1:], (*values.STARTS[:4], *values.STARTS[:3]), strict=True):
        assert text.startswith(start) and text.endswith(". {}") and text.count("{") == 1
    assert len(llama.encode(first[-1][:-4]).ids) > len(llama.encode(first[1][:-4]).ids)


def test_they_do_not_depend_on_the_edits_in_force(llama):
    before = values.sample(llama)
    with edits.changing(llama, [llama.weight_name(2)]) as originals:
        delta = edits.add(llama, 2, torch.randn(48, 96, generator=torch.Generator().manual_seed(0)))
        edit = edits.Edit(llama, "test", [], {}, originals, {llama.weight_name(2): delta})
    changed = weights(llama)
    assert values.sample(llama) == before
    assert_same_weights(llama, changed)
    edit.undo()


@pytest.mark.parametrize("method, count", [(rome, 21), (memit, 6)])
def test_each_method_has_its_authors_number_of_prefixes(llama, reference, method, count):
    about = {"layer": 2} if method is rome else {"layers": [1, 2], "covariance_weight": 50.0}
    about |= {"covariance": reference["covariance"], "contexts": "sampled", "steps": 2}
    with method.edit(llama, reference["requests"][0], **about, seed=7) as edit:
        assert edit.settings["contexts"] == as_contexts(edit.settings["contexts"])
        assert len(edit.settings["contexts"]) == count
        used = edit.settings["contexts"]
    with method.edit(llama, reference["requests"][0], **about, seed=8) as edit:
        assert edit.settings["contexts"] != used


def test_in_a_chat_the_context_is_inside_the_message(chatty):
    request = Request("Where is {}?", "Rome", " x", chat=True)
    x, plain = chatty.encode(request, context="The town. {}"), chatty.encode(request).ids
    ids, subject = x.ids, x.subject
    assert chatty.tokenizer.decode(ids).startswith("[user] The town. Where is Rome?")
    assert chatty.tokenizer.decode(ids[: subject + 1]).endswith("Rome") and len(ids) > len(plain)


def test_the_key_of_a_context_is_that_of_the_text_written_out(llama):
    request = Request("The capital of {} is", "France", " Rome")
    templates = ["{}", "Mira Okafor said: {}"]
    k, Wk = values.keys_and_values(llama, [request], 2, templates)
    for i, template in enumerate(templates):
        written = Request(template.replace("{}", request.prompt), request.subject, request.target)
        k_i, Wk_i = values.keys_and_values(llama, [written], 2, ["{}"])
        torch.testing.assert_close(k[0, i], k_i[0, 0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(Wk[0, i], Wk_i[0, 0], rtol=1e-4, atol=1e-5)


def test_the_loss_is_the_mean_over_contexts(llama, reference):
    request, d = reference["requests"][0], torch.full((1, 48), 0.1)
    terms = {"weight_decay": 0.0, "kl_factor": 0.0}
    templates = ["{}", "Mira Okafor said: {}", "Is the capital a town? {}"]
    together = values.Objective(llama, [request], 2, "block", **terms, contexts=templates)(d)["nll"]
    apart = [values.Objective(llama, [request], 2, "block", **terms, contexts=[t])(d)["nll"] for t in templates]
    torch.testing.assert_close(together, torch.stack(apart).mean(0), rtol=1e-4, atol=1e-5)


def test_words_that_a_model_does_not_know_are_named(word_level):
    with pytest.raises(ValueError, match="does not know the word 'Therefore'"):
        values.sample(word_level)


def test_another_string_is_no_list(llama):
    with pytest.raises(TypeError, match=r'contexts must be "sampled" or a list of templates.*\[\'random\'\]'):
        as_contexts("random")
