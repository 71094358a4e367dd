"""The command that prints the ledgers."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.deployment.conftest import rewrite

ROOT = Path(__file__).parents[2]


def test_the_command_prints_who_decided_what_and_why(house):
    """The question of an audit, answered without a server."""
    house.approve(1)
    (house.home / "soundstage.toml").write_text('home = "."\nlanguages = ["en", "de"]\n')
    command = [sys.executable, "-m", "speech_assets.cli", "decisions"]
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("SOUNDSTAGE_")},
        "SOUNDSTAGE_CONFIG": str(house.home / "soundstage.toml"),
    }
    printed = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for part in ("approve", "soundstage-en/1", house.bundle(1).digest[:12], "Ada", "quarter 1 is better"):
        assert part in printed
    assert "de: nothing was decided yet" in printed
    rewrite(house.home, lambda lines: [lines[0].replace(b"better", b"worse!")])
    broken = subprocess.run([*command, "en"], env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert broken.returncode == 1
    assert "entry 1 was changed" in broken.stdout
    shutil.rmtree(house.home / "ledger")
    gone = subprocess.run([*command, "en"], env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert gone.returncode == 1, "a ledger that is gone is not one in which nothing was decided"
    assert "entries were removed from its end" in gone.stdout
