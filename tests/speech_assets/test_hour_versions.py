"""Hours that are transcribed again: by another champion, beside what people wrote; and `soundstage verify` of them."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deployment.batch.lookup import recording_called
from deployment.batch.versions import Versions
from speech_assets.cli import app
from tests.speech_assets import test_inference as inference
from tests.speech_assets.test_inference import HOUR, NOW, House, said
from tests.toy_registry import register_versions

house = inference.house  # the fixture
WORSE = {"confuse": [("two", "three")]}


def other_champion(house: House) -> None:
    """English is heard by another model from now on."""
    workspace = house.workspace
    version = max(register_versions(workspace, {}, WORSE))
    workspace.promotions().approve("en", "soundstage-en", version, "Ada", "for a change")


def fill(house: House) -> None:
    house.upload(
        en__changes_wav=said("one", "two", "three"),
        en__stays_wav=said("four", "five"),
        de__call_wav=said("eins", language="de"),
        en__silence_wav=said(),
    )
    house.receive()
    assert house.transcribe().success


def of(house: House, name: str) -> Any:
    return Versions(house.workspace.objects).of(recording_called(name, house.workspace.objects))


def test_a_new_champion_transcribes_an_old_hour_and_only_what_changed_is_a_version(house: House) -> None:
    fill(house)
    before = {transcript.source_digest: transcript for transcript in house.hour.transcripts()}
    other_champion(house)
    result = house.transcribe()
    assert result.success
    after = {transcript.source_digest: transcript for transcript in house.hour.transcripts()}
    first, second = of(house, "en/changes.wav")
    assert (first.transcript.text, second.transcript.text) == ("one two three", "one three two")
    assert {digest for digest in after if after[digest] != before[digest]} == {second.transcript.source_digest}
    assert len(of(house, "en/stays.wav")) == len(of(house, "en/silence.wav")) == len(of(house, "de/call.wav")) == 1
    (change,) = house.hour.changes()
    assert (change.after, change.words_added, change.words_removed) == (second.transcript.id, 1, 1)
    counting = {row.name: row.transcript for row in house.hour.in_force()}
    assert counting["en/changes.wav"] == second.transcript.id
    assert set(counting) == {"en/changes.wav", "en/stays.wav", "en/silence.wav", "de/call.wav"}
    shown = metadata_of(result, "transcripts")
    assert (shown["later_versions"], shown["words_added"]) == (1, 1)
    assert shown["wer_between_versions"] == pytest.approx(2 / 3, abs=1e-4)
    digests = house.digests()
    assert house.changed(workers=1).transcribe().success
    assert house.digests() == digests, "a run more is no version more"


def metadata_of(result: Any, asset: str) -> dict[str, Any]:
    (event,) = result.asset_materializations_for_node(asset)
    return {name: value.value for name, value in event.metadata.items()}


def test_what_people_wrote_is_not_overwritten_and_nobody_is_asked_again(house: House) -> None:
    house.upload(en__unsure_wav=said("two", "three", amplitude=0.06))
    house.receive()
    assert house.transcribe().success
    (asked,) = house.hour.tasks()
    (first,) = of(house, "en/unsure.wav")
    words = tuple(replace(word, text="too", confidence=1.0) for word in first.transcript.words)
    segments = tuple(replace(segment, words=words) for segment in first.transcript.segments)
    Versions(house.workspace.objects).kept(replace(first.transcript, segments=segments), HOUR, by="Ada")
    other_champion(house)
    assert house.transcribe().success
    _, corrected, later = of(house, "en/unsure.wav")
    assert later.transcript.text == "three two"
    (row,) = house.hour.in_force()
    assert (row.transcript, row.by, row.waits) == (corrected.transcript.id, "Ada", later.transcript.id)
    assert house.hour.transcripts() == [first.transcript]
    assert [task.id for task in house.hour.tasks()] == [asked.id]
    (change,) = house.hour.changes()
    assert change.waits


def test_the_same_bytes_under_other_names_have_one_transcript_that_each_name_finds(house: House) -> None:
    data = said("one", "two")
    house.upload(en__call_wav=data, en__again_wav=data)
    house.receive()
    assert house.transcribe().success
    house.upload(en__later_wav=data)
    house.receive(NOW.replace(hour=11))
    assert house.transcribe("2026-11-26-11").success
    assert house.workspace.hour("2026-11-26-11").transcripts() == []
    found = {of(house, f"en/{name}.wav") for name in ("call", "again", "later")}
    assert len(found) == 1
    assert {row.name for row in house.hour.in_force()} == {"en/call.wav", "en/again.wav"}


def test_two_homes_come_to_the_same_transcripts_with_one_worker_and_with_four(house: House, tmp_path: Path) -> None:
    """Nothing of a transcript is of the machine, the moment or the neighbours in its hour."""
    from speech_assets.defs.resources import Workspace

    settings = house.workspace.settings
    shutil.copytree(settings.home, tmp_path / "other")
    other = replace(house, workspace=Workspace(settings.model_copy(update={"home": str(tmp_path / "other")})))
    calls = {
        "en__one_wav": said("one", "two", "three"),
        "en__quiet_wav": said("six", "seven", amplitude=0.06),
        "de__call_wav": said("vier", language="de"),
        "en__silence_wav": said(),
    }
    house.upload(**calls, en__only_here_wav=said("four", "five", "six", "seven"))
    house.receive()
    other.receive(NOW.replace(hour=12))
    later = other.workspace.hour("2026-11-26-12")
    assert house.changed(workers=4).transcribe().success
    assert other.changed(workers=1).transcribe(later.key).success
    here, there = ({t.source_digest: t.to_json() for t in hour.transcripts()} for hour in (house.hour, later))
    assert len(here) == 5
    assert here == there
    assert [task.id for task in house.hour.tasks()] == [task.id for task in later.tasks()]


@pytest.fixture
def soundstage(
    house: House,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., tuple[int, str, str]]:
    """The command over the house's data store: exit code, and what it says."""
    settings = tmp_path / "cli.toml"
    settings.write_text(f'home = "{house.workspace.settings.home}"\nlanguages = ["en", "de"]\n')

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setenv("SOUNDSTAGE_CONFIG", str(settings))
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            app(list(arguments))
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return run


def test_the_command_verifies_an_hour_a_name_and_a_file(
    house: House,
    tmp_path: Path,
    soundstage: Callable[..., tuple[int, str, str]],
) -> None:
    fill(house)
    output = house.hour.output("published_transcripts")
    code, out, err = soundstage("verify", "--hour", HOUR)
    assert (code, out.count(": equal\n"), err) == (0, 4, "")
    assert soundstage("verify", "en/stays.wav")[0] == 0
    (version,) = of(house, "en/stays.wav")
    document = output.file(f"json/{version.transcript.id}.json")
    assert soundstage("verify", str(document))[0] == 0
    assert soundstage("verify", str(output.file("transcripts.jsonl")))[1].count("equal") == 4
    changed = json.loads(document.read_text())
    changed["segments"][0]["words"][1]["text"] = "fife"
    (tmp_path / "changed.json").write_text(json.dumps(changed))
    code, out, err = soundstage("verify", str(tmp_path / "changed.json"), "en/stays.wav")
    assert (code, err) == (1, "")
    assert "'fife' is kept, 'five' comes out" in out
    house.workspace.objects.delete([f"originals/{version.transcript.source_digest}"])
    code, out, err = soundstage("verify", "en/stays.wav", "en/changes.wav")
    assert (code, out.count("equal")) == (2, 1)
    assert "it cannot be told\n  its audio" in out


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("en/none.wav",), "no upload called 'en/none.wav' has arrived in 0 hours"),
        (("--hour", HOUR), f"transcripts/{HOUR} is not in the data store"),
        (("--hour", "../../x"), "cannot be a folder's name"),
        (("SETTINGS",), "is not a transcript|schema version"),
        (("EMPTY",), "holds no transcript"),
        ((), "name a transcript, or an hour"),
    ],
)
def test_what_cannot_be_verified_is_exit_code_2_and_a_sentence(
    house: House,
    tmp_path: Path,
    soundstage: Callable[..., tuple[int, str, str]],
    arguments: tuple[str, ...],
    reason: str,
) -> None:
    """Exit code 1 says that a transcript differs, and nothing else may."""
    (tmp_path / "empty.json").write_text("\n")
    (tmp_path / "settings.json").write_text('{"home": "x"}')
    places = {"SETTINGS": str(tmp_path / "settings.json"), "EMPTY": str(tmp_path / "empty.json")}
    code, out, err = soundstage("verify", *(places.get(each, each) for each in arguments))
    assert (code, out) == (2, "")
    assert any(part in err for part in reason.split("|")), err


def test_the_command_lists_versions_and_writes_each(
    house: House,
    soundstage: Callable[..., tuple[int, str, str]],
) -> None:
    fill(house)
    other_champion(house)
    assert house.transcribe().success
    first, second = (version.transcript for version in of(house, "en/changes.wav"))
    code, out, _ = soundstage("versions", "en/changes.wav")
    assert (code, out.count("\n")) == (0, 3)
    assert f"{second.id} (in force)" in out
    assert soundstage("versions", "en/changes.wav", "--format", "text")[1] == "one three two\n"
    assert soundstage("versions", str(first.id), "--format", "text")[1] == "one two three\n"
    code, _, err = soundstage("versions", "en/none.wav", "--hour", HOUR)
    assert (code, err.startswith(f"error: no upload called 'en/none.wav' has arrived in the hour {HOUR}")) == (1, True)
