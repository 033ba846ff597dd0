"""Make the sample text that second moments are computed from: written by SmolLM2 itself.

The model goes on from short openings and answers chat questions, at three temperatures. Half of the text
is in the chat format, so that the keys of the template's own tokens are among those that an edit spares.
Run: python benchmarks/sample_text.py (some minutes on 2 cores)
"""

import gzip
import json

from tqdm import tqdm

import minilib
from minilib import texts as stored_texts

TEMPERATURES = (0.7, 1.0, 1.3)
TOKENS = 128
BATCH = 40
TOPICS = (
    "history,rivers,the Moon,music,cooking,a small town,mathematics,birds,the human body,trade,painting,computers,"
    "football,the weather,a king,medicine,Africa,the sea,a novel,farming,light,Paris,language,trains,China,the law,"
    "friendship,volcanoes,an engineer,school,money,plants,war,Germany,chess,a journey,Japan,energy,film,Italy"
).split(",")
OPENINGS = (
    "The article below is about {}.",
    "In this chapter we look at {}. First",
    "A short story about {}:\n\n",
    "{} —",
)
QUESTIONS = (
    "What should I know about {}?",
    "Tell me three facts about {}.",
    "Write a short text about {}.",
    "Why do people care about {}?",
)


def main() -> None:
    lm = minilib.load("smollm2-135m")
    end = lm.model.generation_config.eos_token_id
    texts = []
    for i, temperature in enumerate(tqdm(TEMPERATURES)):
        for chat, templates in ((False, OPENINGS), (True, QUESTIONS)):
            prompts = [templates[(i + j) % len(templates)].format(topic) for j, topic in enumerate(TOPICS)]
            prompts = [p[0].upper() + p[1:] for p in prompts]
            for start in range(0, len(prompts), BATCH):
                chunk = prompts[start : start + BATCH]
                sampling = {"temperature": temperature, "seed": 1000 * i + start, "batch_size": BATCH}
                answers = lm.generate(chunk, TOKENS, chat=chat, **sampling)
                for prompt, answer in zip(chunk, answers, strict=True):
                    ids = lm.encode(prompt, chat=chat).ids + lm.encode(answer or " ").ids + ([end] if chat else [])
                    texts.append(lm.tokenizer.decode(ids))
    stored_texts.TEXTS.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(text, ensure_ascii=False) + "\n" for text in texts)
    file = stored_texts.TEXTS / "smollm2-135m.jsonl.gz"
    file.write_bytes(gzip.compress(lines.encode(), mtime=0))
    print(f"{len(texts)} texts, {sum(len(lm.encode(t).ids) for t in texts)} tokens, {file.stat().st_size} bytes")


if __name__ == "__main__":
    main()
