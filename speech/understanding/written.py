"""Spoken words as people write them: "forty two dollars" as "$42", with the times of the words kept.

The grammars are those of `damga`, the other way round than in `speech/spoken.py`. They write a sentence anew and do not
say which words became what; here their text is laid beside the words, so that each piece of it belongs to exactly the
words that it stands for. Digits said one by one, which the grammars leave as words, become a number first.

Languages that the library does not know stay as they were spoken. Where a number could be read in several ways the
library's first one is taken. Punctuation and capitals are a model's to give, and nothing here invents them.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from typing import Any

from speech.scripts import join_words, primary_language
from speech.spoken import LIBRARY_LANGUAGES
from speech.transcript import Segment, Word

SHORTEST_RUN = 3  # digits said one by one that are one number; two are as often a count ("one or two")
LONGEST_SENTENCE = 400  # words; the grammars take longer than a recording lasts on what never pauses

_MORE_DIGITS: Mapping[str, Mapping[str, str]] = {"en": {"oh": "0", "o": "0"}, "de": {"zwo": "2"}}
_TIMES = {"en": {"double": 2, "triple": 3}}
_HUNDRED = {"en": "hundred"}  # "eight hundred five five five": a prefix of free numbers
# Beside these the grammars read the digits themselves: decimals, addresses, numbers with a country's prefix.
_POINTS = frozenset("dot punkt punto точка nokta".split())
_SIGNS = _POINTS | frozenset(
    "plus minus point komma coma virgule virgola virgül dash slash underscore unterstrich bindestrich".split()
)
_AT = frozenset("at ät arroba arobase chiocciola собака".split())
_HOST_WORDS = 4  # "at mail dot example dot com": the first point of an address is not far


def with_written_forms(segment: Segment, language: str) -> Segment:
    """The segment with its words as people write them, in one line and word by word.

    A written form of several words stands at the first of them, and the others' is empty. A language that the library
    does not know gives the words as they are.
    """
    forms = written_forms([word.text for word in segment.words], language)
    words = tuple(replace(word, written=form) for word, form in zip(segment.words, forms, strict=True))
    return replace(segment, words=words, written=written_line(words))


def written_line(words: Sequence[Word]) -> str:
    """Words in their written forms, one line; those without one as they were spoken."""
    return join_words(form for word in words if (form := word.text if word.written is None else word.written))


def written_forms(words: Sequence[str], language: str) -> list[str]:
    """For each word what is written at its place; empty where an earlier word's stands for it, too.

    Joined with single spaces they are the whole sentence; no word is without a form of its own or an earlier one's.
    """
    primary = primary_language(language)
    if primary not in LIBRARY_LANGUAGES or not 0 < len(words) <= LONGEST_SENTENCE:
        return list(words)
    forms = [""] * len(words)
    tokens = list(_with_numbers(words, primary))
    for place, form in _aligned([token.text for token in tokens], primary):
        forms[tokens[place].start] = form
    return forms


@dataclass(frozen=True)
class _Token:
    text: str
    start: int  # of its words


def _with_numbers(words: Sequence[str], language: str) -> Iterator[_Token]:
    """The words, with each run of digits in place of its words."""
    place = 0
    while place < len(words):
        digits, end = _run_of_digits(words, place, language)
        if digits:
            yield _Token(digits, place)
        else:
            yield from (_Token(words[at], at) for at in range(place, end))
        place = end


def _run_of_digits(words: Sequence[str], place: int, language: str) -> tuple[str, int]:
    """The digits that begin at a place, none where they are no number, and the place behind their words."""
    if place and words[place - 1].lower() in _tens(language):
        return "", place + 1  # "forty two": no digit of its own
    known, times, hundred = digit_words(language), _TIMES.get(language, {}), _HUNDRED.get(language)
    digits, end, prefix = "", place, ""
    while end < len(words):
        word, after = words[end].lower(), words[end + 1].lower() if end + 1 < len(words) else ""
        if word in known:
            digits += known[word]
        elif word in times and after in known:
            digits += known[after] * times[word]
            end += 1
        elif word == hundred and len(digits) == 1 and not prefix and after in known:
            prefix, digits = f"{digits}00 ", ""
        else:
            break
        end += 1
    around = [text.lower() for text in (*words[max(0, place - 1) : place], *words[end : end + 1])]
    soon = [text.lower() for text in words[end : end + _HOST_WORDS]]
    address = bool(soon) and soon[0] in _AT and not _POINTS.isdisjoint(soon)
    if len(digits) < SHORTEST_RUN or address or not _SIGNS.isdisjoint(around):
        return "", max(end, place + 1)
    return prefix + digits, end


@functools.cache
def digit_words(language: str) -> Mapping[str, str]:
    """The ten digits as they are said one by one; none in a language whose numbers are not written here."""
    from num2words import num2words

    if language not in LIBRARY_LANGUAGES:
        return {}
    said = {str(num2words(digit, lang=language)): str(digit) for digit in range(10)}
    return {**said, **_MORE_DIGITS.get(language, {})}


@functools.cache
def _tens(language: str) -> frozenset[str]:
    from num2words import num2words

    return frozenset(str(num2words(ten, lang=language)) for ten in range(20, 100, 10))


_Block = tuple[int, int, int, int]  # tokens from and to, and what is written for them from and to


def _aligned(tokens: Sequence[str], language: str) -> Iterator[tuple[int, str]]:
    """Where in the tokens each piece of the written sentence begins, and the piece; together they cover all tokens."""
    written = _written(tuple(tokens), language)
    for block in _blocks(tokens, written):
        yield from _parted(tokens, written, block, language)


def _blocks(tokens: Sequence[str], written: Sequence[str]) -> list[_Block]:
    """Tokens that stay, one by one, and between them what becomes something else.

    "fünf uhr dreißig" becomes "5.30 Uhr": what has nothing opposite belongs to its neighbours on both sides.
    """
    said, wrote = [token.lower() for token in tokens], [token.lower() for token in written]
    blocks: list[_Block] = []
    for tag, a, b, c, d in SequenceMatcher(None, said, wrote, autojunk=False).get_opcodes():
        if tag == "equal":
            blocks += [(a + n, a + n + 1, c + n, c + n + 1) for n in range(b - a)]
        else:
            blocks.append((a, b, c, d))
    place = 0
    while place < len(blocks):
        a, b, c, d = blocks[place]
        if (a < b and c < d) or len(blocks) == 1:
            place += 1
            continue
        place = max(0, place - 1)
        if place and _changes(blocks[place - 1], said, wrote):
            place -= 1
        end = min(len(blocks), blocks.index((a, b, c, d)) + 1 + (place == 0))
        blocks[place:end] = [(blocks[place][0], blocks[end - 1][1], blocks[place][2], blocks[end - 1][3])]
    return blocks


def _changes(block: _Block, said: Sequence[str], wrote: Sequence[str]) -> bool:
    a, b, c, d = block
    return said[a:b] != wrote[c:d]


def _parted(tokens: Sequence[str], written: Sequence[str], block: _Block, language: str) -> Iterator[tuple[int, str]]:
    """A block in pieces that are each written the same when they stand alone: two amounts in a row, say."""
    a, b, c, d = block
    for cut in range(a + 1, b):
        head = _written(tuple(tokens[a:cut]), language)
        place = c + len(head)
        if place < d and [*head, *_written(tuple(tokens[cut:b]), language)] == list(written[c:d]):
            yield a, " ".join(head)
            yield from _parted(tokens, written, (cut, b, place, d), language)
            return
    yield a, " ".join(written[c:d]) or " ".join(tokens[a:b])


@functools.lru_cache(maxsize=16_384)
def _written(tokens: tuple[str, ...], language: str) -> tuple[str, ...]:
    try:
        return tuple(_library(language).normalize(" ".join(tokens)).split())
    except Exception:  # a grammar that fails on a sentence has not written it
        return tokens


@functools.cache
def _library(language: str) -> Any:
    from damga import InverseNormalizer

    return InverseNormalizer(lang=language)
