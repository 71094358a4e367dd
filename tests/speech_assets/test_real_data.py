"""A real Kaldi corpus through the same assets: ingested whole, sliced by age and gender, and refused at the gate."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_a_model_of_hard_real_speech_is_refused_and_nothing_moves(tmp_path: Path) -> None:
    """Three dozen steps on children and learners cannot give a good model: the gate must say so, and hold."""
    data = os.environ.get("SOUNDSTAGE_REAL_DATA")
    if not data:
        pytest.skip("SOUNDSTAGE_REAL_DATA is not set")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SOUNDSTAGE_")}
    ended = subprocess.run(
        [sys.executable, "benchmarks/real_speech.py", "--corpus", "speechocean762", "--home", str(tmp_path)],
        cwd=ROOT,
        env={
            **environment,
            "PYTHONPATH": str(ROOT),
            "SOUNDSTAGE_REAL_DATA": data,
            "SOUNDSTAGE_TRAINING__OVERRIDES": '{"max_steps": 36, "evaluate_every": 36, "batch.seconds": 12}',
        },
        capture_output=True,
        text=True,
        timeout=1_700,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-2000:]
    for slice_name in ("age_band=0-12", "gender=f", "gender=m"):
        assert slice_name in ended.stdout
    assert re.search(r"registered_model +REFUSED", ended.stdout)
    assert "wer" in ended.stdout
    manifests = list((tmp_path / "store" / "recordings").glob("*/en/*/manifest.jsonl"))
    assert [len(path.read_text().splitlines()) for path in manifests] == [1200]
    assert not (tmp_path / "store" / "ledger").exists()
    assert not (tmp_path / "store" / "release").exists()
