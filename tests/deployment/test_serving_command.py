"""The command line of a replica: what cannot work is said before it listens."""

from pathlib import Path

import pytest

from deployment.serving.__main__ import main


@pytest.mark.parametrize(
    "arguments",
    [("--port", "99999"), ("--port", "-1"), ("--workers", "0"), ("--threads", "0"), ("--drain-s", "nan")],
)
def test_a_number_out_of_range_names_its_option(arguments: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert ended.value.code == 2
    assert f"argument {arguments[0]}: must be" in capsys.readouterr().err


def test_a_data_store_that_is_not_there_is_not_served(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A misspelt folder would be made, and serve nothing for ever."""
    missing = tmp_path / "none"
    assert main(["--home", str(missing), "--port", "0"]) == 2
    assert f"there is no data store at {missing}" in capsys.readouterr().err
    assert not missing.exists()
