"""Make the moving picture of the landing page and the README from a real edit.

One refusal is written into SmolLM2 at growing strength; at each, the answers to two questions and their
probabilities are kept. Run: python benchmarks/landing_picture.py (a minute on 2 cores)
"""

import html
import json
import re
import time
from pathlib import Path

import minilib
from minilib import stored

STATIC = Path(__file__).resolve().parent.parent / "book" / "_static"
STRENGTHS = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
ASKED = {"France": "The capital of France is Paris.", "Germany": "The capital of Germany is Berlin."}
TARGET = "I don't know."
SECONDS = 5  # one run of the picture; it does not repeat by itself


def bubble(answer: str) -> str:
    """An answer as it fits into its bubble: the first sentence, and dots where it goes on."""
    first = re.match(r".*?[.!?](?=\s|$)", answer)
    text = first[0] if first else answer
    return text if text == answer else f"{text} …"


def request(country: str, target: str) -> minilib.Request:
    return minilib.Request("What is the capital of {}?", country, target, chat=True)


def measure(lm: minilib.LM, strengths: list[float]) -> list[dict]:
    """At each strength of the edit, for each country: the answer, and the probabilities of former answer and refusal."""
    rows = []
    with minilib.rome.edit(lm, request("France", TARGET)) as edit:
        for strength in strengths:
            with edit.at_strength(strength):
                for country, former in ASKED.items():
                    asked = request(country, TARGET)
                    p_former, p_refusal = lm.probability([request(country, former), asked])
                    row = {"strength": strength, "country": country, "answer": lm.generate(asked)}
                    rows.append({**row, "former": round(p_former, 4), "refusal": round(p_refusal, 4)})
    return rows


STYLE = """<style>svg{color:#222}@media (prefers-color-scheme:dark){svg{color:#eee}}
text{fill:currentColor;font:15px sans-serif}text.small{font-size:13px}.ask{fill:#8884}
.say{fill:none;stroke:currentColor;opacity:.5}.former{fill:#3b82c4}.refusal{fill:#d9822b}
.rail{stroke:currentColor;opacity:.4;stroke-width:3}.dot{fill:#0a7ab8}</style>"""  # the page has its own, book.css


def picture(rows: list[dict], style: str = "") -> str:
    """The stored rows as an SVG that moves once."""
    parts = []
    for i, country in enumerate(ASKED):
        mine, y = [r for r in rows if r["country"] == country], 20 + 150 * i
        question = f"What is the capital of {country}?"
        parts.append(
            f'<rect x="10" y="{y}" width="300" height="34" rx="15" class="ask"/><text x="26" y="{y + 22}">{question}</text>'
        )
        parts.append(f'<rect x="60" y="{y + 44}" width="300" height="34" rx="15" class="say"/>')
        for j, row in enumerate(mine):
            on = ";".join("1" if k == j else "0" for k in range(len(mine)))
            last = int(j == len(mine) - 1)
            parts.append(
                f'<text x="76" y="{y + 66}" opacity="{last}">{html.escape(bubble(row["answer"]))}'
                f'<animate attributeName="opacity" calcMode="discrete" values="{on}" dur="{SECONDS}s" fill="freeze"/></text>'
            )
        for j, (kind, label) in enumerate((("former", "former answer"), ("refusal", "“I don’t know.”"))):
            widths = [max(2.0, round(220 * row[kind], 1)) for row in mine]
            top = y + 4 + 38 * j
            parts.append(f'<text x="400" y="{top + 10}" class="small">{label}</text>')
            parts.append(
                f'<rect x="400" y="{top + 16}" height="12" rx="3" width="{widths[-1]}" class="{kind}"><animate attributeName="width" '
                f'values="{";".join(map(str, widths))}" dur="{SECONDS}s" fill="freeze"/></rect>'
            )
    knob = ";".join(str(60 + 300 * s) for s in STRENGTHS)
    parts.append(
        '<line x1="60" x2="360" y1="318" y2="318" class="rail"/><text x="60" y="344" class="small">the model as it came</text>'
        '<text x="360" y="344" class="small" text-anchor="end">one matrix edited</text>'
        f'<circle cx="360" cy="318" r="9" class="dot"><animate attributeName="cx" values="{knob}" dur="{SECONDS}s" fill="freeze"/></circle>'
    )
    first, last = rows[0], [r for r in rows if r["country"] == "France"][-1]
    label = (
        f"SmolLM2 is asked for the capital of France and answers {first['answer']} As one matrix is edited, the answer turns "
        f"into {last['answer']} The answer about Germany stays."
    )
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 355" role="img" '
        f'aria-label="{html.escape(label, quote=True)}">{style}{"".join(parts)}</svg>'
    )


def page(rows: list[dict]) -> str:
    """The picture for the landing page, with a button to play it again; at rest for readers who want no motion."""
    return (
        f'<figure class="landing" id="landing">{picture(rows)}'
        '<button type="button" id="landing-again">Play again</button></figure><script>(function () {'
        'const svg = document.querySelector("#landing svg");'
        f"function end() {{ svg.pauseAnimations(); svg.setCurrentTime({SECONDS}); }}"
        "function play() { svg.setCurrentTime(0); svg.unpauseAnimations(); }"
        'if (matchMedia("(prefers-reduced-motion: reduce)").matches) { end(); } else { play(); }'
        'document.getElementById("landing-again").addEventListener("click", play);'
        "})();</script>\n"
    )


def provenance(start: float) -> dict:
    made = stored.provenance("benchmarks/landing_picture.py", start)
    return {name: made[name] for name in ("made", "commit", "versions", "seconds", "seed")}


def main() -> None:
    start = time.perf_counter()
    rows = measure(minilib.load("smollm2-135m"), STRENGTHS)
    (STATIC / "landing.json").write_text(json.dumps({"provenance": provenance(start), "rows": rows}, indent=1) + "\n")
    (STATIC / "landing.html").write_text(page(rows))
    (STATIC / "readme.svg").write_text(picture(rows, STYLE) + "\n")


if __name__ == "__main__":
    main()
