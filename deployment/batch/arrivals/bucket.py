"""Uploads that come into a bucket of S3, below a prefix.

An upload is a key and what was put under it: `bucket`, `key` and ETag, which a list, an event and an answer all tell
alike, name it. Where a bucket keeps versions, the one that was told of is fetched, so that what is overwritten a moment
later is not lost. Where it keeps none, what was overwritten or removed before it was fetched is gone.
"""

from collections.abc import Collection, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO

from deployment.aws import asking, client, code_of, s3_place, status_of
from deployment.batch.arrivals.receipts import Upload, is_hidden_or_unfinished, language_of, named

PIECE_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Place:
    """What is, or was, under a key of a bucket."""

    bucket: str
    key: str
    etag: str  # without quotes
    version: str | None = None  # None: the bucket keeps none, or nobody told

    @property
    def id(self) -> str:
        """Names the upload."""
        return named(self.bucket, self.key, self.etag)

    @property
    def uri(self) -> str:
        """As people write it."""
        return f"s3://{self.bucket}/{self.key}"


def name_below(uploads: str, place: Place) -> str | None:
    """What an upload is called: its key below the prefix; None where it is not below it, or nobody means it."""
    bucket, prefix = s3_place(uploads)
    prefix = f"{prefix.rstrip('/')}/" if prefix.rstrip("/") else ""
    name = place.key.removeprefix(prefix)
    inside = place.bucket == bucket and place.key.startswith(prefix)
    # what ends in "/" shows a folder in consoles
    return name if inside and name and not name.endswith("/") and not is_hidden_or_unfinished(name) else None


def found_in_bucket(uploads: str, languages: Collection[str]) -> Iterator[Upload]:
    """What lies below `s3://bucket/prefix`.

    Raises:
        StoreError, StoreUnavailable: the bucket cannot be listed.
    """
    bucket, prefix = s3_place(uploads)
    s3 = client("s3")
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix.rstrip("/"))
    with asking(uploads):
        for page in pages:
            for item in page.get("Contents", ()):
                place = Place(bucket=bucket, key=item["Key"], etag=item["ETag"].strip('"'))
                if (name := name_below(uploads, place)) is not None:
                    yield upload_from(place, place.id, name, language_of(name, languages), s3)


def upload_from(place: Place, identity: str, name: str, language: str | None, s3: Any) -> Upload:
    """What is under a key, as an upload of that id; `s3` is a client."""
    return Upload(id=identity, name=name, language=language, fetch=partial(_fetched, s3, place))


def place_of(uri: str, s3: Any) -> Place | None:
    """What is under `s3://bucket/key` now; None for nothing.

    Raises:
        StoreError, StoreUnavailable: the bucket refuses, or does not answer.
    """
    from botocore.exceptions import ClientError

    bucket, key = s3_place(uri)
    with asking(uri):
        try:
            head = s3.head_object(Bucket=bucket, Key=key)
        except ClientError as error:
            if status_of(error) == 404:
                return None
            raise
    return Place(bucket=bucket, key=key, etag=head["ETag"].strip('"'), version=_version(head.get("VersionId")))


def _version(told: str | None) -> str | None:
    return None if told in (None, "", "null") else told


def _fetched(s3: Any, place: Place, target: BinaryIO) -> bool:
    """Write what was put under a key; False where it is gone, or something else is there now."""
    from botocore.exceptions import ClientError

    how = {"VersionId": place.version} if place.version else {}
    with asking(place.uri):
        try:
            answer = s3.get_object(Bucket=place.bucket, Key=place.key, IfMatch=place.etag, **how)
        except ClientError as error:
            if status_of(error) in (404, 412) and code_of(error) != "NoSuchBucket":
                return False
            raise
        with closing(answer["Body"]) as body:
            for piece in body.iter_chunks(PIECE_BYTES):
                target.write(piece)
    return True
