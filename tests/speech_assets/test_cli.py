"""The command `soundstage`: it answers at once, loads what a command needs and no more, and says what it refuses."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from speech.audio.decode import write_flac_chunks
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
