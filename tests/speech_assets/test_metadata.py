"""What strangers wrote (suppliers' rows, reasons of decisions) stands in Dagster's pages as the text that it is."""

import re
from html import unescape

import pytest
from markdown_it import MarkdownIt

from speech_assets.defs.metadata import markdown_table

HOSTILE = (
    "![p](http://127.0.0.1:9999/px.png)",
    "[c](javascript:alert(1))",
    "<img src=x onerror=alert(1)>",
    "&lt;b&gt; and <b>bold</b>",
    r"a\|b | c",
    r"a\\|b",
    "**loud** _slanted_ ~~gone~~ `code`",
    "snake_case_names and 2*3*4",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_cell_shows_its_text_and_nothing_else(text: str) -> None:
    page = MarkdownIt("gfm-like", {"linkify": False}).render(
        markdown_table(("who", "why"), [("Ada", text)]).md_str or ""
    )
    cells = re.findall(r"<td>(.*?)</td>", page, flags=re.DOTALL)
    assert [unescape(cell) for cell in cells] == ["Ada", text]


def test_a_cell_is_one_line_in_its_own_direction() -> None:
    assert "a b c d" in (markdown_table(("why",), [("a\nb\u202ec\x00d",)]).md_str or "")
