"""The offline recogniser over a ModelBundle: audio in, text with word times and confidence out.

It runs the streaming network that is also served live, in large runs with the caches carried along,
so memory stays bounded on recordings of hours, the text does not depend on where the runs are cut or
on what else is in the batch, and a recording has the same words as its stream. Needs onnxruntime,
sentencepiece and numpy; neither torch nor NeMo.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from speech.bundle import Geometry, ModelBundle, Precision
from speech.features import MelConfig, MelStream
from speech.recognition.ctc import GreedyCtc
from speech.recognition.decoder import Decoder, Token
from speech.recognition.network import Network
from speech.recognition.state import joined, take
from speech.recognition.words import WordSpeller
from speech.scripts import join_words
from speech.transcript import Word

# Audio a network run sees at once. Longer gains no speed and costs memory with its square.
RUN_S = 20.0
# Below this peak (-80 dBFS) a recording holds nothing that a person could have said.
SILENCE_PEAK = 1e-4


class RecognitionError(Exception):
    """Samples that cannot be recognised; `index` is their place in a batch."""

    def __init__(self, reason: str, index: int = 0) -> None:
        """Keep the reason, one sentence, and the place in the batch."""
        super().__init__(reason)
        self.index = index


@dataclass(frozen=True)
class Recognition:
    """What was said in one recording."""

    text: str
    words: tuple[Word, ...]
    confidence: float  # mean of the words' confidences; 0.0 without words
    duration_s: float


class Recognizer:
    """Transcribes whole recordings with a bundle. One instance serves any number of threads.

    `run_s` and `max_batch` bound memory; neither changes the text.
    """

    def __init__(
        self,
        bundle: ModelBundle,
        threads: int = 1,
        variant: Precision = "fp32",
        run_s: float = RUN_S,
        max_batch: int = 16,
    ) -> None:
        """Open the bundle's network and tokenizer and warm them. Raises BundleError."""
        self.bundle = bundle
        self._network = Network(bundle, threads, variant)
        self._decoder: Decoder = GreedyCtc(bundle.blank_id)
        self._speller = WordSpeller(bundle)
        self._max_batch = max(1, max_batch)
        chunk_s = bundle.geometry.chunk * bundle.features.frame_s
        self._run_chunks = min(bundle.geometry.max_run_chunks, max(1, int(run_s / chunk_s)))

    def transcribe(self, samples: np.ndarray) -> Recognition:
        """Transcribe mono float samples [n] in -1..1 at the bundle's sample rate. Raises RecognitionError."""
        return self.transcribe_batch([samples])[0]

    def transcribe_batch(self, recordings: Sequence[np.ndarray]) -> list[Recognition]:
        """Transcribe recordings together, results in their order. Raises RecognitionError before any work."""
        for index, samples in enumerate(recordings):
            _check(samples, index)
        results: dict[int, Recognition] = {}
        # Rows of like length share their runs, and a row that ends leaves the batch.
        order = sorted(range(len(recordings)), key=lambda index: len(recordings[index]), reverse=True)
        for first in range(0, len(order), self._max_batch):
            group = order[first : first + self._max_batch]
            rows = [_Row(self._slices(recordings[index]), self.bundle, self._run_chunks) for index in group]
            self._advance(rows)
            results.update((index, self._result(row)) for index, row in zip(group, rows, strict=True))
        return [results[index] for index in range(len(recordings))]

    def transcribe_chunks(self, chunks: Iterable[np.ndarray]) -> Recognition:
        """Transcribe one recording that comes in chunks [n] of any size, in bounded memory."""
        row = _Row(_checked(chunks), self.bundle, self._run_chunks)
        self._advance([row])
        return self._result(row)

    def log_probs(self, samples: np.ndarray) -> np.ndarray:
        """Return the log-probabilities [outputs, symbols] of one recording; the blank is the last symbol."""
        row = _Row(self._slices(_check(samples)), self.bundle, self._run_chunks)
        collected = [np.zeros((0, self.bundle.blank_id + 1), np.float32)]
        self._advance([row], collected)
        return np.concatenate(collected)

    def _slices(self, samples: np.ndarray) -> Iterator[np.ndarray]:
        size = self._run_chunks * self.bundle.geometry.chunk * self.bundle.features.hop
        return (samples[first : first + size] for first in range(0, len(samples), size))

    def _advance(self, rows: Sequence["_Row"], collected: list[np.ndarray] | None = None) -> None:
        """Run the network until every row has ended; `collected` takes the log-probabilities."""
        active = list(rows)
        caches, state = self._network.caches(len(active)), joined([self._decoder.start() for _ in active])
        while active:
            runs = [next(row.runs, None) for row in active]
            going = [index for index, run in enumerate(runs) if run is not None]
            if len(going) < len(active):
                for row, run, last in zip(active, runs, self._decoder.pending(state), strict=True):
                    row.tokens += last if run is None else []
                active = [active[index] for index in going]
                caches, state = take(caches, going), take(state, going)
            present = [run for run in runs if run is not None]
            if not present:
                return
            lengths = np.array([len(run) for run in present])
            batch = np.zeros((len(present), int(lengths.max()), self.bundle.features.mels), np.float32)
            for padded, run in zip(batch, present, strict=True):
                padded[: len(run)] = run
            log_probs, counts, caches = self._network.run(batch, lengths, caches)
            state, settled = self._decoder.step(state, log_probs, counts)
            for row, tokens in zip(active, settled, strict=True):
                row.tokens += tokens
            if collected is not None:
                collected += [values[:count] for values, count in zip(log_probs, counts, strict=True)]

    def _result(self, row: "_Row") -> Recognition:
        duration_s = row.samples / self.bundle.sample_rate
        words = self._speller.words(row.tokens, duration_s) if row.peak >= SILENCE_PEAK else ()
        confidence = float(np.mean([word.confidence for word in words])) if words else 0.0
        return Recognition(join_words(word.text for word in words), words, confidence, duration_s)


class _Row:
    """One recording on its way through the network: its coming runs and what was decoded."""

    def __init__(self, chunks: Iterable[np.ndarray], bundle: ModelBundle, run_chunks: int) -> None:
        self.tokens: list[Token] = []
        self.samples = 0
        self.peak = 0.0
        self.runs = mel_runs(self._measured(chunks), bundle.features, bundle.geometry, run_chunks)

    def _measured(self, chunks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        for chunk in chunks:
            self.samples += len(chunk)
            self.peak = max(self.peak, float(np.abs(chunk).max(initial=0.0)))
            yield chunk


def mel_runs(
    chunks: Iterable[np.ndarray], features: MelConfig, geometry: Geometry, run_chunks: int
) -> Iterator[np.ndarray]:
    """Cut a recording into the network's runs [frames, mels]: each begins with what it must see again.

    All hold history + run_chunks * chunk frames but the last, which holds what is left.
    """
    stream = MelStream(features)
    size = geometry.history + run_chunks * geometry.chunk
    held = np.zeros((geometry.lead, features.mels), np.float32)
    seen = geometry.lead  # leading frames of `held` that no later run may bring as new

    def pieces() -> Iterator[np.ndarray]:
        for chunk in chunks:
            yield stream.push(chunk)
        yield stream.flush()

    for frames in pieces():
        held = np.concatenate([held, frames])
        while len(held) >= size:
            yield held[:size]
            held = held[size - geometry.history :]
            seen = geometry.history
    if len(held) > seen:
        yield held


def _check(samples: np.ndarray, index: int = 0) -> np.ndarray:
    if not isinstance(samples, np.ndarray) or samples.ndim != 1 or samples.dtype.kind != "f":
        raise RecognitionError("samples must be a mono float array of shape [n]; mix down and scale to -1..1", index)
    bad = np.flatnonzero(~np.isfinite(samples))
    if bad.size:
        raise RecognitionError(f"sample {bad[0]} is not a finite number; decode the recording again", index)
    return samples


def _checked(chunks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    for chunk in chunks:
        yield _check(chunk)
