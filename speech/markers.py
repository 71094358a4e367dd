"""What stands in transcripts and was not said: `[noise]`, `<unk>`, `(inaudible)`.

Every corpus has marks of its own. Read as words they would be learnt and scored, so they are taken out where a corpus
is read, by patterns that are a setting, and what was taken out is counted.
"""

import functools
import re
from collections.abc import Sequence

# What transcribers write between brackets by convention; round ones also hold words that were said.
_CONVENTIONS = (
    "inaudible|unintelligible|unclear|indistinct|crosstalk|overlapping|noise|music|silence|pause|applause|"
    "breath(?:s|ing)?|laugh(?:s|ing|ter)?|cough(?:s|ing)?|sigh(?:s|ing)?|sniff(?:s|ing)?|lip ?smack|vocalsound|"
    "unverständlich|lacht|lachen|hustet|räuspert sich|geräusch|musik|pause|stille|"
    "rires?|musique|applaudissements|risas?|música|aplausos|risate|musica|applausi|"
    "笑い?|笑い声|音楽|拍手|咳|音乐|掌声|笑声|咳嗽|听不清|웃음|박수|음악|기침"
)
DEFAULT_MARKERS = (
    r"[<＜][^<>＜＞]{1,40}[>＞]",
    r"[\[［【][^\[\]［］【】]{1,40}[\]］】]",
    rf"(?i:[({{*（](?:{_CONVENTIONS})[)}}*）])",
    r"(?<!\S)[oblnu]/(?!\S)",  # AI-Hub's noises
    r"\([^()]{1,40}\)/(?=\([^()]{1,40}\))",  # AI-Hub's "(written)/(said)": the first half was not said
    r"\bignore_time_segment_in_scoring\b",  # of NIST's STM files: nobody knows what is said there
)
_LAUGHED = re.compile(r"\[laughter-([^\[\]\s]{1,40})\]")  # Switchboard's way to write a word that was said laughing


def without_markers(text: str, patterns: Sequence[str] = DEFAULT_MARKERS) -> tuple[str, tuple[str, ...]]:
    """The text without what any of the regular expressions matches, and the matches in their order."""
    if not patterns:
        return text, ()
    text = _LAUGHED.sub(r"\1", text)
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
