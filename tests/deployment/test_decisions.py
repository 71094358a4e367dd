"""The command that prints the ledgers."""

import os
import shutil

import pytest

from speech_assets.cli import app
from tests.deployment.conftest import House, rewrite


def test_the_command_prints_who_decided_what_and_why(
    house: House, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The question of an audit, answered without a server."""
    for name in [name for name in os.environ if name.startswith("SOUNDSTAGE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SOUNDSTAGE_CONFIG", str(house.home / "soundstage.toml"))

    def decisions(*languages: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            app(["decisions", *languages])
        return int(ended.value.code or 0), capsys.readouterr().out

    house.approve(1)
    (house.home / "soundstage.toml").write_text('home = "."\nlanguages = ["en", "de"]\n')
    code, printed = decisions()
    assert code == 0
    for part in ("approve", "soundstage-en/1", house.bundle(1).digest[:12], "Ada", "quarter 1 is better"):
        assert part in printed
    assert "de: nothing was decided yet" in printed
    rewrite(house.home, lambda lines: [lines[0].replace(b"better", b"worse!")])
    code, printed = decisions("en")
    assert code == 1
    assert "entry 1 was changed" in printed
    shutil.rmtree(house.home / "ledger")
    code, printed = decisions("en")
    assert code == 1, "a ledger that is gone is not one in which nothing was decided"
    assert "entries were removed from its end" in printed
