"""What is none of a deployment's languages: other languages, and sound in which nobody speaks.

A model that has only ever heard English and German calls Japanese one of the two, and surely. So a language model also
learns what is neither. Speech of other languages comes from espeak-ng, which reads numbers in its languages without a
text of ours; the languages are in three sets, so that a model is judged on languages that it has never heard.

Synthetic voices stand in for people here: that a model calls espeak-ng's Latvian unknown does not say that it does so
for a Latvian. A deployment's own recordings of other languages are the better background.
"""

import contextlib
import random
import zlib
from collections.abc import Iterable, Iterator
from typing import Literal

import numpy as np

from speech.corpus.synthetic import Samples, Speaker, Voicebox, noise

RATE = 16_000
# By set; each of them holds several families and writing systems, and close relatives of common languages.
FOREIGN = {
    "train": "ar bn cmn cs cy el et eu fa fi fr hi hu id it ka ko nl pl ro ru sv sw ta tr uk vi es en de".split(),
    "dev": "gu hr is kk lt mk nb si sl ur".split(),
    "test": "bg ca da hy lv mr ms pt sk sq te".split(),
}
VARIANTS = {
    "train": "m1 m2 m3 m4 f1 f2 f3 Andy Annie".split(),
    "dev": "m6 f4".split(),
    "test": "m7 m8 f5 Alex linda".split(),
}
Set = Literal["train", "dev", "test"]


def foreign(split: Set, known: Iterable[str]) -> tuple[str, ...]:
    """The languages of a set that are none of the known ones, each by the tag that espeak-ng has for it."""
    taken = {{"zh": "cmn", "no": "nb"}.get(tag, tag) for tag in known}
    return tuple(tag for tag in FOREIGN[split] if tag not in taken)


def numbers_read(languages: Iterable[str], each: int, split: Set, seed: int = 0) -> Iterator[tuple[str, Samples]]:
    """So many clips of numbers read aloud in each language: its tag, and float32 [n] at 16 kHz, some 2 to 6 s long.

    Voices of one set are those of no other. The same arguments give the same samples. Raises SynthesisError.
    """
    with contextlib.closing(Voicebox()) as box:
        for language in languages:
            for number in range(each):
                draw = random.Random(f"{seed} {split} {language} {number}")
                waves = np.random.default_rng([seed, zlib.crc32(f"{split} {language} {number}".encode())])
                voice = draw.choice(VARIANTS[split])
                speech = box.say(_numbers(draw), _speaker(language, voice, draw), RATE)
                level = float(np.sqrt(np.mean(speech**2))) * 10 ** (-draw.uniform(12.0, 40.0) / 20)
                yield language, (speech + noise(len(speech), RATE, waves) * level).astype(np.float32)


def _numbers(draw: random.Random) -> str:
    """Digits, years, prices and large numbers, as numerals: each language has its own words for them."""
    kinds = (lambda: draw.randint(0, 20), lambda: draw.randint(21, 999), lambda: draw.randint(1000, 999_999))
    return ", ".join(str(draw.choice(kinds)()) for _ in range(draw.randint(2, 4)))


def _speaker(language: str, variant: str, draw: random.Random) -> Speaker:
    high = variant.startswith("f") or variant in ("Annie", "linda")
    return Speaker(
        name="",
        gender="female" if high else "male",
        voice=f"{language}+{variant}",
        pitch=draw.randint(30, 70),
        pitch_range=draw.randint(30, 70),
        words_per_minute=draw.randint(125, 190),
        vocal_tract=round(draw.uniform(0.92, 1.1), 3),
    )


def music(seconds: float, seed: int) -> Samples:
    """Chords and a tune of plucked tones: float32 [n] at 16 kHz."""
    draw = np.random.default_rng([seed, 0x6D75])
    count = round(seconds * RATE)
    signal = np.zeros(count, np.float64)
    beat_s = draw.uniform(0.2, 0.6)
    scale = 220.0 * 2 ** (np.array([0, 2, 4, 5, 7, 9, 11, 12]) / 12) * 2 ** draw.uniform(-1, 1)
    for start in np.arange(0.0, seconds, beat_s):
        for pitch in draw.choice(scale, draw.integers(1, 4), replace=False):
            first = round(start * RATE)
            times = np.arange(min(count - first, round(1.5 * RATE))) / RATE
            tone = sum(np.sin(2 * np.pi * pitch * h * times) / h**1.5 for h in range(1, 6))
            signal[first : first + len(times)] += tone * np.exp(-times * draw.uniform(2.0, 6.0))
    loudest = float(np.abs(signal).max(initial=1e-9))
    return (signal / loudest * 10 ** (-draw.uniform(3.0, 30.0) / 20)).astype(np.float32)
