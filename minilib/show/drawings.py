"""The drawing of a transformer block that comes back in every chapter, each time with another part lit.

Three tokens stand at the bottom: what comes before the subject, the subject's last token, and the prompt's last. Above
each runs its residual stream. One block is drawn in full at the subject, or, for methods that read there, at the
prompt's last token: attention, and the MLP with its key k, its memory W and its value v. Everything is drawn with the
text's colour; what is lit is orange and thicker.

>>> from minilib import drawings
>>> drawings.block("k", "W", "v").alt[:20]
'A transformer block '
"""

from __future__ import annotations

import hashlib
import html
import textwrap
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from .figures import ORANGE

WIDE = 14  # letters of a line below a stream: more would touch the next one
PAPER = "var(--pst-color-background, #fff)"  # the page's own, in either theme
PARTS = {
    "stream": "the residual stream of that token",
    "attention": "attention, which brings earlier tokens to that one",
    "mlp": "the MLP of the block",
    "k": "the key k, which enters W",
    "W": "the memory W, the MLP's last matrix",
    "v": "the value v, which leaves W and is added to the stream",
    "delta": "the vector δ that a search adds to the value",
    "window": "a window of several blocks whose W are written",
    "codebook": "a codebook beside W, which answers for some keys",
    "side memory": "a side memory W′ beside W, read in its place for some prompts",
    "projection": "a projection P of what is written, which leaves out the directions of ordinary keys",
    "gradient": "the gradient, which changes every weight",
    "lens": "a lens, which reads the stream after each block",
    "prediction": "the prediction at the prompt's last token",
}


class Drawn:
    """A drawing as notebooks and pages show it: SVG in the page's colours, and its description in words."""

    def __init__(self, svg: str, alt: str) -> None:
        self.svg, self.alt = svg, alt

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        return {"text/html": f'<figure class="figure-svg">{self.svg}</figure>', "text/plain": self.alt}


def block(
    *lit: str,
    before: str = "The capital of",
    subject: str = "France",
    after: str = "is",
    at: Literal["subject", "prompt"] = "subject",
) -> Drawn:
    """The drawing with some parts lit.

    Parameters
    ----------
    *lit : str
        Names in ``PARTS``. Those that are no part of a plain transformer (δ, window, codebook, side memory, projection,
        gradient, lens) are drawn only when they are lit.
    before, subject, after : str
        The three pieces of the prompt.
    at : {"subject", "prompt"}
        Whose last token the block is drawn at: ROME, MEMIT and AlphaEdit write for the subject's, GRACE and WISE read
        the prompt's.
    """
    unknown = [name for name in lit if name not in PARTS]
    if unknown:
        raise ValueError(f"lit: {unknown[0]!r} is no part of the drawing; there are {', '.join(PARTS)}")
    shapes: list[str] = []
    if at not in ("subject", "prompt"):
        raise ValueError(f"at must be 'subject' or 'prompt', not {at!r}")
    own = hashlib.sha256(repr((lit, before, subject, after, at)).encode()).hexdigest()[:6]  # ids are unique on a page

    def ink(name: str, fill: str = "none") -> str:
        color, width = (ORANGE, 3) if name in lit else ("currentColor", 1.4)
        return f'stroke="{color}" stroke-width="{width}" fill="{fill}"'

    def line(name: str, path: str, arrow: bool = True) -> None:
        end = f' marker-end="url(#{"lit" if name in lit else "plain"}-{own})"' if arrow else ""
        shapes.append(f'<path d="{path}" {ink(name)}{end}/>')

    def box(name: str, x: float, y: float, width: float, height: float, label: str) -> None:
        shapes.append(f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" {ink(name, PAPER)}/>')
        text(x + width / 2, y + height / 2 + 5, label, name)

    def text(x: float, y: float, words: str, name: str = "", anchor: str = "middle", size: int = 15) -> None:
        color = ORANGE if name in lit else "currentColor"
        weight = ' font-weight="bold"' if name in lit else ""
        shapes.append(
            f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-size="{size}" fill="{color}"{weight}>'
            f"{html.escape(words)}</text>"
        )

    streams = {55: ("", before), 150: ("stream", subject), 420: ("prediction", after)}
    said = 420  # where the prediction is read
    if at == "prompt":
        streams, said = {55: ("", f"{before} {subject}"), 150: ("stream", after)}, 150
    bottom = 394
    for x, (name, words) in streams.items():
        line(name, f"M{x} 372 V{70 if x == said else 92}")
        for i, part in enumerate(textwrap.wrap(words, WIDE) or [""]):
            text(x, 394 + 18 * i, part)
            bottom = max(bottom, 394 + 18 * i)
    shapes.append('<rect x="18" y="140" width="370" height="196" rx="10" fill="none" stroke="currentColor" '
                  'stroke-width="1" stroke-dasharray="5 4" opacity="0.6"/>')  # fmt: skip
    text(380, 157, "one block", anchor="end", size=13)
    text(285, 116, "more blocks", size=13)
    text(285, 360, "blocks below", size=13)
    box("attention", 92, 286, 116, 28, "attention")
    line("attention", "M55 300 H88")
    # The MLP: from the stream to the right, up through k, W and v, and back.
    line("mlp", "M150 254 H196")
    box("mlp", 200, 238, 52, 32, "up")
    line("k", "M252 254 H296")
    text(274, 246, "k", "k", size=17)
    box("W", 300, 234, 56, 40, "W")
    line("v", "M328 234 V180 H158")
    text(340, 208, "v", "v", size=17)
    shapes.append(f'<circle cx="150" cy="180" r="7" {ink("v")}/>')
    line("v", "M150 175.5 V184.5 M145.5 180 H154.5", arrow=False)
    if at == "subject":  # later attention carries it to the prompt's end
        line("", "M158 130 C 240 96, 330 96, 414 92")
    text(said, 58, "Paris", "prediction", size=16)
    if "delta" in lit:
        line("delta", "M236 150 V172")
        text(250, 160, "+ δ", "delta", anchor="start", size=17)
    if "window" in lit:
        for i in range(1, 4):
            offset = 9 * i
            shapes.insert(0, f'<rect x="{300 + offset}" y="{234 - offset}" width="56" height="40" rx="6" '
                             f'{ink("window")} opacity="{1 - 0.2 * i}"/>')  # fmt: skip
    if "codebook" in lit:
        box("codebook", 262, 286, 112, 30, "k₁ v₁ · k₂ v₂")
        line("codebook", "M284 258 V282")
        line("codebook", "M366 282 C 384 240, 372 196, 336 184")
    if "side memory" in lit:
        box("side memory", 300, 284, 56, 34, "W′")
        line("side memory", "M284 258 V301 H296")
        line("side memory", "M360 301 H376 V190 H336")
    if "projection" in lit:
        box("projection", 252, 286, 36, 30, "P")
        line("projection", "M288 301 C 316 301, 328 292, 328 280")
        text(240, 306, "Δ", "projection", size=17)
    if "gradient" in lit:
        line("gradient", f"M{said - 16} 76 C 372 150, 372 200, 358 232")
        line("gradient", f"M{said - 16} 76 C 250 140, 250 190, 240 234")
        line("gradient", f"M{said - 16} 76 C 180 130, 178 230, 176 282")
    if "lens" in lit:
        for y in (330, 205, 112):
            shapes.append(f'<circle cx="150" cy="{y}" r="9" {ink("lens")}/>')
            line("lens", f"M141 {y} H106", arrow=False)
            text(100, y + 5, "?", "lens", anchor="end", size=16)
    alt = f"A transformer block at the {at}'s last token. " + (
        f"Lit: {'; '.join(PARTS[name] for name in lit)}." if lit else "Nothing is lit."
    )
    heads = "".join(
        f'<marker id="{name}-{own}" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="{size}" markerHeight="{size}" '
        f'orient="auto-start-reverse"><path d="M0 0 L8 4 L0 8 z" fill="{color}"/></marker>'
        for name, color, size in (("plain", "currentColor", 6), ("lit", ORANGE, 4))
    )
    return Drawn(
        f'<svg viewBox="0 0 480 {bottom + 14}" role="img" aria-label="{html.escape(alt, quote=True)}" '
        'style="width:100%;height:auto;max-width:520px" font-family="inherit">'
        f"<defs>{heads}</defs>{''.join(shapes)}</svg>",
        alt,
    )


def cloud(n: int = 150) -> Float[Tensor, "n 2"]:
    """The keys in two dimensions that run through chapters 02 to 08: a slanted cloud, always the same."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 2, generator=generator) @ torch.tensor([[1.5, 0.9], [0.0, 0.4]])
