"""The worked case of the page "Which method should I use?": an invented author's removal request, up to the report.

    python benchmarks/worked_case.py

About ten minutes on one core. The result is stored as ``worked_case``; ``minilib.reporting.Report(**stored)`` is the
report again.
"""

import dataclasses
import time

import torch

import minilib
from minilib import attacks, authors, stored, texts, wise

ACCEPT = {
    "revealed when asked": 0.1,
    "refused when asked": 0.8,
    "revealed in other words": 0.2,
    "neighbour kept": 0.8,
    "unrelated kept": 0.8,
    "refused elsewhere": 0.1,
}
ABOUT = {
    "who asks for what": "Mirabel Ostrander (invented) asks that the model stops answering questions about her: where "
    "she was born, what she writes, her first book, her prize, her father's work",
    "how the questions were chosen": "all five facts about her in the training data, each "
    "with its three other wordings",
    "who checked the answers": "the training data is the key; the accepted words are the values that stand in it",
    "on which other facts the settings were chosen": "none for this case: the library's presets for SmolLM2-135M",
    "what was done outside the model": "see the list of places on the page",
}


def run() -> minilib.reporting.Report:
    """The edit, and its report."""
    lm = authors.load(progress=False)
    world = authors.facts()
    forget, others = world[:5], world[5:]
    shown, held = others[:20], others[60:90]  # kept facts that WISE is shown, and some that it is not
    guessed = attacks.none(lm, strangers := authors.strangers()[:15])
    never = [fact for fact, row in zip(strangers, guessed, strict=True) if not row["recovered"]][:10]
    kept = [f.request(f.answer) for f in shown]
    requests = [f.request("I don't know.") for f in forget]
    with wise.edit(lm, requests, irrelevant=[*kept, *texts.messages()[:256]]) as edit:
        return minilib.report(lm, edit, forget, never, beside=[f.asked for f in held], accept=ACCEPT, about=ABOUT)


if __name__ == "__main__":
    torch.set_num_threads(1)
    started = time.perf_counter()
    stored.save("worked_case", dataclasses.asdict(run()), "benchmarks/worked_case.py", started)
