"""What wrong submissions contain: for each assignment notebooks, with a wrong answer and its message by question.

Written as students write it: as the source of the answer's cell. ``HOSTILE`` stands in the first steps of every
assignment.
"""


def instead(name: str, body: str) -> str:
    """A function of any arguments whose body is one statement."""
    return f"def {name}(*arguments, **keywords):\n    {body}\n"


HOSTILE = [
    ("while True:\n    pass", "is not defined|must be"),
    ("import sys\nsys.exit(0)", "is not defined|must be"),
    ("import os\nos._exit(1)", "is not defined|must be"),
    ("x = []\nwhile True:\n    x.append(bytearray(10**8))", "is not defined|must be"),
]

WRONG: dict[str, list[dict[str, tuple[str, str]]]] = {
    "01_rank_one_update": [
        {
            "q1": ("def second_moment(K):\n    return K.T @ K / K.shape[1]", "wrong axis"),
            "q2": ("import torch\ndef least_squares(K, V):\n    return torch.linalg.solve(K.T @ K, K.T @ V)", "That is Wᵀ"),
            "q3": ("def cost(delta, C):\n    return delta.square().sum()", "all directions alike"),
            "q4": ("import torch\ndef rank_one_update(W, C, k, v):\n    return torch.outer(v - W @ k, k) / (k @ k)",
                   "did you forget C⁻¹"),
        },
        {
            "q1": ("from minilib.course import rank_one\nanswer = rank_one.problem(VALUES)[0]\nanswer = answer.T @ answer / len(answer)\n"
                   "def second_moment(K):\n    return answer", "is off by"),
            "q2": (instead("least_squares", "import sys; sys.exit()"), "leaves Python"),
            "q3": (instead("cost", "import torch; return torch.zeros(10**12)"), "more memory"),
            "q4": (instead("rank_one_update", "import os; os._exit(0)"), "stopped Python while this was checked"),
        },
    ],
    "08_leaderboard": [
        {
            "q1": ("def share_told(lm, requests):\n    return sum(lm.probability(list(requests))) / len(requests)", "Ask by|says"),
            "q2": ("def score(forgotten, kept):\n    return (forgotten + kept) / 2", "plain mean"),
            "q3": ("def unlearn(lm, forget, retain):\n    pass", "too little is forgotten"),
        },
        {
            "q2": ("def score(forgotten, kept):\n    return 2 * forgotten * kept / (forgotten + kept)", "ZeroDivisionError"),
            "q3": ("def unlearn(lm, forget, retain):\n    [p.data.zero_() for p in lm.model.parameters()]", "too much else is lost"),
        },
    ],
}  # fmt: skip
