"""The recogniser over a real bundle: words, times, confidence, and independence of how audio is fed.

Equality with NeMo's offline text is held in tests/training/test_export.py.
"""

import io
import itertools
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from speech.bundle import BundleError, Calibration, Description, ModelBundle, with_calibration, write_bundle
from speech.recognition.ctc import GreedyCtc
from speech.recognition.decoder import PhrasesRefused, Token
from speech.recognition.offline import RecognitionError, Recognizer, mel_runs
from speech.recognition.state import State, joined, take
from speech.recognition.words import LETTER_S, WordSpeller
from tests.toy_bundle import GAP_S, WORD_S, WORDS, tones, write_toy_bundle

SENTENCE = ["one", "two", "two", "three", "nine", "zero", "eight", "seven", "six", "five", "four", "one"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    """A bundle that hears tones as words."""
    return write_toy_bundle(tmp_path_factory.mktemp("bundles") / "toy")


@pytest.fixture(scope="module")
def recognizer(bundle: ModelBundle) -> Recognizer:
    """One open recogniser for all tests that do not need their own."""
    return Recognizer(bundle)


@pytest.mark.parametrize("language", sorted(WORDS))
def test_spoken_words_come_out_in_any_language(language: str, tmp_path: Path) -> None:
    """Accented words and repeated words included."""
    words = [*WORDS[language], WORDS[language][4], WORDS[language][4]]
    result = Recognizer(write_toy_bundle(tmp_path / language, language)).transcribe(tones(words, language))
    assert result.text == " ".join(words)
    assert [word.text for word in result.words] == words


@pytest.mark.parametrize("run_s", [0.01, 0.16, 0.5, 1.0, 3.0, 100.0])
def test_the_text_does_not_depend_on_the_size_of_the_runs(bundle: ModelBundle, run_s: float) -> None:
    """Caches carry over: times and confidences too are those of one run over the whole."""
    samples = tones(SENTENCE, noise=0.01)
    whole = Recognizer(bundle, run_s=20.0).transcribe(samples)
    cut = Recognizer(bundle, run_s=run_s).transcribe(samples)
    assert cut.text == whole.text == " ".join(SENTENCE)
    assert [(word.start_s, word.end_s) for word in cut.words] == [(word.start_s, word.end_s) for word in whole.words]
    assert cut.confidence == pytest.approx(whole.confidence, abs=1e-5)


def test_every_length_keeps_its_first_and_last_word(recognizer: Recognizer) -> None:
    """First and last chunk are where streaming networks lose words: every residue of the chunk size is tried."""
    samples = tones(["seven", "two"], gap_s=0.2)
    ending = np.concatenate([samples[: round((0.2 + 2 * WORD_S + 0.2) * 16_000)]])
    for cut in range(0, 2 * 2560, 160):
        assert recognizer.transcribe(samples[cut // 2 :]).text == "seven two", cut
        silence = np.zeros(cut, np.float32)
        assert recognizer.transcribe(np.concatenate([silence, ending])).text == "seven two", cut


@pytest.mark.parametrize("max_batch", [1, 3, 16])
def test_batch_mates_do_not_change_a_text(bundle: ModelBundle, max_batch: int) -> None:
    """Order is kept, short rows leave early, and no row hears another."""
    generator = np.random.default_rng(4)
    sentences = [list(generator.choice(WORDS["en"], size)) for size in (3, 0, 11, 1, 40, 7, 2, 25, 5)]
    recordings = [tones(words, noise=0.01, seed=index) for index, words in enumerate(sentences)]
    recordings[1] = np.zeros(0, np.float32)
    batch = Recognizer(bundle, run_s=1.0, max_batch=max_batch).transcribe_batch(recordings)
    assert [result.text for result in batch] == [" ".join(words) for words in sentences]
    for samples, together in zip(recordings, batch, strict=True):
        alone = Recognizer(bundle, run_s=1.0).transcribe(samples)
        assert alone.text == together.text
        assert [word.start_s for word in alone.words] == [word.start_s for word in together.words]


@pytest.mark.parametrize("size", [1, 100, 1_599, 16_000, 10**6])
def test_chunks_of_any_size_give_the_recognition_of_the_whole(recognizer: Recognizer, size: int) -> None:
    """Long files are decoded piece by piece; pieces must leave no trace."""
    samples = tones(SENTENCE[:5] if size == 1 else SENTENCE)[:20_001]
    chunks = (samples[first : first + size] for first in range(0, len(samples), size))
    assert recognizer.transcribe_chunks(chunks) == recognizer.transcribe(samples)


def test_words_are_where_they_sound(recognizer: Recognizer) -> None:
    """Captions and audio snippets are cut by these times; the toy hears with one output frame of delay."""
    result = recognizer.transcribe(tones(SENTENCE))
    for index, word in enumerate(result.words):
        start_s = GAP_S + index * (WORD_S + GAP_S)
        assert start_s - 0.08 <= word.start_s <= start_s + 0.18
        assert start_s + WORD_S - 0.18 <= word.end_s <= start_s + WORD_S + 0.12
    times = [time for word in result.words for time in (word.start_s, word.end_s)]
    assert times == sorted(times)


def test_no_word_ends_after_the_recording(recognizer: Recognizer) -> None:
    """The last output frame may stand for more than there was."""
    samples = tones(["one", "two"])
    for cut in range(0, 6_000, 170):
        result = recognizer.transcribe(samples[: len(samples) - cut])
        assert all(0 <= word.start_s <= word.end_s <= result.duration_s for word in result.words)


def test_confidence_falls_with_the_signal(recognizer: Recognizer) -> None:
    """What cannot be trusted must say so, or review never sees it."""
    scores = [recognizer.transcribe(tones(SENTENCE, amplitude=amplitude)).confidence for amplitude in (0.3, 0.1, 0.06)]
    assert scores[0] > 0.99 > scores[1] > 0.9 > scores[2] > 0.5


def test_calibration_is_applied_to_every_word(bundle: ModelBundle, tmp_path: Path) -> None:
    """A threshold of 0.8 means 80 % right only after the map."""
    calibration = Calibration((0.0, 1.0), (0.0, 0.5), words=10)
    raw = Recognizer(bundle).transcribe(tones(SENTENCE, amplitude=0.1))
    mapped = Recognizer(with_calibration(bundle, calibration, tmp_path / "b")).transcribe(
        tones(SENTENCE, amplitude=0.1)
    )
    assert mapped.text == raw.text
    for before, after in zip(raw.words, mapped.words, strict=True):
        assert after.confidence == pytest.approx(before.confidence / 2)
    assert mapped.confidence == pytest.approx(raw.confidence / 2)


@pytest.mark.parametrize("count", [0, 1, 10, 159, 160, 200, 399, 400, 401, 2_000])
def test_very_short_audio_is_empty_text_and_no_error(recognizer: Recognizer, count: int) -> None:
    """A click, a cut-off file, an opened and closed microphone."""
    result = recognizer.transcribe(np.full(count, 0.001, np.float32))
    assert (result.text, result.words, result.confidence) == ("", (), 0.0)
    assert result.duration_s == count / 16_000


@pytest.mark.parametrize("level", [0.0, 9e-5])
def test_silence_says_nothing(recognizer: Recognizer, level: float) -> None:
    """Whatever a network makes of digital silence, nobody spoke."""
    noise = np.random.default_rng(0).uniform(-level, level, 48_000).astype(np.float32)
    assert recognizer.transcribe(noise).text == ""
    assert recognizer.transcribe_chunks(iter([noise, noise])).confidence == 0.0


def test_no_recordings_is_no_work(recognizer: Recognizer) -> None:
    """An hour without calls."""
    assert recognizer.transcribe_batch([]) == []
    assert recognizer.transcribe_chunks(iter([])).text == ""


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_sample_that_is_no_number_is_an_error_that_names_it(recognizer: Recognizer, value: float) -> None:
    """One NaN in the caches would silence a whole session; the caller learns which recording is broken."""
    broken = tones(["one"])
    broken[1234] = value
    with pytest.raises(RecognitionError, match="sample 1234") as caught:
        recognizer.transcribe_batch([tones(["two"]), broken])
    assert caught.value.index == 1
    with pytest.raises(RecognitionError, match="not a finite"):
        recognizer.transcribe_chunks(iter([tones(["two"]), broken]))


@pytest.mark.parametrize("samples", [np.zeros((2, 100), np.float32), np.zeros(100, np.int16), [0.0, 0.1]])
def test_audio_in_another_form_is_refused(recognizer: Recognizer, samples: Any) -> None:
    """16-bit integers taken as floats would be deafening, and recognised as noise."""
    with pytest.raises(RecognitionError, match="mono float"):
        recognizer.transcribe(samples)


def test_float64_is_welcome(recognizer: Recognizer) -> None:
    """numpy's default type is no reason to fail."""
    assert recognizer.transcribe(tones(["six"]).astype(np.float64)).text == "six"


def test_ten_minutes_take_seconds_and_little_memory(bundle: ModelBundle) -> None:
    """Memory is bounded by the run and not by the recording: no run is larger than it may be."""
    words = list(np.random.default_rng(1).choice(WORDS["en"], 1_150))
    samples = tones(words)
    assert len(samples) > 600 * 16_000 * 0.99
    recognizer = Recognizer(bundle)
    began = time.process_time()
    assert recognizer.transcribe(samples).text == " ".join(words)
    assert time.process_time() - began < 10
    geometry = bundle.geometry
    runs = list(mel_runs(iter([samples]), bundle.features, geometry, 10))
    assert max(map(len, runs)) == geometry.history + 10 * geometry.chunk
    fresh = sum(len(run) - geometry.history for run in runs) - (geometry.lead - geometry.history)
    assert fresh == len(samples) // 160


def test_several_threads_say_the_same(bundle: ModelBundle, recognizer: Recognizer) -> None:
    """A replica may be given more cores without another text."""
    samples = tones(SENTENCE, noise=0.02)
    assert Recognizer(bundle, threads=2).transcribe(samples).text == recognizer.transcribe(samples).text


def test_one_recognizer_serves_several_threads_at_once(recognizer: Recognizer) -> None:
    """A replica opens a bundle once for all its workers; no caller may hear another's recording."""
    generator = np.random.default_rng(8)
    said = [list(generator.choice(WORDS["en"], 20)) for _ in range(24)]
    recordings = [tones(words, noise=0.01, seed=seed) for seed, words in enumerate(said)]
    with ThreadPoolExecutor(8) as threads:
        heard = list(threads.map(recognizer.transcribe, recordings))
    assert [result.text for result in heard] == [" ".join(words) for words in said]
    assert heard == [recognizer.transcribe(samples) for samples in recordings]


def test_repetition_gives_the_same_bits(recognizer: Recognizer) -> None:
    """Re-running a partition must give the same bytes."""
    samples = tones(SENTENCE, noise=0.05)
    assert np.array_equal(recognizer.log_probs(samples), recognizer.log_probs(samples))
    assert recognizer.log_probs(samples).shape == (recognizer.bundle.geometry.outputs_of(len(samples) // 160), 12)


def test_a_bundle_opens_in_seconds(bundle: ModelBundle) -> None:
    """A replica that takes long to start cannot follow the load."""
    began = time.monotonic()
    Recognizer(ModelBundle.load(bundle.path)).transcribe(tones(["one"]))
    assert time.monotonic() - began < 2


def test_a_variant_the_bundle_lacks_is_refused(bundle: ModelBundle) -> None:
    """Falling back silently would serve another network than asked for."""
    with pytest.raises(BundleError, match="no int8 network"):
        Recognizer(bundle, variant="int8")


def test_a_network_that_is_none_is_refused(bundle: ModelBundle, tmp_path: Path) -> None:
    """Digests can be right and the content still nonsense, when the export was."""
    broken = _rewritten(bundle, tmp_path / "b", files={"network.onnx": b"not a network"})
    with pytest.raises(BundleError, match="not a network"):
        Recognizer(broken)


@pytest.mark.parametrize(
    "geometry",
    [
        {"attention_cache": (2, 4, 11)},
        {"convolution_cache": (1, 9, 1)},
        {"history": 17, "lead": 24},
        {"subsampling": 4},
    ],
)
def test_a_network_with_another_geometry_is_refused(
    bundle: ModelBundle, tmp_path: Path, geometry: dict[str, Any]
) -> None:
    """A wrong shape is found at the start and not by the first caller."""
    broken = _rewritten(bundle, tmp_path / "b", geometry=geometry)
    with pytest.raises(BundleError, match=r"bundle\.json"):
        Recognizer(broken)


def test_a_tokenizer_with_other_pieces_is_refused(bundle: ModelBundle, tmp_path: Path) -> None:
    """The right ids with the wrong words read fluent and are all wrong."""
    german = write_toy_bundle(tmp_path / "de", "de")
    broken = _rewritten(bundle, tmp_path / "b", files={"tokenizer.model": german.read("tokenizer.model")})
    with pytest.raises(BundleError, match="other pieces"):
        Recognizer(broken)
    nonsense = _rewritten(bundle, tmp_path / "c", files={"tokenizer.model": b"\x00nonsense"})
    with pytest.raises(BundleError, match="not a sentencepiece model"):
        WordSpeller(nonsense)


def test_the_unknown_piece_is_a_word_of_its_own(bundle: ModelBundle) -> None:
    """Words joined by one space must be the text, also where sentencepiece writes its replacement sign."""
    pieces = [Token(symbol, frame, frame, 0.9 - frame / 10) for frame, symbol in enumerate([1, 0, 2, 0, 0])]
    words = WordSpeller(bundle).words(pieces)
    assert [word.text for word in words] == [
        "one",
        "\N{DOUBLE QUESTION MARK}",
        "two",
        *["\N{DOUBLE QUESTION MARK}"] * 2,
    ]
    assert [word.confidence for word in words] == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.5])


def _decoded(decoder: GreedyCtc, log_probs: np.ndarray, cuts: Sequence[int]) -> tuple[State, list[Token]]:
    """Decode one stream in steps that end at these frames."""
    state, tokens = decoder.start(), list[Token]()
    for first, last in itertools.pairwise([0, *cuts, len(log_probs)]):
        state, settled = decoder.step(state, log_probs[None, first:last], np.array([last - first]))
        tokens += settled[0]
    return state, tokens + decoder.pending(state)[0]


def _spoken(generator: np.random.Generator, frames: int, symbols: int = 4) -> np.ndarray:
    """Log-probabilities of a stream in which symbols often last, and often come back."""
    logits = generator.normal(size=(frames, symbols)).astype(np.float32)
    for frame in range(1, frames):
        if generator.random() < 0.5:
            logits[frame, logits[frame - 1].argmax()] += 3
    return np.asarray(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)), np.float32)


def test_greedy_ctc_merges_repeats_across_steps_and_keeps_repeats_across_blanks() -> None:
    """A letter that lasts over a cut is one letter; the same word twice is two."""
    symbols = [2, 0, 0, 2, 0, 1, 1, 1, 2, 2, 1, 0, 2]
    log_probs = np.log(np.full((len(symbols), 3), 0.1, np.float32))
    for frame, symbol in enumerate(symbols):
        log_probs[frame, symbol] = np.log(0.5 + frame / 100)
    decoder = GreedyCtc(blank_id=2)
    _, whole = _decoded(decoder, log_probs, [])
    assert [(token.symbol, token.first, token.last) for token in whole] == [
        (0, 1, 2),
        (0, 4, 4),
        (1, 5, 7),
        (1, 10, 10),
        (0, 11, 11),
    ]
    assert whole[2].probability == pytest.approx(0.57)
    for size in (1, 2, 3, 5):
        state, tokens = _decoded(decoder, log_probs, range(size, len(symbols), size))
        assert tokens == whole
        assert state[0].tolist() == [len(symbols)]


@pytest.mark.parametrize("seed", range(40))
def test_steps_of_any_sizes_give_the_tokens_of_the_whole_to_the_bit(seed: int) -> None:
    """A recording must have the words, times and confidences of its stream, however the audio came."""
    generator = np.random.default_rng(seed)
    log_probs = _spoken(generator, frames=int(generator.integers(1, 80)))
    symbols = log_probs.argmax(axis=1)
    expected = []  # frame by frame, as CTC is defined
    for frame, symbol in enumerate(symbols):
        likely = float(np.exp(log_probs[frame, symbol]))
        if symbol != 3 and frame and symbol == symbols[frame - 1]:
            expected[-1] = replace(expected[-1], last=frame, probability=max(expected[-1].probability, likely))
        elif symbol != 3:
            expected.append(Token(int(symbol), frame, frame, likely))
    decoder = GreedyCtc(blank_id=3)
    assert _decoded(decoder, log_probs, [])[1] == expected
    for _ in range(10):
        cuts = sorted(generator.integers(0, len(log_probs) + 1, size=int(generator.integers(0, 20))))
        assert _decoded(decoder, log_probs, cuts)[1] == expected


def test_what_was_settled_never_changes_and_what_is_pending_may() -> None:
    """A partial may be taken back; a word that was handed out may not."""
    log_probs = _spoken(np.random.default_rng(1), 60)
    decoder = GreedyCtc(blank_id=3)
    _, whole = _decoded(decoder, log_probs, [])
    state, handed = decoder.start(), list[Token]()
    for frame in range(len(log_probs)):
        state, settled = decoder.step(state, log_probs[None, frame : frame + 1], np.array([1]))
        handed += settled[0]
        assert handed == whole[: len(handed)]
        begun = [(token.symbol, token.first) for token in whole if token.first <= frame]
        assert [(token.symbol, token.first) for token in handed + decoder.pending(state)[0]] == begun


def test_streams_share_steps_and_move_between_replicas_without_a_trace() -> None:
    """A batch is whoever has audio just now; a drained replica hands its sessions on in the middle of a word."""
    generator = np.random.default_rng(2)
    decoder = GreedyCtc(blank_id=3)
    streams = [_spoken(generator, frames) for frames in (50, 3, 31, 50)]
    states, tokens, at = [decoder.start() for _ in streams], [list[Token]() for _ in streams], [0] * len(streams)
    while any(place < len(stream) for place, stream in zip(at, streams, strict=True)):
        chosen = [int(index) for index in generator.permutation(len(streams))[: generator.integers(1, 5)]]
        counts = np.array([min(generator.integers(0, 6), len(streams[index]) - at[index]) for index in chosen])
        batch = np.full((len(chosen), 6, 4), np.float32(7))  # what lies behind the real frames must not matter
        for row, (index, count) in enumerate(zip(chosen, counts, strict=True)):
            batch[row, :count] = streams[index][at[index] : at[index] + count]
            at[index] += int(count)
        state, settled = decoder.step(joined([states[index] for index in chosen]), batch, counts)
        for row, index in enumerate(chosen):
            saved = io.BytesIO()
            np.savez(saved, *take(state, [row]))
            loaded = np.load(io.BytesIO(saved.getvalue()), allow_pickle=False)
            states[index] = tuple(loaded.values())
            tokens[index] += settled[row]
    for stream, state, handed in zip(streams, states, tokens, strict=True):
        assert handed + decoder.pending(state)[0] == _decoded(decoder, stream, [])[1]


def test_a_step_leaves_the_state_it_was_given_as_it_was() -> None:
    """Who tries a step again after a failure must get the same answer."""
    decoder = GreedyCtc(blank_id=3)
    state, _ = _decoded(decoder, _spoken(np.random.default_rng(3), 20), [])
    kept = [array.copy() for array in state]
    output = _spoken(np.random.default_rng(4), 20)[None]
    once, again = (decoder.step(state, output, np.array([20])) for _ in range(2))
    assert [array.tolist() for array in state] == [array.tolist() for array in kept]
    assert once[1] == again[1]


def test_phrases_that_would_change_nothing_are_refused() -> None:
    """Whoever asks for a name to be preferred and hears nothing back believes that it was."""
    with pytest.raises(PhrasesRefused, match="leave them out"):
        GreedyCtc(blank_id=3).start(["Zurich"])


def _rewritten(
    bundle: ModelBundle,
    folder: Path,
    files: dict[str, bytes] | None = None,
    geometry: dict[str, Any] | None = None,
) -> ModelBundle:
    """Return a bundle whose digests are right and whose content is not what it should be."""
    folder.mkdir()
    for name in bundle.files:
        (folder / name).write_bytes((files or {}).get(name, bundle.read(name)))
    description = Description(
        language="en",
        name="broken",
        features=bundle.features,
        geometry=replace(bundle.geometry, **geometry or {}),
        vocabulary=bundle.vocabulary,
    )
    return write_bundle(folder, description)


def test_a_long_word_that_is_written_at_once_was_not_said_at_once(bundle: ModelBundle) -> None:
    """CTC writes a word in the frame where it is sure of it; a gap before that frame is not a pause."""
    three, one = bundle.vocabulary.index("▁three"), bundle.vocabulary.index("▁one")
    words = WordSpeller(bundle).words([Token(one, 10, 13, 0.9), Token(three, 17, 17, 0.9), Token(three, 18, 18, 0.9)])
    assert [word.text for word in words] == ["one", "three", "three"]
    frame_s = 8 * bundle.features.frame_s
    assert words[0].end_s - words[0].start_s == pytest.approx(4 * frame_s)
    assert words[1].end_s - words[1].start_s == pytest.approx(5 * LETTER_S)
    assert words[1].start_s >= words[0].end_s
    assert words[2].start_s == words[1].end_s
