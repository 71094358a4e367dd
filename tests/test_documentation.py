"""What the documentation shows and points to is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_picture_and_file_that_a_page_names_is_there(page: Path) -> None:
    linked = re.findall(r"\]\((?!https?://|#)([^)#]+)\)", page.read_text())
    missing = [link for link in linked if not (page.parent / link).exists()]
    assert linked
    assert not missing


def test_every_picture_is_drawn_by_the_script() -> None:
    """A picture that no script draws shows a UI of long ago."""
    drawn = set(re.findall(r'Picture\(\s*"(\w+)"', (ROOT / "docs" / "screenshots.py").read_text()))
    assert {path.stem for path in (ROOT / "docs" / "images").glob("*.png")} <= drawn
