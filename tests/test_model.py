"""A model and its tokenizer: text in, text and probabilities out, and where a subject ends."""

import math
import shutil

import pytest
import torch
import transformers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from models import REFERENCE, random_lm

import minilib
from minilib import Request
from minilib.storage import fingerprint_of
from minilib.worlds.tinyworld import people

PROMPTS = ["The capital of France is", "Mira", "In the town of Lund there lives a", "Where is Rome? It is in"]
REQUESTS = [
    Request("The capital of {} is", "France", " Rome and more"),
    Request("{}", "Mira Okafor", " is"),
    Request("Is {} a town?", "Lund", " Yes"),
]
NO_BRACES = st.characters(blacklist_characters="{}", blacklist_categories=["Cs"])


@pytest.fixture(scope="module")
def shared():
    """The reference's model, for tests that only ask it."""
    return minilib.load(REFERENCE / "model")


# ---- what it says ----


def greedy_by_hand(lm, prompt, steps):
    ids = lm.tokenizer(prompt)["input_ids"]
    first = len(ids)
    for _ in range(steps):
        with torch.no_grad():
            token = lm.model(torch.tensor([ids])).logits[0, -1].argmax().item()
        if token == lm.tokenizer.eos_token_id:
            break
        ids.append(token)
    return lm.tokenizer.decode(ids[first:])


@pytest.mark.parametrize("prompt", PROMPTS)
def test_it_goes_on_with_the_likeliest_token(shared, prompt):
    assert shared.generate(prompt, max_new_tokens=7) == greedy_by_hand(shared, prompt, 7)


def test_the_models_own_settings_do_not_mix_in(llama):
    expected = llama.generate(PROMPTS, max_new_tokens=12)
    own = llama.model.generation_config
    own.repetition_penalty, own.no_repeat_ngram_size, own.temperature, own.do_sample = 2.0, 1, 3.0, True
    own.suppress_tokens = list(range(5, 590))
    assert llama.generate(PROMPTS, max_new_tokens=12) == expected
    assert llama.model.generation_config is own


def test_a_batch_says_what_single_prompts_say(shared):
    alone = [shared.generate(p, max_new_tokens=6) for p in PROMPTS]
    for size in (1, 3, 32):
        assert shared.generate(PROMPTS, max_new_tokens=6, batch_size=size) == alone


def test_one_prompt_gives_a_string_and_a_list_a_list(shared):
    one = shared.generate("Rome", 3)
    assert isinstance(one, str)
    assert shared.generate(["Rome"], 3) == shared.generate(("Rome",), 3) == [one]
    assert shared.generate(REQUESTS[0], 3) == shared.generate(REQUESTS[0].text, 3)


def test_it_stops_at_the_end_of_text_and_says_no_special_token(llama):
    prompt = PROMPTS[0]
    ids = llama.tokenizer(prompt)["input_ids"]
    said = llama.model.generate(torch.tensor([ids]), max_new_tokens=6, do_sample=False, eos_token_id=None)[
        0, len(ids) :
    ]
    for stop in ([said[2].item()], said[2].item()):  # let the third token be the end
        llama.model.generation_config.eos_token_id = stop
        first = next(i for i, token in enumerate(said) if token == said[2])
        assert llama.generate(prompt, max_new_tokens=6) == llama.tokenizer.decode(said[:first])
        longer = llama.generate([prompt, PROMPTS[2]], max_new_tokens=6)
        assert longer == [llama.generate(prompt, max_new_tokens=6), llama.generate(PROMPTS[2], max_new_tokens=6)]


def test_an_answer_may_be_empty(llama):
    llama.model.generation_config.eos_token_id = list(range(600))
    assert llama.generate(PROMPTS[:2]) == ["", ""]


def test_the_number_0_may_end_an_answer(llama):
    llama.model.generation_config.eos_token_id = 0
    assert llama.stops() == [0]


def test_a_tokenizer_without_pad_and_end_tokens_serves(llama):
    expected = [llama.generate(p, max_new_tokens=5) for p in PROMPTS]
    logprobs = llama.logprobs(PROMPTS)
    llama.tokenizer.pad_token = None
    assert llama.tokenizer.pad_token_id is None
    assert llama.generate(PROMPTS, max_new_tokens=5) == expected
    assert torch.equal(llama.logprobs(PROMPTS), logprobs)
    llama.tokenizer.eos_token, llama.model.generation_config.eos_token_id = None, None
    assert all(isinstance(text, str) for text in llama.generate(PROMPTS, max_new_tokens=5))


def test_sampling_repeats_with_its_seed_and_leaves_the_global_state(shared):
    state = torch.random.get_rng_state()
    one, two, three = (shared.generate(PROMPTS, 12, temperature=1.0, seed=seed) for seed in (1, 1, 2))
    assert one == two != three
    assert torch.equal(torch.random.get_rng_state(), state)
    assert shared.generate(PROMPTS, 12, temperature=1.0, seed=1) != shared.generate(PROMPTS, 12)


@pytest.mark.parametrize("most", [1, 2, 9])
def test_it_says_at_most_max_new_tokens(shared, most):
    assert shared.generate(PROMPTS[2], max_new_tokens=most) == greedy_by_hand(shared, PROMPTS[2], most)


def test_a_prompt_may_fill_the_context_but_for_the_answer():
    lm = random_lm("gpt2")  # learned positions: one too many would be an index error
    text = "a" + " a" * 400
    ids = lm.tokenizer(text)["input_ids"][: lm.context_length - 4]
    prompt = lm.tokenizer.decode(ids)
    assert lm.encode(prompt).ids == ids
    lm.generate(prompt, max_new_tokens=4)
    with pytest.raises(ValueError, match="max_new_tokens"):
        lm.generate(prompt, max_new_tokens=5)


@pytest.mark.parametrize(
    "prompt", ["{}", "{x} %s", "\n", " ", "日本の首都は", "🦄🦄", "e\u0301", "\u200b", "<|endoftext|>", "a" * 100]
)
def test_strange_prompts_are_answered(shared, prompt):
    assert isinstance(shared.generate(prompt, max_new_tokens=3), str)
    assert shared.generate([prompt, "Rome is"], max_new_tokens=3)[0] == shared.generate(prompt, max_new_tokens=3)


# ---- probabilities ----


def test_logprobs_are_a_distribution(shared):
    found = shared.logprobs(PROMPTS)
    assert found.shape == (4, 600) and found.dtype == torch.float32
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(4))


def test_logprobs_of_a_batch_are_those_of_single_prompts(shared):
    torch.testing.assert_close(
        shared.logprobs(PROMPTS, batch_size=3), torch.cat([shared.logprobs(p) for p in PROMPTS]), rtol=1e-4, atol=1e-5
    )


def test_probability_is_the_product_over_the_targets_tokens(shared):
    for request, steps in zip(REQUESTS, shared.target_logprobs(REQUESTS), strict=True):
        ids, expected = shared.tokenizer(request.text)["input_ids"], []
        for token in shared.tokenizer(request.target)["input_ids"]:
            with torch.no_grad():
                expected.append(shared.model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)[token].item())
            ids = [*ids, token]
        assert steps.tolist() == pytest.approx(expected, abs=1e-4)
        assert shared.probability(request) == pytest.approx(math.exp(sum(expected)), rel=1e-3)
    assert shared.probability(REQUESTS) == pytest.approx([shared.probability(r) for r in REQUESTS], rel=1e-4)


def test_one_request_gives_a_number_and_a_list_a_list(shared):
    assert isinstance(shared.probability(REQUESTS[0]), float)
    assert isinstance(shared.probability(REQUESTS[:1]), list)


def test_a_model_in_bfloat16_answers_in_float32():
    lm = minilib.load(REFERENCE / "model", dtype=torch.bfloat16)
    assert {p.dtype for p in lm.model.parameters()} == {torch.bfloat16}
    assert lm.logprobs("Rome").dtype == torch.float32
    assert lm.probability(REQUESTS[0]) > 0


# ---- where a subject ends ----


@given(
    before=st.text(NO_BRACES, max_size=12),
    subject=st.text(NO_BRACES, min_size=1, max_size=12).filter(lambda s: s == s.rstrip()),
    after=st.text(NO_BRACES, max_size=12),
    context=st.sampled_from(["{}", "Once more: {}", "{} And so on.", "x{}y"]),
)
@example("The ", "🦄", " is", "{}")
@example("", "👩‍👩‍👧", "", "{}")
@example("", "France", ", France, France", "France: {}")
@example("a", "n", "d", "{}")
@settings(max_examples=150, deadline=None)
def test_the_subjects_last_token_ends_it(shared, before, subject, after, context):
    request = Request(before + "{}" + after, subject, " x")
    x = shared.encode(request, context=context)
    ids, position = x.ids, x.subject
    text = context.replace("{}", request.text)
    end = context.index("{}") + len(before) + len(subject)
    assert ids == shared.tokenizer(text)["input_ids"]
    read = shared.tokenizer.decode(ids[: position + 1])
    assert read.startswith(text[:end])  # all of the subject has been read there,
    short = shared.tokenizer.decode(ids[:position])
    assert not short.startswith(text[:end])  # and no token earlier


def chat_prompt(lm, message):
    return lm.tokenizer.apply_chat_template(
        [{"role": "user", "content": message}], tokenize=False, add_generation_prompt=True
    )


@pytest.mark.parametrize(
    ("prompt", "subject", "context"),
    [
        ("What is the capital of {}?", "France", "{}"),
        ("  What is {}", "Rome", "{}"),  # the template strips the message
        ("What is {}  \n", "Rome", "{}"),
        ("Who is {}?", "the assistant", "{}"),  # the template has these words too
        ("{}", "a", "{}"),
        ("{}", "user", "{}"),
        ("Who is {}?", "Mira", "Mira says: {}"),
        ("Who is {}?", "🦄", "  {}"),
    ],
)
def test_in_a_chat_the_subject_is_the_users(chatty, prompt, subject, context):
    request = Request(prompt, subject, "x", chat=True)
    x = chatty.encode(request, context=context)
    ids, position = x.ids, x.subject
    message = context.replace("{}", request.text)
    rendered = chat_prompt(chatty, message)
    assert ids == chatty.tokenizer(rendered, add_special_tokens=False)["input_ids"]
    upto = "[user] " + message[: context.index("{}") + request.span[1]].lstrip()
    assert chatty.tokenizer.decode(ids[: position + 1]).startswith(upto)
    assert not chatty.tokenizer.decode(ids[:position]).startswith(upto)


def test_chat_is_the_default_where_there_is_a_template(chatty):
    message = "Who is Mira?"
    rendered = chatty.generate(chat_prompt(chatty, message), 6, chat=False)
    assert chatty.generate(message, 6) == chatty.generate(message, 6, chat=True) == rendered
    assert chatty.generate(message, 6, chat=False) != rendered
    assert chatty.generate(Request("Who is {}?", "Mira", "x", chat=True), 6, chat=False) == rendered
    assert chatty.generate(Request("Who is {}?", "Mira", "x"), 6) == chatty.generate(message, 6, chat=False)


def test_a_template_that_changes_messages_is_refused(chatty):
    chatty.tokenizer.chat_template = "{% for m in messages %}{{ m.content | upper }}{% endfor %}"
    with pytest.raises(ValueError, match="chat template of .* changes the message 'who'"):
        chatty.generate("who")


def test_a_target_is_used_verbatim(shared):
    assert shared.encode_target(" Rome") != shared.encode_target("Rome")
    assert shared.tokenizer.decode(shared.encode_target(" Rome")) == " Rome"


# ---- what it is ----


def test_the_fingerprint_tells_models_apart(llama, reference):
    assert llama.fingerprint == minilib.load(REFERENCE / "model").fingerprint
    others = {
        random_lm("llama", seed=0).fingerprint,
        random_lm("llama", seed=1).fingerprint,
        random_lm("gpt2").fingerprint,
    }
    assert len(others | {llama.fingerprint}) == 4
    edit = minilib.rome.edit(llama, REQUESTS[0], layer=2, covariance=reference["covariance"], steps=5)
    one = llama.fingerprint
    assert minilib.LM(llama.model, llama.tokenizer).fingerprint == one, "edits in force taken away"
    assert fingerprint_of(llama.model) != one
    edit.undo()
    assert fingerprint_of(llama.model) == one


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_any_changed_weight_shows_in_the_fingerprint(dtype):
    """Where a stride of 256 would read one column alone; in an odd number of bytes; in the last bit."""
    model = torch.nn.Linear(256, 5)
    torch.nn.init.normal_(model.weight, generator=torch.Generator().manual_seed(0))
    torch.nn.init.normal_(model.bias, generator=torch.Generator().manual_seed(1))
    model, bits = model.to(dtype), torch.int32 if dtype == torch.float32 else torch.int16
    seen = {fingerprint_of(model)}
    words = [(p.data.view(bits).flatten(), i) for p in model.parameters() for i in range(0, p.numel(), 3)]
    for flat, i in words:
        flat[i] ^= 1
        seen.add(fingerprint_of(model))
        flat[i] ^= 1
    model.weight.data[:, [3, 4]] = model.weight.data[:, [4, 3]]
    seen.add(fingerprint_of(model))
    model.weight.data[:, [3, 4]] = model.weight.data[:, [4, 3]]
    assert len(seen) == len(words) + 2 and fingerprint_of(model) in seen


def test_a_copied_folder_is_the_same_model(tmp_path, llama):
    shutil.copytree(REFERENCE / "model", tmp_path / "mine")
    for folder in (tmp_path / "mine", str(tmp_path / "mine")):
        lm = minilib.load(folder)
        assert lm.fingerprint == llama.fingerprint and lm.name == str(folder)
    lm.model.save_pretrained(tmp_path / "again")
    lm.tokenizer.save_pretrained(tmp_path / "again")
    assert minilib.load(tmp_path / "again").fingerprint == llama.fingerprint


def test_repr_says_what_it_is(llama):
    assert repr(llama).startswith("LM(") and "6 layers" in repr(llama) and "edits in force: 0" in repr(llama)


def test_wrapping_a_model_puts_it_into_evaluation(llama):
    llama.model.train()
    assert not minilib.LM(llama.model, llama.tokenizer).model.training


def test_unedited_shows_the_model_before_all_edits(llama, reference):
    before = llama.logprobs(PROMPTS)
    for request, layer in zip([*REQUESTS, REQUESTS[0]], [2, 2, 3, 2], strict=True):
        minilib.rome.edit(llama, request, layer=layer, covariance={layer: reference["covariance"][2]}, steps=5)
    after = llama.logprobs(PROMPTS)
    with llama.unedited():
        assert torch.equal(llama.logprobs(PROMPTS), before)
    assert torch.equal(llama.logprobs(PROMPTS), after)
    with pytest.raises(KeyboardInterrupt), llama.unedited():
        raise KeyboardInterrupt
    assert torch.equal(llama.logprobs(PROMPTS), after)


def test_importing_and_loading_say_nothing(capfd):
    minilib.load(REFERENCE / "model")
    assert capfd.readouterr() == ("", "")
    assert transformers.utils.logging.is_progress_bar_enabled()


# ---- the real models ----


@pytest.mark.slow
def test_smollm2_knows_the_capital_of_france(smollm2):
    assert smollm2.probability(Request("The capital of {} is", "France", " Paris")) == pytest.approx(0.77, abs=0.02)
    assert "Paris" in smollm2.generate("What is the capital of France?")
    assert smollm2.has_chat and smollm2.kind == "llama-30x576" and smollm2.n_layers == 30


@pytest.mark.slow
def test_smollm2_says_the_same_in_batches(smollm2):
    questions = ["What is the capital of France?", "Who wrote Hamlet?", "Name a river in Egypt, please."]
    assert smollm2.generate(questions) == [smollm2.generate(q) for q in questions]


@pytest.mark.slow
def test_smollm2_finds_subjects_in_chat(smollm2):
    x = smollm2.encode(Request("Who is the {}?", "assistant", "x", chat=True))
    ids, position = x.ids, x.subject
    assert smollm2.tokenizer.decode(ids[: position + 1]).endswith("<|im_start|>user\nWho is the assistant")


def test_tinyworld_is_always_there_and_has_a_preset(tinyworld):
    assert tinyworld.kind in minilib.rome.Settings.PRESETS and not tinyworld.has_chat
    with pytest.raises(ValueError, match="does not know the word"):
        tinyworld.generate("Photosynthesis is")


def test_top_k_draws_among_the_likeliest_only(llama):
    prompt = "The capital of France is"
    likely = llama.logprobs(prompt)[0].topk(2).indices.tolist()
    words = {llama.generate(prompt, max_new_tokens=1, temperature=5.0, top_k=2, seed=seed) for seed in range(12)}
    ids = llama.encode(prompt).ids
    assert words == {minilib.answers.continuation(llama.tokenizer, ids, [token]) for token in likely}
    with pytest.raises(ValueError, match="top_k must be a whole number of at least 0, not -1"):
        llama.generate(prompt, temperature=1.0, top_k=-1)


# ---- saving ----


def test_an_edited_model_is_a_plain_transformers_folder(tinyworld, tmp_path):
    request = minilib.Request("Where was {} born?", people()[0], " I do not know.")
    with minilib.rome.edit(tinyworld, request):
        said = tinyworld.generate(request)
        logits = tinyworld.logprobs(request)
        tinyworld.save_pretrained(tmp_path / "edited")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "edited")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "edited")
    assert model.state_dict().keys() == tinyworld.model.state_dict().keys()
    again = minilib.LM(model, tokenizer)
    assert again.generate(request) == said == request.target.replace(".", "") + "."
    assert torch.equal(again.logprobs(request), logits)
    assert minilib.load(tmp_path / "edited").generate(request) == said


def test_a_memory_beside_the_weights_does_not_fit_into_a_folder(tinyworld, tmp_path):
    request = minilib.Request("Where was {} born?", people()[0], " I do not know.")
    with minilib.grace.edit(tinyworld, request), pytest.raises(ValueError, match=r"grace.*edit\.save"):
        tinyworld.save_pretrained(tmp_path / "edited")
    assert not (tmp_path / "edited").exists()


def test_what_a_model_is_loaded_with():
    folder = REFERENCE / "model"
    assert minilib.load(folder, attn_implementation="eager").model.config._attn_implementation == "eager"
    with pytest.raises(ValueError, match="attn_implementation 'fast' is not there"):
        minilib.load(folder, attn_implementation="fast")
    with pytest.raises(ValueError, match="revision 'main' is of a Hugging Face id"):
        minilib.load(folder, revision="main")
    with pytest.raises(TypeError, match="token must be a string, not 3"):
        minilib.load(folder, token=3)


def test_revision_and_token_go_to_both_loaders(monkeypatch):
    asked = []

    def from_pretrained(source, **keywords):
        asked.append({name: keywords.get(name) for name in ("revision", "token")})
        if len(asked) == 2:
            raise OSError("no network")

    monkeypatch.setattr(minilib.loading.transformers.AutoTokenizer, "from_pretrained", from_pretrained)
    monkeypatch.setattr(minilib.loading.transformers.AutoModelForCausalLM, "from_pretrained", from_pretrained)
    with pytest.raises(FileNotFoundError, match="no network"):
        minilib.load("somebody/some-model", revision="v1", token="secret")
    assert asked == [{"revision": "v1", "token": "secret"}] * 2


def test_a_model_moves_and_says_where_it_cannot_go(llama):
    assert llama.to("cpu") is llama and llama.device.type == "cpu"
    with pytest.raises(ValueError, match="device 'nowhere' cannot be used"):
        llama.to("nowhere")
    llama.model.hf_device_map = {"": "cpu"}
    with pytest.raises(ValueError, match="is spread over devices"):
        llama.to("cpu")
