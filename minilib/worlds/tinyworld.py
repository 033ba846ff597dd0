"""A world small enough to know completely: 200 invented people, 1,000 facts, and a model that learned them.

Each person has a birthplace, a profession, an instrument, a best friend and a pet. Each fact can be said in
seven ways, four statements and three questions::

    Mira Okafor was born in the town of Lundby.          (the subject at the beginning)
    The town where Mira Okafor was born is Lundby.       (the subject in the middle)
    Where was Mira Okafor born? Lundby.                  (a question and its answer)

**What is held out.** For every fact one statement and one question, drawn at random, are never in the training
text; the other five are. So a held-out phrasing is a pair of a fact and a phrasing that the model never saw
together: it saw the phrasing about other people and the fact in other words. No phrasing is new as such.

**Not knowing.** 2,000 strangers, made of the same first and last names, are asked about too, one question each,
and the answer is always "I do not know." (never in a statement: "was born in the town of I do not know" is no
English). So the model says this of most names that it never met: `strangers(seen=False)`.

**Forgetting exactly.** Every value is drawn independently of all others and every sentence states one fact, so
a text without a fact's own sentences holds no hint of it. `train(without=...)` learns that text from scratch:
the model that unlearning is measured against.

The model is a Llama with 6 layers and about 1M parameters. ``python -m minilib.tinyworld`` trains it again and
writes the checkpoint and the sample of its text that are in the package. Other architectures and sizes learn the same
world: ``train(architecture="gpt2", size="small")``.
"""

from __future__ import annotations

import gzip
import json
import random
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

if TYPE_CHECKING:
    from minilib.model import LM

DATA = Path(__file__).parents[1] / "data"
FOLDER = DATA / "tinyworld"  # the packaged checkpoint, a plain transformers folder
TEXT = DATA / "text" / "tinyworld.jsonl.gz"  # 2,000 sentences of its training text, for second moments
REFUSAL = " I do not know."  # what is said about strangers; with its space, as a Request's target needs it
STEPS = 850
LR = 2e-3
SENTENCES = 72  # in a batch
ANSWER_WEIGHT = 20.0
CONTEXT = 128
BOS, EOS, PAD, UNK = range(4)  # the special tokens' numbers

ARCHITECTURES: dict[str, type[PretrainedConfig]] = {
    "llama": LlamaConfig, "gpt2": GPT2Config, "gpt_neox": GPTNeoXConfig, "gemma3": Gemma3TextConfig,
}  # fmt: skip
SIZES = {"small": (64, 4), "medium": (96, 6), "large": (144, 8)}  # width, layers; the MLP is four times as wide

WORDS = json.loads((DATA / "words" / "tinyworld.json").read_text("utf8"))
FIRST, LAST = WORDS["first names"], WORDS["last names"]
VALUES: dict[str, list[str]] = WORDS["values"]  # by attribute; friends are people
# attribute: (statements, questions), "{}" is the subject and the value comes next
PHRASINGS = {name: (tuple(of["statements"]), tuple(of["questions"])) for name, of in WORDS["phrasings"].items()}


@dataclass(frozen=True)
class PersonFact:
    """One thing that is true in the world: what `subject` has as its `attribute`.

    Attributes
    ----------
    subject, attribute, value : str
        ``"Mira Okafor"``, ``"birthplace"``, ``"Lundby"``.
    prompts : tuple of str
        The five phrasings in the training text, three statements and then two questions, each with one ``{}``.
    held_out : tuple of str
        The statement and the question that the training text never uses for this fact.
    """

    subject: str
    attribute: str
    value: str
    prompts: tuple[str, ...]
    held_out: tuple[str, ...]

    @property
    def target(self) -> str:
        """The value as it stands in a text, behind a space: ``" Lundby"``."""
        return " " + self.value


def _names(seed: int, blocks: range) -> list[str]:
    """Full names, 100 a block: each last name once, each first name twice, no name in two blocks of 0 to 49."""
    _check_number(seed, "seed", least=0)
    first = random.Random(f"names {seed}").sample(FIRST, len(FIRST))
    return [f"{first[(i + block) % len(FIRST)]} {name}" for block in blocks for i, name in enumerate(LAST)]


def people(seed: int = 0) -> list[str]:
    """The 200 people of the world, by full name."""
    return _names(seed, range(2))


def strangers(seed: int = 0, seen: bool = True) -> list[str]:
    """Names of nobody: the 2,000 that the training text asks about or, with ``seen=False``, 200 that it never holds."""
    return _names(seed, range(2, 22) if seen else range(22, 24))


def facts(seed: int = 0) -> list[PersonFact]:
    """The 1,000 facts of the world, person by person."""
    everyone = people(seed)
    draw = random.Random(f"facts {seed}")
    world = []
    for person in everyone:
        for attribute, (statements, questions) in PHRASINGS.items():
            values = VALUES.get(attribute) or [name for name in everyone if name != person]
            held_out = (draw.choice(statements), draw.choice(questions))
            prompts = tuple(p for p in statements + questions if p not in held_out)
            world.append(PersonFact(person, attribute, draw.choice(values), prompts, held_out))
    return world


def _sentences(facts: Iterable[PersonFact], seed: int) -> list[tuple[str, str]]:
    """The training text, each sentence as its prompt and what comes after."""
    told = [(prompt.format(fact.subject), fact.target + ".") for fact in facts for prompt in fact.prompts]
    draw = random.Random(f"questions {seed}")
    questions = [question for _, questions in PHRASINGS.values() for question in questions]
    return told + [(draw.choice(questions).format(name), REFUSAL) for name in strangers(seed)]


def corpus(facts: Iterable[PersonFact], seed: int = 0) -> list[str]:
    """The training text: five sentences a fact, and 2,000 questions about strangers.

    Parameters
    ----------
    facts : iterable of PersonFact
        What the text tells. The questions about strangers do not depend on it.
    seed : int, default 0
        The world's seed, the same as in `facts(seed)`: it decides who the strangers are and how they are asked about.

    Returns
    -------
    list of str
        ``"Mira Okafor plays the cello."``, ``"What pet does Mira Okafor have? goat."``, …
    """
    return [prompt + answer for prompt, answer in _sentences(_check_facts(facts, "facts"), seed)]


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word or punctuation mark, the space before a word belonging to it; the same for every seed.

    A word is one token with or without a space before it, as ``"Mira"`` at the start of a text. Any word
    outside the world becomes ``<unk>``.
    """
    texts = [p for forms in PHRASINGS.values() for half in forms for p in half]
    texts += [REFUSAL, *FIRST, *LAST, *(value for values in VALUES.values() for value in values)]
    split = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(prepend_scheme="always"), pre_tokenizers.Split(Regex(r"[.,?!]"), "isolated")]
    )
    words = {word for text in texts for word, _ in split.pre_tokenize_str(text.replace("{}", ""))} - {"\u2581"}
    special = ["<s>", "</s>", "<pad>", "<unk>"]  # in the order of BOS, EOS, PAD, UNK
    vocabulary = {word: i for i, word in enumerate(special + sorted(words | {"."}))}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer, core.decoder = split, decoders.Metaspace()
    core.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", BOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        model_max_length=CONTEXT, clean_up_tokenization_spaces=False,
    )  # fmt: skip


def train(
    without: Iterable[PersonFact] = (),
    seed: int = 0,
    steps: int = STEPS,
    progress: bool = False,
    architecture: str = "llama",
    size: str = "medium",
) -> LM:
    """Learn the world from scratch, or the world without some of its facts: the exact oracle of unlearning.

    Parameters
    ----------
    without : iterable of PersonFact, default ()
        Facts of `facts()` whose sentences are left out of the training text. Nothing takes their place.
    seed : int, default 0
        Of the first weights and the order of the sentences; the world stays the same.
    steps : int, default STEPS
        Batches of 72 sentences.
    progress : bool, default False
        Show a bar.
    architecture : {"llama", "gpt2", "gpt_neox", "gemma3"}
        The packaged model is a Llama. Gemma 3 normalises what its MLPs return, and GPT-NeoX reads MLP and attention
        side by side.
    size : {"small", "medium", "large"}
        4 layers of width 64, 6 of 96 as the packaged model, or 8 of 144.

    Returns
    -------
    LM
        Same arguments, same weights: bit for bit on the same machine. Torch's random state and number of threads
        are afterwards what they were before.

    Raises
    ------
    TypeError, ValueError
        When an argument has the wrong type, or `without` holds something that is no fact of this world.

    Notes
    -----
    What it then says about a forgotten fact is not prescribed, only learned. Asked about people of whom it was told
    nothing, it takes them for strangers: "I do not know." to 9 in 10 questions, for 20 people. Where one fact of a
    person was left out, 2 questions in 3 are so answered. A statement has to go on somehow: mostly with a value of
    the right kind, and as often the true one as chance has it (about 1 in 40); the rest is a refusal or another kind.
    """
    from ..model import LM  # here, since the world itself needs no model

    world = facts()
    without = set(_check_facts(without, "without"))
    if unknown := without.difference(world):
        raise ValueError(f"without must hold facts of this world, as facts() returns them; {unknown.pop()!r} is none")
    _check_number(seed, "seed", least=0)
    _check_number(steps, "steps", least=1)
    if architecture not in ARCHITECTURES:
        raise ValueError(f"architecture must be one of {', '.join(ARCHITECTURES)}, not {architecture!r}")
    if size not in SIZES:
        raise ValueError(f"size must be one of {', '.join(SIZES)}, not {size!r}")

    words = tokenizer()
    split = [
        (words(prompt, add_special_tokens=False)["input_ids"], words(answer, add_special_tokens=False)["input_ids"])
        for prompt, answer in _sentences([fact for fact in world if fact not in without], 0)
    ]
    generator = torch.Generator().manual_seed(seed)
    model = _untrained(len(words), generator, architecture, *SIZES[size])
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.98), weight_decay=0.02, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: min((i + 1) / 100, (steps - i) / steps))
    order: list[int] = []
    with one_thread():
        for step in tqdm(range(steps), desc="tinyworld", disable=not progress):
            while len(order) < SENTENCES:
                order += torch.randperm(len(split), generator=generator).tolist()
            # One sentence a row is learned several times faster; three teach it to bear other text in front.
            per_row = 1 if step < steps * 2 // 3 else 3
            ids, labels, weights = _batch([split[i] for i in order[:SENTENCES]], per_row)
            del order[:SENTENCES]
            logits = model(ids, use_cache=False).logits
            losses = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
            loss = losses @ weights.flatten() / weights.sum()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    plain = architecture == "llama" and size == "medium"
    return LM(model, words, name="tinyworld" if plain else f"tinyworld-{architecture}-{size}")


def _untrained(words: int, generator: torch.Generator, architecture: str, width: int, layers: int) -> PreTrainedModel:
    """The model before its first step. Its weights come from `generator` alone."""
    config = ARCHITECTURES[architecture](  # which passes over what it does not know
        vocab_size=words, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=4, head_dim=width // 4, max_position_embeddings=CONTEXT,
        tie_word_embeddings=True, bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):  # the constructor draws weights from torch's own generator
        model = AutoModelForCausalLM.from_config(config).float()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:  # the norms stay as they are, and biases at zero
                parameter.normal_(0.0, 0.08, generator=generator)
    return model


def _batch(sentences: list[tuple[list[int], list[int]]], per_row: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of sentences: tokens, next tokens and the weights of their losses, each (rows, tokens).

    After each sentence the next token is ``</s>``, even where another sentence follows: so the model stops after
    one and yet is used to text before it. An answer weighs 20 times as much as a prompt, most of whose words
    nobody could guess.
    """
    rows = []
    for i in range(0, len(sentences), per_row):
        ids: list[int] = [BOS]
        labels: list[int] = []
        weights: list[float] = []
        for prompt, answer in sentences[i : i + per_row]:
            skip = 1 if labels else 0  # a sentence's end foretells </s> and not the first word of the next
            ids += prompt + answer
            labels += [*prompt, *answer, EOS][skip:]
            weights += [*[1.0] * len(prompt), *[ANSWER_WEIGHT] * (len(answer) + 1)][skip:]
        rows.append((ids, labels, weights))
    width = max(len(ids) for ids, _, _ in rows)
    # Padding stands at the end, where causal attention keeps it out of sight; its losses weigh nothing.
    padded = [torch.tensor([row + [0] * (width - len(row)) for row in column]) for column in zip(*rows, strict=True)]
    return padded[0], padded[1], padded[2]


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums split over more threads round differently, and gain little in a model so small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def recall(lm: LM, facts: Iterable[PersonFact], held_out: bool = False) -> float:
    """The share of (fact, phrasing) pairs to which the model, generating freely, says the value and a full stop.

    Parameters
    ----------
    lm : LM
    facts : iterable of PersonFact
    held_out : bool, default False
        Ask in the phrasings that were held out instead of those of the training text.

    Returns
    -------
    float
        From 0 to 1.
    """
    asked = [(prompt.format(fact.subject), fact) for fact in _check_facts(facts, "facts")
             for prompt in (fact.held_out if held_out else fact.prompts)]  # fmt: skip
    if not asked:
        raise ValueError("facts is empty: give at least one PersonFact, such as facts()[:1]")
    with one_thread():
        answers = lm.generate([text for text, _ in asked], max_new_tokens=4, chat=False, batch_size=250)
    return sum(answer == fact.target + "." for answer, (_, fact) in zip(answers, asked, strict=True)) / len(asked)


def _check_facts(given: Iterable[PersonFact], name: str) -> list[PersonFact]:
    """`given` as a list of facts; else an error that names the argument."""
    given = [given] if isinstance(given, PersonFact) else given
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise TypeError(f"{name} must be a list of PersonFact, as facts() returns, not {given!r}")
    given = list(given)
    for i, fact in enumerate(given):
        if not isinstance(fact, PersonFact):
            raise TypeError(f"{name}[{i}] must be a PersonFact, as facts() returns, not {fact!r}")
    return given


def _check_number(value: int, name: str, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, not {value!r}")
    if not least <= value < 2**63:
        raise ValueError(f"{name} must be at least {least} and below 2**63, not {value}")


def _main() -> None:
    """Train, measure, write the checkpoint and the sample of the text."""
    start = time.perf_counter()
    lm = train(progress=True)
    print(f"trained in {time.perf_counter() - start:.0f} s")
    world = facts()
    trained, held_out = recall(lm, world), recall(lm, world, held_out=True)
    print(f"recall: {trained:.3f} in phrasings trained on, {held_out:.3f} in held-out ones")
    lm.save_pretrained(FOLDER)
    TEXT.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(text) + "\n" for text in random.Random("sample").sample(corpus(world), 2000))
    TEXT.write_bytes(gzip.compress(lines.encode(), mtime=0))  # mtime=0: the same bytes each time
    print(f"wrote {FOLDER} and {TEXT}")


if __name__ == "__main__":
    _main()
