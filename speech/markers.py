"""What stands in transcripts and was not said: `[noise]`, `<unk>`, `(inaudible)`.

Every corpus has marks of its own. Read as words they would be learnt and scored, so they are taken out where a corpus
is read, by patterns that are a setting, and what was taken out is counted.
"""

import functools
import re
from collections.abc import Sequence

DEFAULT_MARKERS = (
    r"<[^<>]{1,40}>",
    r"\[[^\[\]]{1,40}\]",
    # Round brackets also hold words that were said: only what transcribers write into them by convention.
    r"(?i:\((?:inaudible|unintelligible|unclear|indistinct|crosstalk|overlapping|noise|music|silence|pause|applause|"
    r"breath(?:s|ing)?|laugh(?:s|ing|ter)?|cough(?:s|ing)?|sigh(?:s|ing)?|sniff(?:s|ing)?|"
    r"unverständlich|lacht|lachen|hustet|räuspert sich|geräusch|musik|pause|stille)\))",
)


def without_markers(text: str, patterns: Sequence[str] = DEFAULT_MARKERS) -> tuple[str, tuple[str, ...]]:
    """The text without what any of the regular expressions matches, and the matches in their order."""
    if not patterns:
        return text, ()
    found: list[str] = []

    def take(match: re.Match[str]) -> str:
        if match[0]:
            found.append(match[0])
        return " " if match[0] else ""

    left = _compiled(tuple(patterns)).sub(take, text)
    return (" ".join(left.split()) if found else text), tuple(found)


@functools.lru_cache(maxsize=64)
def _compiled(patterns: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns))
