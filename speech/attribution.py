"""Words to speakers: who says each word of a transcript, by the turns of its channel, and segments of one speaker each.

A word belongs to the speaker whose turns hold most of it. Recognisers set words a little beside the speech, so a word
outside all turns goes to the nearest; and a single word in the middle of another's phrase, without a pause on either
side, goes with that. What is lost so is a reply of one word that leaves no pause.
"""

import bisect
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from speech.diarization import Turn
from speech.transcript import Segment, Transcript


def attributed(transcript: Transcript, turns: Mapping[int | None, Sequence[Turn]]) -> Transcript:
    """The transcript with a speaker in each segment, and segments cut where the speaker changes.

    A segment that is cut loses what was said of it as a whole (its written form, intent and confidence), so this comes
    before those. A channel that has no turns keeps the speakers that it has. The work grows with the words.

    Args:
        transcript: segments in order of time.
        turns: of each channel, as `Segment.channel` counts them.
    """
    by_channel = {channel: _Turns(said) for channel, said in turns.items() if said}
    cut = [part for segment in transcript.segments for part in _parted(segment, by_channel)]
    return replace(transcript, segments=tuple(sorted(cut, key=lambda segment: segment.start_s)))


class _Turns:
    """The turns of each speaker, at least one; who speaks first is first, and those of one are apart."""

    def __init__(self, turns: Sequence[Turn]) -> None:
        self._of: dict[str, list[Turn]] = {}
        for turn in sorted(turns, key=lambda turn: (turn.start_s, turn.end_s, turn.speaker)):
            self._of.setdefault(turn.speaker, []).append(turn)
        self._ends = {speaker: [turn.end_s for turn in said] for speaker, said in self._of.items()}

    def speaker(self, start_s: float, end_s: float) -> str:
        """Who speaks most of a time, else who is nearest to it."""
        return max(self._of, key=lambda speaker: self._share(speaker, start_s, end_s))

    def _share(self, speaker: str, start_s: float, end_s: float) -> tuple[float, float]:
        """Seconds that somebody speaks of a time, and how near they come to it."""
        said = self._of[speaker]
        first = bisect.bisect_right(self._ends[speaker], start_s)
        spoken_s, away_s = 0.0, start_s - said[first - 1].end_s if first else float("inf")
        for place in range(first, len(said)):
            turn = said[place]
            away_s = min(away_s, max(0.0, turn.start_s - end_s))
            if turn.start_s >= end_s:
                break
            spoken_s += min(end_s, turn.end_s) - max(start_s, turn.start_s)
        return round(spoken_s, 6), -away_s


def _parted(segment: Segment, by_channel: Mapping[int | None, _Turns]) -> Iterator[Segment]:
    """The segment in pieces of one speaker each."""
    turns = by_channel.get(segment.channel)
    if turns is None:
        yield segment
        return
    if not segment.words:
        yield replace(segment, speaker=turns.speaker(segment.start_s, segment.end_s))
        return
    speakers = _without_flicker([turns.speaker(word.start_s, word.end_s) for word in segment.words])
    if len(set(speakers)) == 1:
        said = tuple(replace(word, speaker=None) for word in segment.words)
        yield replace(segment, words=said, speaker=speakers[0])
        return
    for speaker, turn in itertools.groupby(zip(speakers, segment.words, strict=True), key=lambda pair: pair[0]):
        words = tuple(replace(word, speaker=None) for _, word in turn)
        yield replace(
            segment,
            words=words,
            start_s=words[0].start_s,
            end_s=words[-1].end_s,
            speaker=speaker,
            confidence=None,
            written=None,
            intent=None,
        )


def _without_flicker(speakers: list[str]) -> list[str]:
    """Speakers of the words of a phrase, a single one between two of another's now theirs, if one of those has more."""
    runs = [(speaker, len(list(run))) for speaker, run in itertools.groupby(speakers)]
    found = list(runs)
    for place in range(1, len(runs) - 1):
        (before, words_before), (_, words), (after, words_after) = runs[place - 1 : place + 2]
        if words == 1 and before == after and max(words_before, words_after) > 1:
            found[place] = (before, 1)
    return [speaker for speaker, words in found for _ in range(words)]
