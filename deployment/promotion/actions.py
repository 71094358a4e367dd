"""The words for what is decided about a version: those that the ledger keeps, and what people read and choose.

mypy holds every place that names an action to this list, and an entry of the ledger with another word is refused where
it is read.
"""

from collections.abc import Mapping
from typing import Literal

Action = Literal["approve", "voice", "reject", "request_changes", "expire", "override", "rollback"]
Choice = Literal["approve", "reject", "request_changes"]

PRODUCTION: tuple[Action, ...] = ("approve", "rollback")  # puts a version into production
CLOSING: tuple[Action, ...] = ("reject", "request_changes", "expire")  # after these a challenger waits no longer

DONE: Mapping[Action, str] = {  # to a version, by whom and why follows
    "approve": "approved",
    "voice": "approved as one of two",
    "reject": "rejected",
    "request_changes": "changes asked for",
    "expire": "closed",
    "override": "failed gates accepted",
    "rollback": "rolled back to",
}
CHOICES: Mapping[Choice, str] = {  # what a person may decide about a version that waits
    "approve": "it becomes the champion and is released",
    "reject": "it never will",
    "request_changes": "it waits no longer, until it was judged and registered again",
}
