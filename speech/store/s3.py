"""Objects in S3, or in a service that speaks its protocol and honours conditional writes.

A write says under which condition it counts (`If-None-Match`, `If-Match`), and the service decides. Three things
make the answer less simple than it looks:

- A request whose answer was lost is sent again, and then finds its own object: 412 to the winner. So every object
  carries the names of the writes that led to it (`WRITES`), and a writer that is refused looks whether its own is
  among them. (With more than `REMEMBERED` writes by others meanwhile it is told that it lost.)
- 409 says that nothing was decided: it is asked again.
- A service that does not know the conditions ignores them. So the first conditional write of a process tries it.

An ETag is what the service says it is: no digest, with several parts or encryption. It only tells "the same" from
"another".
"""

import io
import itertools
import os
import random
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from pathlib import Path
from shutil import copyfileobj
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO, TypeVar

from speech.store.cache import LocalCache
from speech.store.objects import (
    INCOMING,
    Listed,
    LostRace,
    Missing,
    Objects,
    Stored,
    StoreError,
    StoreUnavailable,
    checked,
)

PATIENCE_S = 60.0  # for a service that does not answer; one that is started again needs less
ATTEMPTS = 3  # of a request by the SDK, which gives up the sooner the more of a process's requests fail
CONNECT_S, READ_S = 5.0, 30.0
MULTIPART_BYTES = 64 * 2**20  # files from here on go up in parts
PART_BYTES = 16 * 2**20
MAX_PARTS = 10_000
THREADS = 8
BREAKS = 8  # of a connection while one piece of an object is read
WRITES = "soundstage-writes"  # metadata of an object: the last writes that led to it, newest first
REMEMBERED = 8
SUPERSEDED = '"superseded"'  # no object's ETag
PROBE = f"{INCOMING}/conditional-writes"
T = TypeVar("T")


class S3Objects(Objects):
    """Objects below a prefix of a bucket.

    Args:
        bucket: it exists already.
        prefix: without slashes at its ends; may be empty.
        cache: where files come from.
        patience_s: how long a service that does not answer is asked again.
    """

    def __init__(self, bucket: str, prefix: str, cache: LocalCache, patience_s: float = PATIENCE_S) -> None:
        self.bucket, self.prefix, self.cache, self.patience_s = bucket, prefix, cache, patience_s
        self.home = "/".join(part for part in (f"s3://{bucket}", prefix) if part)
        self._made: tuple[int, Any] | None = None
        self._conditions_hold = False

    def __reduce__(self) -> tuple[Any, ...]:  # a client does not travel to another process
        return type(self), (self.bucket, self.prefix, self.cache, self.patience_s)

    def read(self, key: str) -> Stored:
        body = self._body(key)
        return Stored(body.readall(), body.tag)

    @contextmanager
    def open(self, key: str) -> Iterator[BinaryIO]:
        with io.BufferedReader(self._body(key), 2**20) as file:
            yield file

    def list(self, prefix: str = "") -> Iterator[Listed]:
        below, found = self._below(""), []
        for page in self._pages(prefix):
            for item in page.get("Contents", ()):
                key = item["Key"].removeprefix(below)
                if not key.endswith("/") and not key.startswith(f"{INCOMING}/"):  # consoles make "/" to show a folder
                    found.append(Listed(key, item["Size"]))
        yield from sorted(found, key=lambda item: item.key)  # not every service lists in order

    def folders(self, prefix: str = "") -> tuple[str, ...]:
        pages = self._pages(prefix, Delimiter="/")
        names = {item["Prefix"].split("/")[-2] for page in pages for item in page.get("CommonPrefixes", ())}
        return tuple(sorted(names - {"", INCOMING}))

    def put_if_absent(self, key: str, data: bytes) -> str:
        return self._put(key, data, (), IfNoneMatch="*")

    def put_if_unchanged(self, key: str, data: bytes, tag: str) -> str:
        etag, *writes = tag.split("|")
        return self._put(key, data, writes, IfMatch=etag)

    def put(self, key: str, data: bytes) -> None:
        self._ask(key, lambda: self._client.put_object(**self._place(key), Body=data))

    def upload(self, path: Path, key: str) -> None:
        if path.stat().st_size < MULTIPART_BYTES:
            with path.open("rb") as file:
                self._put(key, file, (), IfNoneMatch="*")
        else:
            self._upload_parts(path, key)

    def delete(self, keys: Iterable[str]) -> None:
        def delete(key: str) -> None:
            self._ask(key, lambda: self._client.delete_object(**self._place(key)))

        self.each(delete, keys)

    def local(self, key: str) -> Path:
        def fetch(file: BinaryIO) -> None:
            with self.open(key) as source:
                copyfileobj(source, file, 2**20)

        return self.cache.file(checked(key), fetch)

    def local_folder(self, prefix: str) -> Path:
        keys = [item.key for item in self.list(prefix)]
        if not keys:
            raise Missing(f"there is nothing below {prefix} in the data store {self.home}")
        self.each(self.local, keys)
        return self.cache.root / prefix

    @contextmanager
    def staging(self, prefix: str) -> Iterator[Path]:
        checked(prefix)
        with TemporaryDirectory(prefix="soundstage-", ignore_cleanup_errors=True) as folder:
            yield Path(folder)

    def each(self, act: Callable[[T], object], items: Iterable[T]) -> None:
        with ThreadPoolExecutor(THREADS) as threads:
            for _ in threads.map(act, items):
                pass

    def now(self) -> float:
        place = {"Bucket": self.bucket, "Prefix": self._below("")}
        answer = self._ask("", lambda: self._client.list_objects_v2(**place, MaxKeys=1))
        return parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"]).timestamp()

    def _place(self, key: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self._below("") + checked(key)}

    def _below(self, prefix: str) -> str:
        return "".join(f"{part}/" for part in (self.prefix, checked(prefix, empty=True)) if part)

    @property
    def _client(self) -> Any:
        """A client of this process: connections do not survive a fork."""
        if self._made is None or self._made[0] != os.getpid():
            self._made = (os.getpid(), connect())
        return self._made[1]

    def _pages(self, prefix: str, **how: str) -> Any:
        place = {"Bucket": self.bucket, "Prefix": self._below(prefix)}
        pages = self._client.get_paginator("list_objects_v2")
        return self._ask(prefix, lambda: [*pages.paginate(**place, **how)])

    def _body(self, key: str) -> "_Body":
        def get(start: int, etag: str | None) -> Any:
            rest = {} if etag is None else {"Range": f"bytes={start}-", "IfMatch": etag}
            return self._ask(key, lambda: self._client.get_object(**self._place(key), **rest))

        return _Body(get, f"{key} in {self.home}")

    def _put(self, key: str, body: bytes | BinaryIO, before: Iterable[str], **condition: str) -> str:
        self._try_conditions()
        writes = (uuid.uuid4().hex[:12], *before)[:REMEMBERED]

        def put() -> str:
            if not isinstance(body, bytes):
                body.seek(0)
            names = {WRITES: ",".join(writes)}
            return str(self._client.put_object(**self._place(key), Body=body, Metadata=names, **condition)["ETag"])

        return "|".join((self._decided(key, writes[0], put), *writes))

    def _upload_parts(self, path: Path, key: str) -> None:
        self._try_conditions()
        write, size = uuid.uuid4().hex[:12], path.stat().st_size
        part_bytes = max(PART_BYTES, -(-size // MAX_PARTS))
        place = self._place(key)
        begun = self._ask(key, lambda: self._client.create_multipart_upload(**place, Metadata={WRITES: write}))
        upload = begun["UploadId"]

        def send(number: int) -> dict[str, Any]:
            with path.open("rb") as file:
                file.seek((number - 1) * part_bytes)
                data = file.read(part_bytes)
            part = {"PartNumber": number, "UploadId": upload}
            answer = self._ask(key, lambda: self._client.upload_part(**place, **part, Body=data))
            return {"PartNumber": number, "ETag": answer["ETag"]}

        def complete() -> str:
            done = {"Parts": parts}
            answer = self._client.complete_multipart_upload(
                **place, UploadId=upload, MultipartUpload=done, IfNoneMatch="*"
            )
            return str(answer["ETag"])

        try:
            with ThreadPoolExecutor(THREADS // 2) as threads:
                parts = list(threads.map(send, range(1, -(-size // part_bytes) + 1)))
            self._decided(key, write, complete)
        except BaseException:
            with suppress(Exception):  # what stays is removed by the bucket's rule for unfinished uploads
                self._client.abort_multipart_upload(**place, UploadId=upload)
            raise

    def _decided(self, key: str, write: str, act: Callable[[], str]) -> str:
        """The ETag that a conditional write got.

        Raises:
            LostRace: the condition did not hold.
        """
        from botocore.exceptions import ClientError

        def decide() -> str:
            try:
                return act()
            except ClientError as error:
                status = error.response["ResponseMetadata"]["HTTPStatusCode"]
                if status == 409:
                    raise StoreUnavailable(f"{self.home} did not decide who writes {key}: try again later") from error
                if status not in (404, 412) or _code(error) == "NoSuchBucket":
                    raise
            with suppress(Missing):
                head = self._ask(key, lambda: self._client.head_object(**self._place(key)))
                writes = head["Metadata"].get(WRITES, "").split(",")
                if write in writes:
                    return str(head["ETag"]) if writes[0] == write else SUPERSEDED
            raise LostRace(f"{key} in {self.home} was written by another writer: read it again")

        return self._ask(key, decide)

    def _try_conditions(self) -> None:
        """Make sure that the service refuses what it should: one that ignores conditions lets every writer win."""
        if self._conditions_hold:
            return
        from botocore.exceptions import ClientError

        place = {"Bucket": self.bucket, "Key": self._below("") + PROBE}

        def refused() -> bool:
            self._client.put_object(**place, Body=b"")
            try:
                self._client.put_object(**place, Body=b"", IfNoneMatch="*")
            except ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] not in (409, 412):
                    raise
                return True
            return False

        if self._ask(PROBE, refused):
            self._conditions_hold = True
            return
        raise StoreError(
            f"the service of {self.home} ignores conditional writes, so two writers would both win: upgrade it, or "
            "choose another for `home`"
        )

    def _ask(self, key: str, act: Callable[[], T]) -> T:
        """The answer to a request, sent again as long as the service does not answer and patience lasts."""
        deadline = time.monotonic() + self.patience_s
        for attempt in itertools.count():
            try:
                with self._asking(key):
                    return act()
            except StoreUnavailable:
                if time.monotonic() > deadline:
                    raise
                _pause(attempt)
        raise AssertionError

    @contextmanager
    def _asking(self, key: str) -> Iterator[None]:
        """Errors of the SDK as errors of the data store."""
        from botocore.exceptions import BotoCoreError, ClientError

        name = f"{key} in {self.home}" if key else self.home
        try:
            yield
        except ClientError as error:
            answer = error.response["ResponseMetadata"]
            code, status = _code(error), answer.get("HTTPStatusCode", 0)
            if code == "NoSuchBucket":
                raise StoreError(f"there is no bucket '{self.bucket}': make it, or correct `home`") from error
            if status == 404:
                raise Missing(f"{key} is not in the data store {self.home}") from error
            if code == "RequestTimeTooSkewed":
                theirs = answer.get("HTTPHeaders", {}).get("date", "another time")
                raise StoreError(f"{self.home} refuses this machine's clock: it is {theirs} there; set it") from error
            if status >= 500 or status == 429 or code in ("SlowDown", "RequestTimeout"):
                raise StoreUnavailable(f"{name} could not be reached ({error}): try again later") from error
            if status in (401, 403):
                raise StoreError(
                    f"{name} is not allowed ({code}): the role or key in use needs s3:GetObject, s3:PutObject, "
                    f"s3:DeleteObject and s3:ListBucket on {self.home}"
                ) from error
            raise StoreError(f"{name}: {error}") from error
        except _broken() as error:
            raise StoreUnavailable(f"{name} could not be reached ({error}): try again later") from error
        except BotoCoreError as error:
            raise StoreError(f"{name}: {error}: say where S3 is and who asks by the usual AWS_* variables") from error


class _Body(io.RawIOBase):
    """The bytes of an object. A connection that breaks is made again where it broke, to the same version."""

    def __init__(self, get: Callable[[int, str | None], Any], name: str) -> None:
        self._get, self._name = get, name
        self._at = 0
        self._answer = get(0, None)
        self.tag = "|".join((self._answer["ETag"], *filter(None, self._answer["Metadata"].get(WRITES, "").split(","))))
        self._size = self._answer["ContentLength"]

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        for attempt in range(BREAKS):
            if self._at == self._size:
                return 0
            try:
                if self._answer is None:
                    self._answer = self._get(self._at, self.tag.split("|")[0])
                data = self._answer["Body"].read(min(len(buffer), self._size - self._at))
                if data:
                    buffer[: len(data)] = data
                    self._at += len(data)
                    return len(data)
            except _broken():
                pass
            self._answer = None
            _pause(attempt)
        raise StoreUnavailable(f"the connection broke again and again while {self._name} was read: try again later")

    def close(self) -> None:
        if self._answer is not None:
            self._answer["Body"].close()
        super().close()


def connect(
    service: str = "s3", *, connect_s: float = CONNECT_S, read_s: float = READ_S, attempts: int = ATTEMPTS
) -> Any:
    """A client of a service of AWS, or of another's that speaks its protocol."""
    import boto3
    from botocore.config import Config

    elsewhere = os.environ.get(f"AWS_ENDPOINT_URL_{service.upper()}") or os.environ.get("AWS_ENDPOINT_URL")
    config = Config(
        connect_timeout=connect_s,
        read_timeout=read_s,
        max_pool_connections=2 * THREADS,
        retries={"mode": "standard", "total_max_attempts": attempts},
        # services other than Amazon's rarely answer at bucket.host
        s3={"addressing_style": "path"} if elsewhere and ".amazonaws.com" not in elsewhere else {},
    )
    return boto3.session.Session().client(service, config=config)


def _broken() -> tuple[type[Exception], ...]:
    from botocore.exceptions import ConnectionError, HTTPClientError, IncompleteReadError

    return ConnectionError, HTTPClientError, IncompleteReadError


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _pause(attempt: int) -> None:
    time.sleep(random.random() * min(5.0, 0.1 * 2**attempt))
