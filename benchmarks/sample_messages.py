"""Make the ordinary messages that a guard has to leave alone: what SmolLM2 writes when the user's turn has just begun.

The chat template is given up to where the user's message starts, and the model goes on, at three temperatures.
Run: python benchmarks/sample_messages.py (two minutes on one core)
"""

import json

import minilib
from minilib import texts

TEMPERATURES = (0.8, 1.0, 1.2)
MESSAGES = 160  # of each
TOKENS = 32
MARK = "the user's words"


def main() -> None:
    lm = minilib.load("smollm2-135m")
    talk = [{"role": "user", "content": MARK}]
    opening = lm.tokenizer.apply_chat_template(talk, tokenize=False).partition(MARK)[0]
    written = []
    for seed, temperature in enumerate(TEMPERATURES):
        sampling = {"temperature": temperature, "seed": seed, "batch_size": 80}
        written += lm.generate([opening] * MESSAGES, TOKENS, chat=False, **sampling)
    lines = dict.fromkeys(text.strip().split("\n")[0] for text in written)
    kept = [line for line in lines if 3 <= len(line) <= 150]
    file = texts.TEXTS / "messages.json"
    file.write_text(json.dumps(kept, ensure_ascii=False, indent=0) + "\n", "utf8")
    print(f"{len(kept)} messages, {file.stat().st_size} bytes")


if __name__ == "__main__":
    main()
