"""The drawing of a transformer block, with parts lit."""

import re
import xml.etree.ElementTree as ElementTree

import pytest
import torch

from minilib import drawings


@pytest.mark.parametrize("name", drawings.PARTS)
def test_every_part_can_be_lit_and_is_described(name):
    plain, lit = drawings.block(), drawings.block(name)
    ElementTree.fromstring(lit.svg)
    assert drawings.ORANGE not in re.sub(r"<defs>.*</defs>", "", plain.svg) and lit.svg.count(drawings.ORANGE) > 1
    assert drawings.PARTS[name] in lit.alt and f'aria-label="{lit.alt[:20]}' in lit.svg
    assert drawings.block(name).svg == lit.svg, "the same drawing has the same bytes"


def test_two_drawings_on_a_page_share_no_ids():
    ids = [set(re.findall(r' id="([^"]+)"', drawings.block(name).svg)) for name in ("k", "W")]
    assert ids[0] and not ids[0] & ids[1]


def test_a_long_prompt_is_broken_and_not_cut():
    drawn = drawings.block(before="What is the capital of the republic of", after="?")
    lines = re.findall(r'<text x="55" y="([^"]+)"[^>]*>([^<]+)<', drawn.svg)
    assert " ".join(words for _, words in lines) == "What is the capital of the republic of"
    assert all(len(words) <= drawings.WIDE for _, words in lines)
    height = float(re.search(r'viewBox="0 0 480 ([^"]+)"', drawn.svg)[1])
    assert max(float(y) for y, _ in lines) < height


def test_the_block_stands_at_the_token_that_a_method_reads():
    drawn = drawings.block("codebook", "k", before="The capital of", subject="France", after="is", at="prompt")
    assert drawn.alt.startswith("A transformer block at the prompt's last token.")
    assert re.findall(r'<text x="150" y="394"[^>]*>([^<]+)<', drawn.svg) == ["is"]
    with pytest.raises(ValueError, match="at must be 'subject' or 'prompt', not 'token'"):
        drawings.block(at="token")


def test_words_are_shown_as_text():
    assert "<script>" not in drawings.block(subject="<script>").svg
    with pytest.raises(ValueError, match="'key' is no part of the drawing; there are stream"):
        drawings.block("key")


def test_the_cloud_is_always_the_same():
    assert torch.equal(drawings.cloud(), drawings.cloud()) and drawings.cloud(20).shape == (20, 2)
