"""Written text as it is read aloud: numbers, dates, amounts, units and abbreviations in words, in every right way.

The grammars are those of `damga` (weighted finite-state transducers for German, English, Spanish, French, Italian,
Russian and Turkish). It reads whole sentences; here it is shown only what needs reading, with a few words on each side:
so a text without a digit or symbol costs nothing, "$50" is read once and not in each of ten thousand rows, and every
number of a sentence has its own readings, whatever the others are.

Around it stands what it reads wrong or drops: long runs of digits, dates whose order depends on the country, degrees
Celsius, the ampersand. In other languages num2words reads integers that stand alone. Whatever is left unread stays as
it was written, for :func:`unread` to name: a finding, not a guess.
"""

import functools
import itertools
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import Any

LIBRARY_LANGUAGES = frozenset({"de", "en", "es", "fr", "it", "ru", "tr"})
LONGEST_NUMBER = 6  # digits; longer ungrouped runs are telephone, card and customer numbers, read digit by digit
MAX_READINGS = 16  # of one number; the commonest come first, and what lies beyond is not considered
LONGEST_TOKEN = 40  # characters; longer ones with digits are keys and checksums that nobody reads aloud
LONGEST_RUN = 8  # tokens read together
CONTEXT = 2  # words on each side by which the library tells a year from a count, a case from another

# Signs that are said. Others are punctuation, which is not.
_SAID = "%‰&@#§°№+=<>±×÷√≈≠≤≥"
_AMPERSAND = {"de": "und", "en": "and", "es": "y", "fr": "et", "it": "e", "ru": "и", "tr": "ve"}
_CURRENCY_CODE = re.compile(r"(?<![\w.,])(\d[\d.,]*)\s?(EUR|USD|GBP)\b")
_CURRENCY_SIGN = {"EUR": "€", "USD": "$", "GBP": "£"}

Piece = tuple[str, ...]  # one stretch of the text in each of its readings, the commonest first


def read_aloud(text: str, language: str) -> str:
    """The text with everything read that can be, each in its commonest way; `language` is a primary tag."""
    return " ".join(piece[0] for piece in _pieces(text, language, 1))


def readings(text: str, language: str) -> tuple[Piece, ...]:
    """The text cut into stretches, each with all its readings; joined by spaces, the first ones are `read_aloud`'s."""
    return tuple(_pieces(text, language, MAX_READINGS))


def unread(spoken: str) -> set[str]:
    """The digits and said signs that stand in a text which has been read aloud."""
    return {character for character in spoken if _is_said(character)}


def may_vary(text: str) -> bool:
    """Whether a text may have several readings: those without a digit have one."""
    return any(character.isnumeric() for character in text)


@functools.lru_cache(maxsize=4_096)
def _is_said(character: str) -> bool:
    return character in _SAID or unicodedata.category(character) in ("Sc", "No", "Nd", "Nl")


def _pieces(text: str, language: str, limit: int) -> Iterator[Piece]:
    if language not in LIBRARY_LANGUAGES:
        yield (_integers_read(text, language),)
        return
    if language in _AMPERSAND:
        text = text.replace("&", f" {_AMPERSAND[language]} ")
    if "°" in text and language not in ("ru", "tr"):  # which the library reads as degrees of nothing
        text = re.sub(r"°\s?C\b", "° Celsius", text)
    tokens = text.split()
    done = 0
    for start, end in _runs(tokens, language):
        before = tokens[max(done, start - CONTEXT) : start]
        after = _plain_words(tokens[end : end + CONTEXT], language)
        said, left, right = _run_read(tuple(before), tuple(tokens[start:end]), tuple(after), language, limit)
        if start - left > done:
            yield (" ".join(tokens[done : start - left]),)
        yield said
        done = end + right
    if done < len(tokens):
        yield (" ".join(tokens[done:]),)


def _runs(tokens: Sequence[str], language: str) -> Iterator[tuple[int, int]]:
    """The stretches of tokens that need reading; a single word between two ("3 million €") belongs to both."""
    marked = [index for index, token in enumerate(tokens) if _needs_reading(token, language, index + 1 == len(tokens))]
    start = end = None
    for index in marked:
        if start is not None and end is not None:
            if index - end <= 1 and index - start < LONGEST_RUN:
                end = index + 1
                continue
            yield start, end
        start, end = index, index + 1
    if start is not None and end is not None:
        yield start, end


def _plain_words(tokens: Sequence[str], language: str) -> list[str]:
    return list(itertools.takewhile(lambda token: not _needs_reading(token, language, False), tokens))


_DOTTED = re.compile(r"[^\W\d_]{1,7}\.[^\w\s]*|(?:[^\W\d_]\.){2,}")
_TITLE = re.compile(r"[^\W\d_]{1,4}")
_ROMAN = re.compile(r"[IVX]{2,}|[IVXL]+(?:er?|ère|ème)|[XVI]+\.")


@functools.lru_cache(maxsize=65_536)
def _needs_reading(token: str, language: str, last: bool) -> bool:
    if len(token) > LONGEST_TOKEN:
        return False
    if any(map(_is_said, token)):
        return True
    word = token.strip(",;:!?()\"'")
    if _ROMAN.fullmatch(word):
        return True
    if _DOTTED.fullmatch(word):
        # At the end of a text a full stop ends a sentence: German "Art." is then no article of a law.
        noun = last and language == "de" and word[0].isupper()
        return len(word) == 2 or (not noun and len(word) <= (5 if last else 8) and _expands(word, language))
    return bool(_TITLE.fullmatch(word)) and word[0].isupper() and word[1:].islower() and _expands(word, language)


def _expands(word: str, language: str) -> bool:
    return _words(_said(word, language)) != _words(word)


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


# ------------------------------------------------------------------------------------------------ one run of tokens


@functools.lru_cache(maxsize=65_536)
def _run_read(
    before: tuple[str, ...], run: tuple[str, ...], after: tuple[str, ...], language: str, limit: int
) -> tuple[Piece, int, int]:
    """Up to `limit` readings of a run in its context, and how many words of the context on each side belong to them."""
    written = " ".join((*before, *run, *after))
    found: dict[tuple[str, ...], list[str]] = {}
    least: int | None = None
    for spelling in _spellings(written, language):
        for said in _all_said(spelling, language) if limit > 1 else [_said(spelling, language)]:
            for polished in _polished(said, language):
                left_over = len(unread(polished))
                least = left_over if least is None else least
                if left_over <= least:  # what leaves more unread than the commonest reading is none
                    found.setdefault(tuple(_words(polished)), polished.split())
        if len(found) >= limit:
            break
    chosen = list(found.values())[:limit]
    left = min(_shared(before, words) for words in chosen)
    right = min(_shared(after[::-1], words[left:][::-1]) for words in chosen)
    trimmed = (" ".join(words[left : len(words) - right]) for words in chosen)
    return tuple(dict.fromkeys(trimmed)), len(before) - left, len(after) - right


def _shared(context: Sequence[str], words: Sequence[str]) -> int:
    """How many words of the context stand unchanged at the beginning."""
    pairs = zip(context, words[: max(0, len(words) - 1)], strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: _words(pair[0]) == _words(pair[1]), pairs))


# The ways to write the same thing that the library reads in different right ways, the one it reads best first.
_Rewrite = Callable[[re.Match[str]], list[str]]
_BARE = r"(?<![\w.,:/$€£+-])"
_BARE_END = r"(?![\w€$£%°]|[.,:/-]\d| ?(?:%|€|°))"
# "zwanzig vierundzwanzig" is the library's first choice for a year of this century, and few people's
_THIS_CENTURY = re.compile(rf"(?<![\w,:/$€£+-])(?<!\d\.)20([1-9]\d){_BARE_END}")
_ARTICLE = re.compile(rf"{_BARE}1(?= [A-ZÄÖÜ])")  # what 1 is before a German noun; its case the library drops


def _spellings(written: str, language: str) -> list[str]:
    """The text as the library should see it: the commonest first, then with one place at a time in another way."""
    best = _CURRENCY_CODE.sub(
        lambda m: f"{_CURRENCY_SIGN[m[2]]}{m[1]}" if language == "en" else f"{m[1]} {_CURRENCY_SIGN[m[2]]}", written
    )
    others: list[str] = []
    for only, pattern, rewrite in _REWRITES:
        if only not in ("", language):
            continue
        place = 0
        while match := pattern.search(best, place):
            ways = rewrite(match)
            if not ways:
                place = match.end()
                continue
            head, tail = best[: match.start()], best[match.end() :]
            others += [f"{head}{way}{tail}" for way in ways[1:]]
            best = f"{head}{ways[0]}{tail}"
            place = len(head) + len(ways[0])
    if language == "de":
        if _THIS_CENTURY.search(best):
            others.insert(0, best)
            best = _THIS_CENTURY.sub(r"2.0\1", best)
        if _ARTICLE.search(best):
            others = [_ARTICLE.sub(form, best) for form in ("eine", "einen", "einem", "einer")] + others
            best = _ARTICLE.sub("ein", best)
    return [best, *others]


def _spaced(digits: str) -> str:
    return " ".join(digits)


_MONTHS = {
    "en": "January February March April May June July August September October November December".split(),
    "de": "Januar Februar März April Mai Juni Juli August September Oktober November Dezember".split(),
}


def _american(month: int, day: int, year: str) -> list[str]:
    return [f"{_MONTHS['en'][month - 1]} {day}, {year}"] if 1 <= month <= 12 and 1 <= day <= 31 else []


def _german(match: re.Match[str]) -> list[str]:
    day, month, year = int(match["day"]), int(match["month"]), match["year"]
    return [f"{day}. {_MONTHS['de'][month - 1]} {year}", match[0]] if 1 <= month <= 12 and 1 <= day <= 31 else []


def _slashed(match: re.Match[str]) -> list[str]:
    first, second = int(match[1]), int(match[2])
    return list(dict.fromkeys(_american(first, second, match[3]) + _american(second, first, match[3])))


def _long_number(match: re.Match[str]) -> list[str]:
    digits = match[0]
    return [digits, _spaced(digits)] if digits.endswith("000") else [_spaced(digits), digits]


def _short_number(match: re.Match[str]) -> list[str]:
    digits = match[0]
    grouped = [f"{digits[0]},{digits[1:]}"] if len(digits) == 4 else []
    halves = [f"{digits[:-2]} {digits[-2:]}"] if len(digits) == 3 and digits[-2] != "0" else []
    return [digits, *grouped, _spaced(digits), *halves]


_ISO_DATE = re.compile(r"(?<![\w.,:/-])(?P<year>\d{4})-(?P<month>\d\d)-(?P<day>\d\d)(?![\w:-])")
_SLASHED_DATE = re.compile(r"(?<![\w.,:/-])(\d\d?)/(\d\d?)/(\d{4})(?![\w:/-])")
_DOTTED_DATE = re.compile(r"(?<![\w.,:/-])(?P<day>\d\d?)\.(?P<month>\d\d?)\.(?P<year>\d{4})(?![\w:])")
_LONG_NUMBER = re.compile(rf"{_BARE}[1-9]\d{{{LONGEST_NUMBER},}}{_BARE_END}")
_PHONE_NUMBER = re.compile(rf"{_BARE}\d{{3}}-\d{{4}}{_BARE_END}")  # which the library takes for a range
_PAIR = re.compile(rf"{_BARE}(\d\d?)([-–/])(\d\d?){_BARE_END}")
_HYPHENED_ORDINAL = re.compile(r"\b\d+(?:st|nd|rd|th)-(?=[a-z])")
# Behind these words the library takes a decimal for the time of day, which English writes with a colon.
_DECIMAL = re.compile(r"\b(and|to|about|around|by|between|after|before|since) (\d\d?)\.(\d\d)(?![\w%°]|[.,:/-]\d)")
_SHORT_NUMBER = re.compile(rf"{_BARE}[1-9]\d{{2,3}}{_BARE_END}")
_NUMBERED = re.compile(r"(?<=[^\W\d_])-(?=\d)")  # "gate-3", which the library reads behind some words only
_REWRITES: tuple[tuple[str, re.Pattern[str], _Rewrite], ...] = (  # of a language, or of each
    ("", _NUMBERED, lambda m: [" "]),
    ("en", _ISO_DATE, lambda m: _american(int(m["month"]), int(m["day"]), m["year"])),
    ("en", _SLASHED_DATE, _slashed),
    ("de", _ISO_DATE, lambda m: _german(m)[:1]),
    ("de", _DOTTED_DATE, _german),
    ("", _LONG_NUMBER, _long_number),
    ("", _PHONE_NUMBER, lambda m: [_spaced(m[0].replace("-", "")), m[0]]),
    ("", _PAIR, lambda m: [m[0], f"{m[1]} {m[3]}"]),
    ("en", _HYPHENED_ORDINAL, lambda m: [f"{m[0][:-1]} "]),
    ("en", _DECIMAL, lambda m: [f"{m[1]} {m[2]} point {_spaced(m[3])}", m[0]]),
    ("en", _SHORT_NUMBER, _short_number),
)

_GERMAN_ORDINAL = re.compile(
    r"\b((?:ers|zwei|drit|vier|fünf|sechs|sieb|ach|neun|elf|zwölf|\w*zehn|\w*[zß]igs)t?)en(?= [A-ZÄÖÜ])"
)
_CENTS = re.compile(r"\b(dollars?|euros?|pounds?),? (\w+(?:[ -]\w+)?) (cents?|pence|penny)\b")


def _polished(said: str, language: str) -> list[str]:
    """A reading of the library in our spelling, and the same in other words that it does not list."""
    if language == "de":
        # the library knows one ending of an ordinal: "den zweiten Januar", but not "der zweite", "ein zweiter"
        return [said, *(w for end in ("e", "er", "es") if (w := _GERMAN_ORDINAL.sub(rf"\1{end}", said)) != said)]
    if language != "en":
        return [said]
    said = re.sub(r"\b([AaPp])\.? ?[Mm]\b\.?", lambda m: f"{m[1]}m", said)
    ways = [said]
    if _CENTS.search(said):
        ways += [_CENTS.sub(r"\1 and \2 \3", said), _CENTS.sub(r"\1 \2", said)]
    if "zero" in said:
        ways.append(re.sub(r"\bzero\b", "oh", said))
    if " o'clock" in said:
        ways.append(said.replace(" o'clock", ""))
    return ways


# -------------------------------------------------------------------------------------------------- the libraries


def _said(text: str, language: str) -> str:
    try:
        return str(_library(language).normalize(text))
    except Exception:  # a grammar that fails on a text has not read it, which is a finding and no reason to stop
        return text


def _all_said(text: str, language: str) -> list[str]:
    try:
        return [str(reading) for reading in _library(language).normalize_variants(text, n=MAX_READINGS)]
    except Exception:  # as above
        return [text]


@functools.cache
def _library(language: str) -> Any:
    from damga import TextNormalizer

    return TextNormalizer(lang=language, variants=True)


# A full stop behind it may make an ordinal of a number, and letters, signs and further digits another thing of it.
_ALONE = re.compile(r"(?<![^\s(\"'«„“¿¡])\d{1,6}(?=[,;:!?)\"'»“”]*(?:\s|$)|\.[)\"'»“”]*$)")
_UNSPACED = frozenset({"ja", "zh", "yue"})


def _integers_read(text: str, language: str) -> str:
    """Integers that stand alone in words, where num2words knows the language; those with a leading zero by digits."""
    if not re.search(r"\d", text):
        return text
    pattern = re.compile(r"(?<![\w.,:/%-])\d{1,6}(?![\d.,:/%-])", re.ASCII) if language in _UNSPACED else _ALONE

    def said(match: re.Match[str]) -> str:
        digits = match[0]
        chinese_year = language in _UNSPACED and len(digits) == 4 and text[match.end() :].startswith("年")
        by_digit = chinese_year or (len(digits) > 1 and digits[0] == "0")
        words = [_number_words(int(part), language) for part in (digits if by_digit else [digits])]
        separator = "" if language in _UNSPACED else " "
        return digits if None in words else separator.join(word or "" for word in words)

    return pattern.sub(said, text)


@functools.lru_cache(maxsize=16_384)
def _number_words(value: int, language: str) -> str | None:
    try:
        from num2words import num2words

        said = num2words(value, lang=language)
    except Exception:  # num2words raises whatever its language modules stumble over; digits are the honest fallback
        return None
    return re.sub(r"[\s,\-\xad]+", " ", str(said)).strip() or None
