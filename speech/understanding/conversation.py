"""How a call went: who talked how much, who interrupted whom, how fast, and how long nobody said anything.

Measured from segments, which the pauses cut: a segment is talk from its first word to its last. Stretches of speech in
which no word was recognised are talk, too. Speakers are those of the transcript; where it has none, its channels; and
where it has neither, the recording is one speaker's.

The terms are those of conversation analysis: a turn is what one speaker says until another takes over (Sacks, Schegloff
and Jefferson, "A simplest systematics for the organization of turn-taking for conversation", Language 50, 1974); the
gap between two turns is the response latency (Heldner and Edlund, "Pauses, gaps and overlaps in conversations", Journal
of Phonetics 38, 2010, who take what is shorter than 0.2 s for none). An interruption is more than an overlap: it begins
while the other talks, and the other gives up. Short words into the other's talk ("mhm", "yes") are backchannels
(Yngve, "On getting a word in edgewise", 1970): talk, but no turn and no interruption.
"""

import itertools
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

if TYPE_CHECKING:
    from speech.transcript import Segment, Word

OVERLAP_S = 0.2  # talk at the same time for less than that is how turns change smoothly (Heldner and Edlund 2010)
BACKCHANNEL_S = 1.0  # who says no more than that into another's talk does not want the turn
TURN_PAUSE_S = 2.0  # silence that does not end a turn where nobody else takes it
DIGITS = 3  # of seconds and shares: what sums in another order is equal


@dataclass(frozen=True, kw_only=True)
class SpeakerMeasures:
    """One speaker's part in a conversation."""

    speaker: str
    talk_s: Annotated[float, Field(description="Seconds of talk, overlaps included.")]
    share: Annotated[float, Field(description="Of the talk of all speakers, 0 to 1.")]
    turns: Annotated[int, Field(description="Times that this speaker took over, or began after a long silence.")]
    longest_turn_s: Annotated[float, Field(description="The longest monologue, its pauses included.")]
    words_per_minute: Annotated[float | None, Field(description="Words a minute of talk; null: no words.")]
    interruptions: Annotated[
        int, Field(description="Times that this speaker began while another talked, and the other gave up.")
    ]
    response_s: Annotated[
        float | None,
        Field(description="Median seconds from the end of another's turn to this speaker's; overlaps count as 0."),
    ]


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """How the talk of a recording was divided."""

    speakers: tuple[SpeakerMeasures, ...]
    overlaps: Annotated[int, Field(description="Times that two or more talked at once for at least 0.2 s.")]
    overlap_s: Annotated[float, Field(description="Seconds in which two or more talked.")]
    silence_s: Annotated[float, Field(description="Seconds in which nobody talked, beginning and end included.")]
    silence_share: Annotated[float, Field(description="Of the recording, 0 to 1.")]
    longest_silence_s: float


@dataclass(frozen=True)
class _Talk:
    speaker: str
    start_s: float
    end_s: float
    words: int


_Span = tuple[float, float]


def measured(segments: Sequence["Segment"], duration_s: float) -> Conversation | None:
    """The measures of a recording of that many seconds; None where nobody talks."""
    talk = sorted(_talk(segments), key=lambda part: (part.start_s, part.end_s, part.speaker))
    if not talk:
        return None
    by_speaker: dict[str, list[_Talk]] = {}
    for part in talk:
        by_speaker.setdefault(part.speaker, []).append(part)
    spans = {speaker: _merged((part.start_s, part.end_s) for part in parts) for speaker, parts in by_speaker.items()}
    talk_s = {speaker: _seconds(own) for speaker, own in spans.items()}
    turns = _turns(talk)
    spoken = _merged(itertools.chain.from_iterable(spans.values()))
    edges = [0.0, *itertools.chain.from_iterable(spoken), max(duration_s, spoken[-1][1])]
    silences = [end_s - start_s for start_s, end_s in zip(edges[::2], edges[1::2], strict=True)]
    at_once = _at_once(itertools.chain.from_iterable(spans.values()))
    return Conversation(
        speakers=tuple(
            _of_speaker(speaker, by_speaker[speaker], talk_s, [turn for turn in turns if turn.speaker == speaker])
            for speaker in sorted(by_speaker)
        ),
        overlaps=sum(end_s - start_s >= OVERLAP_S for start_s, end_s in at_once),
        overlap_s=round(_seconds(at_once), DIGITS),
        silence_s=round(sum(silences), DIGITS),
        silence_share=round(sum(silences) / edges[-1], DIGITS) if edges[-1] else 0.0,
        longest_silence_s=round(max(silences), DIGITS),
    )


@dataclass
class _Turn:
    speaker: str
    start_s: float
    end_s: float
    gap_s: float | None  # since another's turn; None: nobody else had the turn before
    interrupts: _Talk | None  # whose talk it began in


def _talk(segments: Iterable["Segment"]) -> Iterator[_Talk]:
    """Each segment's talk, and of segments in which several speak, each one's."""
    for segment in segments:
        if not segment.words:
            yield _Talk(segment.speaker or "", segment.start_s, max(segment.start_s, segment.end_s), 0)
        for speaker, words in itertools.groupby(segment.words, partial(_speaker, segment.speaker)):
            said = list(words)
            yield _Talk(speaker, said[0].start_s, max(said[0].start_s, *(word.end_s for word in said)), len(said))


def _speaker(of_segment: str | None, word: "Word") -> str:
    return word.speaker or of_segment or ("" if word.channel is None else f"channel_{word.channel}")


def _turns(talk: Sequence[_Talk]) -> list[_Turn]:
    """The turns, by their beginnings. Who goes on after a short pause, in which nobody else talked, keeps the turn."""
    turns: list[_Turn] = []
    last_of: dict[str, _Turn] = {}
    latest: dict[str, _Talk] = {}  # of each speaker, the talk that ends last of what has begun
    for part in talk:
        own = last_of.get(part.speaker)
        others = (other for speaker, other in latest.items() if speaker != part.speaker)
        before = max(others, key=lambda other: other.end_s, default=None)
        into = before if before is not None and part.start_s <= before.end_s - OVERLAP_S else None
        if into is not None and part.end_s - part.start_s <= BACKCHANNEL_S:
            continue
        alone = before is None or (own is not None and before.end_s <= own.end_s)  # since the speaker's last word
        if own is not None and alone and part.start_s - own.end_s <= TURN_PAUSE_S:
            own.end_s = max(own.end_s, part.end_s)
        else:
            gap_s = None if before is None or alone else max(0.0, part.start_s - before.end_s)
            last_of[part.speaker] = _Turn(part.speaker, part.start_s, part.end_s, gap_s, into)
            turns.append(last_of[part.speaker])
        if part.speaker not in latest or latest[part.speaker].end_s < part.end_s:
            latest[part.speaker] = part
    return turns


def _of_speaker(
    speaker: str, parts: Sequence[_Talk], talk_s: Mapping[str, float], turns: Sequence[_Turn]
) -> SpeakerMeasures:
    words, everybody_s = sum(part.words for part in parts), sum(talk_s.values())
    gaps = [turn.gap_s for turn in turns if turn.gap_s is not None]
    return SpeakerMeasures(
        speaker=speaker,
        talk_s=round(talk_s[speaker], DIGITS),
        share=round(talk_s[speaker] / everybody_s, DIGITS) if everybody_s else 0.0,
        turns=len(turns),
        longest_turn_s=round(max((turn.end_s - turn.start_s for turn in turns), default=0.0), DIGITS),
        words_per_minute=round(60 * words / talk_s[speaker], 1) if words and talk_s[speaker] else None,
        interruptions=sum(turn.interrupts is not None and turn.interrupts.end_s < turn.end_s for turn in turns),
        response_s=round(statistics.median(gaps), DIGITS) if gaps else None,
    )


def _merged(spans: Iterable[_Span]) -> list[_Span]:
    merged: list[_Span] = []
    for start_s, end_s in sorted(spans):
        if merged and start_s <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end_s))
        else:
            merged.append((start_s, end_s))
    return merged


def _at_once(spans: Iterable[_Span]) -> list[_Span]:
    """Where two or more of the spans, of which each speaker's do not overlap, are at the same time."""
    changes = sorted(change for start_s, end_s in spans for change in ((start_s, 1), (end_s, -1)))
    found, count, since_s = [], 0, 0.0
    for at_s, change in changes:
        if count >= 2 > count + change:
            found.append((since_s, at_s))
        if count < 2 <= count + change:
            since_s = at_s
        count += change
    return found


def _seconds(spans: Iterable[_Span]) -> float:
    return sum((end_s - start_s for start_s, end_s in spans), 0.0)
