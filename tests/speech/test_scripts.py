"""What is counted as a word, shown as a line and found foreign, in any script."""

import pytest

from speech.scripts import join_words, primary_language, scripts_of, split_words
from speech.text import charset, speech_rate, spoken_length, unexpected_characters, words_of
from speech.transcript import Segment, Transcript, Word, columns


def test_a_word_is_a_character_where_a_script_has_no_spaces_and_what_stands_between_spaces_elsewhere() -> None:
    """One rule for WER, drift, dev scores and insertions; it goes by the character, so mixed text has both."""
    assert words_of("今日は、東京", "ja") == ["今", "日", "は", "東", "京"]
    assert words_of("我 用iPhone", "zh-TW") == ["我", "用", "iphone"]
    assert words_of("내일 전화해", "ko") == ["내일", "전화해"]
    assert words_of("Guten Tag.", "de") == ["guten", "tag"]
    assert words_of("กินน้ำเกาะ", "th") == ["กิ", "น", "น้ำ", "เกาะ"]
    assert words_of("ໄປນ້ຳ", "lo") == ["ໄປ", "ນ້ຳ"]
    assert words_of("မြန်မာ", "my") == ["မြ", "န်", "မာ"]
    assert split_words("") == words_of("", "ja") == []


@pytest.mark.parametrize("text", ["今日は東京", "กินน้ำok", "we go", "내일 전화해", "google mapsで東京", ""])
def test_words_are_joined_as_they_were_written(text: str) -> None:
    """A transcript that is cut into words and put together again must be the transcript."""
    assert join_words(split_words(text)) == text


@pytest.mark.parametrize(
    ("language", "text", "strange"),
    [
        ("ru", "привет cор", {"c"}),
        ("el", "καλημέρα oμορφα", {"o"}),
        ("ko", "내일 今日", {"今", "日"}),
        ("ja", "東京でlove Чай", set("чай")),
        ("zh", "你好 さようなら", set("さようなら")),
        ("hi", "कल রাত", {"র", "া", "ত"}),
        ("ar", "غدا مع а", {"а"}),
        ("tr", "ışık аç", {"а"}),
    ],
)
def test_letters_of_another_script_are_found_in_every_language(language: str, text: str, strange: set[str]) -> None:
    """A letter that only looks right teaches a model a second spelling."""
    assert unexpected_characters(text, language) == strange


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("ru", "ещё объём"),
        ("el", "πάρε την ημέρα"),
        ("ja", "コーヒーを飲む人々 tシャツ"),
        ("zh", "卡拉ok"),
        ("zh-Hant-TW", "龍"),
        ("cmn", "龙"),
        ("ko", "닭 ktx"),
        ("hi", "पाँच दफ़्तर"),
        ("ar", "مَرحباً"),
        ("sr", "ђак đak"),
        ("fa", "گچ پژ"),
        ("th", "สวัสดี"),
        ("uz", "oʻzbek"),
        ("haw", "ʻaʻole"),
        ("ca", "col·legi"),
        ("zh", "二〇二四年"),
        ("xx", "ж語"),
    ],
)
def test_ordinary_words_are_not_foreign(language: str, text: str) -> None:
    """A finding on every second row is no finding."""
    assert unexpected_characters(text, language) == set()


def test_a_tag_may_name_its_script_and_an_unknown_language_may_use_any() -> None:
    """CLDR knows where a language is written in several scripts."""
    assert scripts_of("sr-Latn") == {"Latn"}
    assert scripts_of("sr") == {"Cyrl", "Latn"}
    assert scripts_of("xx") == scripts_of("") == frozenset()
    assert primary_language("zh_Hant-TW") == "zh"
    assert primary_language("not a tag") is None
    assert {"ж", "語", "'", " "} <= charset("xx")


def test_speech_rates_are_alike_whatever_the_script() -> None:
    """Four Chinese characters a second are ordinary speech; counted as four letters they would look too slow."""
    assert spoken_length("ja ja") == 5
    assert spoken_length("한국") == 6
    assert spoken_length("はい") == 4
    assert speech_rate("是", 1.0) == 3.0
    assert 5 < speech_rate("北京天气怎么样", 1.8) < 25


def test_a_transcript_of_characters_reads_without_spaces_and_its_cues_end_at_pauses() -> None:
    """One cue over half a minute, or a space after each character, is no subtitle."""
    sentences, words, at = ["今天天气怎么样", "打开厨房的灯", "明天早上八点叫我起来"], [], 0.0
    for sentence in sentences:
        for character in sentence:
            words.append(Word(character, round(at, 2), round(at + 0.08, 2), 0.9))
            at += 0.25
        at += 1.0
    transcript = Transcript(
        language="zh",
        segments=(Segment(tuple(words), 0.0, at),),
        confidence=0.9,
        source_digest="0" * 64,
        duration_s=at,
    )
    assert transcript.text == transcript.segments[0].text == "".join(sentences)
    cues = [block.splitlines()[-1] for block in transcript.to_srt().split("\n\n")]
    assert cues == sentences


def test_a_line_of_thai_ends_between_syllables() -> None:
    """A vowel at the beginning of a line has no letter that it belongs to."""
    words = tuple(Word(text, n * 0.1, n * 0.1 + 0.1, 0.9) for n, text in enumerate(["เกาะ"] * 13))
    transcript = Transcript(
        language="th", segments=(Segment(words, 0, 3),), confidence=0.9, source_digest="0" * 64, duration_s=3
    )
    first, second = transcript.to_srt().splitlines()[2:]
    assert first + second == "เกาะ" * 13
    assert (first[-1], second[0]) == ("ะ", "เ")


def test_lines_of_subtitles_are_as_wide_in_every_script() -> None:
    """A Chinese character takes the room of two letters; a line of 42 of them leaves the picture."""
    text = "北" * 40
    words = tuple(Word(character, n * 0.1, n * 0.1 + 0.1, 0.9) for n, character in enumerate(text))
    transcript = Transcript(
        language="zh", segments=(Segment(words, 0, 4),), confidence=0.9, source_digest="0" * 64, duration_s=4
    )
    lines = transcript.to_srt().splitlines()[2:]
    assert "".join(lines) == text
    assert [columns(line) for line in lines] == [40, 40]
    assert columns("นี้") == 1
    assert columns("é") == columns("e\u0301") == 1
