"""The scoring form of text: one spelling for what was said, whatever way it was written down.

A recogniser writes spoken words; transcripts arrive with capitals, punctuation, digits, amounts and times. Both sides
of a word error rate go through :func:`normalize`, so that "$42" against "forty two dollars" is no error. A number has
several right readings: :func:`normalize` takes the commonest, and :func:`readings` gives them all, so that a score and
a training can take the one that was said.
"""

import functools
import math
import re
import unicodedata
from collections.abc import Mapping
from itertools import groupby

from speech import spoken
from speech.scripts import letters_of, primary_language, split_words

_APOSTROPHES = dict.fromkeys(map(ord, "’‘ʼʻʽʾʿ＇´`‛′׳՚"), "'")
_HYPHENS = dict.fromkeys(map(ord, "‐‑‒−"), "-")  # dashes between words part them, these join

# Letters of normalised text. Apostrophes and the Catalan dot are letters only where leaving one out makes another word.
_ALPHABETS: Mapping[str, str] = {
    "ca": "abcdefghijklmnopqrstuvwxyzàçèéíïòóúü·'",
    "en": "abcdefghijklmnopqrstuvwxyz'",
    "de": "abcdefghijklmnopqrstuvwxyzäöüß",
    "fr": "abcdefghijklmnopqrstuvwxyzàâæçéèêëîïôœùûüÿ'",
    "es": "abcdefghijklmnopqrstuvwxyzáéíñóúü",
    "it": "abcdefghijklmnopqrstuvwxyzàèéìíîòóùú'",
    "pt": "abcdefghijklmnopqrstuvwxyzàáâãçéêíóôõú",
    "nl": "abcdefghijklmnopqrstuvwxyzàáèéëïíóöúü'",
}


# One letter under two numbers: from another language's keyboard, or from before it had a number of its own. Unicode
# takes them for different.
_LOOKALIKES: Mapping[str, Mapping[int, str]] = {
    language: str.maketrans(dict(zip(*pairs.split(), strict=True)))
    for languages, pairs in (
        ("ar", "یک يك"),
        ("fa ckb", "يىك ییک"),
        ("ur", "يىكه ییکہ"),
        ("ro", "şţŞŢ șțȘȚ"),
        ("vi", "ðÐ đĐ"),
        ("az", "ǝƎ əƏ"),
    )
    for language in languages.split()
}
_WITH_JOINER = re.compile("(?:[ണനരലളക]\u0d4d|ত\u09cd)\u200d")  # how Malayalam and Bengali wrote their final letters
_FINAL_LETTERS = {"ണ": "ൺ", "ന": "ൻ", "ര": "ർ", "ല": "ൽ", "ള": "ൾ", "ക": "ൿ", "ত": "ৎ"}
_SARA_AM = re.compile("\u0e4d([\u0e48-\u0e4b]?)\u0e32")  # Thai am as its ring and its a, a mark of tone between them
_LAO_AM = re.compile("\u0ecd([\u0ec8-\u0ecb]?)\u0eb2")
_ROUND_ZERO = re.compile("〇|(?<=[零一二三四五六七八九])[○◯]|[○◯](?=[零一二三四五六七八九])")
_WITHIN_WORDS = re.compile('(?<=[א-ת])["״“”„](?=[א-ת])|[՛՜՞]')  # of a Hebrew abbreviation; of an Armenian question
_LETTERS_APART = re.compile("[\u0e4d\u0ecd〇○◯א-ת՛՜՞]")  # where one of the four may match: each is slow to find out
_LATIN_DOT = re.compile("(?<=[a-zà-ɏ])[·‧∙⋅](?=[a-zà-ɏ])")  # of the Catalan geminate; elsewhere it parts words
# Marks that are mostly left out: vowels, and where a word is stressed.
_MOSTLY_UNWRITTEN: Mapping[str, re.Pattern[str]] = {
    language: re.compile(marks)
    for languages, marks in (
        ("ar arz ary apc fa ur", "[\u064b-\u0652\u0656-\u065f\u0670\u06d6-\u06ed]"),
        ("he", "[\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7]"),
        ("ru uk be", "(?<=[аеиоуыэюяіїєАЕИОУЫЭЮЯІЇЄ])\u0301"),
    )
    for language in languages.split()
}


def normalize(text: str, language: str) -> str:
    """The scoring form: NFC, lower case, words only, numbers as spoken. Idempotent; takes any string without raising.

    Vowels of Arabic and Hebrew and marks of stress, which most texts leave out, are left out.
    Numbers, dates, amounts and abbreviations are read in their commonest way (:mod:`speech.spoken`); digits that cannot
    be read stay, and :func:`unexpected_characters` reports them and the signs that would have been said.
    """
    return _scored(text, _primary(language))[0]


def readings(text: str, language: str) -> tuple[tuple[str, ...], ...]:
    """The scoring form cut into stretches, each with all its right readings, the commonest first.

    Stretches are joined by spaces, and any reading of one goes with any of another: ``(("in",), ("two thousand and
    five", "twenty oh five"))``. The first readings joined are what :func:`normalize` gives.
    """
    plain = normalize(text, language)
    if not spoken.may_vary(text):
        return ((plain,),)
    primary = _primary(language)
    pieces = []
    for piece in spoken.readings(_cleaned(text, primary), primary):
        said = tuple(dict.fromkeys(normalize(reading, language) for reading in piece))
        if said != ("",):
            pieces.append(said)
    return tuple(pieces) if " ".join(piece[0] for piece in pieces) == plain else ((plain,),)


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
    """What the language's alphabet does not hold and no reading made words of: another script, digits, signs."""
    form, unread = _scored(text, _primary(language))
    return (set(form) - charset(language)) | unread


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


def _primary(language: str) -> str:
    return primary_language(language) or language.lower()


@functools.lru_cache(maxsize=32_768)  # a row's text is asked for by several checks, each reading and each contestant
def _scored(text: str, language: str) -> tuple[str, frozenset[str]]:
    """The scoring form, and the signs and digits of it that were not read."""
    unread: set[str] = set()
    for _ in range(4):  # what changes with a second pass is a rare letter's lower case, or a number not read at first
        said = spoken.read_aloud(_cleaned(text, language), language)
        unread |= spoken.unread(said)
        form = _letters_only(said, language)
        settled = form == text or (form.isascii() and form.replace(" ", "").replace("'", "").isalpha())
        text = form
        if settled:
            break
    return text, frozenset(character for character in unread if not character.isdecimal() or character in text)


def _cleaned(text: str, language: str) -> str:
    """What Unicode writes in several ways in one of them, and without what cannot be seen; case and signs stay."""
    if text.isascii():
        return text
    text = unicodedata.normalize("NFC", text.encode(errors="ignore").decode())
    if "\u200d" in text:
        text = _WITH_JOINER.sub(lambda m: _FINAL_LETTERS[m[0][0]], text)
    text = "".join(map(_plain_character, text)).translate(_LOOKALIKES.get(language, {}))
    if (marks := _MOSTLY_UNWRITTEN.get(language)) is not None:
        text = marks.sub("", text)
    if _LETTERS_APART.search(text):
        text = _LAO_AM.sub("\\1\u0eb3", _SARA_AM.sub("\\1\u0e33", text))
        text = _WITHIN_WORDS.sub("", _ROUND_ZERO.sub("零", text))
    text = re.sub(r"(?<=\d) ?([¼-¾⅐-⅞])", lambda m: " " + unicodedata.normalize("NFKC", m[1]).replace("⁄", "/"), text)
    return unicodedata.normalize("NFC", text)


_COMPATIBLE = frozenset(
    "<wide> <narrow> <noBreak> <font> <initial> <medial> <final> <isolated> <square> <compat>".split()
)
_INVISIBLE_MARKS = frozenset("\u034f\u0640")  # grapheme joiner; the Arabic stroke that only stretches a word
_ARABIC_SIGNS = {"٪": "%", "٫": ".", "٬": ","}


@functools.lru_cache(maxsize=4_096)
def _plain_character(character: str) -> str:
    """The character as the languages' rules know it: "" for an invisible one, letters for a ligature."""
    category = unicodedata.category(character)
    if category == "Cf" or character in _INVISIBLE_MARKS or 0xFE00 <= ord(character) <= 0xFE0F:
        return ""  # soft hyphens, joiners, marks of direction and variants stand inside words that they do not part
    if ord(character) in _APOSTROPHES:
        return _APOSTROPHES[ord(character)]
    if (digit := unicodedata.decimal(character, None)) is not None:
        return str(digit)
    kind = unicodedata.decomposition(character).split(" ")[0]
    # Superscripts and fractions keep their meaning only as they are; of the rest, marks would lose their letter.
    if kind in _COMPATIBLE and (kind != "<compat>" or category[0] in "LZ" or category == "Nl" or character in "℃℉"):
        return unicodedata.normalize("NFKC", character)
    return _ARABIC_SIGNS.get(character, _HYPHENS.get(ord(character), character))


def _lower(text: str, language: str) -> str:
    """Lower case by the language's rules: Turkish and Azerbaijani have an I with and one without its dot."""
    if language in ("tr", "az"):
        text = text.replace("İ", "i").replace("I", "ı")
    return unicodedata.normalize("NFC", text.lower().replace("i\u0307", "i"))


def _letters_only(text: str, language: str) -> str:
    """Letters and single spaces; a token with digits that were not read stays as it stands, signs and all.

    Without its signs "1,5" would be the two numbers "1 5", which can be read, and wrongly.
    """
    text = _lower(text, language)
    if any(map(str.isdecimal, text)):
        parts = groupby(text.split(), key=lambda token: any(map(str.isdecimal, token)))
        return " ".join(
            filter(None, (" ".join(t) if digits else _words_only(" ".join(t), language) for digits, t in parts))
        )
    return _words_only(text, language)


def _words_only(text: str, language: str) -> str:
    # dotted abbreviations are one spoken unit: "a.m." is "am"
    text = re.sub(r"\b(?:[^\W\d_]\.){2,}", lambda found: found[0].replace(".", ""), text)
    alphabet = _ALPHABETS.get(language)
    if alphabet is not None and not text.isascii():
        text = "".join(_folded(c, alphabet) for c in text)
    if text.isascii():
        text = re.sub(r"[^a-z0-9']", " ", text)
    else:
        dot = "·" if alphabet is not None and "·" in alphabet else ""
        text = _LATIN_DOT.sub(dot, text)
        text = "".join(c if c == "'" or c == dot or _is_word_character(c) else " " for c in text)
        text = re.sub(r"(?<![^\W\d_])·|·(?![^\W\d_])", " ", text)
    if "'" in text:
        text = re.sub(r"(?<![^\W\d_])'|'(?![^\W\d_])", " ", text)
        if alphabet is not None and "'" not in alphabet:
            text = text.replace("'", "")
    return unicodedata.normalize("NFC", " ".join(text.split()))


def _is_word_character(character: str) -> bool:
    return unicodedata.category(character)[0] in "LM" or character in "0123456789"


def _folded(character: str, alphabet: str) -> str:
    """A Latin letter with a mark that the alphabet does not have, without its mark ("café" in English)."""
    if character in alphabet or character.isascii():
        return character
    base = unicodedata.normalize("NFD", character)[0]
    return base if base in alphabet else character
