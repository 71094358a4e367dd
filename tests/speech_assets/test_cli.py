"""The command `soundstage`: it answers at once, loads what a command needs and no more, and says what it refuses."""

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from deployment.batch.enrolment import Enrolment, Enrolments
from speech.audio.decode import write_flac_chunks
from speech.store.objects import open_objects
from speech_assets.cli import app
from tests.toy_bundle import write_toy_bundle


def test_help_answers_at_once_and_loads_nothing_heavy() -> None:
    code = (
        "import sys, time; from speech_assets.cli import app; import contextlib, io\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()): app(['--help'])\n"
        "print(time.process_time())\n"
        "print(sorted({'dagster', 'mlflow', 'numpy', 'torch', 'pydantic'} & set(sys.modules)))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert said[-1] == "[]"
    assert float(said[-2]) < 0.5


def test_a_machine_that_only_serves_loads_no_dagster(tmp_path: Path) -> None:
    code = (
        "import sys; from speech_assets.cli import app\n"
        f"try: app(['serve', '--home', {str(tmp_path / 'none')!r}])\n"
        "except SystemExit as ended: print(ended.code, 'dagster' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert ended.stdout.split() == ["1", "False"]
    assert ended.stderr == (
        f"error: there is no data store at {tmp_path / 'none'}: start `make up`, which makes it, or name another with "
        "--home\n"
    )
    assert not (tmp_path / "none").exists(), "a misspelt folder would be made, and serve nothing for ever"


@pytest.mark.parametrize(
    "arguments",
    [("--port", "99999"), ("--port", "-1"), ("--workers", "0"), ("--threads", "0"), ("--drain-s", "-1")],
)
def test_a_number_out_of_range_names_its_option(arguments: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        app(["serve", *arguments])
    assert ended.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def run_in(home: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.chdir(home.parent)
    monkeypatch.setenv("SOUNDSTAGE_HOME", str(home))
    with pytest.raises(SystemExit) as ended:
        app(list(arguments))
    return int(str(ended.value.code))


def test_known_speakers_are_listed_and_forgotten_and_nobody_is_enrolled_without_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    enrolments = Enrolments(open_objects(home))
    for name in ("Ada", "Bob"):
        enrolments.add(
            Enrolment(
                name=name,
                model="a" * 64,
                voice=(1.0, 0.0),
                speech_s=9.0,
                recordings=("b" * 64,),
                enrolled_at=datetime(2026, 11, 26, tzinfo=UTC),
            )
        )
    assert run_in(home, monkeypatch, "speakers", "list") == 0
    ada, bob = capsys.readouterr().out.splitlines()
    assert ada == "Ada: 9 s of 1 recordings, 2026-11-26, model aaaaaaaaaaaa, of a former speaker model: enrol again"
    assert bob.startswith("Bob: ")
    assert run_in(home, monkeypatch, "speakers", "enrol", "Eve", "eve.wav") == 1
    assert "materialise `speaker_model`" in capsys.readouterr().err
    enrolments.objects.put("versions/abc/00000001.json", b'{"segments":[{"speaker":"Ada"}]}')
    assert run_in(home, monkeypatch, "speakers", "forget", "Ada") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "1 enrolments of Ada erased"
    assert said[-1] == "versions/abc/00000001.json"
    assert [person.name for person in enrolments.all()] == ["Bob"]


def test_files_are_transcribed_and_what_is_no_audio_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = write_toy_bundle(tmp_path / "bundle", "en")
    good, bad = tmp_path / "good.flac", tmp_path / "bad.wav"
    write_flac_chunks([np.random.default_rng(1).normal(0, 0.1, 16_000).astype(np.float32)], good)
    bad.write_text("no audio")
    with pytest.raises(SystemExit) as ended:
        app(["transcribe", str(good), str(bad), "--bundle", str(bundle.path), "--format", "json"])
    assert ended.value.code == 1, "one of the two was not transcribed"
    said = capsys.readouterr()
    transcript = json.loads(said.out)
    assert transcript["models"]["bundle"] == bundle.digest
    assert transcript["duration_s"] == pytest.approx(1.0)
    assert said.err.startswith("error: ")
    assert "bad.wav" in said.err
