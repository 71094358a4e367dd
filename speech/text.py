"""The scoring form of text: one spelling for what was said, whatever way it was written down.

A recogniser writes spoken words; transcripts arrive with capitals, punctuation, digits, amounts and times. Both sides
of a word error rate go through :func:`normalize`, so that "$42" against "forty two dollars" is no error. The reading
of numbers follows the commonest spoken form (years by hundreds, telephone-like digit runs one by one); where a
speaker chose another one, the difference counts as an error, and no normaliser can know better.
"""

import functools
import math
import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from speech.scripts import letters_of, primary_language, split_words

LONGEST_NUMBER = 6  # digits; longer ungrouped runs are telephone, card and customer numbers, read digit by digit
_APOSTROPHES = dict.fromkeys(map(ord, "’‘ʼ＇´`‛′"), "'")
_HYPHENS = dict.fromkeys(map(ord, "‐‑‒–—−"), "-")

# Letters of normalised text. Apostrophes are letters only where leaving one out makes another word.
_ALPHABETS: Mapping[str, str] = {
    "en": "abcdefghijklmnopqrstuvwxyz'",
    "de": "abcdefghijklmnopqrstuvwxyzäöüß",
    "fr": "abcdefghijklmnopqrstuvwxyzàâæçéèêëîïôœùûüÿ'",
    "es": "abcdefghijklmnopqrstuvwxyzáéíñóúü",
    "it": "abcdefghijklmnopqrstuvwxyzàèéìíîòóùú'",
    "pt": "abcdefghijklmnopqrstuvwxyzàáâãçéêíóôõú",
    "nl": "abcdefghijklmnopqrstuvwxyzàáèéëïíóöúü'",
}


@dataclass(frozen=True)
class _Reading:
    """How a language reads what is not a word."""

    decimal: str  # the decimal sign
    group: str  # the sign between thousands
    point: str
    minus: str
    percent: str
    currencies: Mapping[str, tuple[str, str, str, str]]  # code: one, many, one hundredth, many hundredths
    ampersand: str
    currency_and: str  # between the amount's two parts
    words: Mapping[str, str] = field(default_factory=dict)


_CURRENCY_SIGNS = {"$": "USD", "€": "EUR", "£": "GBP"}
_CURRENCY_CODES = "USD|EUR|GBP"
_READINGS: Mapping[str, _Reading] = {
    "en": _Reading(
        decimal=".",
        group=",",
        point="point",
        minus="minus",
        percent="percent",
        currencies={
            "USD": ("dollar", "dollars", "cent", "cents"),
            "EUR": ("euro", "euros", "cent", "cents"),
            "GBP": ("pound", "pounds", "penny", "pence"),
        },
        ampersand="and",
        currency_and="and",
    ),
    "de": _Reading(
        decimal=",",
        group=".",
        point="komma",
        minus="minus",
        percent="prozent",
        currencies={
            "USD": ("dollar", "dollar", "", ""),
            "EUR": ("euro", "euro", "", ""),
            "GBP": ("pfund", "pfund", "", ""),
        },
        ampersand="und",
        currency_and="",
    ),
}
_MONTHS: Mapping[str, tuple[str, ...]] = {
    "en": (
        "january", "february", "march", "april", "may", "june",
        "july", "august", "september", "october", "november", "december",
    ),
    "de": (
        "januar", "februar", "märz", "april", "mai", "juni",
        "juli", "august", "september", "oktober", "november", "dezember",
    ),
}  # fmt: skip


def normalize(text: str, language: str) -> str:
    """The scoring form: NFC, lower case, words only, numbers as spoken. Idempotent; takes any string without raising.

    English and German read amounts, percentages, clock times, dates, ordinals, years and decimals; other languages
    read plain numbers as far as num2words knows them, and keep digits it does not know (which
    :func:`unexpected_characters` then reports).
    """
    primary = primary_language(language) or language.lower()
    previous = text
    for _ in range(4):  # a second pass is needed only for rare letters whose lower case is not their own lower case
        current = _normalize_once(previous, primary)
        if current == previous:
            break
        previous = current
    return current


def words_of(text: str, language: str) -> list[str]:
    """The words that are counted and compared: of the normalised text; one a character where a script has no spaces."""
    return list(_words_of(text, language))


@functools.lru_cache(maxsize=50_000)  # a reference is read for every model, slice list, alignment and plot
def _words_of(text: str, language: str) -> tuple[str, ...]:
    return tuple(split_words(normalize(text, language)))


def alphabet(language: str) -> str | None:
    """The letters of normalised text where they are few and all known here, else None."""
    return _ALPHABETS.get(primary_language(language) or "")


@functools.lru_cache(maxsize=64)
def charset(language: str) -> frozenset[str]:
    """The characters of normalised text: letters and the space.

    Without an alphabet here: the space, the apostrophe and every letter of the scripts that the language is written in,
    or of every script where the language is not known.
    """
    letters = alphabet(language)
    return frozenset(letters + " ") if letters else letters_of(language) | {" ", "'"}


def unexpected_characters(text: str, language: str) -> set[str]:
    """What remains in the scoring form that the language's alphabet does not hold: another script, stray digits."""
    return set(normalize(text, language)) - charset(language)


def spoken_length(text: str) -> int:
    """How much there is to say in a normalised text, in letters of an alphabet, so that scripts can be compared.

    A Hangul syllable counts its two or three letters, a kana two (a consonant and a vowel), a Chinese character three.
    """
    text = " ".join(text.split())
    if text.isascii():
        return len(text)
    letters = len(unicodedata.normalize("NFD", "".join(c for c in text if "\uac00" <= c <= "\ud7a3")))
    for character in text:
        if "\u3041" <= character <= "\u30fa":
            letters += 2
        elif "\u3400" <= character <= "\u9fff" or character >= "\U00020000":
            letters += 3
        elif not "\uac00" <= character <= "\ud7a3":
            letters += 1
    return letters


def speech_rate(text: str, duration_s: float) -> float:
    """Letters per second of a normalised text. Far outside 5 to 25, text and audio rarely belong together.

    An empty text has rate 0; a text without any duration has an infinite one.
    """
    letters = spoken_length(text)
    if letters == 0:
        return 0.0
    return letters / duration_s if duration_s > 0 else math.inf


def _normalize_once(text: str, language: str) -> str:
    text = "".join(c for c in text if not "\ud800" <= c <= "\udfff")
    text = unicodedata.normalize("NFC", text).translate(_APOSTROPHES).translate(_HYPHENS)
    if not text.isascii():
        text = "".join(_ascii_digit(c) for c in text)
    text = unicodedata.normalize("NFC", text.lower())
    if any("0" <= c <= "9" for c in text):
        text = _read_numbers(text, language)
    reading = _READINGS.get(language)
    if reading is not None:
        text = text.replace("&", f" {reading.ampersand} ")
    # dotted abbreviations are one spoken unit: "a.m." is "am"
    text = re.sub(r"\b(?:[^\W\d_]\.){2,}", lambda found: found[0].replace(".", ""), text)
    alphabet = _ALPHABETS.get(language)
    if alphabet is not None and not text.isascii():
        text = "".join(_folded(c, alphabet) for c in text)
    keep_apostrophe = alphabet is None or "'" in alphabet
    text = re.sub(r"(?<=[^\W\d_])'(?=[^\W\d_])", "\0" if keep_apostrophe else "", text)
    text = "".join(c if c == "\0" or _is_word_character(c) else " " for c in text).replace("\0", "'")
    return unicodedata.normalize("NFC", " ".join(text.split()))


def _ascii_digit(character: str) -> str:
    value = unicodedata.decimal(character, None)
    return character if value is None else str(value)


def _is_word_character(character: str) -> bool:
    return unicodedata.category(character)[0] in "LM" or character in "0123456789"


def _folded(character: str, alphabet: str) -> str:
    """A Latin letter with a mark that the alphabet does not have, without its mark ("café" in English)."""
    if character in alphabet or character.isascii():
        return character
    base = unicodedata.normalize("NFD", character)[0]
    return base if base in alphabet else character


# ------------------------------------------------------------------------------------------------- numbers


def _read_numbers(text: str, language: str) -> str:
    reading = _READINGS.get(language)
    if reading is not None:
        text = _read_dates(text, language)
        text = _read_times(text, language)
        text = _read_amounts(text, language, reading)
        text = _read_ordinals(text, language)
        text = _read_plain(text, language, reading)
    return re.sub(r"[0-9]+", lambda found: f" {_integer(found[0], language)} ", text)


def _read_dates(text: str, language: str) -> str:
    def spoken(year: str, month: str, day: str, preposition: str, whole: str) -> str:
        if not (1 <= int(month) <= 12 and 1 <= int(day) <= 31):
            return whole
        name = _MONTHS[language][int(month) - 1]
        if language == "de":
            ending = "n" if preposition else ""
            return f"{preposition}{_ordinal(day, 'de')}{ending} {name} {_year(year, 'de')}"
        return f"{preposition}{name} {_ordinal(day, language)} {_year(year, language)}"

    text = re.sub(
        rf"({_DATIVE})?(?<![\d.,:-])(\d{{4}})-(\d\d)-(\d\d)(?![\d:-])",
        lambda m: spoken(m[2], m[3], m[4], m[1] or "", m[0]),
        text,
    )
    if language == "de":
        text = re.sub(
            rf"({_DATIVE})?(?<![\d.,:])(\d{{1,2}})\. ?(\d{{1,2}})\. ?(\d{{4}})(?!\d)",
            lambda m: spoken(m[4], m[3], m[2], m[1] or "", m[0]),
            text,
        )
    return text


# after these words a German ordinal ends in -n
_DATIVE = r"\b(?:am|vom|zum|beim|dem|den|des|ab|bis|seit|im) "


def _read_times(text: str, language: str) -> str:
    def spoken(match: re.Match[str]) -> str:
        hour, minute = int(match[1]), int(match[2])
        if hour > 24 or minute > 59:
            return match[0]
        if language == "de":
            said = "ein" if hour == 1 else _cardinal(hour, "de")
            return f" {said} uhr {_cardinal(minute, 'de') if minute else ''} "
        said = _cardinal(hour, language)
        half = re.sub(r"[\s.]", "", match["suffix"] or "")
        if minute == 0:
            return f" {said} {half or 'oclock_'} "
        return f" {said} {'oh ' if minute < 10 else ''}{_cardinal(minute, language)} {half} "

    suffix = r"(?P<suffix>\s*uhr\b)?" if language == "de" else r"(?P<suffix>\s*[ap]\.?m\b)?"
    text = re.sub(rf"(?<![\d.,:])(\d{{1,2}}):(\d\d)(?![\d:]){suffix}", spoken, text)
    if language == "en":
        text = re.sub(r"(?<![\w.,:])(\d{1,2})\s*([ap])\.?m\b", lambda m: f"{_cardinal(int(m[1]), 'en')} {m[2]}m", text)
        text = text.replace("oclock_", "o'clock")
    else:
        text = re.sub(r"(?<![\w.,:])1 uhr\b", "ein uhr", text)
    return text


def _read_amounts(text: str, language: str, reading: _Reading) -> str:
    number = _number_pattern(reading)

    def spoken(found: str, code: str) -> str:
        whole, _, part = found.replace(reading.group, "").partition(reading.decimal)
        one, many, hundredth, hundredths = reading.currencies[code]
        if len(part) == 1:
            part += "0"
        if len(part) > 2:
            return f" {_decimal(found, language, reading)} {many} "
        units, cents = int(whole), int(part or 0)
        unit_words = ("ein" if language == "de" and units == 1 else _integer(whole, language)) + " "
        unit_words += one if units == 1 else many
        if not cents:
            return f" {unit_words} "
        cent_words = f"{_cardinal(cents, language)} {hundredth if cents == 1 else hundredths}"
        if not units and hundredths:
            return f" {cent_words} "
        return f" {unit_words} {reading.currency_and} {cent_words} "

    codes = _CURRENCY_CODES.lower()
    text = re.sub(
        rf"([$€£])\s?({number})",
        lambda m: spoken(m[2], _CURRENCY_SIGNS[m[1]]),
        text,
    )
    text = re.sub(
        rf"(?<![\w.,:])({number})\s?(?:([$€£])|({codes})\b)",
        lambda m: spoken(m[1], _CURRENCY_SIGNS[m[2]] if m[2] else m[3].upper()),
        text,
    )
    if language == "de":  # "42,50 Euro" is written out but read like an amount
        names = "euro|dollar|pfund"
        back = {"euro": "EUR", "dollar": "USD", "pfund": "GBP"}
        text = re.sub(rf"(?<![\w.,:])({number})\s?({names})\b", lambda m: spoken(m[1], back[m[2]]), text)
    return re.sub(
        rf"(?<![\w.,:])({number})\s?%", lambda m: f" {_decimal(m[1], language, reading)} {reading.percent} ", text
    )


def _read_ordinals(text: str, language: str) -> str:
    if language == "en":
        return re.sub(r"(?<![\w.,:])(\d{1,6})(?:st|nd|rd|th)\b", lambda m: f" {_ordinal(m[1], 'en')} ", text)
    months = "|".join(_MONTHS["de"])
    return re.sub(
        rf"({_DATIVE})?(?<![\d.,:])(\d{{1,2}})\.\s*(?=(?:{months})\b)",
        lambda m: f"{m[1] or ''}{_ordinal(m[2], 'de')}{'n' if m[1] else ''} ",
        text,
    )


def _read_plain(text: str, language: str, reading: _Reading) -> str:
    def spoken(match: re.Match[str]) -> str:
        minus = f" {reading.minus} " if match["minus"] else " "
        found = match["number"]
        if found.isdigit() and len(found) == 4 and not match["minus"] and 1100 <= int(found) <= 2099:
            return f" {_year(found, language)} "
        return f"{minus}{_decimal(found, language, reading)} "

    return re.sub(
        rf"(?:(?<=\s)|^)(?P<minus>-)?(?P<number>{_number_pattern(reading)})(?!\w)|"
        rf"(?P<number2>(?<![\w.,]){_number_pattern(reading)})",
        lambda m: spoken(m) if m["number"] else f" {_decimal(m['number2'], language, reading)} ",
        text,
    )


def _number_pattern(reading: _Reading) -> str:
    group, decimal = re.escape(reading.group), re.escape(reading.decimal)
    return rf"(?:\d{{1,3}}(?:{group}\d{{3}})+|\d+)(?:{decimal}\d+)?"


def _decimal(found: str, language: str, reading: _Reading) -> str:
    """A number with or without decimals, which are read digit by digit."""
    whole, sign, part = found.partition(reading.decimal)
    grouped = reading.group in whole
    digits = whole.replace(reading.group, "")
    said = _cardinal(int(digits), language) if grouped and len(digits) <= 15 else _integer(digits, language)
    if not sign:
        return said
    return f"{said} {reading.point} {' '.join(_cardinal(int(digit), language) for digit in part)}"


def _integer(digits: str, language: str) -> str:
    if len(digits) > LONGEST_NUMBER or (len(digits) > 1 and digits.startswith("0")):
        return " ".join(_cardinal(int(digit), language) for digit in digits)
    return _cardinal(int(digits), language)


def _year(digits: str, language: str) -> str:
    value = int(digits)
    if language == "en" and 1100 <= value <= 2099 and not 2000 <= value <= 2009:
        century, rest = divmod(value, 100)
        if rest == 0:
            return f"{_cardinal(century, 'en')} hundred"
        return f"{_cardinal(century, 'en')} {'oh ' if rest < 10 else ''}{_cardinal(rest, 'en')}"
    if language == "de" and 1100 <= value <= 1999:
        century, rest = divmod(value, 100)
        return f"{_cardinal(century, 'de')}hundert{_cardinal(rest, 'de') if rest else ''}"
    return _cardinal(value, language)


def _cardinal(value: int, language: str) -> str:
    return _number_words(value, language, "cardinal")


def _ordinal(digits: str, language: str) -> str:
    return _number_words(int(digits), language, "ordinal")


@functools.lru_cache(maxsize=16_384)
def _number_words(value: int, language: str, form: str) -> str:
    """The number in words, or its digits where the language is not known."""
    try:
        said = _num2words()(value, lang=language, to=form)
    except Exception:  # num2words raises whatever its language modules stumble over; digits are the honest fallback
        return str(value)
    return re.sub(r"[\s,\-\xad]+", " ", str(said)).lower().strip() or str(value)


@functools.cache
def _num2words() -> Callable[..., str]:
    from num2words import num2words

    function: Callable[..., str] = num2words
    return function
