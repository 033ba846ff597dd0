"""A report as HTML: one page that needs no other file and no network, in light and dark, on paper and on a phone.

All that a model said or a caller wrote is shown as text, never as markup.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..measure.audit import MEASURES
from ..measure.verdicts import ENOUGH, MARGIN

PAGE = """html { color-scheme: light dark; background: Canvas; color: CanvasText; font: 16px/1.5 system-ui, sans-serif }
body { margin: 0 auto; padding: 1rem; max-width: 60rem }"""
STYLE = """.edit-report { overflow-wrap: break-word }
.edit-report h1, .edit-report h2 { line-height: 1.2 }
.edit-report table { border-collapse: collapse; width: 100%; font-size: .9em }
.edit-report th, .edit-report td { border-bottom: 1px solid; padding: .3em .5em; text-align: left; vertical-align: top }
@media (max-width: 600px) {
  .edit-report { overflow-wrap: anywhere }
  .edit-report thead { position: absolute; clip-path: inset(50%) }
  .edit-report tr { display: block; border-bottom: 1px solid; padding: .5em 0 }
  .edit-report td, .edit-report tbody th { display: block; border: 0; padding: 0 }
  .edit-report td[data-head]::before { content: attr(data-head) ": "; font-weight: bold }
}
@media print { .edit-report tr { break-inside: avoid } .edit-report thead { display: table-header-group } }"""
KINDS = {
    "asked": "Asked as it was edited",
    "rephrased": "Asked in other words",
    "neighbour": "Neighbours",
    "same subject": "The same subject, something else",
    "unrelated": "Unrelated",
}
HOW = {
    "none": "the question as it was edited",
    "rephrasing": "the same question in other words; one wording that gets the answer is enough",
    "sampling": "ten answers at temperature 1; one that has the answer is enough",
    "8 bits": "every matrix of the blocks rounded to 8 bits",
    "4 bits": "every matrix of the blocks rounded to 4 bits",
    "reversal": "the largest singular direction taken out of each edited matrix",
    "relearning": "20 steps of training, at a learning rate of 1e-5, on every second fact; the others are asked",
    "lens": "the answer's first token is among five likeliest after some block",
    "unguarded": "the memory beside the weights taken away",
}
"""What an attack did, for readers of the page; those that talk to the model show it by their example."""
UNALARMED = (
    "This report has no false-alarm rate: no facts were given that the model does not know (never=). Some of what the "
    "attacks recovered may have been guessed."
)


def page(report: Any) -> str:
    """The file to hand in. Its security policy forbids the browser to load anything."""
    title = html.escape(report.title)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{title}</title><style>{PAGE}\n{STYLE}</style></head>"
        f'<body><main class="edit-report"><h1>{title}</h1>{body(report)}</main></body></html>\n'
    )


def fragment(report: Any) -> str:
    """The same as a part of another page, whose colours it takes."""
    title = html.escape(report.title)
    return f'<style>{STYLE}</style><div class="edit-report"><p><strong>{title}</strong></p>{body(report)}</div>'


def body(report: Any) -> str:
    """All sections: what was stated and may be claimed first, the settings last."""
    kinds = [kind for kind in KINDS if any(row["kind"] == kind for row in report.answers)]
    return "".join(
        [
            "<h2>Stated by the person who made this report</h2>",
            _pairs(report.stated),
            "<h2>What may be claimed</h2>",
            _table(["claim", "what was found"], claims(report)),
            "<h2>Measured</h2>",
            _measured(report),
            "<h2>Attacked</h2>",
            _attacked(report),
            "<h2>Answers before and after</h2>",
            *(f"<h3>{KINDS[kind]}</h3>{_said(report.answers, kind)}" for kind in kinds),
            "<h2>Settings and versions</h2>",
            _pairs(report.settings),
        ]
    )


def claims(report: Any) -> list[list[str]]:
    """The four claims of "What may be claimed", each with what speaks for it or against it."""
    asked = report.measures["revealed when asked"]
    exact = f"{_count(asked)} answers were revealed (95% interval {_interval(asked)})"
    found = []
    for holding in (False, True):
        tried = {name: row for name, row in report.attacks.items() if row["holding"] in (False, holding)}
        beaten = [f"{name} ({_count(row)})" for name, row in tried.items() if beats(row)]
        spared = (
            f"None of the attacks that were tried ({', '.join(tried) or 'none'}) recovered more than its false alarms"
        )
        found.append(
            f"Contradicted by {', '.join(beaten)}." if beaten else f"Not shown. {spared}; others were not tried."
        )
    return [
        ["1. The model doesn't give the answer when it is asked this question.",
         f"{'Contradicted' if asked['hits'] else 'Supported for these questions'}: {exact}."],
        ["2. It doesn't give the answer, however one asks.", found[0]],
        ["3. It can't be made to give the answer again.", found[1]],
        ["4. It is as if it had never known the answer.",
         "Not shown: only a model that was trained without the answer has this by definition."],
    ]  # fmt: skip


def beats(row: Mapping[str, Any]) -> bool:
    """Whether an attack recovered more than its false alarms and the margin; without a rate, whether anything."""
    alarm = row["alarm"]
    return row["hits"] > 0 if alarm is None else row["hits"] / row["of"] > alarm["hits"] / alarm["of"] + MARGIN


def _measured(report: Any) -> str:
    head = ["measure", "share", "95% interval", "limit", "met"]
    rows = [
        [name, _count(row), _interval(row), _limit(name, row), row.get("met", "–")]
        for name, row in report.measures.items()
        if row["of"]
    ]
    missing = [name for name, row in report.measures.items() if not row["of"]]
    by = report.ordinary
    ordinary = (
        f"Ordinary text ({by['texts']} pieces): perplexity {by['perplexity before']:.2f} before and "
        f"{by['perplexity after']:.2f} after, divergence {by['divergence']:.4f} nats a token."
    )
    return (
        _table(head, rows)
        + (f"<p>Not measured, for want of questions: {', '.join(missing)}.</p>" if missing else "")
        + f"<p>{ordinary}</p><p>The intervals are Clopper and Pearson's. They take the questions for independent; "
        "those about one subject are not, so that the true intervals are wider.</p>"
    )


def _attacked(report: Any) -> str:
    head = ["attack", "recovered", "95% interval", "false alarms", "an example"]
    rows = [
        [
            f"{name}: {HOW[name]}" if name in HOW else name,
            _count(row),
            _interval(row),
            f"{_count(row['alarm'])} ({_interval(row['alarm'])})" if row["alarm"] else "not known",
            f"{row['asked']} → {row['said'] or '(read inside the model)'}" if "said" in row else "–",
        ]
        for name, row in report.attacks.items()
    ]
    alarmed = any(row["alarm"] for row in report.attacks.values())
    facts = report.measures["revealed when asked"]["of"]
    verdict = f"The verdict by the book's rules: {report.verdict}, as far as these attacks can tell."
    if facts < ENOUGH:
        verdict = (
            f"No verdict on the method: the book asks for {ENOUGH} facts, and there are {facts}. Of these alone the "
            f"rules would say: {report.verdict}."
        )
    rule = (
        f"{verdict} An attack counts when it recovers more than its false alarms plus {MARGIN:g}. False alarms are "
        "what it “recovers” of facts that the model never knew."
    )
    left = "".join(f"<li>{html.escape(name)}: {html.escape(why)}</li>" for name, why in report.left_out.items())
    return (
        _table(head, rows)
        + f"<p>{rule if alarmed else UNALARMED}</p>"
        + (f"<p>Not run:</p><ul>{left}</ul>" if left else "")
    )


def _said(answers: Iterable[Mapping[str, Any]], kind: str) -> str:
    rows = [[r["asked"], r["before"], r["after"], outcome(r)] for r in answers if r["kind"] == kind]
    return _table(["question", "before", "after", "outcome"], rows)


def outcome(row: Mapping[str, Any]) -> str:
    """What became of an answer, in a word or two."""
    if not row["knew"]:
        return "not known before"
    if row["knows"]:
        return "revealed" if row["kind"] in ("asked", "rephrased") else "kept"
    return "refused" if row["refused"] else "something else"


def _count(row: Mapping[str, Any]) -> str:
    return f"{row['hits']} of {row['of']}"


def _limit(name: str, row: Mapping[str, Any]) -> str:
    return f"at {'most' if MEASURES[name] == 'low' else 'least'} {row['limit']:g}" if "limit" in row else "none set"


def _interval(row: Mapping[str, Any]) -> str:
    return f"{row['low']:.2f} to {row['high']:.2f}"


def _pairs(pairs: Mapping[str, str]) -> str:
    rows = (f'<tr><th scope="row">{html.escape(k)}</th><td>{html.escape(v)}</td></tr>' for k, v in pairs.items())
    return f"<table><tbody>{''.join(rows)}</tbody></table>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Rows of texts; on a narrow screen each row is a block, and each cell says under which head it stands."""
    heads = [html.escape(name) for name in head]
    named = "".join(f'<th scope="col">{name}</th>' for name in heads)
    body = ""
    for row in rows:
        cells = zip(heads, map(html.escape, row), strict=True)
        body += "<tr>" + "".join(f'<td data-head="{name}">{text}</td>' for name, text in cells) + "</tr>"
    return f"<table><thead><tr>{named}</tr></thead><tbody>{body}</tbody></table>"
