"""What the scoring form promises: one spelling for what was said, for any string in the world."""

import csv
import random
import subprocess
import sys
import time
import unicodedata
from pathlib import Path

import pytest

from speech.text import charset, normalize, readings, speech_rate, unexpected_characters


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("$42", "forty two dollars"),
        ("42 EUR", "forty two euros"),
        ("€1,234.50", "one thousand two hundred and thirty four euros fifty cents"),
        ("£1.01", "one pound one penny"),
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
        ("1.234,50 Euro", "tausendzweihundertvierunddreißig euro fünfzig"),
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


def forms() -> list[tuple[str, str, list[str]]]:
    with (Path(__file__).parent / "written_forms.tsv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [(row["language"], row["written"], row["right"].split(" | ")) for row in rows]


def test_written_forms_are_read_right_or_reported() -> None:
    """benchmarks/written_forms.py prints them; what is not read right must at least show up as unreadable."""
    wrong = [(form, said) for *form, right in forms() if (said := normalize(form[1], form[0])) not in right]
    assert len(forms()) >= 80
    assert len(wrong) <= 0.05 * len(forms()), wrong
    assert all(unexpected_characters(written, language) for (language, written), _ in wrong), wrong


@pytest.mark.parametrize("form", forms(), ids=lambda form: f"{form[0]} {form[1]}")
def test_a_written_form_is_one_of_its_own_readings(form: tuple[str, str, list[str]]) -> None:
    """The commonest reading comes first; every reading is in the scoring form, and none is there twice."""
    language, written, _ = form
    pieces = readings(written, language)
    assert " ".join(piece[0] for piece in pieces) == normalize(written, language)
    for piece in pieces:
        assert len(set(piece)) == len(piece)
        assert all(normalize(reading, language) == reading for reading in piece)


def all_readings(written: str, language: str) -> set[str]:
    said = {""}
    for piece in readings(written, language):
        said = {f"{before} {reading}".strip() for before in said for reading in piece}
    return said


@pytest.mark.parametrize(
    ("language", "written", "said"),
    [
        ("en", "in 1984", {"in nineteen eighty four", "in one nine eight four"}),
        ("en", "room 101", {"room one hundred and one", "room one oh one", "room one hundred one"}),
        ("en", "$12.50", {"twelve dollars fifty cents", "twelve dollars and fifty cents", "twelve dollars fifty"}),
        ("en", "on 5/3/2024", {"on may third twenty twenty four", "on the fifth of march twenty twenty four"}),
        ("en", "from 10:00 until 2005", {"from ten o'clock until twenty oh five", "from ten until two thousand five"}),
        ("en", "call 5550142", {"call five five five zero one four two", "call five five five oh one four two"}),
        ("de", "im Jahr 2024", {"im jahr zweitausendvierundzwanzig", "im jahr zwanzigvierundzwanzig"}),
        ("de", "1 Stunde", {"eine stunde"}),
        ("tr", "saat 09:30", {"saat dokuz otuz", "saat dokuz buçuk"}),
    ],
)
def test_a_number_has_all_its_right_readings(language: str, written: str, said: set[str]) -> None:
    """People say a number in several ways, and each of them is what the transcript wrote down."""
    assert said <= all_readings(written, language)


def test_numbers_of_one_text_have_their_readings_independently() -> None:
    """A text of many numbers must not lose readings because there are so many combinations."""
    pieces = readings("in 2005 there were 105 books and much later on, in 1984, there were 350 books", "en")
    assert sum(len(piece) > 1 for piece in pieces) == 4


@pytest.mark.parametrize(
    ("language", "written", "spoken"),
    [
        ("tr", "IŞIK İSTANBUL", "ışık istanbul"),
        ("en", "İstanbul", "istanbul"),
        ("de", "Donau\u00addampf\u00adschiff", "donaudampfschiff"),
        ("de", "GROẞ", "groß"),
        ("fa", "می\u200cخواهم", "میخواهم"),
        ("en", "\ufeffco\u200bop", "coop"),
        ("en", "ﬁve ＦＩＶＥ ５", "five five five"),
        ("en", "20 ℃", "twenty degrees celsius"),
        ("en", "1½ cups", "one and a half cups"),
        ("fr", "1\u202f000\u00a0euros", "mille euros"),
        ("ar", "٤٢", "اثنان و أربعون"),
        ("en", "it\u2019s 10\u201312", "it's ten to twelve"),
    ],
)
def test_what_unicode_writes_in_several_ways_is_one_word(language: str, written: str, spoken: str) -> None:
    """Case by the language, invisible characters inside a word, compatibility forms, digits of other scripts."""
    assert normalize(written, language) == spoken


@pytest.mark.parametrize(
    ("language", "one", "other", "spoken"),
    [
        ("th", "น้ำ", "น้\u0e4d\u0e32", "น้ำ"),
        ("th", "น้ำ", "น\u0e4d้\u0e32", "น้ำ"),
        ("lo", "ນ້ຳ", "ນ້\u0ecd\u0eb2", "ນ້ຳ"),
        ("ml", "അവൻ", "അവന\u0d4d\u200d", "അവൻ"),
        ("bn", "হঠাৎ", "হঠাত\u09cd\u200d", "হঠাৎ"),
        ("fa", "کتابی", "كتابي", "کتابی"),
        ("ur", "کہا", "كها", "کہا"),
        ("ar", "كتابي", "کتابی", "كتابي"),
        ("ro", "Șiță", "Şiţă", "șiță"),
        ("vi", "Đi đâu", "Ði ðâu", "đi đâu"),
        ("uz", "Oʻzbek", "O‘zbek", "o'zbek"),
        ("uz", "oʻzbek", "o'zbek", "o'zbek"),
        ("haw", "Hawaiʻi", "Hawai'i", "hawai'i"),
        ("he", "ג׳ורג", "ג'ורג", "ג'ורג"),
        ("zh", "二〇二四年", "二○二四年", "二零二四年"),
    ],
)
def test_a_letter_under_two_numbers_is_one_letter(language: str, one: str, other: str, spoken: str) -> None:
    """Keyboards and older encodings differ where Unicode sees two letters; a listener hears one."""
    assert normalize(one, language) == normalize(other, language) == spoken
    assert unexpected_characters(one, language) == set()


@pytest.mark.parametrize(
    ("language", "written", "spoken"),
    [
        ("ca", "El COL·LEGI és paral\u2027lel", "el col·legi és paral·lel"),
        ("ca", "co\u0140legi · casa", "col·legi casa"),
        ("es", "la avenida Paral·lel", "la avenida parallel"),
        ("ko", "초·중", "초 중"),
        ("he", "צה״ל", "צהל"),
        ("he", 'צה"ל אמר "שלום"', "צהל אמר שלום"),
        ("hy", "Ինչպե՞ս ես։ Ո՛չ", "ինչպես ես ոչ"),
    ],
)
def test_a_sign_within_a_word_does_not_part_it(language: str, written: str, spoken: str) -> None:
    """Half words are learnt as words, and each counts as an error of its own."""
    assert normalize(written, language) == spoken


@pytest.mark.parametrize(
    ("language", "pointed", "plain"),
    [
        ("ar", "كِتَابٌ مَرحباً", "كتاب مرحبا"),
        ("ur", "اُردُو", "اردو"),
        ("he", "שָׁלוֹם", "שלום"),
        ("ru", "замо́к", "замок"),
        ("uk", "за́мок", "замок"),
        ("yi", "ייִדיש", "ייִדיש"),
    ],
)
def test_marks_that_are_mostly_left_out_make_no_other_word(language: str, pointed: str, plain: str) -> None:
    """A text with its vowels pointed and one without them say the same."""
    assert normalize(pointed, language) == normalize(plain, language) == plain


@pytest.mark.parametrize(
    ("language", "written", "signs"),
    [
        ("de", "siehe § 5", {"§"}),
        ("en", "C++", {"+"}),
        ("en", "1,5", {"1", "5", ","}),
        ("en", "10²", {"1", "0", "²"}),
        ("en", "yeah <unk> i know", {"<", ">"}),
        ("pt", "5 €", {"€"}),
        ("pl", "5. maja", {"5", "."}),
        ("ko", "3마리", {"3"}),
        ("zh", "〤", {"〤"}),
    ],
)
def test_what_nobody_can_read_is_reported(language: str, written: str, signs: set[str]) -> None:
    """A sign that is dropped, or a number read by a rule of another language, would be a guess."""
    assert unexpected_characters(written, language) == signs


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("Mr Smith and Dr. Jones", "mister smith and doctor jones"),
        ("World War II", "world war two"),
        ("I may go. He came.", "i may go he came"),
    ],
)
def test_abbreviations_are_read_without_a_number_near(written: str, spoken: str) -> None:
    """The same word must not be read in one row and left in the next."""
    assert normalize(written, "en") == spoken


def test_german_sentences_may_end_in_a_noun_that_is_also_an_abbreviation() -> None:
    assert normalize("Eine besondere Art.", "de") == "eine besondere art"
    assert normalize("nach Art. 5", "de") == "nach artikel fünf"


def test_the_grammars_are_loaded_by_the_first_text_that_needs_them() -> None:
    """Every command of the platform imports this module; few of them read a number."""
    code = (
        "import sys; from speech.text import normalize; normalize('plain words', 'en');"
        "assert not {'damga', 'num2words'} & set(sys.modules); normalize('5', 'en'); assert 'damga' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


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


@pytest.mark.parametrize("language", ["en", "de", "fr", "ja", "ca", "ar", "he", "xx", ""])
def test_any_string_is_normalised_once_and_for_all(language: str) -> None:
    """Scores call this on whatever a model or a person wrote: it must never raise, and twice must be once."""
    draw = random.Random(language)
    written = "0123456789.,:-$€%£' amuhrpst1stndrd"
    for _ in range(150):
        ranges = [0x110000, 0x3000, 0x250, 0x80]
        anything = "".join(chr(draw.randrange(draw.choice(ranges))) for _ in range(draw.randrange(14)))
        numbers = "".join(draw.choice(written) for _ in range(draw.randrange(24)))
        for text in (anything, numbers, anything + numbers):
            once = normalize(text, language)
            assert normalize(once, language) == once
            assert {c for c in once if c.isdecimal()} <= unexpected_characters(text, language)
            assert " ".join(piece[0] for piece in readings(text, language)) == once


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
