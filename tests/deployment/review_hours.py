"""Hours of review tasks as the asset leaves them, for tests of what people do with them."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

from deployment.batch.branch import ReviewTask, tasks_of
from deployment.batch.hour import TASKS, TRANSCRIPTS, Hour
from speech.plain import to_lines
from speech.store.outputs import DataStore, write_atomically
from speech.transcript import Segment, Transcript, Word

HOUR = "2026-11-26-09"
PEOPLE = ("Ada", "Ben", "Cleo")


def transcript(number: int, *texts: str, confidence: float = 0.5, language: str = "en") -> Transcript:
    """A recording in which each text is said in one second, with a second before each."""
    segments = []
    for place, text in enumerate(texts):
        start_s, words = 1.0 + 2 * place, text.split()
        step = 1.0 / len(words)
        said = tuple(
            Word(word, round(start_s + step * n, 3), round(start_s + step * (n + 1), 3), confidence)
            for n, word in enumerate(words)
        )
        segments.append(Segment(said, start_s, start_s + 1.0))
    return Transcript(
        id=f"{number:032x}-1",
        language=language,
        confidence=confidence,
        duration_s=1.0 + 2 * len(texts),
        source_digest=f"{number:032x}" + "0" * 32,
        model_digests={"recognition": "b" * 64},
        segments=tuple(segments),
    )


def clip(seconds: float = 2.0, pitch_hz: float = 300.0) -> bytes:
    """A tone as FLAC, 16 kHz."""
    time = np.arange(round(16_000 * seconds)) / 16_000
    swell = 0.3 * np.sin(2 * np.pi * pitch_hz * time) * np.abs(np.sin(np.pi * 1.5 * time))
    file = io.BytesIO()
    soundfile.write(file, swell.astype(np.float32), 16_000, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def write_hour(home: Path | DataStore, transcripts: Sequence[Transcript], hour: str = HOUR) -> list[ReviewTask]:
    """Write an hour with these transcripts, none of which is published, and return its tasks."""
    store = home if isinstance(home, DataStore) else DataStore(home)
    tasks = [task for each in transcripts for task in tasks_of(each, False, 0.8, 0.0)]
    for asset, name, rows in (
        ("transcripts", TRANSCRIPTS, to_lines(transcripts)),
        ("published_transcripts", TRANSCRIPTS, b""),
        ("review_tasks", TASKS, to_lines(tasks)),
    ):
        with store.replace(asset, hour) as staging:
            write_atomically(staging.path / name, rows)
            if asset == "review_tasks":
                for number, task in enumerate(tasks):
                    write_atomically(staging.path / task.clip, clip(2.0, 200.0 + 20 * number))
    return Hour(store, hour).tasks()
