"""Where somebody speaks: Silero's network over 32 ms windows, and stretches of speech made of its probabilities.

The network (Silero VAD v6, MIT, whose weights lie in the wheel `silero-vad`) is recurrent: each stream has a state and
the last 4 ms of what it heard before, and nothing of either is shared between streams. It runs as ONNX, many windows of
one stream at a time, so that an hour of audio takes seconds; neither torch nor the wheel's own Python code is imported.
"""

import importlib.util
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from speech.audio.mixdown import SAMPLE_RATE, cut_anew
from speech.settings import Section

WINDOW = 512  # samples that one probability is about
CONTEXT = 64  # samples before a window that the network sees again
WINDOW_S = WINDOW / SAMPLE_RATE
STATE = (1, 1, 128)
NETWORK = "silero_vad_16k_sequence.onnx"
_RUN_WINDOWS = 1024  # of one run of the network: half a minute, 2 MB


class VadSettings(Section):
    """When sound counts as speech, and how speech is cut for recognition."""

    threshold: float = Field(0.5, gt=0, lt=1, description="Probability from which on a window is speech.")
    release: float = Field(
        0.35, gt=0, lt=1, description="Probability below which speech ends; between the two it goes on."
    )
    min_speech_s: float = Field(0.1, ge=0, description="Shorter stretches are no speech: a click, a breath.")
    min_pause_s: float = Field(0.4, ge=0, description="Shorter pauses do not end a stretch.")
    padding_s: float = Field(0.2, ge=0, description="Kept before and after speech: voiceless sounds begin softly.")
    longest_s: float = Field(
        20.0, ge=1, description="Longer stretches are cut, where speech is least likely in the later half."
    )


@dataclass(frozen=True)
class Stretch:
    """A part of a recording that is recognised as one, in seconds from its start."""

    start_s: float
    end_s: float


class SpeechDetector:
    """Probabilities of speech. One instance serves any number of threads."""

    def __init__(self, threads: int = 1) -> None:
        self._threads = threads

    def probabilities(self, chunks: Iterable[np.ndarray]) -> np.ndarray:
        """The probability of speech in each window of one recording.

        Args:
            chunks: 16 kHz mono float samples [n] in -1..1, in pieces of any length.

        Returns:
            float32 [ceil(samples / 512)]; the last window is filled up with silence.
        """
        hidden = cell = np.zeros(STATE, np.float32)
        before = np.zeros(CONTEXT, np.float32)
        found = [np.zeros(0, np.float32)]
        for samples in cut_anew(iter(chunks), WINDOW * _RUN_WINDOWS):
            count = math.ceil(len(samples) / WINDOW)
            heard = np.zeros(CONTEXT + count * WINDOW, np.float32)
            heard[:CONTEXT] = before
            heard[CONTEXT : CONTEXT + len(samples)] = samples
            windows = np.lib.stride_tricks.sliding_window_view(heard, CONTEXT + WINDOW)[::WINDOW]
            probabilities, hidden, cell = self._session.run(None, {"input": windows, "h": hidden, "c": cell})
            found.append(probabilities)
            before = heard[-CONTEXT:]
        return np.concatenate(found)

    @cached_property
    def _session(self) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # it warns of weights that it does not need
        return onnxruntime.InferenceSession(str(_network()), options, providers=["CPUExecutionProvider"])


def _network() -> Path:
    found = importlib.util.find_spec("silero_vad")  # its folder alone: importing it would import torch
    assert found  # a dependency
    assert found.origin
    return Path(found.origin).parent / "data" / NETWORK


def stretches(probabilities: np.ndarray, duration_s: float, settings: VadSettings | None = None) -> tuple[Stretch, ...]:
    """The stretches of speech, in order and apart from each other; none where nobody speaks.

    Args:
        probabilities: of each window, as `SpeechDetector` gives them.
        duration_s: of the recording, in which all stretches end.
        settings: by default those of `VadSettings`.
    """
    settings = settings or VadSettings()
    shortest, pause = settings.min_speech_s / WINDOW_S, settings.min_pause_s / WINDOW_S
    found: list[tuple[int, int]] = []  # windows, the end excluded
    for first, last in _spoken(probabilities, settings):
        if found and first - found[-1][1] < pause:
            first, _ = found.pop()
        found.append((first, last))
    pieces = [
        piece
        for first, last in found
        if last - first >= shortest
        for piece in _no_longer(first, last, probabilities, max(1, int(settings.longest_s / WINDOW_S)))
    ]
    return _padded([Stretch(a * WINDOW_S, min(b * WINDOW_S, duration_s)) for a, b in pieces], duration_s, settings)


def _spoken(probabilities: np.ndarray, settings: VadSettings) -> Iterable[tuple[int, int]]:
    """Runs of windows: begun above the threshold, ended below the release."""
    first: int | None = None
    for window, probability in enumerate(probabilities):
        if first is None and probability >= settings.threshold:
            first = window
        elif first is not None and probability < min(settings.release, settings.threshold):
            yield first, window
            first = None
    if first is not None:
        yield first, len(probabilities)


def _no_longer(first: int, last: int, probabilities: np.ndarray, longest: int) -> Iterable[tuple[int, int]]:
    while last - first > longest:
        half = first + max(1, longest // 2)
        cut = half + int(np.argmin(probabilities[half : first + longest + 1]))
        yield first, cut
        first = cut
    yield first, last


def _padded(found: list[Stretch], duration_s: float, settings: VadSettings) -> tuple[Stretch, ...]:
    """Each with what precedes and follows it, never beyond the middle of the pause to its neighbour; in whole ms."""
    padded = []
    for place, stretch in enumerate(found):
        before = found[place - 1].end_s if place else -math.inf
        after = found[place + 1].start_s if place + 1 < len(found) else math.inf
        start_s = max(0.0, stretch.start_s - settings.padding_s, (before + stretch.start_s) / 2)
        end_s = min(duration_s, stretch.end_s + settings.padding_s, (stretch.end_s + after) / 2)
        padded.append(replace(stretch, start_s=round(start_s, 3), end_s=round(end_s, 3)))
    return tuple(padded)
