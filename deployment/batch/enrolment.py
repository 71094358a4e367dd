"""People whose voices are known: enrolled by name, looked for in recordings, listed, and erased.

An enrolment holds a name and the direction that a speaker model gives to that voice, and belongs to that model: another
one gives other directions. So a new speaker model makes enrolments stale, which is said wherever they would count, and
people enrol again. A recording's speaker is given the name of the enrolled voice that it is most like, if it is liker
than all but a stated share of strangers are; each name goes to one speaker of a channel at most.

The share is of one stranger and one voice: with twenty people enrolled a stranger has twenty chances. Voices tell about
people, so nothing else keeps them: not outputs, not transcripts, only the objects below `enrolments/`, and erasing
removes each of those (a bucket that keeps versions of its objects keeps these, too, until its lifecycle ends them).
Names that transcripts carry stay there; `carriers` says where.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np

from deployment.batch.settings import InferenceSettings
from speech.audio.decode import SAMPLE_RATE, decode
from speech.corpus.manifest import Utterance
from speech.corpus.normalize import rows_of
from speech.diarization import embedded
from speech.labels import LabelNetwork
from speech.plain import from_plain, to_plain
from speech.store.objects import LostRace, Missing, Objects
from speech.store.outputs import DataStore, digest_file, parse_json, to_json
from speech.vad import SpeechDetector, Stretch
from speech.vad import stretches as speech_stretches

PLACE, CALIBRATIONS = "enrolments", "enrolment_calibrations"  # in the data store
# where the data store keeps what says names: outputs of hours, and versions of transcripts
CARRIERS = ("speaker_turns", "transcripts", "published_transcripts", "review_tasks", "reviewed_transcripts", "versions")
SHORTEST_S = 5.0  # of speech, that a voice is enrolled from: less says little of it
LIKE_ITSELF = 0.5  # share of the windows of an enrolment that must be liker to its voice than a stranger's
FEWEST_STRANGERS, MOST_STRANGERS = 20, 200
CLIPS_OF_A_STRANGER = 6
DIGITS = 4  # of a voice's numbers: what sums in another order leave equal
LONGEST_NAME = 80
NUMBERED_SPEAKER = re.compile(r"speaker_\d+")  # how people without a name are called


class EnrolmentError(Exception):
    """A person cannot be enrolled so; the message says why, and what to do."""


@dataclass(frozen=True, kw_only=True)
class Enrolment:
    """A person's voice, as a speaker model hears it."""

    name: str
    model: str  # digest of the speaker model
    voice: tuple[float, ...]  # of length 1
    speech_s: float  # that it was made from
    recordings: tuple[str, ...]  # their SHA-256
    enrolled_at: datetime  # UTC


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """From which likeness on a speaker model takes a voice for an enrolled one."""

    threshold: float  # cosine
    false_accepts: float  # share of strangers that are as like, at most
    strangers: int
    trials: int  # pairs of a voice and a stranger that it was told from


@dataclass(frozen=True, kw_only=True)
class KnownVoices:
    """Enrolled people, as one speaker model hears them."""

    names: tuple[str, ...]
    voices: tuple[tuple[float, ...], ...]
    threshold: float

    def names_of(self, speakers: np.ndarray) -> dict[int, str]:
        """The names of the speakers that have one, by their place; each name once, the likest pairs first.

        Args:
            speakers: voices of length 1, float [speakers, dimensions].
        """
        found: dict[int, str] = {}
        if not self.names or not len(speakers):
            return found
        alike = speakers @ np.array(self.voices).T
        pairs = [(place, index) for place in range(len(speakers)) for index in range(len(self.names))]
        for place, index in sorted(pairs, key=lambda pair: (-round(float(alike[pair]), DIGITS), pair)):
            name = self.names[index]
            if alike[place, index] >= self.threshold and place not in found and name not in found.values():
                found[place] = name
        return found


class Enrolments:
    """The enrolments of a data store."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects

    def all(self) -> list[Enrolment]:
        """Everybody who is enrolled, by name; who enrolled with several models is there several times."""
        return sorted((found for _, found in self._kept()), key=lambda one: (one.name, one.model))

    def known(self, model: str) -> KnownVoices | None:
        """Those who enrolled with a speaker model; None where nobody did, or it is not calibrated."""
        found = [one for one in self.all() if one.model == model]
        calibration = self.calibration(model)
        if not found or calibration is None:
            return None
        return KnownVoices(
            names=tuple(one.name for one in found),
            voices=tuple(one.voice for one in found),
            threshold=calibration.threshold,
        )

    def stale(self, model: str) -> tuple[str, ...]:
        """Those who enrolled, and not in a way that counts with a speaker model."""
        known = self.known(model)
        return tuple(sorted({one.name for one in self.all()} - set(known.names if known else ())))

    def add(self, enrolment: Enrolment) -> None:
        """Keep an enrolment, in place of what the same name has with that model."""
        data = to_json(to_plain(enrolment))
        key = f"{PLACE}/{enrolment.model}/{hashlib.sha256(data).hexdigest()}.json"
        with suppress(LostRace):  # the same one
            self.objects.put_if_absent(key, data)
        self.objects.delete(
            [
                other
                for other, kept in self._kept()
                if (kept.name, kept.model) == (enrolment.name, enrolment.model) and other != key
            ]
        )

    def forget(self, name: str) -> int:
        """Remove every enrolment of a name, of whichever model; returns how many there were."""
        keys = [key for key, kept in self._kept() if kept.name == name]
        self.objects.delete(keys)
        return len(keys)

    def calibration(self, model: str) -> Calibration | None:
        """Of a speaker model; None where nobody has enrolled with it."""
        try:
            return from_plain(Calibration, parse_json(self.objects.read(f"{CALIBRATIONS}/{model}.json").data))
        except Missing:
            return None

    def keep_calibration(self, model: str, calibration: Calibration) -> None:
        """Keep the calibration of a speaker model, in place of a former one."""
        self.objects.put(f"{CALIBRATIONS}/{model}.json", to_json(to_plain(calibration)))

    def _kept(self) -> list[tuple[str, Enrolment]]:
        keys = [item.key for item in self.objects.list(PLACE)]
        return [(key, from_plain(Enrolment, parse_json(self.objects.read(key).data))) for key in keys]


def checked_name(name: str) -> str:
    """A name as it is kept: white space made single.

    Raises:
        EnrolmentError: it is none, or one that transcripts give to people without names.
    """
    kept = " ".join(name.split())
    if not kept or len(kept) > LONGEST_NAME or not kept.isprintable():
        raise EnrolmentError(f"a name has 1 to {LONGEST_NAME} printable characters; got {name!r}")
    if NUMBERED_SPEAKER.fullmatch(kept):
        raise EnrolmentError(f"'{kept}' is how transcripts call people without a name: choose another")
    return kept


def enrolled(
    name: str,
    files: Sequence[Path],
    network: LabelNetwork,
    detector: SpeechDetector,
    settings: InferenceSettings,
    now: datetime,
) -> Enrolment:
    """A person's enrolment from recordings in which nobody else speaks.

    Raises:
        EnrolmentError: the name or the speech will not do.
        AudioError, OSError: a recording cannot be used.
    """
    called, found, speech_s, digests = checked_name(name), list[np.ndarray](), 0.0, list[str]()
    for file in files:
        digests.append(digest_file(file))
        samples = decode(file).samples
        stretches = speech_stretches(detector.probabilities([samples]), len(samples) / SAMPLE_RATE, settings.vad)

        def samples_of(stretch: Stretch, samples: np.ndarray = samples) -> np.ndarray:
            return samples[round(stretch.start_s * SAMPLE_RATE) : round(stretch.end_s * SAMPLE_RATE)]

        _, vectors = embedded(stretches, samples_of, network.embeddings, settings.speakers)
        speech_s += sum(stretch.end_s - stretch.start_s for stretch in stretches)
        found += list(vectors)
    if not found:
        raise EnrolmentError("nobody speaks in what was given: give recordings of speech")
    return Enrolment(
        name=called,
        model=network.bundle.digest,
        voice=voice_of(np.stack(found), speech_s, network.bundle.threshold),
        speech_s=round(speech_s, 1),
        recordings=tuple(digests),
        enrolled_at=now,
    )


def voice_of(vectors: np.ndarray, speech_s: float, threshold: float) -> tuple[float, ...]:
    """The voice that windows of one person's recordings have in common, of length 1.

    Args:
        vectors: of the windows, float [n, dimensions] of length 1.
        speech_s: seconds of speech in them.
        threshold: likeness from which on the model takes two for one.

    Raises:
        EnrolmentError: there is too little speech, or it is not of one person.
    """
    if speech_s < SHORTEST_S:
        raise EnrolmentError(f"{speech_s:.1f} s of speech, {SHORTEST_S:g} s are needed: give more or longer recordings")
    voice = _unit(vectors.astype(np.float64).mean(axis=0))
    alike = float((vectors @ voice >= threshold).mean())
    if alike < LIKE_ITSELF:
        raise EnrolmentError(
            f"only {alike:.0%} of the speech sounds like one person: give recordings in which nobody else speaks"
        )
    return tuple(round(float(value), DIGITS) for value in voice)


def calibrated(strangers: Mapping[str, Sequence[np.ndarray]], false_accepts: float) -> Calibration:
    """The likeness that at most this share of strangers reach, told from people who are not each other.

    Args:
        strangers: by speaker, the voice in each of some recordings, float [dimensions] of length 1; none of them may
            have been trained on.
        false_accepts: share, of a stranger's recording against one voice.

    Raises:
        EnrolmentError: there are too few to tell.
    """
    kept = {name: np.stack(list(found)) for name, found in sorted(strangers.items()) if len(found)}
    if len(kept) < FEWEST_STRANGERS:
        raise EnrolmentError(
            f"{len(kept)} strangers to tell a voice from, {FEWEST_STRANGERS} are needed: materialise `utterances` of "
            "more speakers"
        )
    enrolled = np.stack([_unit(found.mean(axis=0)) for found in kept.values()])
    scores = np.concatenate(
        [(found @ np.delete(enrolled, place, axis=0).T).ravel() for place, found in enumerate(kept.values())]
    )
    passed = int(false_accepts * len(scores))
    if passed < 1:
        raise EnrolmentError(
            f"{len(scores):,} pairs of strangers cannot tell of a share of {false_accepts:g}: accept more, or "
            "materialise `utterances` of more speakers"
        )
    likest = np.sort(scores)[::-1]
    threshold = np.ceil(likest[passed] * 10**DIGITS + 1) / 10**DIGITS  # so that no more than `passed` reach it
    return Calibration(threshold=float(threshold), false_accepts=false_accepts, strangers=len(kept), trials=len(scores))


def strangers_of(store: DataStore, network: LabelNetwork) -> dict[str, list[np.ndarray]]:
    """People whom no model has learnt from, the test speakers of all utterances: the voice in clips of each.

    Raises:
        StoreError, AudioError: utterances are there and cannot be read.
    """
    spoken: dict[str, list[Utterance]] = {}
    for quarter in store.objects.folders("utterances"):
        for language in store.objects.folders(f"utterances/{quarter}"):
            with suppress(Missing):  # nothing is in force
                for row in rows_of(store.current("utterances", quarter, language)):
                    if row.split == "test":
                        spoken.setdefault(f"{language} {row.speaker}", []).append(row)
    found: dict[str, list[np.ndarray]] = {}
    for speaker, rows in sorted(spoken.items())[:MOST_STRANGERS]:
        clips, held = list[np.ndarray](), list[np.ndarray]()
        for row in sorted(rows, key=lambda row: row.id):
            held.append(decode(store.objects.located(row.audio)).samples)
            if sum(map(len, held)) >= SHORTEST_S * SAMPLE_RATE:
                clips.append(np.concatenate(held))
                held = []
            if len(clips) == CLIPS_OF_A_STRANGER:
                break
        if clips:
            found[speaker] = list(network.embeddings(clips))
    return found


def carriers(objects: Objects, name: str) -> list[str]:
    """The files of hourly outputs, former ones too, in which a speaker has this name."""
    return [
        item.key
        for asset in CARRIERS
        for item in objects.list(asset)
        if item.key.endswith((".json", ".jsonl"))
        and any(name in _speakers(parse_json(line)) for line in objects.read(item.key).data.splitlines())
    ]


def _speakers(value: object) -> Iterator[object]:
    """What stands as a speaker anywhere in JSON values."""
    if isinstance(value, dict):
        yield value.get("speaker")
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _speakers(part)


def _unit(vector: np.ndarray) -> np.ndarray:
    unit: np.ndarray = vector / max(float(np.linalg.norm(vector)), 1e-12)
    return unit
