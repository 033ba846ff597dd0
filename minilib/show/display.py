"""An edit as a notebook shows it: answers before and after, how large the change is, and its notes."""

from __future__ import annotations

import html
import math
from typing import Any

SHOWN = 5  # notes


def edit(made: Any) -> str:
    """An edit in HTML; what a model says is shown as text, never as markup."""
    cell = "<td style='text-align:left'>{}</td>".format
    answers = made.answers() if made.active else []
    rows = ["<tr>" + "".join(cell(html.escape(text)) for text in texts) + "</tr>" for texts in answers]
    sizes = "".join(
        f"<li><code>{html.escape(name)}</code>: ‖ΔW‖ = {change:.3g}, ‖W‖ = {size:.3g}"
        f" ({change / (size or math.nan):.1%})</li>"
        for name, (change, size) in made.sizes().items()
    )
    left = len(made.requests) - len(rows)
    return (
        f"<p>{html.escape(repr(made))}</p>"
        + ("<table><thead><tr><th>prompt</th><th>before</th><th>after</th></tr></thead>" if rows else "")
        + (f"<tbody>{''.join(rows)}</tbody></table>" if rows else "")
        + (f"<p>and {left} more</p>" if rows and left else "")
        + (f"<ul>{sizes}</ul>" if sizes else "")
        + (f"<p>{html.escape(repr(made.guard))}</p>" if made.guard is not None else "")
        + "".join(f"<p>{html.escape(note)}</p>" for note in made.notes[:SHOWN])
        + (f"<p>and {len(made.notes) - SHOWN} more in <code>edit.notes</code></p>" if made.notes[SHOWN:] else "")
    )
