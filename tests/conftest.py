"""How tests are shared among processes: what is expensive to make is made in one of them, and the longest go first."""

from collections.abc import Sequence
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
# Files in the order of their length: whoever is free takes the next, and nobody is left with a long one at the end.
LONGEST = (
    "integration/test_demo.py",
    "speech_assets/test_main_job.py",  # with every other test of the deployment that it trains
    "integration/test_backfill.py",
    "speech_assets/test_real_data.py",
    "training/test_run.py",
    "integration/test_serving.py",
    "integration/test_releases.py",
    "integration/test_mlflow_server.py",
    "integration/test_local.py",
    "training/test_readings.py",
    "training/test_export.py",
)
DEPLOYMENT = "the deployment of tests/speech_assets"


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put tests that share a fixture of long making into one group, which one process runs."""
    for item in items:
        shares = "deployment" in getattr(item, "fixturenames", ()) and item.path.parent.name == "speech_assets"
        item.add_marker(pytest.mark.xdist_group(DEPLOYMENT if shares else _file(item)))
    ranks = {name: rank for rank, name in enumerate(LONGEST)}
    groups = {_group(item): len(ranks) for item in items}
    for item in items:
        groups[_group(item)] = min(groups[_group(item)], ranks.get(_file(item), len(ranks)))
    items.sort(key=lambda item: groups[_group(item)])


def _file(item: pytest.Item) -> str:
    return item.path.relative_to(TESTS).as_posix()


def _group(item: pytest.Item) -> str:
    marks: Sequence[pytest.Mark] = list(item.iter_markers("xdist_group"))
    return str(marks[0].args[0])
