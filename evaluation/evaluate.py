"""Have a candidate and the champion transcribe the same test sets, and measure both.

Besides speech both sets hold, the candidate hears recordings in which nobody speaks: what it writes then is made up.
"""

import json
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.calibration import reliability
from evaluation.results import ChampionResult, Evaluation, EvaluationError, NonSpeech, Scored, SetResult, Unreadable
from evaluation.scoring import (
    Counts,
    count_edits,
    paired_difference,
    score_of,
    slice_scores,
    slices_of,
    word_outcomes,
)
from speech.audio.decode import SAMPLE_RATE, AudioError, decode
from speech.corpus.manifest import Utterance
from speech.recognition.offline import Recognition, Recognizer
from speech.text import words_of

BATCH_AUDIO_S = 240.0  # padded seconds a batch may hold: bounds memory whatever the utterances' length
BATCH_UTTERANCES = 32
PROBE_S = 10.0
PROBE_LEVELS_DBFS = (-60.0, -40.0, -20.0)

Resolve = Callable[[Utterance], str | os.PathLike[str] | bytes]  # to an utterance's audio


def nonspeech_probes(seed: int = 0, sample_rate: int = 16_000) -> Iterator[tuple[str, np.ndarray]]:
    """Recordings in which nobody says a word: name and float32 samples, the same for the same seed.

    Silence; white and pink noise; mains hum with its harmonics; and noise with the long-term spectrum and the 4 Hz
    swell of many people talking at once (as ICRA noise, Dreschler et al. 2001), the kind that tempts a recogniser most.
    """
    size = int(PROBE_S * sample_rate)
    yield "silence", np.zeros(size, dtype=np.float32)
    generator = np.random.default_rng(seed)
    times = np.arange(size) / sample_rate
    frequencies = np.fft.rfftfreq(size, 1 / sample_rate)

    def shaped(gain: np.ndarray) -> np.ndarray:
        return np.fft.irfft(np.fft.rfft(generator.standard_normal(size)) * gain, size)

    pink = 1 / np.sqrt(np.maximum(frequencies, 20.0))
    speech_spectrum = np.where(frequencies < 100, 0.1, 1.0) / (1 + (frequencies / 500.0) ** 2) ** 0.75
    hum = sum(np.sin(2 * np.pi * 50 * harmonic * times + harmonic) / harmonic for harmonic in range(1, 9))
    swell = np.fft.rfft(generator.standard_normal(size)) * (np.abs(frequencies - 4.0) < 2.5)
    envelope = np.abs(np.fft.irfft(swell, size))
    kinds = {
        "white noise": generator.standard_normal(size),
        "pink noise": shaped(pink),
        "mains hum": np.asarray(hum),
        "babble-like noise": shaped(speech_spectrum) * (0.3 + envelope / envelope.max()),
    }
    for kind, signal in kinds.items():
        unit = signal / np.sqrt(np.mean(signal**2))
        for level in PROBE_LEVELS_DBFS:
            loud = np.clip(unit * 10 ** (level / 20), -1.0, 1.0)
            yield f"{kind} at {level:g} dBFS", loud.astype(np.float32)


def insertions_on_nonspeech(transcribe: Callable[[np.ndarray], str], language: str, seed: int = 0) -> NonSpeech:
    """Words per minute that `transcribe` (float32 16 kHz samples -> text) makes up on silence and noise."""
    by_probe = {
        name: len(words_of(transcribe(samples), language)) * 60 / PROBE_S for name, samples in nonspeech_probes(seed)
    }
    return NonSpeech(
        words_per_minute=float(np.mean(list(by_probe.values()))),
        minutes=len(by_probe) * PROBE_S / 60,
        by_probe=by_probe,
    )


def evaluate(
    candidate: Recognizer,
    sets: Mapping[str, Sequence[Utterance]],
    resolve_audio: Resolve,
    *,
    language: str,
    partition: str,
    champion: Recognizer | None,
    dataset_digests: Mapping[str, str],
    bootstrap: int = 1000,
    seed: int = 0,
    told: Callable[[str], None] = lambda said: None,
) -> Evaluation:
    """Transcribe every set with the candidate and the champion, and measure both.

    `sets` is {"quarter": ..., "benchmark": ...}. `champion` has no default: None is the statement that the language has
    none yet, and must not happen by forgetting. Utterances that cannot be decoded, or that a model fails on, are listed
    in the result of that model, and the evidence gate refuses a candidate for them. Two models are compared on exactly
    those utterances that both heard. `told` hears how far it is. Deterministic but for `rtfx`.
    """
    results = {}
    audio_s = computing_s = 0.0
    for set_name, utterances in sets.items():
        run = _transcribe(candidate, set_name, utterances, resolve_audio, language, told)
        audio_s, computing_s = audio_s + run.audio_s, computing_s + run.computing_s
        counts = count_edits(run.rows, language)
        rival = None
        if champion is not None:
            same = champion.bundle.digest == candidate.bundle.digest
            other = run if same else _transcribe(champion, set_name, utterances, resolve_audio, language, told)
            theirs = count_edits(other.rows, language)
            rival = ChampionResult(
                score=score_of(theirs, bootstrap, seed),
                slices=slice_scores(other.rows, theirs, bootstrap, seed),
                rows=tuple(other.rows),
                difference=paired_difference(*_both_heard(run.rows, counts, other.rows, theirs), bootstrap, seed),
                unreadable=tuple(other.unreadable),
            )
        results[set_name] = SetResult(
            score=score_of(counts, bootstrap, seed),
            slices=slice_scores(run.rows, counts, bootstrap, seed),
            rows=tuple(run.rows),
            reliability=reliability([sure for sure, _ in run.outcomes], [correct for _, correct in run.outcomes]),
            champion=rival,
            unreadable=tuple(run.unreadable),
        )
    return Evaluation(
        bundle_digest=candidate.bundle.digest,
        model_name=candidate.bundle.name,
        language=language,
        partition=partition,
        dataset_digests=dict(dataset_digests),
        sets=results,
        champion_digest=champion.bundle.digest if champion else None,
        champion_name=champion.bundle.name if champion else None,
        nonspeech=insertions_on_nonspeech(
            lambda samples: candidate.transcribe_batch([samples])[0].text, language, seed
        ),
        parity=json.loads(json.dumps(dict(candidate.bundle.parity))),
        rtfx=audio_s / computing_s if computing_s > 0 else math.nan,
    )


def _both_heard(ours: list[Scored], our: Counts, theirs: list[Scored], their: Counts) -> tuple[Counts, Counts]:
    """The counts of the utterances that are in both lists, in the same order."""
    places = {row.id: place for place, row in enumerate(theirs)}
    pairs = [(place, places[row.id]) for place, row in enumerate(ours) if row.id in places]
    chosen = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return our.only(chosen[:, 0]), their.only(chosen[:, 1])


@dataclass(eq=False)
class _Run:
    """What one model made of one set."""

    rows: list[Scored]
    outcomes: list[tuple[float, bool]]
    unreadable: list[Unreadable]
    audio_s: float = 0.0
    computing_s: float = 0.0


def _transcribe(
    recognizer: Recognizer,
    set_name: str,
    utterances: Sequence[Utterance],
    resolve_audio: Resolve,
    language: str,
    told: Callable[[str], None],
) -> _Run:
    identities = {utterance.id for utterance in utterances}
    if len(identities) != len(utterances):
        raise EvaluationError(f"Test set {set_name!r} holds an utterance id twice: rebuild its manifest.")
    run = _Run([], [], [])
    heard: dict[str, tuple[Scored, list[tuple[float, bool]]]] = {}
    done = 0
    for batch in _batches(utterances):
        decoded = list(_decoded(batch, resolve_audio))
        before = time.perf_counter()
        recognitions = iter(_recognized(recognizer, [s for _, s in decoded if not isinstance(s, str)]))
        run.computing_s += time.perf_counter() - before
        for utterance, samples in decoded:
            found = samples if isinstance(samples, str) else next(recognitions)
            if isinstance(found, str):
                run.unreadable.append(Unreadable(utterance.id, found))
                continue
            duration_s = len(samples) / 16_000
            run.audio_s += duration_s
            row = Scored(
                id=utterance.id,
                reference=utterance.text,
                hypothesis=found.text,
                confidence=float(found.confidence),
                duration_s=duration_s,
                speaker=utterance.speaker,
                domain=utterance.domain,
                slices=slices_of(utterance),
                snr_db=utterance.quality.snr_db if utterance.quality else math.nan,
            )
            heard[utterance.id] = row, word_outcomes(utterance.text, found.words, language)
        done += len(batch)
        told(f"{set_name}: {recognizer.bundle.name} {done}/{len(utterances)}")
    for utterance in utterances:
        if utterance.id in heard:
            row, outcomes = heard[utterance.id]
            run.rows.append(row)
            run.outcomes += outcomes
    run.unreadable.sort(key=lambda unread: unread.id)
    return run


def _recognized(recognizer: Recognizer, batch: list[np.ndarray]) -> Sequence[Recognition | str]:
    """What a model made of each recording, or why it could not; one that it fails on costs no other."""
    if not batch:
        return []
    try:
        return recognizer.transcribe_batch(batch)
    except MemoryError:
        raise
    except Exception as error:  # onnxruntime raises its own types, which share no base but Exception
        if len(batch) > 1:
            return [found for samples in batch for found in _recognized(recognizer, [samples])]
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return [f"the model failed on it: {reason}"]


def _batches(utterances: Iterable[Utterance]) -> Iterator[list[Utterance]]:
    """Utterances of like length together, so little is padded; segments of one file stay together."""
    rows = list(utterances)
    segments = Counter(row.audio for row in rows)
    rows.sort(key=lambda row: (row.audio if segments[row.audio] > 1 else "", row.duration_s or 0.0, row.id))
    batch: list[Utterance] = []
    longest = 0.0
    for utterance in rows:
        longest = max(longest, utterance.duration_s or 0.0)
        if batch and (len(batch) == BATCH_UTTERANCES or longest * (len(batch) + 1) > BATCH_AUDIO_S):
            yield batch
            batch, longest = [], utterance.duration_s or 0.0
        batch.append(utterance)
    if batch:
        yield batch


def _decoded(batch: Iterable[Utterance], resolve_audio: Resolve) -> Iterator[tuple[Utterance, np.ndarray | str]]:
    """Each utterance with its own stretch of samples, or with the reason why there are none."""
    last: tuple[str, np.ndarray | str] | None = None
    for utterance in batch:
        if last is None or last[0] != utterance.audio:
            try:
                last = (utterance.audio, decode(resolve_audio(utterance)).samples)
            except AudioError as error:
                last = (utterance.audio, error.reason)
            except FileNotFoundError:
                last = (utterance.audio, "the audio file does not exist")
        samples = last[1]
        if not isinstance(samples, str):
            start = round(utterance.offset_s * SAMPLE_RATE)
            end = None if utterance.duration_s is None else start + round(utterance.duration_s * SAMPLE_RATE)
            samples = samples[start:end]
            if len(samples) == 0:
                samples = f"the segment at {utterance.offset_s:g} s lies behind the end of the file"
        yield utterance, samples
