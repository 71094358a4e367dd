"""The offline recogniser over a ModelBundle: audio in, text with word times and confidence out.

It runs the streaming network that is also served live, in large runs with the caches carried along,
so memory stays bounded on recordings of hours, the text does not depend on where the runs are cut or
on what else is in the batch, and a recording has the same words as its stream. Needs onnxruntime,
sentencepiece and numpy; neither torch nor NeMo.

Word times come from CTC: a word lasts from the start of its first piece's first output frame to the
end of its last piece's last one, where an output frame stands for the audio that became known with it
(80 ms in this family; the encoder is causal, so nothing else has to be taken off). CTC places a piece
where the network is sure of it, mostly in the later part of the sound, and often in one frame: a word
of many letters is therefore taken to begin no later than fast speech would need, and starts are good
to a few frames and not phone boundaries.

Scripts without spaces have a word a piece: a character, or the few that the model writes at once.

A word's confidence is that of its least sure piece, and a piece's is its highest softmax value; the
bundle's calibration, where it has one, turns that into the probability that the word is right.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from speech.bundle import TOKENIZER, BundleError, Geometry, ModelBundle
from speech.features import MelConfig, MelStream
from speech.scripts import is_unspaced, join_words
from speech.spelling import UNREADABLE, goes_on
from speech.text import spoken_length
from speech.transcript import Word

# Audio a network run sees at once. Longer gains no speed and costs memory with its square.
RUN_S = 20.0
# Below this peak (-80 dBFS) a recording holds nothing that a person could have said.
SILENCE_PEAK = 1e-4
LETTER_S = 0.05  # nobody says twenty letters a second

_INPUTS = ("audio_signal", "length", "cache_last_channel", "cache_last_time", "cache_last_channel_len")
_OUTPUTS = 5
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # how sentencepiece writes the start of a word


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


class Caches(NamedTuple):
    """What the network remembers of each stream in a batch; the batch is the first axis of every array."""

    attention: np.ndarray  # [batch, layers, output frames, width] float32
    convolution: np.ndarray  # [batch, layers, width, output frames] float32
    filled: np.ndarray  # [batch] int64: output frames of `attention` that are real

    def take(self, rows: Sequence[int]) -> "Caches":
        """Return the caches of these rows, in this order."""
        return Caches(*(array[list(rows)] for array in self))


class Network:
    """The bundle's network as a function from mel frames and caches to log-probabilities and caches."""

    def __init__(self, bundle: ModelBundle, threads: int = 1, variant: str = "fp32") -> None:
        """Open and warm the network; BundleError when it is not what bundle.json says."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.use_deterministic_compute = True
        options.log_severity_level = 4
        # A replica shares its cores with others: waiting threads must sleep, not spin.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        name = bundle.network_name(variant)
        try:
            self._session = onnxruntime.InferenceSession(bundle.read(name), options, ["CPUExecutionProvider"])
        except BundleError:
            raise
        except Exception as error:  # onnxruntime raises its own types, which share no base but Exception
            raise BundleError(f"{bundle.path}: {name} is not a network that can be opened ({error})") from error
        self.geometry = bundle.geometry
        self.features = bundle.features
        self.symbols = bundle.blank_id + 1
        names = tuple(item.name for item in self._session.get_inputs())
        if set(names) != set(_INPUTS) or len(self._session.get_outputs()) != _OUTPUTS:
            raise BundleError(f"{bundle.path}: {name} takes {', '.join(names)}, not {', '.join(_INPUTS)}")
        self._warm(f"{bundle.path}: {name}")

    def caches(self, batch: int) -> Caches:
        """Return the caches of `batch` streams that have not begun."""
        shape = self.geometry
        return Caches(
            np.zeros((batch, *shape.attention_cache), np.float32),
            np.zeros((batch, *shape.convolution_cache), np.float32),
            np.zeros(batch, np.int64),
        )

    def run(self, frames: np.ndarray, lengths: np.ndarray, caches: Caches) -> tuple[np.ndarray, np.ndarray, Caches]:
        """Advance a batch of streams by one run.

        frames: [batch, frames, mels] float32, each row as `Geometry` says; lengths: [batch] how many of
        them are real. Returns log-probabilities [batch, outputs, symbols], how many outputs of each row
        are real [batch], and the next caches.
        """
        values = (np.ascontiguousarray(frames.transpose(0, 2, 1)), np.asarray(lengths, np.int64), *caches)
        outputs = self._session.run(None, dict(zip(_INPUTS, values, strict=True)))
        return outputs[0], outputs[1], Caches(*outputs[2:])

    def _warm(self, name: str) -> None:
        """Run once with zeros: memory is reserved before the first caller, and shapes are checked."""
        size = self.geometry.history + self.geometry.chunk
        try:
            outputs, lengths, caches = self.run(
                np.zeros((1, size, self.features.mels), np.float32), np.array([size]), self.caches(1)
            )
        except Exception as error:
            raise BundleError(f"{name} does not run with the geometry of its bundle.json ({error})") from error
        expected = (1, self.geometry.chunk_outputs, self.symbols)
        before = self.caches(1)
        kept = caches.attention.shape == before.attention.shape and caches.convolution.shape == before.convolution.shape
        if outputs.shape != expected or lengths.tolist() != [expected[1]] or not kept:
            raise BundleError(f"{name} gives shape {list(outputs.shape)}, its bundle.json promises {list(expected)}")


@dataclass
class Piece:
    """A run of output frames on which one symbol is the likeliest."""

    symbol: int
    first: int  # output frame
    last: int  # output frame, included
    probability: float  # the highest in the run


class GreedyCtc:
    """Greedy CTC over a stream of log-probabilities: repeats merge, blanks go (Graves et al., 2006)."""

    def __init__(self, blank_id: int) -> None:
        """Start before output frame 0."""
        self.pieces: list[Piece] = []
        self.frames = 0
        self._blank = blank_id
        self._previous = blank_id

    def push(self, log_probs: np.ndarray) -> None:
        """Take the next output frames [frames, symbols]."""
        symbols = log_probs.argmax(axis=1)
        probabilities = np.exp(log_probs[np.arange(len(symbols)), symbols])
        for offset in np.flatnonzero(symbols != self._blank):
            frame, symbol, probability = self.frames + int(offset), int(symbols[offset]), float(probabilities[offset])
            before = int(symbols[offset - 1]) if offset else self._previous
            if symbol != before:
                self.pieces.append(Piece(symbol, frame, frame, probability))
            else:
                self.pieces[-1].last = frame
                self.pieces[-1].probability = max(self.pieces[-1].probability, probability)
        if len(symbols):
            self.frames += len(symbols)
            self._previous = int(symbols[-1])


class WordSpeller:
    """Turns pieces into words with times and confidence, by the bundle's tokenizer and calibration."""

    def __init__(self, bundle: ModelBundle) -> None:
        """Open the tokenizer; BundleError when it is not the one of the vocabulary."""
        from sentencepiece import SentencePieceProcessor

        self._bundle = bundle
        self._tokenizer: Any = SentencePieceProcessor()
        try:
            self._tokenizer.LoadFromSerializedProto(bundle.read(TOKENIZER))
        except RuntimeError as error:
            raise BundleError(f"{bundle.path}: {TOKENIZER} is not a sentencepiece model") from error
        pieces = tuple(self._tokenizer.IdToPiece(index) for index in range(self._tokenizer.GetPieceSize()))
        if pieces != bundle.vocabulary:
            raise BundleError(
                f"{bundle.path}: {TOKENIZER} has other pieces than the vocabulary; export the model again"
            )

    def pieces_of(self, text: str) -> list[int]:
        """Return the symbols that write a normalised text."""
        symbols: list[int] = self._tokenizer.EncodeAsIds(text)
        return symbols

    def words(self, pieces: Sequence[Piece], duration_s: float | None = None) -> tuple[Word, ...]:
        """Return the words of pieces in order of time; no time lies after `duration_s`.

        Where a script sets no spaces, a word is a piece, or the pieces of a character that takes several. Pieces that
        make no character give a word of confidence 0 that shows it (`speech.spelling.UNREADABLE`).
        """
        groups: list[list[Piece]] = []
        apart = True  # sentencepiece sets spaces around the unknown piece
        for piece in pieces:
            unknown = self._tokenizer.IsUnknown(piece.symbol)
            if apart or unknown or self._bundle.vocabulary[piece.symbol].startswith(_SPACE):
                groups.append([])
            groups[-1].append(piece)
            apart = unknown
        spelled = [(text, group) for together in groups for text, group in self._units(together) if text]
        confidences = np.array([min(piece.probability for piece in group) for _, group in spelled])
        if self._bundle.calibration is not None:
            confidences = self._bundle.calibration.apply(confidences)
        words: list[Word] = []
        for (text, group), confidence in zip(spelled, confidences, strict=True):
            start, end = self._times(group, duration_s)
            # a long word that is written at once was not said at once
            begun = round(end - LETTER_S * spoken_length(text), 3)
            start = min(start, max(begun, words[-1].end_s if words else 0.0))
            words.append(Word(text, start, end, 0.0 if UNREADABLE in text else min(1.0, float(confidence))))
        return tuple(words)

    def _units(self, group: Sequence[Piece]) -> list[tuple[str, list[Piece]]]:
        """Return what stands between two spaces as words: one, but for scripts that set no spaces."""
        whole = self._spell(group)
        if not any(map(is_unspaced, whole)):
            return [(whole, list(group))]
        units: list[tuple[str, list[Piece]]] = []
        for piece in group:
            text = self._spell([piece])
            if units:
                before, held = units[-1]
                apart = is_unspaced(before[-1:]) or is_unspaced(text[:1])
                if not before or not text or self._goes_on(piece) or not apart:
                    units[-1] = (self._spell([*held, piece]), [*held, piece])
                    continue
            units.append((text, [piece]))
        return units

    def _goes_on(self, piece: Piece) -> bool:
        """Tell whether a piece begins within a character."""
        symbol = self._bundle.vocabulary[piece.symbol]
        if self._tokenizer.IsByte(piece.symbol):
            return 0x80 <= int(symbol[3:5], 16) < 0xC0  # "<0x80>": a byte of UTF-8 that is not the first
        return goes_on(symbol)

    def _spell(self, group: Sequence[Piece]) -> str:
        """Return the text of pieces; sentencepiece joins what spells a character."""
        return join_words(self._tokenizer.Decode([piece.symbol for piece in group]).split())

    def _times(self, group: Sequence[Piece], duration_s: float | None) -> tuple[float, float]:
        span = self._bundle.geometry.frame_span
        frame_s = self._bundle.features.frame_s
        start, end = round(span(group[0].first)[0] * frame_s, 3), round(span(group[-1].last)[1] * frame_s, 3)
        return (start, end) if duration_s is None else (min(start, duration_s), min(end, duration_s))


class Recognizer:
    """Transcribes whole recordings with a bundle. One instance serves one thread at a time.

    `run_s` and `max_batch` bound memory; neither changes the text.
    """

    def __init__(
        self,
        bundle: ModelBundle,
        threads: int = 1,
        variant: str = "fp32",
        run_s: float = RUN_S,
        max_batch: int = 16,
    ) -> None:
        """Open the bundle's network and tokenizer and warm them. Raises BundleError."""
        self.bundle = bundle
        self._network = Network(bundle, threads, variant)
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
        caches = self._network.caches(len(active))
        while active:
            runs = [row.next_run() for row in active]
            going = [index for index, run in enumerate(runs) if run is not None]
            if not going:
                return
            if len(going) < len(active):
                active = [active[index] for index in going]
                caches = caches.take(going)
            present = [run for run in runs if run is not None]
            lengths = np.array([len(run) for run in present])
            batch = np.zeros((len(present), int(lengths.max()), self.bundle.features.mels), np.float32)
            for padded, run in zip(batch, present, strict=True):
                padded[: len(run)] = run
            log_probs, counts, caches = self._network.run(batch, lengths, caches)
            for row, values, count in zip(active, log_probs, counts, strict=True):
                row.decoder.push(values[:count])
                if collected is not None:
                    collected.append(values[:count])

    def _result(self, row: "_Row") -> Recognition:
        duration_s = row.samples / self.bundle.sample_rate
        words = self._speller.words(row.decoder.pieces, duration_s) if row.peak >= SILENCE_PEAK else ()
        confidence = float(np.mean([word.confidence for word in words])) if words else 0.0
        return Recognition(join_words(word.text for word in words), words, confidence, duration_s)


class _Row:
    """One recording on its way through the network: its coming runs and what was decoded."""

    def __init__(self, chunks: Iterable[np.ndarray], bundle: ModelBundle, run_chunks: int) -> None:
        self.decoder = GreedyCtc(bundle.blank_id)
        self.samples = 0
        self.peak = 0.0
        self._runs = mel_runs(self._measured(chunks), bundle.features, bundle.geometry, run_chunks)

    def next_run(self) -> np.ndarray | None:
        return next(self._runs, None)

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
