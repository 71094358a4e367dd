"""What the settings let through is what Dagster takes: otherwise its code location ends in a traceback."""

import pytest
from dagster._core.definitions.utils import is_valid_owner
from dagster._utils.schedules import is_valid_cron_string
from pydantic import ValidationError

from deployment.settings import OWNER, Retraining

CRON = (
    "0 6 1 1,4,7,10 *|* * * * *|*/15 * * * mon-fri|0 0 L * *|1-5/2 * * jan 7|5/15 * * * *|@daily|@Daily|@reboot|"
    "nonsense||0 6 1 * * *|60 * * * *|0 24 * * *|0 0 0 * *|0 0 * * 8|5- * * * *|*/0 * * * *|-1 * * * *|L * * * *"
)


@pytest.mark.parametrize("text", CRON.split("|"))
def test_cron_expressions_are_those_of_dagster(text: str) -> None:
    try:
        taken = bool(Retraining(quarter_closed_cron=text))
    except ValidationError:
        taken = False
    assert taken == is_valid_cron_string(text)


@pytest.mark.parametrize("owner", ["team:speech", "a.b@example.org", "bob", "team:", "bob@host", "bob@x.internal", ""])
def test_owners_are_those_of_dagster(owner: str) -> None:
    assert bool(OWNER.fullmatch(owner)) == is_valid_owner(owner)
