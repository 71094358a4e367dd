"""Who speaks when: voices of short windows of speech, grouped, and turns made of the groups.

A network gives each window of a sound the direction of its voice (an embedding). Windows are grouped from the bottom up
by the mean cosine between groups (UPGMA: Sokal and Michener, 1958), until no two are alike enough, or as few are left
as were asked for. Then each moment goes to the group that the windows around it sound most like, and a change of
speaker costs something (the Viterbi path), so that turns have edges and no flicker.

To group all pairs of windows takes memory with the square of a recording's length. But the mean cosine between two
groups is the product of their mean embeddings, so a group is told by its sum and its count: long recordings are grouped
in blocks first, each to a fixed number of small groups, and then those. Time and memory grow with the length alone.

Sound and the network are given as functions. The words that are said are no matter of this module:
`speech/attribution.py` gives those to speakers.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from pydantic import Field, model_validator

from speech.audio.mixdown import SAMPLE_RATE
from speech.settings import Section
from speech.vad import Stretch

FRAME_S = 0.05  # that a moment lasts: edges of turns are as fine
_BLOCK = 500  # groups that are compared with each other at once: six minutes of speech, 2 MB
_FEWEST_OF_A_BLOCK = 50  # small groups that a block of windows is brought to, more than people who speak in it
_WINDOWS = 256  # heard at once: 25 MB of sound
_CHEAP = 1e-3  # of a change: fewer changes are not made for it
_SOMEWHERE = 1e-6  # weight of a window for a moment that it does not cover


class DiarizationSettings(Section):
    """How recordings are divided among the people who speak in them."""

    speakers: int | None = Field(None, ge=1, description="How many people speak in a sound, where that is known.")
    min_speakers: int = Field(1, ge=1, description="No fewer are told apart, as far as there is speech for so many.")
    max_speakers: int = Field(20, ge=1, description="No more are told apart.")
    threshold: float | None = Field(
        None,
        gt=-1,
        lt=1,
        description="Mean cosine of voices from which on two groups of windows are one speaker; null: as the speaker "
        "model says.",
    )
    window_s: float = Field(1.5, ge=0.5, description="Speech that one voice is told from.")
    hop_s: float = Field(0.75, ge=0.1, description="From one window to the next, at most.")
    change_cost: float = Field(
        0.3, ge=0, description="Seconds times cosine that a change of speaker has to bring; more gives longer turns."
    )
    overlap_margin: float | None = Field(
        None,
        ge=0,
        description="Where the second voice is less than this (in cosine) behind the first, both speak; null: one "
        "speaks at a time.",
    )

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if self.min_speakers > self.max_speakers:
            raise ValueError(f"min_speakers {self.min_speakers} is above max_speakers {self.max_speakers}")
        if self.hop_s > self.window_s:
            raise ValueError(f"hop_s {self.hop_s:g} is above window_s {self.window_s:g}: speech would be passed over")
        return self

    @property
    def counts(self) -> tuple[int, int]:
        """The fewest and the most speakers."""
        return (self.speakers, self.speakers) if self.speakers else (self.min_speakers, self.max_speakers)


SamplesOf = Callable[[Stretch], np.ndarray]  # of a recording: float32 [n], 16 kHz mono
Embed = Callable[[Sequence[np.ndarray]], np.ndarray]  # clips to directions of length 1: float32 [clips, dimensions]


@dataclass(frozen=True)
class Turn:
    """Somebody speaks, in seconds from the start of the recording."""

    start_s: float
    end_s: float
    speaker: str


def diarized(
    stretches: Sequence[Stretch],
    samples_of: SamplesOf,
    embed: Embed,
    threshold: float,
    settings: DiarizationSettings | None = None,
) -> tuple[list[tuple[float, float, int]], np.ndarray]:
    """Who speaks when in a sound, as `turns` says it, and the voice of each speaker: float64 [speakers, d] of length 1.

    Args:
        stretches: of speech, in order and apart from each other.
        samples_of: the sound of a stretch.
        embed: the network.
        threshold: mean cosine from which on two groups of windows are one speaker, unless the settings say another.
        settings: how many speakers there may be, and what makes a turn.
    """
    settings = settings or DiarizationSettings()
    heard, vectors = embedded(stretches, samples_of, embed, settings)
    least = threshold if settings.threshold is None else settings.threshold
    speakers = voices(vectors, grouped(vectors, least, settings))
    return turns(stretches, heard, vectors, speakers, settings), speakers


def embedded(
    stretches: Iterable[Stretch], samples_of: SamplesOf, embed: Embed, settings: DiarizationSettings
) -> tuple[list[Stretch], np.ndarray]:
    """The windows of the stretches, and the voice in each: float32 [windows, d] of length 1."""
    heard: list[Stretch] = []
    found: list[np.ndarray] = []
    clips: list[np.ndarray] = []
    for stretch in stretches:
        samples = samples_of(stretch)
        for window in windows([stretch], settings):
            start = round((window.start_s - stretch.start_s) * SAMPLE_RATE)
            clips.append(samples[start : start + round((window.end_s - window.start_s) * SAMPLE_RATE)])
            heard.append(window)
        if len(clips) >= _WINDOWS:
            found.append(embed(clips))
            clips = []
    if clips:
        found.append(embed(clips))
    return heard, np.concatenate(found) if found else np.zeros((0, 1), np.float32)


def windows(stretches: Iterable[Stretch], settings: DiarizationSettings) -> list[Stretch]:
    """Windows that cover the stretches, evenly spread over each; a stretch that is no longer than one is one."""
    found = []
    for stretch in stretches:
        room_s = stretch.end_s - stretch.start_s - settings.window_s
        if room_s <= 0:
            found.append(stretch)
            continue
        count = math.ceil(room_s / settings.hop_s) + 1
        starts = (stretch.start_s + room_s * place / (count - 1) for place in range(count))
        found += [Stretch(start_s, start_s + settings.window_s) for start_s in starts]
    return found


def grouped(embeddings: np.ndarray, threshold: float, settings: DiarizationSettings | None = None) -> np.ndarray:
    """The group of each window, from 0 in the order of first windows: int [n].

    Args:
        embeddings: float [n, d], each of length 1.
        threshold: mean cosine from which on two groups are one.
        settings: how many groups there may be.
    """
    fewest, most = (settings or DiarizationSettings()).counts
    groups = np.arange(len(embeddings))
    sums, counts = embeddings.astype(np.float64), np.ones(len(embeddings))
    while len(sums) > _BLOCK:
        into = np.empty(len(sums), np.int64)
        found = 0
        for block in np.array_split(np.arange(len(sums)), math.ceil(len(sums) / _BLOCK)):
            few = _FEWEST_OF_A_BLOCK
            into[block] = found + _merged(sums[block], counts[block], -math.inf, few, few)
            found = int(into[block].max()) + 1
        sums, counts, groups = _summed(sums, counts, groups, into)
    if len(sums):
        _, _, groups = _summed(sums, counts, groups, _merged(sums, counts, threshold, fewest, most))
    return groups


def _summed(
    sums: np.ndarray, counts: np.ndarray, groups: np.ndarray, into: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sums, counts and windows' groups after each group has become part of another."""
    size = int(into.max()) + 1
    larger = np.zeros((size, sums.shape[1]))
    np.add.at(larger, into, sums)
    return larger, np.bincount(into, counts, size), into[groups]


def _merged(sums: np.ndarray, counts: np.ndarray, threshold: float, fewest: int, most: int) -> np.ndarray:
    """What each of these groups becomes part of, when the two most alike are merged again and again: int [n]."""
    means, weights, into = sums / counts[:, None], counts.copy(), np.arange(len(sums))
    alike = means @ means.T
    np.fill_diagonal(alike, -math.inf)
    for left in range(len(sums), fewest, -1):
        kept, gone = sorted(divmod(int(alike.argmax()), len(sums)))
        if left <= most and alike[kept, gone] < threshold:
            break
        row = (weights[kept] * alike[kept] + weights[gone] * alike[gone]) / (weights[kept] + weights[gone])
        row[kept] = -math.inf
        alike[kept] = alike[:, kept] = row
        alike[gone] = alike[:, gone] = -math.inf
        weights[kept] += weights[gone]
        into[into == gone] = kept
    found: np.ndarray = np.unique(into, return_inverse=True)[1]
    return found


def voices(embeddings: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """The voice of each group, of length 1: float64 [groups, d]."""
    count = int(groups.max()) + 1 if len(groups) else 0
    sums = np.zeros((count, embeddings.shape[1]))
    np.add.at(sums, groups, embeddings)
    unit: np.ndarray = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
    return unit


def turns(
    stretches: Sequence[Stretch],
    heard: Sequence[Stretch],
    embeddings: np.ndarray,
    speakers: np.ndarray,
    settings: DiarizationSettings | None = None,
) -> list[tuple[float, float, int]]:
    """Start, end and speaker of each turn, in order of time; together they cover exactly the stretches.

    Args:
        stretches: of speech, in order and apart from each other.
        heard: the windows of `windows`.
        embeddings: of the windows, float [n, d].
        speakers: their voices, float [speakers, d].
        settings: what a change costs, and when two speak at once.
    """
    settings = settings or DiarizationSettings()
    if not len(speakers):
        return []
    alike = embeddings.astype(np.float64) @ speakers.T
    frames = [max(1, round((stretch.end_s - stretch.start_s) / FRAME_S)) for stretch in stretches]
    scores = np.concatenate([*_scores(stretches, frames, heard, alike)])
    cost, wanted = settings.change_cost, min(settings.counts[0], len(speakers))
    first = _path(scores * FRAME_S, cost)
    while len(np.unique(first)) < wanted and cost > _CHEAP:  # who is known to speak has a turn
        cost /= 2
        first = _path(scores * FRAME_S, cost)
    active = np.zeros(scores.shape, bool)
    every = np.arange(len(scores))
    active[every, first] = True
    speaking = active.any(axis=0)  # a voice without a moment of its own is no second one either
    if settings.overlap_margin is not None and speaking.sum() > 1:
        others = np.where(active | ~speaking, -math.inf, scores)
        second = others.argmax(axis=1)
        active[every, second] |= scores[every, first] - others[every, second] < settings.overlap_margin
    found = []
    at = 0
    for stretch, count in zip(stretches, frames, strict=True):
        edges = np.linspace(stretch.start_s, stretch.end_s, count + 1)
        for speaker in range(len(speakers)):
            steps = np.diff(active[at : at + count, speaker].astype(np.int8), prepend=0, append=0)
            for begin, end in zip(np.flatnonzero(steps == 1), np.flatnonzero(steps == -1), strict=True):
                found.append((round(float(edges[begin]), 3), round(float(edges[end]), 3), speaker))
        at += count
    return sorted(found)


def _scores(
    stretches: Sequence[Stretch], frames: Sequence[int], heard: Sequence[Stretch], alike: np.ndarray
) -> Iterator[np.ndarray]:
    """How much each moment of each stretch sounds like each speaker: float [frames, speakers].

    It is the mean over the windows around it, those counting most whose middle is near.
    """
    first = 0
    for stretch, count in zip(stretches, frames, strict=True):
        last = first + 1
        while last < len(heard) and heard[last].start_s < stretch.end_s:
            last += 1
        starts, ends = (
            np.array([getattr(window, edge) for window in heard[first:last]]) for edge in ("start_s", "end_s")
        )
        moments = stretch.start_s + (np.arange(count) + 0.5) * (stretch.end_s - stretch.start_s) / count
        away = np.abs(moments[:, None] - (starts + ends) / 2) / np.maximum((ends - starts) / 2, 1e-9)
        weights = np.maximum(0.0, 1.0 - away) + _SOMEWHERE
        yield weights @ alike[first:last] / weights.sum(axis=1, keepdims=True)
        first = last


def _path(gains: np.ndarray, cost: float) -> np.ndarray:
    """The speaker of each moment for which gains less the costs of changes are highest (Viterbi): int [frames]."""
    count, speakers = gains.shape
    before = np.zeros((count, speakers), np.int32)
    total, stays = gains[0].copy(), np.arange(speakers)
    for moment in range(1, count):
        best = int(total.argmax())
        changed = total[best] - cost
        before[moment] = np.where(total >= changed, stays, best)
        total = np.maximum(total, changed) + gains[moment]
    path = np.zeros(count, np.int64)
    path[-1] = total.argmax()
    for moment in range(count - 1, 0, -1):
        path[moment - 1] = before[moment, path[moment]]
    return path
