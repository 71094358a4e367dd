"""What a language tag says about its writing: which scripts, and whether they set spaces between words.

The scripts of a language are those that CLDR (https://cldr.unicode.org, through Babel) takes for likely anywhere; the
script of a character is Unicode's. No table of languages is kept here, so a language that nobody has tried yet behaves
like the others of its script.

Latin letters belong to Chinese, Japanese and Korean text and to no other text in another script: so Unicode's security
mechanisms (UTS #39, "highly restrictive") tell a borrowed word from a letter that only looks right.
"""

import functools
import re
import string
import sys
import unicodedata
from collections.abc import Iterable

_TOGETHER = {  # one code of ISO 15924 for scripts that are used together
    "Jpan": ("Hani", "Hira", "Kana"),
    "Hrkt": ("Hira", "Kana"),
    "Kore": ("Hang",),  # today's spelling; Chinese characters in it are a fault of the transcript
    "Hans": ("Hani",),
    "Hant": ("Hani",),
    "Hanb": ("Hani", "Bopo"),
}
_WITH_LATIN = frozenset({"Hani", "Hira", "Kana", "Hang", "Bopo"})
_UNSPACED = ("Hani", "Hira", "Kana", "Bopo", "Thai", "Laoo", "Mymr", "Khmr")
_BEFORE_LETTERS = "เแโใไເແໂໃໄ"  # vowels of Thai and Lao that are said behind the letter that they are written before
_BEHIND_LETTERS = "ะาำๅະາຳ"
_TAG = re.compile(r"([A-Za-z]{2,3})(?:[-_][A-Za-z0-9]{1,8})*")


def primary_language(tag: str) -> str | None:
    """The primary subtag of a BCP-47 tag or a locale, lower-cased: "en" of "en-US"; None for what is neither."""
    found = _TAG.fullmatch(tag)
    return found[1].lower() if found else None


@functools.lru_cache(maxsize=256)
def scripts_of(language: str) -> frozenset[str]:
    """The ISO 15924 codes of the scripts a language is written in; none for a language that CLDR does not know.

    A tag that names its script ("sr-Latn") has that one.
    """
    from babel.core import get_global

    primary = primary_language(language)
    named = [part.title() for part in re.split("[-_]", language)[1:] if len(part) == 4 and part.isalpha()]
    if primary is None:
        return frozenset()
    if not named:
        primary = get_global("language_aliases").get(primary, primary).split("_")[0]  # "cmn" is "zh"
        # keys are "sr" or "sr_ME"; values have a script in the middle
        likely = get_global("likely_subtags")
        named = [
            likely[key].split("_")[1]
            for key in likely
            if key.split("_")[0] == primary and not any(len(part) == 4 for part in key.split("_")[1:])
        ]
    return frozenset(script for name in named for script in _TOGETHER.get(name, (name,)))


@functools.lru_cache(maxsize=64)
def letters_of(language: str) -> frozenset[str]:
    """Every letter and mark of the scripts of a language; of all scripts where the language is not known."""
    scripts = scripts_of(language)
    if not scripts:
        return frozenset(_all_letters())
    import regex

    classes = "".join(rf"\p{{scx={script}}}" for script in sorted(scripts))
    latin = string.ascii_lowercase if scripts <= _WITH_LATIN else ""
    return frozenset(regex.findall(f"[{classes}]", _all_letters())) | set(latin)


def is_unspaced(character: str) -> bool:
    """Whether a character belongs to a script that sets no spaces between words; "" does not."""
    return character > "\u0e00" and _unspaced().match(character) is not None


def may_part(before: str, after: str) -> bool:
    """Whether a word may end between two characters, one of which belongs to a script without spaces."""
    together = before in _BEFORE_LETTERS or after in _BEHIND_LETTERS or unicodedata.category(after or " ")[0] == "M"
    return not (before and together) and (is_unspaced(before) or is_unspaced(after))


def split_words(text: str) -> list[str]:
    """The words of a text: what stands between spaces, and each character where the script sets none.

    The marks on a character belong to it, and the vowels that Thai and Lao write beside a letter: a vowel is no word.
    """
    if text.isascii() or not _unspaced().search(text):
        return text.split()
    return list(_unspaced().sub(r" \g<0> ", text).split())


def join_words(words: Iterable[str]) -> str:
    """Write words as their scripts do: a space between two of them unless one belongs to a script without spaces."""
    text = ""
    for word in words:
        if text and word and not is_unspaced(text[-1]) and not is_unspaced(word[0]):
            text += " "
        text += word
    return text


@functools.cache
def _unspaced() -> "re.Pattern[str]":
    import regex

    classes = "".join(rf"\p{{scx={script}}}" for script in _UNSPACED)
    return regex.compile(rf"[{_BEFORE_LETTERS}]*[{classes}]\p{{M}}*[{_BEHIND_LETTERS}]*")


@functools.cache
def _all_letters() -> str:
    return "".join(c for c in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(c)[0] in "LM")
