"""What wrong submissions contain: for each assignment a mistake and its message by question.

A mistake is what a student does to the solution: some text of the answer's cell is another. What is not done by
mistake, ``SLY`` and ``HOSTILE``, is tried on assignment 01.
"""

Mistake = tuple[str, str, str]  # what is replaced, by what, and what the test says

HOSTILE = [
    "import os\nos._exit(1)",  # the first: what stands before it runs twice
    "while True:\n    pass",
    "import sys\nsys.exit(0)",
    "x = []\nwhile True:\n    x.append(bytearray(10**8))",
]
NOT_THERE = "is not defined|must be"

ZERO = "[p.data.zero_() for p in lm.model.parameters()]\n    "
LEAST = "torch.linalg.solve(K.T @ K, K.T @ V).T"
OUTER = "torch.outer(missing, u) / (u @ k)"

WRONG: dict[str, dict[str, Mistake]] = {
    "01_rank_one_update": {
        "q1": ("/ len(K)", "/ K.shape[1]", "averaged over the wrong axis"),
        "q2": (LEAST, LEAST.removesuffix(".T"), "That is Wᵀ"),
        "q3": ("torch.trace(delta @ C @ delta.T)", "delta.square().sum()", "all directions alike"),
        "q4": (OUTER, "torch.outer(missing, k) / (k @ k)", "did you forget C⁻¹"),
        "q5": ("W += delta", "W -= delta", "subtracted"),
    },
    "02_causal_tracing": {
        "q1": ("table.std()", "table.std(0)", "each dimension"),
        "q3": (".softmax(-1)", "", "Those are logits"),
        "q5": ("dict(enumerate(lm.blocks))", "dict(enumerate(lm.blocks)), at='input'", "enters each block"),
        "q7": ("- corrupted.mean()", "", "subtract the one without"),
    },
    "03_rome_value": {
        "q1": ("[0, x.subject]", "[0, -1]", "the prompt's last token"),
        "q2": (".mean()", ".sum()", "the sum over the target"),
        "q3": ("edited.exp() * (edited - original)", "original.exp() * (original - edited)", "original ‖ edited"),
        "q5": ("adam.zero_grad()", "pass", "add up"),
        "q6": ("u = torch.linalg.solve(C, k)", "u = k", "lacks C⁻¹"),
    },
    "04_memit_batch": {
        "q2": ("lam * C + K1 @ K1.T", "C + lam * K1 @ K1.T", "wrong term"),
        "q6": ("(len(layers) - i)", "len(layers)", "number of all layers"),
    },
    "05_grace_codebook": {
        "q2": ("if distance <= book[i]", "if distance < book[i]", "≤, not <"),
        "q3": ('old["epsilon"] = min(old["epsilon"], d / 2)', "pass", "old one was not shrunk"),
        "q4": ("[0, -1]", "[0]", "all tokens"),
        "q6": ("handle.remove()", "pass", "left behind"),
    },
    "06_alphaedit_projector": {
        "q1": ("w < threshold", "w >= threshold", "ABOVE"),
        "q3": ("(Kp @ Kp.T + K1 @ K1.T)", "(K1 @ K1.T)", "earlier keys are forgotten"),
        "q4": ("/ (W @ K).norm()", "/ K.norm()", "length of the answers"),
        "q5": ("W += update", "W -= update", "is|wrong sign"),
    },
    "07_npo_and_ascent": {
        "q1": ("[-1 - n : -1]", "[-n:]", "shift by one"),
        "q2": (".mean()", ".sum()", "take the mean"),
        "q4": ("2 * torch", "torch", "factor 2"),
        "q6": ("optimizer.zero_grad()", "pass", "pile up"),
        "q7": ("log_p.exp() * ", "", "by its probability"),
    },
    "08_leaderboard": {
        "q1": ("sum(told) / len(told)", "sum(lm.probability(list(requests))) / len(told)", "Ask by|says"),
        "q2": ("2 * forgotten * kept / (forgotten + kept)", "(forgotten + kept) / 2", "plain mean"),
        "q3": ("unlearning.refusal_tuning(", ZERO + "(lambda *a, **k: 0)(",
               "too much else is lost"),
    },
}  # fmt: skip

SLY: dict[str, Mistake] = {  # in assignment 01
    "q1": ("K.T @ K / len(K)", "rank_one.problem(VALUES)[0].T @ rank_one.problem(VALUES)[0] / 24", "is off by"),
    "q2": (LEAST, "__import__('sys').exit()", "leaves Python"),
    "q3": ("torch.trace(delta @ C @ delta.T)", "torch.zeros(10**12)", "more memory"),
    "q4": (OUTER, "__import__('os')._exit(0)", "stopped Python while this was checked"),
}
