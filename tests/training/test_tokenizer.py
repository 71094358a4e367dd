"""Pieces for any script: never more than asked, whole characters back, and what a script needs said beforehand."""

import itertools
import random
from pathlib import Path
from typing import Any

import pytest

from speech.bundle import NETWORK, TOKENIZER, Description, ModelBundle, write_bundle
from speech.recognition.decoder import Token
from speech.recognition.words import WordSpeller
from speech.spelling import DIGITS, UNREADABLE, digits_for, goes_on, hangul, reading, spelt
from tests.toy_bundle import write_toy_bundle
from training.recipe import TrainingError
from training.tokenizer import coverage_of, train_tokenizer

TEXTS = {
    "ru": ["позвони маме завтра", "съешь ещё этих мягких французских булок да выпей же чаю", "объём цифр"],
    "el": ["πάρε τηλέφωνο αύριο", "ξεσκεπάζω την ψυχοφθόρα βδελυγμία", "καλημέρα"],
    "tr": ["yarın beni ara", "pijamalı hasta yağız şoföre çabucak güvendi"],
    "ar": ["اتصل بي غدا", "نص حكيم له سر قاطع وذو شأن عظيم مكتوب على ثوب أخضر ومغلف بجلد أزرق"],
    "hi": ["कल मुझे फ़ोन करो", "ऋषियों को सताने वाले दुष्ट राक्षसों के राजा रावण का सर्वनाश करने वाले", "पाँच छह"],
    "ko": ["내일 전화해 주세요", "까닭 없이 읽고 앉아 왜 의사에게 값을 물었어요", "괜찮습니다 뵙겠습니다"],
    "ja": ["明日電話してください", "東京の天気はどうですか", "コーヒーを三つ"],
    "zh": ["明天给我打电话", "北京天气怎么样", "打开厨房的灯"],
    "xx": ["слово word 語 말"],
}


def _pieces(folder: Path, language: str, size: int, texts: list[str] | None = None) -> Any:
    from sentencepiece import SentencePieceProcessor

    model = train_tokenizer((texts or TEXTS[language]) * 3, language, folder, size)
    return SentencePieceProcessor(model_file=str(model))


@pytest.mark.parametrize("size", [48, 256])
@pytest.mark.parametrize("language", sorted(TEXTS))
def test_pieces_are_never_more_than_asked_and_give_the_text_back(tmp_path: Path, language: str, size: int) -> None:
    """A piece for each of Unicode's letters made a network twelve times as large, which learnt nothing."""
    pieces = _pieces(tmp_path, language, size)
    assert len(pieces) <= size
    assert len((tmp_path / "vocab.txt").read_text("utf-8").splitlines()) == len(pieces) - 1
    for text in TEXTS[language]:
        symbols = pieces.encode(text)
        assert pieces.unk_id() not in symbols
        assert pieces.decode(symbols) == text
        assert pieces.decode_pieces([pieces.id_to_piece(symbol) for symbol in symbols]) == text


@pytest.mark.parametrize(
    ("language", "unheard"), [("ko", "뷁 쫓다"), ("ru", "їжак"), ("ru", "об'єм"), ("hi", "ॠ"), ("ar", "پچ")]
)
def test_letters_that_the_training_text_did_not_hold_can_be_written(
    tmp_path: Path, language: str, unheard: str
) -> None:
    """The next quarter's text is continued from this tokenizer."""
    pieces = _pieces(tmp_path, language, 256)
    assert pieces.decode(pieces.encode(unheard)) == unheard


def test_rare_characters_of_a_large_script_are_spelt_also_those_never_heard(tmp_path: Path) -> None:
    """Each quarter brings names with characters that no earlier one held."""
    rare = [chr(0x4E00 + 37 * n) for n in range(40)]
    texts = ["的一是不了在人有我他这中大来上国" * 99, *rare]
    pieces = _pieces(tmp_path, "zh", 512, texts)
    assert len(pieces) <= 512
    for character in [*rare, "龍", "鱷"]:
        assert pieces.decode(pieces.encode(character)) == character
    tight = _pieces(tmp_path / "tight", "zh", 40, texts)
    assert len(tight) <= 40
    assert all(tight.decode(tight.encode(character)) == character for character in rare)


@pytest.mark.parametrize("language", ["zh", "ja"])
def test_a_script_that_needs_more_pieces_says_how_many_before_training(language: str) -> None:
    """Found after a night of training it is a night too late."""
    draw = random.Random(5)
    characters = [chr(0x4E00 + n) for n in range(3_000)]
    texts = ["".join(draw.choices(characters, weights=[1 / (n + 10) for n in range(3_000)], k=12)) for _ in range(900)]
    with pytest.raises(TrainingError, match=r"distinct characters.*cover \d.*%.*vocabulary_size \d,\d\d\d covers"):
        coverage_of(texts, language, 48)
    advised = coverage_of(texts, language, 2_500).advised
    enough = coverage_of(texts, language, advised)
    assert enough.share >= 0.9995
    some = coverage_of(texts, language, advised * 9 // 10)
    assert 0.95 < some.share < 1
    assert f"{advised:,}" in some.finding


def test_a_text_whose_characters_all_have_pieces_needs_no_finding() -> None:
    """A warning at every training would be read at none."""
    for language in ("ru", "el", "tr", "ko"):
        assert coverage_of(TEXTS[language], language, 48).finding == "", language


def test_tokenizers_of_equal_texts_are_equal_bytes_whatever_spells_them(tmp_path: Path) -> None:
    """The rules of a spelling come from files whose place must not be in the model."""
    for language in ("ko", "ru"):
        first = train_tokenizer(TEXTS[language], language, tmp_path / "a", 200).read_bytes()
        assert train_tokenizer(TEXTS[language][::-1], language, tmp_path / "b", 200).read_bytes() == first
        assert b".tsv" not in first


def test_every_syllable_and_every_spelling_is_read_in_one_way_only() -> None:
    """Two characters with one spelling would be exchanged in silence."""
    syllables = hangul()
    assert len(set(syllables.values())) == len(syllables) == 11_172
    assert len({letter for letters in syllables.values() for letter in letters}) == 41
    for count in (1, 2, 5, 100, 28_000):
        characters = [chr(0x4E00 + n) for n in range(count)]
        spelling = spelt(characters)
        assert list(spelling) == characters
        assert len(set(spelling.values())) == count
        assert sum(digits_for(count)) <= max(3, 3 * count ** (1 / 3) + 3)
        for code in spelling.values():
            assert [goes_on(digit) for digit in code] == [False] + [True] * (DIGITS - 1)
        back = reading(spelling)
        assert all(back[code] == character for character, code in spelling.items())


@pytest.fixture(scope="module")
def chinese(tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    """A bundle whose tokenizer has pieces for frequent characters and spells the others."""
    folder = tmp_path_factory.mktemp("zh")
    rare = ["龍", "鱷", *(chr(0x4E00 + 53 * n) for n in range(58))]
    texts = ["今天天气怎么样打开厨房的灯" * 99, *rare]
    # room for the twelve frequent characters and the digits of the others, and for nothing else
    size = 2 + 12 + sum(digits_for(12 + len(rare)))
    return _with_tokenizer(folder, train_tokenizer(texts, "zh", folder / "tokenizer", size))


def _with_tokenizer(folder: Path, tokenizer: Path) -> ModelBundle:
    from sentencepiece import SentencePieceProcessor

    toy = write_toy_bundle(folder / "toy")
    pieces = SentencePieceProcessor(model_file=str(tokenizer))
    (folder / "bundle").mkdir()
    (folder / "bundle" / NETWORK).write_bytes(toy.read(NETWORK))
    (folder / "bundle" / TOKENIZER).write_bytes(tokenizer.read_bytes())
    description = Description(
        language="zh",
        name="spelling",
        features=toy.features,
        geometry=toy.geometry,
        vocabulary=tuple(pieces.id_to_piece(index) for index in range(len(pieces))),
    )
    return write_bundle(folder / "bundle", description)


def _said(symbols: list[int]) -> list[Token]:
    return [Token(symbol, 2 * at, 2 * at, 0.9) for at, symbol in enumerate(symbols)]


def test_words_without_spaces_are_the_characters_in_order_each_with_its_own_time(chinese: ModelBundle) -> None:
    """One word over a whole recording has no times, no confidence and no subtitles."""
    speller = WordSpeller(chinese)
    text = "今天龍打开灯鱷怎么样"
    words = speller.words(_said(speller.pieces_of(text)))
    assert "".join(word.text for word in words) == text
    assert len(words) >= len(text) / 4
    assert {"龍", "鱷"} <= {word.text for word in words}
    for before, after in itertools.pairwise(words):
        assert before.end_s <= after.start_s


def test_a_thai_word_is_never_a_vowel_alone(tmp_path: Path) -> None:
    """Thai writes some vowels before their letter and some behind it; cut off, they begin a line of subtitles."""
    texts = ["กินน้ำเกาะ", "เก่าและใหม่", "ไปโน่น"]
    speller = WordSpeller(_with_tokenizer(tmp_path, train_tokenizer(texts, "th", tmp_path / "tokenizer", 64)))
    words = speller.words(_said(speller.pieces_of("กินน้ำเกาะไปและเก่า")))
    assert len(words) >= 6
    for before, after in itertools.pairwise(words):
        assert before.text[-1] not in "เแโใไ"
        assert after.text[0] not in "ะาำ"


def test_digits_that_spell_no_character_are_shown_and_never_trusted(chinese: ModelBundle) -> None:
    """A network may write anything: what cannot be read must look so, and cost neither neighbour nor an exception."""
    speller = WordSpeller(chinese)
    before, dragon, after = (
        [symbol for symbol in speller.pieces_of(text) if chinese.vocabulary[symbol] != "▁"]
        for text in ("今天", "龍", "灯")
    )
    whole = [*before, *dragon, *after]
    assert len(dragon) == DIGITS
    for place in range(len(before), len(before) + DIGITS):
        words = speller.words(_said(whole[:place] + whole[place + 1 :]))
        text = "".join(word.text for word in words)
        assert text.replace(UNREADABLE, "") == "今天灯"
        assert UNREADABLE in text
        assert all(word.confidence == (0.0 if UNREADABLE in word.text else 0.9) for word in words)
    draw = random.Random(3)
    for _ in range(300):
        symbols = [draw.randrange(len(chinese.vocabulary)) for _ in range(draw.randrange(1, 12))]
        for word in speller.words(_said(symbols)):
            assert word.text
            assert not any("\u2800" <= character <= "\u28ff" for character in word.text)


def test_syllables_come_together_again_and_lone_letters_stand_alone(tmp_path: Path) -> None:
    """Letters that make no syllable are shown as Korean writes them, not as parts that no font joins."""
    bundle = _with_tokenizer(tmp_path, train_tokenizer(TEXTS["ko"], "ko", tmp_path / "tokenizer", 48))
    speller = WordSpeller(bundle)
    symbols = speller.pieces_of("까닭 없이")
    assert [word.text for word in speller.words(_said(symbols))] == ["까닭", "없이"]
    draw = random.Random(4)
    for _ in range(200):
        drawn = [draw.randrange(1, len(bundle.vocabulary)) for _ in range(9)]
        text = "".join(word.text for word in speller.words(_said(drawn)))
        assert not any("\u1100" <= character <= "\u11ff" for character in text)
