"""Personal data in a transcript: found in its written form, replaced by a label, and silent in the audio.

What is looked for has a form of its own: card numbers (Luhn's check digit), IBANs (ISO 7064 check digits), telephone
numbers (Google's libphonenumber), social security numbers and e-mail addresses, by the pattern recognisers of Presidio.
Names, places and dates of birth have none, and are not found.

People say numbers with pauses, with the other's "yes" in between, and recognisers hear a digit wrong. So the words of
one speaker are looked at together across segments, digits and letters said apart are put together first, and a number
whose check digit is wrong counts all the same where shortly before somebody spoke of a card, a telephone, an IBAN.
"""

import functools
import itertools
import re
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from speech.audio.decode import SAMPLE_RATE
from speech.scripts import primary_language
from speech.transcript import Segment, Transcript, Word
from speech.understanding.written import digit_words, with_written_forms, written_line

PersonalData = Literal["CREDIT_CARD", "PHONE", "EMAIL", "IBAN", "SSN"]

SURE = 0.4  # Presidio's score from which a match needs nobody to have spoken of it
CONTEXT_S = 20.0  # how long what was spoken of counts: a question, an answer and a number said slowly
AFTER_S = 3.0  # "... is my mobile"
APART_S = 10.0  # after such a pause another number begins
LEAD_S = 0.6  # recognisers tell a word's end better than its beginning, which may be so much too late

_ENTITIES: Mapping[str, PersonalData] = {
    "CREDIT_CARD": "CREDIT_CARD",
    "PHONE_NUMBER": "PHONE",
    "EMAIL_ADDRESS": "EMAIL",
    "IBAN_CODE": "IBAN",
    "US_SSN": "SSN",
}
_REGIONS = {  # whose telephone numbers are said without the country's prefix
    "de": ("DE", "AT", "CH"),
    "en": ("US", "GB", "AU"),
    "es": ("ES", "MX"),
    "fr": ("FR", "BE"),
    "it": ("IT",),
    "pt": ("PT", "BR"),
}
# Matches that only count where one of the words was said. "number" is none: orders and parcels have one, too.
_SPOKEN_OF: Mapping[PersonalData, frozenset[str]] = {
    "CREDIT_CARD": frozenset(
        "card cards credit debit visa mastercard amex maestro karte kreditkarte kartennummer kreditkartennummer".split()
    ),
    "PHONE": frozenset(
        "phone telephone cell cellphone mobile call dial reach telefon telefonnummer handy handynummer mobilnummer "
        "rufnummer anrufen erreichen teléfono móvil téléphone portable telefono cellulare".split()
    ),
    "EMAIL": frozenset("email e-mail mail mailadresse e-mail-adresse emailadresse correo courriel".split()),
    "IBAN": frozenset(("iban",)),
    "SSN": frozenset("social security ssn".split()),
}
_WEAK: Mapping[str, str] = {
    "CREDIT_CARD": r"\b\d{12,30}\b",
    "PHONE_NUMBER": r"(?<!\w)\+?\d{6,15}\b",
    "IBAN_CODE": r"\b[A-Z]{2}\d{2}[A-Z0-9]{10,30}\b",
    "EMAIL_ADDRESS": r"\b[\w.+-]+(?: \d+)* (?:at|ät|arroba|arobase) [\w-]+(?:(?:\.| dot | punkt | punto | point )\w+)+",
}
_FILLERS = frozenset("uh um er hm okay ok yes yeah right äh ähm ja genau".split())
_DIGITS = re.compile(r"\+?\d[\d,.\-/]*")


def redacted(transcript: Transcript, kinds: Collection[PersonalData]) -> Transcript:
    """The transcript with a label such as `[PHONE]` in place of each find, also of written forms; words keep times.

    The words of a find become one in each segment, so not even their number is told.
    """
    found: dict[int, dict[int, PersonalData]] = {}
    for kind, word in _finds(list(_said(transcript)), primary_language(transcript.language) or "", kinds):
        found.setdefault(word.segment, {}).setdefault(word.place, kind)
    segments = [_labelled(segment, found.get(at, {})) for at, segment in enumerate(transcript.segments)]
    return replace(transcript, segments=tuple(segments))


def kinds_in(transcripts: Iterable[Transcript]) -> Counter[str]:
    """How many words stand for personal data of each kind."""
    return Counter(word.redacted for said in transcripts for word in said.words if word.redacted)


def silences(transcript: Transcript, padding_s: float) -> list[tuple[float, float]]:
    """Where in the recording a redacted copy is silent, in seconds: on all channels, since each hears the others.

    Between two labels with no word between them it is silent, too: a digit that was not recognised may be heard there.
    """
    by_channel: dict[int | None, list[Word]] = {}
    for word in sorted(transcript.words, key=lambda word: word.start_s):
        by_channel.setdefault(word.channel, []).append(word)
    found: list[tuple[float, float]] = []
    for words in by_channel.values():
        before = Word("", 0.0, 0.0, 1.0)
        for word in words:
            if word.redacted and before.redacted and word.start_s - before.end_s <= APART_S:
                found[-1] = (found[-1][0], max(found[-1][1], word.end_s + padding_s))
            elif word.redacted:
                start_s = min(max(before.end_s, word.start_s - LEAD_S), word.start_s - padding_s)
                found.append((max(0.0, start_s), word.end_s + padding_s))
            before = word
    return sorted(found)


def silenced(samples: np.ndarray, start_s: float, silent: Iterable[tuple[float, float]]) -> np.ndarray:
    """A copy of samples (float32 [n], 16 kHz) that begin at `start_s` of a recording, with silence at those times."""
    copy = samples.copy()
    for first_s, last_s in silent:
        first, last = (max(0, round((at_s - start_s) * SAMPLE_RATE)) for at_s in (first_s, last_s))
        copy[first:last] = 0.0
    return copy


def _labelled(segment: Segment, kinds: Mapping[int, PersonalData]) -> Segment:
    if not kinds:
        return segment
    words: list[Word] = []
    for kind, group in itertools.groupby(enumerate(segment.words), lambda item: kinds.get(item[0])):
        said = [word for _, word in group]
        if kind is None:
            words += said
            continue
        first, last, label = said[0], said[-1], f"[{kind}]"
        score = round(sum(word.confidence for word in said) / len(said), 4)
        form = None if first.written is None else label
        words.append(replace(first, text=label, end_s=last.end_s, confidence=score, written=form, redacted=kind))
    line = None if segment.written is None else written_line(words)
    return replace(segment, words=tuple(words), confidence=round(segment.score, 4), written=line)


@dataclass(frozen=True)
class _Spot:
    """Where in its transcript a word is."""

    segment: int
    place: int


@dataclass(frozen=True)
class _Said:
    """Words that are written as one, by whom and when."""

    form: str
    words: tuple[_Spot, ...]
    start_s: float
    end_s: float
    voice: tuple[str | None, int | None]


def _said(transcript: Transcript) -> Iterator[_Said]:
    for at, segment in enumerate(transcript.segments):
        if segment.written is None:
            segment = with_written_forms(segment, segment.language or transcript.language)
        firsts = [n for n, word in enumerate(segment.words) if not n or word.written != ""] + [len(segment.words)]
        for first, end in itertools.pairwise(firsts):
            word = segment.words[first]
            yield _Said(
                form=word.text if word.written is None else word.written,
                words=tuple(_Spot(at, place) for place in range(first, end)),
                start_s=word.start_s,
                end_s=segment.words[end - 1].end_s,
                voice=(word.speaker or segment.speaker, word.channel),
            )


def _finds(
    everything: Sequence[_Said], language: str, kinds: Collection[PersonalData]
) -> Iterator[tuple[PersonalData, _Spot]]:
    """The words that belong to personal data, those of sure finds first."""
    spoken_of = {
        kind: [said.start_s for said in everything if said.form.lower().strip(".,:;!?") in _SPOKEN_OF[kind]]
        for kind in kinds
    }
    unsure = []
    for run in _runs(everything):
        for kind, score, found in _matches(run, language, kinds):
            spots = [(kind, spot) for said in found for spot in said.words]
            if score >= SURE:
                yield from spots
            elif any(found[0].start_s - CONTEXT_S <= at_s <= found[-1].end_s + AFTER_S for at_s in spoken_of[kind]):
                unsure += spots
    yield from unsure


def _runs(everything: Sequence[_Said]) -> Iterator[list[_Said]]:
    """What one speaker says without a long pause, whatever others say meanwhile."""
    by_voice: dict[tuple[str | None, int | None], list[_Said]] = {}
    for said in sorted(everything, key=lambda said: said.start_s):
        by_voice.setdefault(said.voice, []).append(said)
    for of_one in by_voice.values():
        run = of_one[:1]
        for before, said in itertools.pairwise(of_one):
            if said.start_s - before.end_s > APART_S:
                yield run
                run = []
            run.append(said)
        yield run


def _matches(
    run: Sequence[_Said], language: str, kinds: Collection[PersonalData]
) -> Iterator[tuple[PersonalData, float, Sequence[_Said]]]:
    """What the recognisers find in a run, and how sure each is of it."""
    digits = digit_words(language)
    texts = dict((_plain(run), _together(run, digits, letters=False), _together(run, digits, letters=True)))
    for text, places in texts.items():
        if not any(sign.isdigit() or sign in "@." for sign in text):
            continue
        for recognizer in _recognizers(language):
            kind = _ENTITIES[recognizer.supported_entities[0]]
            for match in recognizer.analyze(text, recognizer.supported_entities, None) if kind in kinds else ():
                found = [n for n, (first, last) in enumerate(places) if first < match.end and last > match.start]
                # "smith one two three at ..." is written "smith 123@...": digits alone are nobody's address
                named = found[0] > 0 and kind == "EMAIL" and text[match.start : match.end].split("@")[0].isdigit()
                yield kind, match.score, run[found[0] - named : found[-1] + 1]


def _plain(run: Sequence[_Said]) -> tuple[str, list[tuple[int, int]]]:
    """The run as one text, and where in it each part stands."""
    return _laid_out((said.form, " ") for said in run)


def _together(run: Sequence[_Said], digits: Mapping[str, str], *, letters: bool) -> tuple[str, list[tuple[int, int]]]:
    """The run with digits, and `letters` said one by one, put together over what is only said to fill a pause."""
    lower = [said.form.lower().strip(".,!?") for said in run]
    numbers = [
        re.sub(r"[\s,./-]", "", said.form) if _DIGITS.fullmatch(said.form) else digits.get(form, "")
        for said, form in zip(run, lower, strict=True)
    ]
    parts, joins = [], False
    for place, said in enumerate(run):
        country = len(said.form) == 2 and any(numbers[place + 1 : place + 2])  # which some models write in one
        spelled = letters and said.form.isalpha() and (len(said.form) == 1 or country)
        together = numbers[place] or (said.form.upper() if spelled else "")
        if joins and lower[place] in _FILLERS:
            parts.append(("", ""))
            continue
        parts.append((together or said.form, "" if joins and together else " "))
        joins = bool(together)
    return _laid_out(parts)


def _laid_out(parts: Iterable[tuple[str, str]]) -> tuple[str, list[tuple[int, int]]]:
    text, places = "", []
    for part, before in parts:
        text += before if text else ""
        places.append((len(text), len(text) + len(part)))
        text += part
    return text, places


@functools.cache
def _recognizers(language: str) -> tuple[Any, ...]:
    """Presidio's recognisers of forms, the sure ones first; its analyser would want a model of the language."""
    import tldextract

    with _without("transformers"):  # for a recogniser of names, which is not used: 12 of 19 seconds
        from presidio_analyzer import Pattern, PatternRecognizer
        from presidio_analyzer import predefined_recognizers as known

    suffixes = tldextract.TLDExtract(cache_dir=None, suffix_list_urls=())  # those of its package: nothing is fetched

    class EmailRecognizer(known.EmailRecognizer):
        def validate_result(self, pattern_text: str) -> bool:
            return bool(suffixes(pattern_text).fqdn)

    return (
        known.CreditCardRecognizer(),
        known.IbanRecognizer(),
        EmailRecognizer(),
        known.UsSsnRecognizer(),
        known.PhoneRecognizer(supported_regions=_REGIONS.get(language) or _region(language)),
        *(
            PatternRecognizer(entity, patterns=[Pattern("spoken of", pattern, 0.05)])
            for entity, pattern in _WEAK.items()
        ),
    )


def _region(language: str) -> tuple[str, ...]:
    """Where most speakers of a language live, by CLDR; none for a language that it does not know."""
    from babel.core import get_global

    return tuple(part for part in get_global("likely_subtags").get(language, "").split("_")[1:] if len(part) == 2)


@contextmanager
def _without(module: str) -> Iterator[None]:
    """While this lasts, importing the module fails, unless it has been already."""
    hidden = module not in sys.modules
    if hidden:
        sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if hidden:
            del sys.modules[module]
