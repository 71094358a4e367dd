"""What has come in: a receipt for each upload, written once, under the hour in which it was received.

An upload belongs to the hour in which somebody looked and found it whole, by the looker's clock; what its sender says
of its age plays no part, so a late file is simply of a later hour. Its bytes are copied into the data store under their
SHA-256, after which the upload may go. Receipts are objects that never change: whoever receives the same upload twice,
also after a kill, writes the same one (`receipts.py`).

Uploads come into a folder (`folder.py`), or below a prefix of a bucket (`bucket.py`), whose events a queue may tell of
(`queue.py`). The same bytes uploaded again, under whatever name, are received and not transcribed again: the first
receipt has them, and the others say whose they are.
"""

import logging
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path

from deployment.batch.arrivals.bucket import found_in_bucket
from deployment.batch.arrivals.folder import found_in_folder
from deployment.batch.arrivals.receipts import (
    Arrival,
    arrivals_of,
    hour_of,
    hours_with_arrivals,
    original,
    received,
)
from speech.store.objects import Objects

log = logging.getLogger(__name__)
__all__ = ["Arrival", "arrivals_of", "hour_of", "hours_with_arrivals", "original", "receive"]


def receive(
    uploads: Path | str,
    objects: Objects,
    languages: Iterable[str],
    now: datetime | None = None,
    refused: Callable[[str], None] = log.warning,
) -> list[Arrival]:
    """Receive what has come in and has no receipt yet; returns the new receipts.

    Args:
        uploads: the folder, or s3://bucket/prefix; what is not there holds nothing.
        objects: the data store.
        languages: that the first folder of a name may say.
        now: the moment, whose hour they are filed under; None: the present.
        refused: told of each upload whose bytes could not be had; it stops no other, and is looked at again.

    Raises:
        StoreError: the data store or the bucket refuses.
        StoreUnavailable: one of them does not answer.
    """
    now, spoken = now or datetime.now(UTC), frozenset(languages)
    if "://" in str(uploads):
        return received(found_in_bucket(str(uploads), spoken), objects, now, refused)
    return received(found_in_folder(Path(uploads), spoken, now.timestamp()), objects, now, refused)
