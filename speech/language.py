"""Which language is spoken where in a recording.

A language model hears clips of some seconds: stretches of speech, short ones joined and long ones cut. What it says of
a clip alone is uncertain, and a recording seldom changes its language; so the languages of its clips are decided
together, by the path through them that is most likely where each change has a price (Viterbi). A change that lasts for
less than a moment is none. Then the clips of a part vote, and a part that is sure enough of no language is `unknown`.

Not covered: two languages at once, and a single borrowed word.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field

from speech.labels import UNKNOWN
from speech.settings import Section, Share
from speech.vad import Stretch

CLIP_S = 3.0  # of speech in a clip, at the least where there is as much: what the model is trained and judged on
CLIP_FLOOR = np.log(0.02)  # of a clip's log-probabilities: none is surer than this against a language
DIGITS = 4


class LanguageSettings(Section):
    """When and how the spoken language is told, as `[inference.spoken_language]`."""

    enabled: bool = Field(
        True, description="Listen for the language of recordings once a language model has passed its gates."
    )
    over_uploads: bool = Field(
        False,
        description="What is heard wins over the language that an upload's folder says; else the folder's word is "
        "taken and nobody listens.",
    )
    threshold: Share | None = Field(
        None, description="Least probability that a language is believed with; None: as the model was calibrated."
    )
    shortest_s: float = Field(
        4.0, ge=0, description="A change of language that lasts for less speech is none (seconds): a quotation, a name."
    )
    change_price: float = Field(
        3.0,
        ge=0,
        description="How much likelier (natural logarithm) the clips on one side of a change have to be in another "
        "language; 3 is twenty times. Higher: fewer changes.",
    )


@dataclass(frozen=True)
class Spoken:
    """A language, or `unknown`."""

    language: str
    confidence: float | None  # the probability that it is; of `unknown`, of the likeliest language; None: it was given


@dataclass(frozen=True)
class Part:
    """A stretch of speech in one language."""

    stretch: Stretch
    spoken: Spoken


@dataclass(frozen=True)
class Clip:
    """What is heard together: stretches of speech, or pieces of them, and the places of those that they are of."""

    pieces: tuple[Stretch, ...]
    of: tuple[int, ...]

    @property
    def seconds(self) -> float:
        """Of speech."""
        return sum(piece.end_s - piece.start_s for piece in self.pieces)


def clips_of(stretches: Sequence[Stretch]) -> list[Clip]:
    """Speech in order as clips of `CLIP_S` or more, less than twice that; what is left over joins the last."""
    clips: list[Clip] = []
    held = Clip((), ())
    for place, stretch in enumerate(stretches):
        count = max(1, int((stretch.end_s - stretch.start_s) // CLIP_S))
        inner = np.linspace(stretch.start_s, stretch.end_s, count + 1)[1:-1].round(3).tolist()
        for start_s, end_s in itertools.pairwise((stretch.start_s, *inner, stretch.end_s)):
            held = Clip((*held.pieces, Stretch(start_s, end_s)), (*held.of, place))
            if held.seconds >= CLIP_S - 1e-6:
                clips.append(held)
                held = Clip((), ())
    if clips and 0 < held.seconds < CLIP_S / 2:
        last = clips.pop()
        held = Clip(last.pieces + held.pieces, last.of + held.of)
    return [*clips, held] if held.pieces else clips


def parts_of(
    clips: Sequence[Clip],
    log_probabilities: np.ndarray,
    labels: Sequence[str],
    threshold: float,
    settings: LanguageSettings,
) -> list[Part]:
    """What is spoken where: the clips' stretches in order, each in one language, cut where the language changes.

    log_probabilities: [clips, labels], the last label `unknown`. A stretch that was cut for clips of one language is
    whole again.
    """
    if not clips:
        return []
    heard = np.maximum(log_probabilities.astype(np.float64), CLIP_FLOOR)
    seconds = np.array([clip.seconds for clip in clips])
    path = _without_short_runs(_likeliest_path(heard, settings.change_price), heard, seconds, settings.shortest_s)
    parts: list[Part] = []
    for first, end in _runs(path):
        said = vote(log_probabilities[first:end], seconds[first:end], labels, threshold)
        before = -1
        for clip in clips[first:end]:
            for piece, place in zip(clip.pieces, clip.of, strict=True):
                if place == before:
                    parts[-1] = Part(Stretch(parts[-1].stretch.start_s, piece.end_s), said)
                else:
                    parts.append(Part(piece, said))
                before = place
    return parts


def vote(log_probabilities: np.ndarray, seconds: np.ndarray, labels: Sequence[str], threshold: float) -> Spoken:
    """What clips of one language say together: the mean of their probabilities, by their seconds.

    The mean and not the product: clips of one speaker in one room err alike, so their votes do not add up as those of
    independent witnesses.
    """
    shares = np.average(np.exp(log_probabilities.astype(np.float64)), axis=0, weights=np.maximum(seconds, 1e-3))
    language = int(shares[:-1].argmax())
    confidence = round(float(shares[language]), DIGITS)
    known = confidence >= threshold and shares[language] > shares[-1]
    return Spoken(labels[language] if known else UNKNOWN, confidence)


def spoken_in(parts: Iterable[Part]) -> Spoken | None:
    """What is spoken in most of a recording; None where nobody speaks."""
    lasted_s: dict[str, float] = defaultdict(float)
    told: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for part in parts:
        seconds = max(part.stretch.end_s - part.stretch.start_s, 1e-3)
        lasted_s[part.spoken.language] += seconds
        if part.spoken.confidence is not None:
            told[part.spoken.language].append((part.spoken.confidence, seconds))
    if not lasted_s:
        return None
    most = min(lasted_s, key=lambda name: (-round(lasted_s[name], 3), name == UNKNOWN, name))
    if not told[most]:
        return Spoken(most, None)
    confidences, weights = zip(*told[most], strict=True)
    return Spoken(most, round(float(np.average(confidences, weights=weights)), DIGITS))


def _likeliest_path(heard: np.ndarray, price: float) -> np.ndarray:
    """The label of each clip on the likeliest path where a change costs `price` (Viterbi, 1967): int [clips]."""
    best = heard[0].copy()
    came_from = np.zeros(heard.shape, np.intp)
    for place in range(1, len(heard)):
        leader = int(best.argmax())
        stays = best >= best[leader] - price
        came_from[place] = np.where(stays, np.arange(len(best)), leader)
        best = np.where(stays, best, best[leader] - price) + heard[place]
    path = np.zeros(len(heard), np.intp)
    path[-1] = int(best.argmax())
    for place in range(len(heard) - 1, 0, -1):
        path[place - 1] = came_from[place, path[place]]
    return path


def _runs(path: np.ndarray) -> list[tuple[int, int]]:
    """Clips [from, to) of one label after the other."""
    edges = [0, *(np.flatnonzero(np.diff(path)) + 1).tolist(), len(path)]
    return list(itertools.pairwise(edges))


def _without_short_runs(path: np.ndarray, heard: np.ndarray, seconds: np.ndarray, shortest_s: float) -> np.ndarray:
    """The path in which the shortest run below `shortest_s` joins the neighbour that fits it better, until none is."""
    path = path.copy()
    while len(runs := _runs(path)) > 1:
        lasted = [float(seconds[first:end].sum()) for first, end in runs]
        place = int(np.argmin(lasted))
        if lasted[place] >= shortest_s:
            break
        first, end = runs[place]
        around = [path[first - 1]] * (place > 0) + [path[end % len(path)]] * (place + 1 < len(runs))
        path[first:end] = max(around, key=lambda label: (float(heard[first:end, label].sum()), -int(label)))
    return path
