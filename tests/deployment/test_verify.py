"""A transcript made again: equal where nothing changed, what differs where something did, and never a guess."""

import hashlib
import json
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deployment.batch.arrivals import Arrival, original
from deployment.batch.lookup import transcripts_called
from deployment.batch.settings import InferenceSettings
from deployment.batch.stages.items import Chosen, NormalizedRecording
from deployment.batch.stages.language import Speaking, as_given
from deployment.batch.stages.merging import transcript_from
from deployment.batch.stages.models import Models
from deployment.batch.stages.normalization import normalized
from deployment.batch.stages.recognition import batches, pieces_of, recognized
from deployment.batch.stages.speakers import turns_in
from deployment.batch.stages.speech import speech_in
from deployment.batch.verify import verify
from deployment.batch.versions import Versions
from speech.language import Spoken
from speech.recognition.network import Network
from speech.store.objects import LostRace, Objects, open_objects
from speech.transcript import Transcript
from speech.vad import VadSettings
from tests.sounds import sound_bytes
from tests.toy_bundle import shelved, tones

# Tones are hardly speech, and a toy bundle is sure by their loudness.
SETTINGS = InferenceSettings(vad=VadSettings(threshold=0.02, release=0.002), loudness="off")
HOUR = "2026-11-26-09"


def heard(objects: Objects, folder: Path, *calls: bytes, settings: InferenceSettings = SETTINGS) -> list[Transcript]:
    """Recordings of one hour, heard together, in their order."""
    bundle = shelved(objects)
    models = Models(objects, {"en": bundle})
    recordings = []
    for number, data in enumerate(calls):
        digest = hashlib.sha256(data).hexdigest()
        with suppress(LostRace):
            objects.put_if_absent(original(digest), data)
        arrival = Arrival(
            id=f"{number}",
            name=f"en/{number}.wav",
            digest=digest,
            size=len(data),
            received_at=datetime.now(UTC),
            language="en",
            same_as=None,
        )
        made = normalized(arrival, models, folder, settings)
        assert isinstance(made, NormalizedRecording)
        recordings.append(replace(made, sounds=(replace(made.sounds[0], audio=str(folder / made.sounds[0].audio)),)))
    speech = {row.id: tuple(speech_in(sound, models, settings.vad) for sound in row.sounds) for row in recordings}
    languages = {
        row.id: [
            as_given(Speaking(sound=sound, speech=found, otherwise=Spoken("en", None)))
            for sound, found in zip(row.sounds, speech[row.id], strict=True)
        ]
        for row in recordings
    }
    by = {"en": Chosen(spoken="en", language="en", bundle=bundle.digest, model=bundle.name)}
    pieces = pieces_of(recordings, [one for row in recordings for one in languages[row.id]], by)
    said = [piece for batch in batches(pieces) for piece in recognized(batch, models)]
    return [
        transcript_from(
            row,
            [piece for piece in said if piece.id == row.id],
            languages[row.id],
            by,
            turns_in((row, speech[row.id]), models, settings.speakers),
            settings,
        )
        for row in recordings
    ]


def call(*words: str, pause_s: float = 1.0) -> bytes:
    pause = np.zeros(round(16_000 * pause_s), np.float32)
    return sound_bytes(np.concatenate([pause, tones(words), pause, tones(words[:1]), pause]))


@pytest.fixture
def folder(tmp_path: Path) -> Objects:
    return open_objects(tmp_path / "home")


@pytest.fixture
def kept(objects: Objects, tmp_path: Path) -> Transcript:
    (made,) = heard(objects, tmp_path, call("one", "two", "three"))
    return Versions(objects).kept(made, HOUR)[-1].transcript


def test_a_transcript_comes_out_equal_from_a_folder_and_from_s3(kept: Transcript, objects: Objects) -> None:
    assert kept.text == "one two three one"
    assert verify(kept, objects).outcome == "equal"
    assert verify(Transcript.from_json(json.loads(json.dumps(kept.to_json()))), objects).outcome == "equal"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"text": "transfer a million"}, "text: 'transfer a million' is written"),
        ({"approved": True}, "approved: no transcript has such a field"),
        ({"id": "f" * 32 + "-1"}, "id: 'f+-1' is none of"),
        ({"version": 7}, "version: 7 is written, 1 is kept"),
    ],
)
def test_a_file_that_was_edited_where_nothing_is_heard_differs(
    kept: Transcript, objects: Objects, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    file = tmp_path / "edited.json"
    file.write_text(json.dumps({**kept.to_json(), **change}))
    ((transcript, edits),) = transcripts_called([str(file)], objects)
    finding = verify(transcript, objects, edits)
    assert finding.outcome == "differs"
    assert re.search(said, str(finding))


def test_what_a_recording_was_heard_with_changes_nothing(folder: Objects, tmp_path: Path) -> None:
    """An hour that got a late file, and a recording that is verified alone, run the network in other batches."""
    calls = [call(*words, pause_s=pause_s) for words, pause_s in (
        (("one", "two"), 0.7), (("three",), 1.1), (("four", "five", "six", "seven"), 0.9), (("eight", "nine"), 1.3)
    )]  # fmt: skip
    together = heard(folder, tmp_path, *calls)
    assert together == [heard(folder, tmp_path, one)[0] for one in calls]
    assert together[1:] == heard(folder, tmp_path, *calls[1:])
    assert [verify(one, folder).outcome for one in together] == ["equal"] * 4


def test_a_stretch_is_alone_in_the_runs_of_its_network(
    folder: Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums come in another order in other shapes, so rows that share a run would not give the same everywhere."""
    rows: list[int] = []
    run = Network.run

    def watched(self: Network, frames: np.ndarray, *more: Any) -> Any:
        rows.append(len(frames))
        return run(self, frames, *more)

    monkeypatch.setattr(Network, "run", watched)
    heard(folder, tmp_path, call("one"), call("two"), call("three"))
    assert set(rows) == {1}


def edited(field: str) -> Callable[[Transcript], Transcript]:
    """Somebody's change of a transcript's third word, or of a field."""

    def of(kept: Transcript) -> Transcript:
        first, *more = kept.segments
        changes = {
            "text": {"text": "tree"},
            "times": {"end_s": first.words[2].end_s + 0.25},
            "confidence": {"confidence": 0.5},
            "speaker": {"speaker": "Ada"},
        }
        if field == "dropped":
            return replace(kept, segments=(replace(first, words=first.words[:2]), *more))
        if field == "intent":
            return replace(kept, segments=(replace(first, written="1 2 3"), *more))
        if field == "duration":
            return replace(kept, duration_s=kept.duration_s + 1)
        word = replace(first.words[2], **changes[field])  # type: ignore[arg-type]
        return replace(kept, segments=(replace(first, words=(*first.words[:2], word)), *more))

    return of


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ("text", "the first other one is word 3, at 2.30 s: 'tree' is kept, 'three' comes out"),
        ("dropped", "words: 3 are kept, 4 come out; the first other one is word 3"),
        ("times", "end_s: of 1 words, by at most 0.2500, first of 'three' at 2.30 s"),
        ("confidence", "confidence: of 1 words, by at most 0."),
        ("speaker", "speaker: of 1 words, first of 'three' at 2.30 s: Ada is kept, speaker_0 comes out"),
        ("intent", "segments: first the one at 1.35 s, in its written"),
        ("duration", "duration_s: "),
    ],
)
def test_what_differs_is_named(folder: Objects, tmp_path: Path, field: str, said: str) -> None:
    (kept,) = heard(folder, tmp_path, call("one", "two", "three"))
    finding = verify(edited(field)(kept), folder)
    assert finding.outcome == "differs"
    assert said in str(finding)
    assert len(finding.differences) == 1


def test_settings_of_the_time_are_used_whatever_they_are_now(folder: Objects, tmp_path: Path) -> None:
    strict = SETTINGS.model_copy(update={"vad": SETTINGS.vad.model_copy(update={"threshold": 0.9})})
    data = call("one", "two", "three")
    (kept,), (other,) = heard(folder, tmp_path, data, settings=strict), heard(folder, tmp_path, data)
    assert (kept.text, other.text) == ("", "one two three one")
    assert verify(kept, folder).outcome == "equal"
    swapped = replace(kept, settings=other.settings)
    assert verify(swapped, folder).outcome == "differs"


def test_where_it_comes_from_and_who_works_on_it_are_no_settings_of_a_transcript() -> None:
    other = SETTINGS.model_copy(update={"workers": 7, "uploads": "/elsewhere", "publish_confidence": 0.1})
    assert other.heard_with() == SETTINGS.heard_with()
    assert SETTINGS.heard_with() != InferenceSettings().heard_with()
    others = set(InferenceSettings.model_fields) - set(SETTINGS.heard_with())
    assert others == {  # a new setting is one of these, or `HEARD` names it: else nothing could be made again
        *("uploads", "queue", "jobs", "review"),
        *("first_hour", "language", "publish_confidence", "alert_confidence", "alert_failed", "truth", "workers"),
        "redaction_padding_s",
    }


def erase_audio(kept: Transcript, objects: Objects) -> Transcript:
    objects.delete([original(kept.source_digest)])
    return kept


def damage_audio(kept: Transcript, objects: Objects) -> Transcript:
    objects.delete([original(kept.source_digest)])
    objects.put_if_absent(original(kept.source_digest), b"other bytes")
    return kept


def erase_bundle(kept: Transcript, objects: Objects) -> Transcript:
    objects.delete([item.key for item in list(objects.list("bundles"))])
    return kept


def correct(kept: Transcript, objects: Objects) -> Transcript:
    written = replace(kept, confidence=1.0)
    return Versions(objects).kept(written, HOUR, by="Ada")[-1].transcript


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (erase_audio, "is not in the data store any more"),
        (damage_audio, "are not those that were heard"),
        (erase_bundle, "its model cannot be used: there is no bundle"),
        (correct, "people wrote it (Ada): verify "),
        (lambda kept, _: replace(kept, model_digests={}), "its model cannot be used: '' is not the digest"),
        (lambda kept, _: replace(kept, settings={}), "not made by an hour of uploads"),
        (lambda kept, _: replace(kept, source_key=None), "not made by an hour of uploads"),
        (lambda kept, _: replace(kept, source_digest="../../etc/passwd"), "is not the digest of a recording"),
        (lambda kept, _: replace(kept, settings={"vad": {"sharpness": 3}}), "setting 'vad.sharpness' is none of this"),
    ],
)
def test_what_cannot_be_told_is_neither_equal_nor_different(
    objects: Objects, tmp_path: Path, change: Callable[[Transcript, Objects], Transcript], said: str
) -> None:
    (made,) = heard(objects, tmp_path, call("one", "two", "three"))
    kept = Versions(objects).kept(made, HOUR)[-1].transcript
    finding = verify(change(kept, objects), objects)
    assert finding.outcome == "unknown"
    assert said in str(finding)


def test_other_code_is_named_only_where_something_else_comes_out(kept: Transcript, objects: Objects) -> None:
    older = replace(kept, code_version="0.0.9")
    assert verify(older, objects).outcome == "equal"
    finding = verify(replace(older, confidence=0.5), objects)
    assert finding.outcome == "unknown"
    assert "written by Soundstage 0.0.9" in str(finding)
    assert "confidence: 0.5 is kept" in str(finding)
