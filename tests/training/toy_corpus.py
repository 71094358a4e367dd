"""A spoken toy language of tones, written in a moment: enough to train on for a few steps."""

import datetime as dt
from pathlib import Path

import numpy as np
import soundfile

from speech.corpus.manifest import Utterance, write_manifest

SAMPLE_RATE = 16_000
WORDS = {"yes": 500.0, "no": 900.0, "stop": 1_400.0, "play": 2_000.0}  # Hz


def write_toy_corpus(folder: Path, *, train_speakers: int = 4, dev_speakers: int = 2, each: int = 6) -> Path:
    """Write FLAC files and a manifest; every speaker has a pitch of their own. Returns the manifest's path."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(7)
    rows = []
    for number in range(train_speakers + dev_speakers):
        for take in range(each):
            words = [list(WORDS)[index] for index in rng.integers(len(WORDS), size=int(rng.integers(1, 4)))]
            sound = np.concatenate([_word(word, 1 + 0.03 * number, rng) for word in words])
            name = f"s{number}-{take}"
            soundfile.write(folder / f"{name}.flac", sound, SAMPLE_RATE, subtype="PCM_16")
            rows.append(
                Utterance(
                    id=name,
                    audio=f"{name}.flac",
                    duration_s=len(sound) / SAMPLE_RATE,
                    text=" ".join(words).capitalize() + ".",
                    speaker=f"speaker-{number}",
                    language="en",
                    domain="assistant",
                    recorded_at=dt.date(2024, 1, 15),
                    split="train" if number < train_speakers else "dev",
                )
            )
    write_manifest(folder / "manifest.jsonl", rows)
    return folder / "manifest.jsonl"


def _word(word: str, pitch: float, rng: np.random.Generator) -> np.ndarray:
    time = np.arange(int(0.35 * SAMPLE_RATE)) / SAMPLE_RATE
    tone = np.sin(2 * np.pi * WORDS[word] * pitch * time) * np.hanning(len(time))
    return (0.3 * tone + 0.002 * rng.standard_normal(len(time))).astype(np.float32)
