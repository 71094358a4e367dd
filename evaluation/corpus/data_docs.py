"""Data Docs that can be shown: Great Expectations' pages with nothing in them that loads or runs, and an index.

They come from the library as pages that load styles, scripts and images from a dozen servers. They are rewritten to
need none and to run no script: transcripts are private, and are strangers' text. Their index, which lists nothing
without scripts, gives way to one of our own with every outcome.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from evaluation.corpus.profile import CorpusProfile
from evaluation.corpus.validation import ExpectationOutcome
from evaluation.presentation import template

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1180px; margin: 0 auto; padding: 24px; }
a { color: #0072b2; } h1, h2, h3, h4, h5 { line-height: 1.25; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; margin: 8px 0 20px; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 6px 12px 6px 0; border-bottom: 1px solid #8884; vertical-align: top; }
td, th, li, p { overflow-wrap: anywhere; } .name { white-space: nowrap; }
ul { padding-left: 18px; } .row { display: block; }
.badge { border: 1px solid #8886; border-radius: 4px; padding: 0 6px; }
nav.navbar, .modal, footer, .row > .col-lg-2:first-child { display: none; }
.text-danger, .fa-times { color: #c4470a; } .text-success, .fa-check-circle { color: #00805c; }
.fa-times::before { content: "✗ "; } .fa-check-circle::before { content: "✓ "; }
.fa-exclamation-triangle::before { content: "! "; }
"""
_CSP = (
    "default-src 'none'; style-src 'unsafe-inline' 'self'; img-src 'self' data:; font-src 'self'; "
    "base-uri 'none'; form-action 'none'"
)


def write_index(docs_dir: Path, title: str, outcomes: Sequence[ExpectationOutcome], profile: CorpusProfile) -> None:
    """The page that opens first: every outcome at a glance, with links to the library's pages."""
    pages = sorted(page for folder in ("validations", "expectations") for page in (docs_dir / folder).rglob("*.html"))
    links = []
    for page in pages:
        parts = page.relative_to(docs_dir).parts
        kind = "Results" if parts[0] == "validations" else "Suite"
        links.append((f"{kind}: {parts[1].removesuffix('.html')}", quote("/".join(parts))))
    index = template("corpus.html.j2").render(
        csp=_CSP,
        style=_STYLE,
        title=title,
        outcomes=outcomes,
        profile=profile,
        pages=links,
        blocked=sum(outcome.blocking and not outcome.passed for outcome in outcomes),
        warned=sum(not outcome.blocking and not outcome.passed for outcome in outcomes),
    )
    (docs_dir / "index.html").write_text(index, encoding="utf-8")


def seal_docs(docs_dir: Path) -> None:
    """Rewrite the pages so that they load nothing from elsewhere and run no script."""
    head = (
        f'<meta http-equiv="Content-Security-Policy" content="{_CSP}">'
        f'<meta name="referrer" content="no-referrer"><style>{_STYLE}</style>'
    )
    for page in docs_dir.rglob("*.html"):
        html = page.read_text(encoding="utf-8")
        html = re.sub(r"<script\b.*?</script\s*>", "", html, flags=re.DOTALL | re.IGNORECASE)
        html = re.sub(r"<link\b[^>]*https?://[^>]*>", "", html, flags=re.IGNORECASE)
        html = re.sub(r"<img\b[^>]*https?://[^>]*>", "", html, flags=re.IGNORECASE)
        html = re.sub(r"<iframe\b.*?</iframe\s*>", "", html, flags=re.DOTALL | re.IGNORECASE)
        html = re.sub(r"url\(\s*['\"]?https?://[^)]*\)", "none", html, flags=re.IGNORECASE)
        html = re.sub(r"<a\b[^>]*href=['\"]https?://[^>]*>(.*?)</a\s*>", r"\1", html, flags=re.DOTALL | re.IGNORECASE)
        html = re.sub(r"(<head\b[^>]*>)", lambda found: found[1] + head, html, count=1, flags=re.IGNORECASE)
        page.write_text(html, encoding="utf-8")
    for picture in (docs_dir / "static" / "images").glob("*.gif"):
        picture.unlink()  # megabytes of a tutorial that the pages do not show
