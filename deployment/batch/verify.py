"""Whether a transcript can be made again: from its audio, its bundles and its settings, by the stages of an hour.

Equal means equal in every field but the number of the version. What cannot be told is never called equal or different:
audio or a bundle that is gone, words that people wrote, settings that this version of Soundstage does not know, and
whatever differs where the transcript was written by other code.

Who a voice belongs to is not told again, only that it is one voice: enrolled people may have been forgotten since.

Not covered: another machine. Decoders and networks sum in another order there, which rounding hides mostly and not
always; compare on the kind of machine that wrote it.
"""

import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from deployment.batch.arrivals import Arrival
from deployment.batch.enrolment import NUMBERED_SPEAKER
from deployment.batch.settings import InferenceSettings
from deployment.batch.stages.items import Chosen, DeadLetter, Languages, SpeakerTurns
from deployment.batch.stages.language import Speaking, as_given, languages_in
from deployment.batch.stages.merging import (
    RECOGNITION,
    SPOKEN_LANGUAGE,
    recognizer_of,
    spoken_of,
    transcript_from,
)
from deployment.batch.stages.models import Models
from deployment.batch.stages.normalization import normalized
from deployment.batch.stages.recognition import batches, pieces_of, recognized
from deployment.batch.stages.speakers import STAGE, turns_in
from deployment.batch.stages.speech import speech_in
from deployment.batch.stages.understanding import INTENTS
from deployment.batch.versions import NUMBERED, Versions, corrected, recording_of
from deployment.registry.intent_champions import load_intent_model
from deployment.registry.shelf import Shelf
from speech.bundle import BundleError, ModelBundle
from speech.labels import UNKNOWN, Kind, LabelBundle
from speech.language import Spoken
from speech.store.objects import Missing, Objects
from speech.store.outputs import DIGEST, digest_file
from speech.transcript import Transcript, Word
from speech.understanding.intents import IntentModel, IntentModelError

SHOWN = 120  # characters of a value in a sentence
WRITTEN_ELSEWHERE = (
    "it was not made by an hour of uploads, which alone keeps the audio and the settings: transcribe the recording "
    "again and compare"
)


@dataclass(frozen=True)
class Finding:
    """What became of making a transcript again."""

    outcome: Literal["equal", "differs", "unknown"]
    why: str = ""  # it cannot be told
    differences: tuple[str, ...] = ()  # a sentence each

    def __str__(self) -> str:
        """What a person reads: the outcome, and a line for each reason."""
        said = "it cannot be told" if self.outcome == "unknown" else self.outcome
        return "\n  ".join((said, *filter(None, (self.why,)), *self.differences))


class Untellable(Exception):
    """A transcript that cannot be made again; the message says why, and what could be done."""


def verify(transcript: Transcript, objects: Objects, edits: Iterable[str] = ()) -> Finding:
    """Make a transcript again and compare; `edits` are sentences about what its file says otherwise than itself.

    Raises:
        StoreError, OSError: the data store refuses, or does not answer.
    """
    try:
        again = made_again(transcript, objects)
    except Untellable as untellable:
        return Finding("unknown", str(untellable))
    found = (*edits, *_misnumbered(transcript, objects), *differences(transcript, again))
    if not found:
        return Finding("equal")
    if transcript.code_version != again.code_version:
        wrote, here = transcript.code_version or "an unknown version", again.code_version
        return Finding("unknown", f"it was written by Soundstage {wrote}, and this is {here}: verify it there", found)
    return Finding("differs", differences=found)


def _misnumbered(transcript: Transcript, objects: Objects) -> Iterator[str]:
    """Where it calls itself otherwise than any version that was kept."""
    if transcript.id is None:
        return
    kept = {version.transcript.id: version.transcript for version in Versions(objects).of(recording_of(transcript))}
    if (same := kept.get(transcript.id)) is None:
        if kept:
            yield f"id: '{transcript.id}' is none of {', '.join(map(str, kept))}"
        return
    for name in NUMBERED:
        if (said := getattr(transcript, name)) != (was := getattr(same, name)):
            yield f"{name}: {_shown(said)} is written, {_shown(was)} is kept"


def made_again(transcript: Transcript, objects: Objects) -> Transcript:
    """The transcript that the same audio, bundle and settings give here and now.

    Raises:
        Untellable: one of them is not there.
        StoreError, OSError: the data store refuses, or does not answer.
    """
    if transcript.source_key is None or not transcript.settings:
        raise Untellable(WRITTEN_ELSEWHERE)
    if not DIGEST.fullmatch(transcript.source_digest):
        raise Untellable(f"'{transcript.source_digest[:SHOWN]}' is not the digest of a recording")
    versions = Versions(objects).of(recording_of(transcript))
    kept = next((version for version in versions if version.transcript.id == transcript.id), None)
    if kept is not None and kept.by is not None:
        began = corrected(versions)
        them = f": verify {began.transcript.id}, which they began from" if began else ""
        raise Untellable(f"people wrote it ({kept.by}){them}")
    try:
        settings = InferenceSettings.model_validate_json(json.dumps(dict(transcript.settings)))
    except ValidationError as error:
        field = ".".join(map(str, error.errors()[0]["loc"]))
        raise Untellable(
            f"its setting '{field}' is none of this version: verify it with the one that wrote it"
        ) from None
    arrival = Arrival(
        id=recording_of(transcript),
        name=transcript.id or transcript.source_digest,
        digest=transcript.source_digest,
        size=0,
        received_at=datetime.now(UTC),
        language=None,
        same_as=None,
    )
    _verify_audio(arrival, objects)
    bundles, labels = _models(transcript, Shelf(objects))
    intents = _intents(transcript, objects)
    models = Models(objects, {bundle.language: bundle for bundle in bundles.values()}, labels)
    with tempfile.TemporaryDirectory(prefix="soundstage-verify-") as name:
        folder = Path(name)
        recording = normalized(arrival, models, folder, settings)
        if isinstance(recording, DeadLetter):
            raise Untellable(f"its audio, {arrival.key}, cannot be used any more: {recording.reason}")
        sounds = tuple(replace(sound, audio=str(folder / sound.audio)) for sound in recording.sounds)
        recording = replace(recording, sounds=sounds)
        given = _given(transcript)
        speech = [speech_in(sound, models, settings.vad) for sound in sounds]
        languages = []
        for sound, found in zip(sounds, speech, strict=True):
            speaking = Speaking(sound=sound, speech=found, otherwise=given)
            listened = "language" in labels
            told = languages_in(speaking, models, settings.spoken_language) if listened else as_given(speaking)
            languages.append(told)
        by = _heard_by(languages, bundles)
        pieces = pieces_of([recording], languages, by)
        turns = turns_in((recording, tuple(speech)), models, settings.speakers)
        heard = [piece for batch in batches(pieces) for piece in recognized(batch, models)]
    again = transcript_from(recording, heard, languages, by, turns, settings, intents)
    return transcript_from(recording, heard, languages, by, _named_as(transcript, again, turns), settings, intents)


def _named_as(kept: Transcript, again: Transcript, turns: Iterable[SpeakerTurns]) -> list[SpeakerTurns]:
    """The turns with the names of people whose place a numbered speaker has: enrolments come and go."""
    names: dict[str, str] = {}
    for segment, named in zip(again.segments, kept.segments, strict=False):
        if segment.speaker and named.speaker and not NUMBERED_SPEAKER.fullmatch(named.speaker):
            names.setdefault(segment.speaker, named.speaker)
    return [
        replace(part, turns=tuple(replace(turn, speaker=names.get(turn.speaker, turn.speaker)) for turn in part.turns))
        for part in turns
    ]


def _models(transcript: Transcript, shelf: Shelf) -> tuple[dict[str, ModelBundle], dict[Kind, LabelBundle]]:
    """The recognisers by what they heard ("": what is spoken in most of it), and the label models that listened.

    Raises:
        Untellable: one of them is not there.
    """
    digests = transcript.model_digests
    heard = {"": digests.get(RECOGNITION, "")}
    heard |= {
        name.removeprefix(recognizer_of("")): digests[name] for name in digests if name.startswith(recognizer_of(""))
    }
    try:
        bundles = {spoken: shelf.load(digest) for spoken, digest in heard.items()}
        listened: dict[Kind, str | None] = {"language": digests.get(SPOKEN_LANGUAGE), "speaker": digests.get(STAGE)}
        return bundles, {kind: shelf.load_labels(digest, kind) for kind, digest in listened.items() if digest}
    except BundleError as gone:
        raise Untellable(f"its model cannot be used: {gone}") from None


def _intents(transcript: Transcript, objects: Objects) -> dict[str, IntentModel]:
    """The intent models by their language. Raises Untellable where one of them is not there."""
    try:
        return {
            name.removeprefix(INTENTS): load_intent_model(objects, digest)
            for name, digest in transcript.model_digests.items()
            if name.startswith(INTENTS)
        }
    except IntentModelError as gone:
        raise Untellable(f"its intent model cannot be used: {gone}") from None


def _given(transcript: Transcript) -> Spoken:
    """What was taken to be spoken where nobody listened."""
    other = next((segment.language for segment in transcript.segments if segment.language), UNKNOWN)
    return Spoken(other if "language" in transcript.degraded else transcript.language, None)


def _heard_by(languages: Sequence[Languages], bundles: Mapping[str, ModelBundle]) -> dict[str, Chosen]:
    """Whose bundle hears each language; one that none heard before is heard by the main one, so that it shows."""
    every = {spoken_of(languages).language, *(part.spoken.language for one in languages for part in one.parts)}
    chosen = {}
    for spoken in sorted(every):
        bundle = bundles.get(spoken, bundles[""])
        chosen[spoken] = Chosen(
            spoken=spoken,
            language=bundle.language,
            bundle=bundle.digest,
            model=bundle.name,
            writes=bundle.text == "written",
        )
    return chosen


def _verify_audio(arrival: Arrival, objects: Objects) -> None:
    """That the audio is kept, and not just in this machine's cache, with the bytes that were heard."""
    try:
        with objects.open(arrival.key) as audio:
            digests = {hashlib.file_digest(audio, "sha256").hexdigest(), digest_file(objects.local(arrival.key))}  # type: ignore[arg-type]
    except Missing:
        raise Untellable(f"its audio, {arrival.key}, is not in the data store any more") from None
    if digests != {arrival.digest}:
        raise Untellable(f"the bytes of its audio, {arrival.key}, are not those that were heard: restore them")


def differences(kept: Transcript, again: Transcript) -> Iterator[str]:
    """What differs between a transcript and the one made again, a sentence each; the version's number is left out."""
    then, now = kept.to_json(), again.to_json()
    for name, value in then.items():
        if name not in (*NUMBERED, "code_version", "segments", "text") and value != now[name]:
            yield f"{name}: {_shown(value)} is kept, {_shown(now[name])} comes out"
    yield from _words(kept.words, again.words)
    if kept.words == again.words and kept.segments != again.segments:
        yield from _segments(then["segments"], now["segments"])


def _words(kept: tuple[Word, ...], again: tuple[Word, ...]) -> Iterator[str]:
    texts = [[word.text for word in words] for words in (kept, again)]
    if texts[0] != texts[1]:
        place = next(n for n, pair in enumerate(zip_longest(*texts)) if pair[0] != pair[1])
        was, is_now = (f"'{words[place].text}'" if place < len(words) else "nothing" for words in (kept, again))
        at_s = (kept if place < len(kept) else again)[place].start_s
        yield (
            f"words: {len(kept)} are kept, {len(again)} come out; the first other one is word {place + 1}, at "
            f"{at_s:.2f} s: {was} is kept, {is_now} comes out"
        )
        return
    pairs = list(zip(kept, again, strict=True))
    for name in ("start_s", "end_s", "confidence", "speaker", "channel", "written", "redacted"):
        others = [(a, getattr(a, name), getattr(b, name)) for a, b in pairs if getattr(a, name) != getattr(b, name)]
        if others:
            word, was, comes = others[0]
            changes = [abs(a - b) for _, a, b in others if isinstance(a, float) and isinstance(b, float)]
            most = f", by at most {max(changes):.4f}" if changes else ""
            first = f"first of '{word.text}' at {word.start_s:.2f} s: {was} is kept, {comes} comes out"
            yield f"{name}: of {len(others)} words{most}, {first}"


def _segments(kept: list[dict[str, Any]], again: list[dict[str, Any]]) -> Iterator[str]:
    """Where the words are the same, and what is said of them is not."""
    if len(kept) != len(again):
        yield f"segments: {len(kept)} are kept, {len(again)} come out"
        return
    was, comes = next(pair for pair in zip(kept, again, strict=True) if pair[0] != pair[1])
    names = [name for name in was if was[name] != comes[name]]
    yield f"segments: first the one at {was['start_s']:.2f} s, in its {', '.join(names)}"


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
