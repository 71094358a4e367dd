"""How characters are spelt that a model has no piece for, so that few pieces write any script.

- A Hangul syllable is taken apart into 41 letters (Unicode's conjoining jamo, compounds of them apart again): which
  letter begins and which ends a syllable shows, so that they go together again in one way only.
- Of other scripts the frequent characters have pieces. A rare one is spelt in three digits, of which the first comes
  from a set of its own, as the first byte does in UTF-8: a wrong digit spoils one character and no neighbour. (Bytes
  themselves would take 256 pieces, more than a small model has.) Digits are Braille patterns, which nothing that is
  read aloud holds.

The tables of a spelling become rules inside a sentencepiece model, which then spells and reads by itself.
"""

import itertools
import unicodedata
from collections.abc import Iterable, Mapping

UNREADABLE = "\N{REPLACEMENT CHARACTER}"  # what digits are read as that make no character
DIGITS = 3  # of a spelt character
_FIRST_DIGITS = "".join(map(chr, range(0x2800, 0x2880)))
_OTHER_DIGITS = "".join(map(chr, range(0x2880, 0x2900)))
_COMPOUNDS = {
    "ᄁ": "ᄀᄀ", "ᄄ": "ᄃᄃ", "ᄈ": "ᄇᄇ", "ᄊ": "ᄉᄉ", "ᄍ": "ᄌᄌ",
    "ᅤ": "ᅣᅵ", "ᅨ": "ᅧᅵ", "ᅪ": "ᅩᅡ", "ᅫ": "ᅩᅢ", "ᅬ": "ᅩᅵ", "ᅯ": "ᅮᅥ", "ᅰ": "ᅮᅦ", "ᅱ": "ᅮᅵ", "ᅴ": "ᅳᅵ",
    "ᆩ": "ᆨᆨ", "ᆪ": "ᆨᆺ", "ᆬ": "ᆫᆽ", "ᆭ": "ᆫᇂ", "ᆰ": "ᆯᆨ", "ᆱ": "ᆯᆷ", "ᆲ": "ᆯᆸ", "ᆳ": "ᆯᆺ", "ᆴ": "ᆯᇀ", "ᆵ": "ᆯᇁ",
    "ᆶ": "ᆯᇂ", "ᆹ": "ᆸᆺ",
}  # fmt: skip
_SYLLABLES = ("가", "힣")


def is_syllable(character: str) -> bool:
    """Whether a character is a Hangul syllable."""
    return _SYLLABLES[0] <= character <= _SYLLABLES[1]


def hangul() -> dict[str, str]:
    """Every Hangul syllable, with its letters."""
    syllables = map(chr, range(ord(_SYLLABLES[0]), ord(_SYLLABLES[1]) + 1))
    return {
        syllable: "".join(_COMPOUNDS.get(letter, letter) for letter in unicodedata.normalize("NFD", syllable))
        for syllable in syllables
    }


def lone_letters(letters: Iterable[str]) -> dict[str, str]:
    """Letters of syllables, with how they are written where no syllable comes about."""
    # Unicode names them "HANGUL CHOSEONG KIYEOK", "HANGUL JONGSEONG KIYEOK" and "HANGUL LETTER KIYEOK"
    names = {letter: unicodedata.name(letter).split(" ", 2)[-1] for letter in letters}
    return {letter: unicodedata.lookup(f"HANGUL LETTER {name}") for letter, name in names.items()}


def digits_for(characters: int) -> tuple[int, int]:
    """How many first and other digits spell that many characters: as few in all as do. None: (0, 0)."""
    if not characters:
        return 0, 0
    sizes = ((-(-characters // others**2), others) for others in range(1, len(_OTHER_DIGITS) + 1))
    return min((size for size in sizes if size[0] <= len(_FIRST_DIGITS)), key=lambda size: (sum(size), size))


def spelt(characters: Iterable[str]) -> dict[str, str]:
    """A spelling for each of these characters, in their order."""
    wanted = list(characters)
    first, others = digits_for(len(wanted))
    codes = itertools.product(_FIRST_DIGITS[:first], _OTHER_DIGITS[:others], _OTHER_DIGITS[:others])
    return {character: "".join(code) for character, code in zip(wanted, codes, strict=False)}


def reading(spelling: Mapping[str, str]) -> dict[str, str]:
    """The way back: from digits and letters to characters, and from what makes none to a sign that shows it.

    To be applied to the longest match first.
    """
    symbols = {symbol for code in spelling.values() for symbol in code}
    digits = {symbol for symbol in symbols if symbol in _FIRST_DIGITS or symbol in _OTHER_DIGITS}
    back = dict.fromkeys(digits, UNREADABLE) | lone_letters(symbols - digits)
    return back | {code: character for character, code in spelling.items()}


def goes_on(piece: str) -> bool:
    """Whether a piece begins within a spelt character, or with a mark that belongs to the character before it."""
    return bool(piece) and (piece[0] in _OTHER_DIGITS or unicodedata.category(piece[0])[0] == "M")
