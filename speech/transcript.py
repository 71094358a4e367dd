"""The transcript: one schema for batch results, streaming finals and review, and the formats people take it away in.

Subtitle formats (SRT, WebVTT) hold what a reader sees, CTM and RTTM what a scorer reads. None of them holds
everything; the JSON form does, and is the only one that can be read back.
"""

import itertools
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from speech.scripts import is_unspaced, join_words
from speech.segments import phrases

SCHEMA_VERSION = 1
CUE_SECONDS = 6.0  # subtitles change about this often at the slowest
CUE_LINE = 42  # columns of one line of subtitles, what broadcasters hold to
CUE_COLUMNS = 2 * CUE_LINE
SHORTEST_CUE_S = 0.001  # players reject a cue that ends when it begins


class TranscriptError(ValueError):
    """A document that is not a transcript of a schema this version reads."""


@dataclass(frozen=True)
class Word:
    """One recognised word; times in seconds from the start of the recording."""

    text: str
    start_s: float
    end_s: float
    confidence: float  # probability of being right, 0 to 1
    speaker: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The word as JSON-ready values."""
        return {
            "text": self.text,
            "start_s": self.start_s,
            "end_s": self.end_s,
            "confidence": self.confidence,
            "speaker": self.speaker,
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> "Word":
        """The word that :meth:`to_json` wrote."""
        return cls(
            str(row["text"]),
            float(row["start_s"]),
            float(row["end_s"]),
            float(row["confidence"]),
            _text_or_none(row.get("speaker")),
        )


@dataclass(frozen=True)
class Intent:
    """What the speaker wants, with the values that belong to it."""

    name: str
    confidence: float
    slots: Mapping[str, str] = field(default_factory=dict, hash=False)

    def to_json(self) -> dict[str, Any]:
        """The intent as JSON-ready values."""
        return {"name": self.name, "confidence": self.confidence, "slots": dict(sorted(self.slots.items()))}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> "Intent":
        """The intent that :meth:`to_json` wrote."""
        slots = {str(key): str(value) for key, value in (row.get("slots") or {}).items()}
        return cls(str(row["name"]), float(row["confidence"]), slots)


@dataclass(frozen=True)
class Segment:
    """A stretch of one speaker, between two pauses."""

    words: tuple[Word, ...]
    start_s: float
    end_s: float
    speaker: str | None = None
    confidence: float | None = None  # None: the mean of the words
    written: str | None = None  # the words as people write them: "$42" for "forty two dollars"
    intent: Intent | None = None

    @property
    def text(self) -> str:
        """The words as recognised, with single spaces where the script sets any."""
        return join_words(word.text for word in self.words)

    @property
    def score(self) -> float:
        """The segment's confidence; 0 for a segment without words."""
        if self.confidence is not None:
            return self.confidence
        return sum(word.confidence for word in self.words) / len(self.words) if self.words else 0.0

    def to_json(self) -> dict[str, Any]:
        """The segment as JSON-ready values."""
        return {
            "start_s": self.start_s,
            "end_s": self.end_s,
            "speaker": self.speaker,
            "confidence": self.confidence,
            "text": self.text,
            "written": self.written,
            "intent": self.intent.to_json() if self.intent else None,
            "words": [word.to_json() for word in self.words],
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> "Segment":
        """The segment that :meth:`to_json` wrote."""
        confidence, intent = row.get("confidence"), row.get("intent")
        return cls(
            words=tuple(Word.from_json(word) for word in row["words"]),
            start_s=float(row["start_s"]),
            end_s=float(row["end_s"]),
            speaker=_text_or_none(row.get("speaker")),
            confidence=None if confidence is None else float(confidence),
            written=_text_or_none(row.get("written")),
            intent=None if intent is None else Intent.from_json(intent),
        )


@dataclass(frozen=True, kw_only=True)
class Transcript:
    """What was said in one recording, by whom and when, and which models say so."""

    language: str
    segments: tuple[Segment, ...]
    confidence: float  # calibrated probability that a word is right, over the whole recording
    source_digest: str  # sha256 of the recording
    duration_s: float
    models: Mapping[str, str] = field(default_factory=dict, hash=False)  # role -> name, version or digest
    language_confidence: float | None = None
    schema_version: int = SCHEMA_VERSION

    @property
    def text(self) -> str:
        """All words in order, one line."""
        return join_words(segment.text for segment in self.segments if segment.words)

    @property
    def words(self) -> tuple[Word, ...]:
        """All words in order; a word without a speaker has its segment's."""
        return tuple(word for segment in self.segments for word in _words_with_speaker(segment))

    def to_json(self) -> dict[str, Any]:
        """The transcript as JSON-ready values; the only form that holds everything."""
        return {
            "schema_version": self.schema_version,
            "language": self.language,
            "language_confidence": self.language_confidence,
            "confidence": self.confidence,
            "duration_s": self.duration_s,
            "source_digest": self.source_digest,
            "models": dict(sorted(self.models.items())),
            "text": self.text,
            "segments": [segment.to_json() for segment in self.segments],
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> "Transcript":
        """The transcript that :meth:`to_json` wrote.

        Raises TranscriptError for anything else, and for a schema version that this code does not know: a field that
        is silently ignored is a correction that is silently lost.
        """
        version = row.get("schema_version") if isinstance(row, Mapping) else None
        if version != SCHEMA_VERSION:
            raise TranscriptError(f"schema version {version!r} cannot be read; this code reads {SCHEMA_VERSION}")
        try:
            language_confidence = row.get("language_confidence")
            return cls(
                language=str(row["language"]),
                segments=tuple(Segment.from_json(segment) for segment in row["segments"]),
                confidence=float(row["confidence"]),
                source_digest=str(row["source_digest"]),
                duration_s=float(row["duration_s"]),
                models={str(role): str(name) for role, name in (row.get("models") or {}).items()},
                language_confidence=None if language_confidence is None else float(language_confidence),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise TranscriptError(f"is not a transcript: {type(error).__name__} at {error}") from error

    def to_srt(self) -> str:
        """SubRip subtitles."""
        blocks = []
        for number, cue in enumerate(_cues(self), start=1):
            text = "\n".join(_wrapped(_srt_text(cue.text)))
            blocks.append(f"{number}\n{_clock(cue.start_s, ',')} --> {_clock(cue.end_s, ',')}\n{text}\n")
        return "\n".join(blocks)

    def to_vtt(self) -> str:
        """WebVTT subtitles, with speakers as voice tags (W3C WebVTT, section 3.3)."""
        blocks = ["WEBVTT\n"]
        for cue in _cues(self):
            text = "\n".join(_wrapped(cue.text))
            text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
            voice = re.sub(r"[<>&\s]+", " ", cue.speaker).strip() if cue.speaker else ""
            text = f"<v {voice}>{text}</v>" if voice else text
            blocks.append(f"{_clock(cue.start_s, '.')} --> {_clock(cue.end_s, '.')}\n{text}\n")
        return "\n".join(blocks)

    def to_ctm(self, recording: str, channel: str = "1") -> str:
        """NIST CTM: recording, channel, start, duration, word and confidence of each word, in order of time."""
        lines = [
            f"{_token(recording)} {_token(channel)} {word.start_s:.3f} {max(0.0, word.end_s - word.start_s):.3f} "
            f"{_token(word.text)} {word.confidence:.4f}\n"
            for word in sorted(self.words, key=lambda word: (word.start_s, word.end_s))
        ]
        return "".join(lines)

    def to_rttm(self, recording: str) -> str:
        """NIST RTTM: one line a speaker turn. Neighbouring segments of one speaker stay apart, so pauses are kept."""
        lines = [
            f"SPEAKER {_token(recording)} 1 {start:.3f} {max(0.0, end - start):.3f} <NA> <NA> {_token(speaker)} "
            "<NA> <NA>\n"
            for start, end, speaker in sorted(_turns(self))
        ]
        return "".join(lines)


@dataclass(frozen=True)
class _Cue:
    start_s: float
    end_s: float
    text: str
    speaker: str | None


def _words_with_speaker(segment: Segment) -> Iterator[Word]:
    for word in segment.words:
        if word.speaker is None and segment.speaker is not None:
            yield Word(word.text, word.start_s, word.end_s, word.confidence, segment.speaker)
        else:
            yield word


def _cues(transcript: Transcript) -> Iterator[_Cue]:
    """Subtitles: a segment in pieces that a reader can take in, never across a pause or a change of speaker.

    A segment that fits one cue is shown in its written form; a longer one by its words, which alone have times.
    """
    for segment in transcript.segments:
        if (
            segment.written
            and columns(segment.written) <= CUE_COLUMNS
            and segment.end_s - segment.start_s <= CUE_SECONDS
        ):
            yield _cue(segment.start_s, segment.end_s, segment.written, segment.speaker)
            continue
        for speaker, turn in itertools.groupby(_words_with_speaker(segment), lambda word: word.speaker):
            for words in phrases(list(turn), _fits_cue):
                yield _cue(words[0].start_s, words[-1].end_s, join_words(word.text for word in words), speaker)


def _fits_cue(words: Sequence[Word]) -> bool:
    return (
        columns(join_words(word.text for word in words)) <= CUE_COLUMNS
        and words[-1].end_s - words[0].start_s <= CUE_SECONDS
    )


def _cue(start_s: float, end_s: float, text: str, speaker: str | None) -> _Cue:
    start_s = max(0.0, start_s)
    return _Cue(start_s, max(end_s, start_s + SHORTEST_CUE_S), " ".join(text.split()), speaker)


def columns(text: str) -> int:
    """The width of a text in columns: Chinese, Japanese and Korean characters take two, marks on a letter none."""
    return sum(
        0 if unicodedata.category(character) == "Mn" else 1 + (unicodedata.east_asian_width(character) in "WF")
        for character in text
    )


def _wrapped(text: str) -> list[str]:
    """One line, or two of about the same length: people read those fastest."""
    width = columns(text)
    if width <= CUE_LINE:
        return [text]
    breaks = [
        place
        for place in range(1, len(text))
        if text[place] == " "
        or (is_unspaced(text[place - 1]) and is_unspaced(text[place]) and unicodedata.category(text[place])[0] != "M")
    ]
    if not breaks:
        return [text]
    middle = min(breaks, key=lambda place: abs(columns(text[:place]) - width / 2))
    return [text[:middle], text[middle:].lstrip(" ")]


def _srt_text(text: str) -> str:
    """SubRip has no escapes: its arrow and its tags must not occur in the text."""
    return text.replace("-->", "→").replace("<", "‹").replace(">", "›")


def _turns(transcript: Transcript) -> Iterator[tuple[float, float, str]]:
    for segment in transcript.segments:
        words = list(_words_with_speaker(segment))
        if segment.speaker is not None and all(word.speaker == segment.speaker for word in words):
            yield segment.start_s, segment.end_s, segment.speaker
            continue
        first = 0
        for place in range(1, len(words) + 1):
            if place == len(words) or words[place].speaker != words[first].speaker:
                yield words[first].start_s, words[place - 1].end_s, words[first].speaker or "unknown"
                first = place


def _clock(seconds: float, separator: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{milliseconds // 1000:02d}{separator}{milliseconds % 1000:03d}"


def _token(text: str) -> str:
    """CTM and RTTM separate columns by white space, so a column holds none; an empty one is <NA>."""
    return "_".join(text.split()) or "<NA>"


def _text_or_none(value: Any) -> str | None:
    return None if value is None else str(value)
