"""What the scoring form promises: one spelling for what was said, for any string in the world."""

import random
import time
import unicodedata

import pytest

from speech.text import charset, normalize, speech_rate, unexpected_characters


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("$42", "forty two dollars"),
        ("42 EUR", "forty two euros"),
        ("€1,234.50", "one thousand two hundred and thirty four euros and fifty cents"),
        ("£1.01", "one pound and one penny"),
        ("$0.99 or $1", "ninety nine cents or one dollar"),
        ("3.5 and 3.14", "three point five and three point one four"),
        ("in 1995, in 2024, in 2005", "in nineteen ninety five in twenty twenty four in two thousand and five"),
        ("the 21st of May", "the twenty first of may"),
        ("at 10:30 a.m. or 7 pm", "at ten thirty am or seven pm"),
        ("at 10:00, at 9:05", "at ten o'clock at nine oh five"),
        ("2024-05-03", "may third twenty twenty four"),
        ("order 0351, call 5550142", "order zero three five one call five five five zero one four two"),
        ("1,234,567", "one million two hundred and thirty four thousand five hundred and sixty seven"),
        ("50%, -5, B&B", "fifty percent minus five b and b"),
        ('I DON’T know — "really"!', "i don't know really"),
        ("the 'best' rock-'n'-roll", "the best rock n roll"),
        ("café, U.S.A., A4", "cafe usa a four"),
        ("  two \n\t words ", "two words"),
        ("...", ""),
        ("", ""),
    ],
)
def test_english_is_read_as_people_say_it(written: str, spoken: str) -> None:
    """Writing an amount in digits is no recognition error."""
    assert normalize(written, "en") == spoken


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("42,50 €", "zweiundvierzig euro fünfzig"),
        ("1 Euro", "ein euro"),
        ("1.234,50 Euro", "eintausendzweihundertvierunddreißig euro fünfzig"),
        ("am 3. Mai", "am dritten mai"),
        ("der 3. Mai", "der dritte mai"),
        ("am 03.05.2024", "am dritten mai zweitausendvierundzwanzig"),
        ("um 10:30 Uhr, um 1 Uhr", "um zehn uhr dreißig um ein uhr"),
        ("3,5 %", "drei komma fünf prozent"),
        ("im Jahr 1995", "im jahr neunzehnhundertfünfundneunzig"),
        ("Straße, Äpfel, Öl & Übung", "straße äpfel öl und übung"),
        ("wie geht's im Café?", "wie gehts im cafe"),
    ],
)
def test_german_is_read_as_people_say_it(written: str, spoken: str) -> None:
    """Umlauts and ß are letters of their own; numbers are one word."""
    assert normalize(written, "de") == spoken


@pytest.mark.parametrize("language", ["en", "de"])
def test_both_unicode_forms_are_one_word(language: str) -> None:
    """Exports from macOS decompose umlauts; the words are the same."""
    assert normalize(unicodedata.normalize("NFD", "Müller über"), language) == normalize("Müller über", language)


def test_other_languages_read_plain_numbers() -> None:
    """A language needs no rules here to be scored; num2words knows about fifty."""
    assert normalize("42 personnes, l’été", "fr") == "quarante deux personnes l'été"
    assert normalize("Tengo 3 gatos.", "es-MX") == "tengo tres gatos"
    assert normalize("٤٢", "en") == "forty two"


def test_unknown_language_keeps_digits_and_says_so() -> None:
    """Digits that nobody can read aloud must show up as a finding, not as a guess."""
    assert normalize("abc 42", "xx") == "abc 42"
    assert unexpected_characters("abc 42", "xx") == {"4", "2"}
    assert normalize("", "") == ""


def test_another_script_is_reported() -> None:
    """Cyrillic letters that look Latin are the classic fault of a transcript."""
    assert unexpected_characters("саt", "en") == {"с", "а"}
    assert unexpected_characters("Grüße aus Köln, 42 €!", "de") == set()
    assert "ß" in charset("de")
    assert "'" in charset("en")
    assert {"ж", "語", "'", " "} <= charset("xx")


@pytest.mark.parametrize("language", ["en", "de", "fr", "ja", "xx", ""])
def test_any_string_is_normalised_once_and_for_all(language: str) -> None:
    """Scores call this on whatever a model or a person wrote: it must never raise, and twice must be once."""
    draw = random.Random(language)
    written = "0123456789.,:-$€%£' amuhrpst1stndrd"
    for _ in range(1500):
        ranges = [0x110000, 0x3000, 0x250, 0x80]
        anything = "".join(chr(draw.randrange(draw.choice(ranges))) for _ in range(draw.randrange(14)))
        numbers = "".join(draw.choice(written) for _ in range(draw.randrange(24)))
        for text in (anything, numbers, anything + numbers):
            once = normalize(text, language)
            assert normalize(once, language) == once
            if language in ("en", "de"):
                assert not unexpected_characters(numbers, language)


@pytest.mark.parametrize("text", ["9" * 20_000, "1," + "000," * 5_000, "1." * 20_000, "a." * 20_000, "am " * 20_000])
@pytest.mark.parametrize("language", ["en", "de"])
def test_long_nonsense_takes_no_time(text: str, language: str) -> None:
    """One crazy transcript must not hold up a quarter."""
    start = time.process_time()
    normalize(text, language)
    assert time.process_time() - start < 5


def test_speech_rate_is_characters_a_second() -> None:
    """Text that belongs to other audio is found by its impossible rate."""
    assert speech_rate("forty  two", 1.0) == 9.0
    assert speech_rate("", 0.0) == 0.0
    assert speech_rate("words", 0.0) == float("inf")
