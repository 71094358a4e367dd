"""The transcript: one schema for batch results, streaming finals and review, and the formats people take it away in.

Subtitle formats (SRT, WebVTT) hold what a reader sees, CTM and RTTM what a scorer reads. None of them holds
everything; the JSON form does, and is the only one that can be read back.
"""

import itertools
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from pydantic import Field, computed_field

from speech.plain import from_plain, to_plain
from speech.quality import Quality
from speech.scripts import is_unspaced, join_words, may_part
from speech.segments import phrases
from speech.understanding.conversation import Conversation

SCHEMA_VERSION = 2
CUE_SECONDS = 6.0  # subtitles change about this often at the slowest
CUE_LINE = 42  # columns of one line of subtitles, what broadcasters hold to
CUE_COLUMNS = 2 * CUE_LINE
PUNCTUATION = (
    ".,?!;:\u2026\u3002\u3001\uff0c\uff1f\uff01\u060c\u061b\u061f\u0964"  # what Amazon's layout keeps apart from words
)
SHORTEST_CUE_S = 0.001  # players reject a cue that ends when it begins


class TranscriptError(ValueError):
    """A document that is not a transcript of a schema this version reads."""


@dataclass(frozen=True)
class Word:
    """One recognised word."""

    text: str
    start_s: Annotated[float, Field(description="Seconds from the start of the recording.")]
    end_s: float
    confidence: Annotated[float, Field(description="Probability that the word is right, 0 to 1.")]
    speaker: Annotated[str | None, Field(description="Who says it; null: as its segment says.")] = None
    channel: Annotated[
        int | None, Field(description="The channel it was heard on, counted from 0; null: the channels were mixed.")
    ] = None
    written: Annotated[
        str | None,
        Field(description="As people write it; empty where an earlier word's stands for it, too; null: not asked for."),
    ] = None
    redacted: Annotated[
        str | None,
        Field(description="Kind of the personal data that was said here, of which only a label is left; null: none."),
    ] = None


@dataclass(frozen=True)
class Intent:
    """What the speaker wants, with the values that belong to it."""

    name: str
    confidence: float
    slots: Mapping[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Segment:
    """A stretch of one speaker, between two pauses."""

    words: tuple[Word, ...]
    start_s: float
    end_s: float
    speaker: str | None = None
    confidence: Annotated[
        float | None, Field(description="Of the whole segment, 0 to 1; null: the mean of its words.")
    ] = None
    written: Annotated[
        str | None, Field(description="The words as people write them: '$42' for 'forty two dollars'.")
    ] = None
    intent: Intent | None = None
    language: Annotated[str | None, Field(description="What is spoken in it; null: the transcript's.")] = None
    channel: Annotated[
        int | None, Field(description="The channel it was heard on, counted from 0; null: the channels were mixed.")
    ] = None

    @computed_field(description="The words as recognised, one line.")  # type: ignore[prop-decorator]
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


@dataclass(frozen=True, kw_only=True)
class Transcript:
    """What was said in one recording, by whom and when, and which models say so."""

    schema_version: Literal[2] = 2
    id: Annotated[
        str | None, Field(description="Names this document among all transcripts; null: it was not kept.")
    ] = None
    version: Annotated[
        int, Field(description="1 for the first of a recording, one more for each that takes its place.")
    ] = 1
    supersedes: Annotated[
        str | None, Field(description="Id of the transcript whose place it takes, such as before a correction.")
    ] = None
    language: str
    language_confidence: Annotated[
        float | None, Field(description="Probability that it is the language; null: it was given.")
    ] = None
    confidence: Annotated[float, Field(description="Mean confidence of the words; 0 when nothing was said.")]
    duration_s: float
    source_key: Annotated[
        str | None, Field(description="Key of the recording in the data store; null: it is not kept there.")
    ] = None
    source_digest: Annotated[str, Field(description="SHA-256 of the recording as received.")]
    models: Annotated[
        Mapping[str, str],
        Field(description="Name and version of each stage's model; `bundle`: digest of recognition's."),
    ] = field(default_factory=dict, hash=False)
    model_digests: Annotated[Mapping[str, str], Field(description="SHA-256 that names the model of each stage.")] = (
        field(default_factory=dict, hash=False)
    )
    code_version: Annotated[str | None, Field(description="Version of Soundstage that wrote it.")] = None
    settings: Annotated[
        Mapping[str, Any], Field(description="Settings of its stages, by which it can be made again; empty: not kept.")
    ] = field(default_factory=dict, hash=False)
    degraded: Annotated[
        tuple[str, ...], Field(description="Stages that were left out or did less than asked, such as under load.")
    ] = ()
    quality: Annotated[Quality | None, Field(description="Measures of the recording; null: not measured.")] = None
    conversation: Annotated[
        Conversation | None, Field(description="Who talked how much and how; null: not measured, or nobody talks.")
    ] = None
    segments: tuple[Segment, ...]

    @computed_field(description="All words, one line.")  # type: ignore[prop-decorator]
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
        return to_plain(self)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> "Transcript":
        """The transcript that :meth:`to_json` wrote, also by a version that wrote schema 1.

        Raises TranscriptError for anything else, and for a schema version that this code does not know: a field that
        is silently ignored is a correction that is silently lost.
        """
        version = row.get("schema_version") if isinstance(row, Mapping) else None
        if version not in (1, SCHEMA_VERSION):
            raise TranscriptError(f"schema version {version!r} cannot be read; this code reads 1 and {SCHEMA_VERSION}")
        try:
            if version == 1:
                digests = {"recognition": row["models"]["bundle"]} if "bundle" in row["models"] else {}
                row = {**row, "schema_version": SCHEMA_VERSION, "model_digests": digests}
            return from_plain(cls, row)
        except (KeyError, TypeError, ValueError) as error:
            raise TranscriptError(f"is not a transcript: {error}") from error

    def to_srt(self) -> str:
        """SubRip subtitles; as there are no escapes, neither its arrow nor its tags may occur in the text."""
        blocks = []
        for number, cue in enumerate(_cues(self), start=1):
            plain = cue.text.replace("-->", "→").replace("<", "‹").replace(">", "›")
            text = "\n".join(_wrapped(plain))
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

    def to_amazon(self, recording: str) -> dict[str, Any]:
        """The layout of Amazon Transcribe's output, so that what reads that reads this.

        Times and confidences are texts; punctuation is an item of its own, without times; speakers are `spk_0` and on,
        by who speaks first. `recording` stands for the job's name. (Amazon Transcribe Developer Guide, "Data input and
        output" and "Partitioning speakers".)
        """
        return _Amazon(self).document(recording)

    def to_ctm(self, recording: str) -> str:
        """NIST CTM: recording, channel (from 1), start, duration, word and confidence of each, by channel and time."""
        return "".join(
            f"{_token(recording)} {(word.channel or 0) + 1} {word.start_s:.3f} "
            f"{max(0.0, word.end_s - word.start_s):.3f} {_token(word.text)} {word.confidence:.4f}\n"
            for word in sorted(self.words, key=lambda word: (word.channel or 0, word.start_s, word.end_s))
        )

    def to_rttm(self, recording: str) -> str:
        """NIST RTTM: one line a speaker turn. Neighbouring segments of one speaker stay apart, so pauses are kept."""
        return "".join(
            f"SPEAKER {_token(recording)} {channel + 1} {start:.3f} {max(0.0, end - start):.3f} <NA> <NA> "
            f"{_token(speaker)} <NA> <NA>\n"
            for start, end, speaker, channel in sorted(_turns(self))
        )


@dataclass(frozen=True)
class _Cue:
    start_s: float
    end_s: float
    text: str
    speaker: str | None


def _words_with_speaker(segment: Segment) -> Iterator[Word]:
    for word in segment.words:
        yield replace(word, speaker=segment.speaker) if word.speaker is None else word


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
        or (is_unspaced(text[place - 1]) and is_unspaced(text[place]) and may_part(text[place - 1], text[place]))
    ]
    if not breaks:
        return [text]
    middle = min(breaks, key=lambda place: abs(columns(text[:place]) - width / 2))
    return [text[:middle], text[middle:].lstrip(" ")]


def _turns(transcript: Transcript) -> Iterator[tuple[float, float, str, int]]:
    for segment in transcript.segments:
        channel = segment.channel or 0
        words = list(_words_with_speaker(segment))
        if segment.speaker is not None and all(word.speaker == segment.speaker for word in words):
            yield segment.start_s, segment.end_s, segment.speaker, channel
            continue
        for speaker, turn in itertools.groupby(words, lambda word: word.speaker):
            said = list(turn)
            yield said[0].start_s, said[-1].end_s, speaker or "unknown", channel


class _Amazon:
    """A transcript as Amazon Transcribe writes one."""

    def __init__(self, transcript: Transcript) -> None:
        self.transcript = transcript
        speakers = dict.fromkeys(word.speaker for word in transcript.words if word.speaker is not None)
        self.labels = {speaker: f"spk_{number}" for number, speaker in enumerate(speakers)}
        self.channels = sorted({word.channel for word in transcript.words if word.channel is not None})
        self.items: list[dict[str, Any]] = []
        self.texts: list[str] = []
        self.segments = [self._segment(number, segment) for number, segment in enumerate(transcript.segments)]

    def document(self, recording: str) -> dict[str, Any]:
        results: dict[str, Any] = {"transcripts": [{"transcript": join_words(filter(None, self.texts))}]}
        if self.labels:
            turns = [part for segment in self.transcript.segments for part in self._turns(segment)]
            results["speaker_labels"] = {"speakers": len(self.labels), "segments": turns}
        if self.channels:
            labelled = [
                {
                    "channel_label": f"ch_{n}",
                    "items": [item for item in self.items if item["channel_label"] == f"ch_{n}"],
                }
                for n in self.channels
            ]
            results["channel_labels"] = {"number_of_channels": len(self.channels), "channels": labelled}
        if self.transcript.language_confidence is not None:
            score, code = _figure(self.transcript.language_confidence), self.transcript.language
            results |= {"language_code": code, "language_identification": [{"score": score, "code": code}]}
        results |= {"items": self.items, "audio_segments": self.segments}
        return {"jobName": recording, "accountId": "", "status": "COMPLETED", "results": results}

    def _segment(self, number: int, segment: Segment) -> dict[str, Any]:
        """A segment, its items added to those of all."""
        first, texts = len(self.items), list[str]()
        for word in _words_with_speaker(segment):
            if word.written == "" and len(self.items) > first:  # the one before stands for this word, too
                next(i for i in reversed(self.items) if "end_time" in i)["end_time"] = _figure(word.end_s)
                continue
            content = word.written or word.text
            spoken = content.rstrip(PUNCTUATION) or content
            texts.append(content)
            times = {"start_time": _figure(word.start_s), "end_time": _figure(word.end_s)}
            self._add("pronunciation", spoken, _figure(word.confidence), word, times)
            for mark in content[len(spoken) :]:
                self._add("punctuation", mark, "0.0", word, {})
        self.texts.append(join_words(texts))
        return {
            "id": number,
            "transcript": self.texts[-1],
            "start_time": _figure(segment.start_s),
            "end_time": _figure(segment.end_s),
            **({"speaker_label": self.labels[segment.speaker]} if segment.speaker in self.labels else {}),
            "items": list(range(first, len(self.items))),
        }

    def _add(self, kind: str, content: str, confidence: str, word: Word, times: Mapping[str, str]) -> None:
        item: dict[str, Any] = {"id": len(self.items), "type": kind, **times}
        item["alternatives"] = [{"confidence": confidence, "content": content}]
        if word.speaker is not None:
            item["speaker_label"] = self.labels[word.speaker]
        if self.channels:
            item["channel_label"] = f"ch_{word.channel or 0}"
        self.items.append(item)

    def _turns(self, segment: Segment) -> Iterator[dict[str, Any]]:
        for speaker, said in itertools.groupby(_words_with_speaker(segment), lambda word: word.speaker):
            words = list(said)
            if speaker is not None:
                yield {
                    **self._turn(words[0].start_s, words[-1].end_s, speaker),
                    "items": [self._turn(word.start_s, word.end_s, speaker) for word in words],
                }

    def _turn(self, start_s: float, end_s: float, speaker: str) -> dict[str, Any]:
        return {"start_time": _figure(start_s), "end_time": _figure(end_s), "speaker_label": self.labels[speaker]}


def _figure(value: float) -> str:
    """A time or confidence as text, with as many of three decimals as it has."""
    return str(round(float(value), 3))


def _clock(seconds: float, separator: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{milliseconds // 1000:02d}{separator}{milliseconds % 1000:03d}"


def _token(text: str) -> str:
    """CTM and RTTM separate columns by white space, so a column holds none; an empty one is <NA>."""
    return "_".join(text.split()) or "<NA>"
