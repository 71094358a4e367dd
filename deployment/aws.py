"""Clients of AWS services other than the data store's, and what they refuse as errors of ours.

Where a service is and who asks is said as to every AWS tool: `AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`, a profile, a
role. Clients give up soon, since those who ask do so from sensors, and ask again.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from urllib.parse import urlsplit

from speech.store.objects import StoreError, StoreUnavailable
from speech.store.s3 import connect

CONNECT_S, READ_S = 3.0, 10.0
ATTEMPTS = 2
PASSING = ("SlowDown", "RequestTimeout", "RequestLimitExceeded")  # codes of refusals that pass; each has "Throttl", too


def client(service: str) -> Any:
    """This process's client of a service, such as `sqs`; making one takes a while, and connections survive no fork.

    Raises:
        StoreError: nobody said in which region.
    """
    with asking(service.upper()):
        return _made(service, os.environ.get("AWS_ENDPOINT_URL"), os.getpid())


@cache
def _made(service: str, *_: object) -> Any:
    return connect(service, connect_s=CONNECT_S, read_s=READ_S, attempts=ATTEMPTS)


@contextmanager
def asking(what: str) -> Iterator[None]:
    """Errors of the SDK as errors of ours; `what` is asked for.

    Raises:
        StoreUnavailable: the service does not answer.
        StoreError: it refuses.
    """
    from botocore.exceptions import BotoCoreError, ClientError, ConnectionError, HTTPClientError

    try:
        yield
    except ClientError as error:
        code, status = code_of(error), status_of(error)
        if status >= 500 or status == 429 or code in PASSING or "Throttl" in code:
            raise StoreUnavailable(f"{what} could not be reached ({error}): try again later") from error
        raise StoreError(f"{what}: {error}") from error
    except (ConnectionError, HTTPClientError) as error:
        raise StoreUnavailable(f"{what} could not be reached ({error}): try again later") from error
    except BotoCoreError as error:
        raise StoreError(f"{what}: {error}: say where it is and who asks by the usual AWS_* variables") from error


def code_of(error: Any) -> str:
    """The code of a refusal, such as `NoSuchKey`."""
    return str(error.response.get("Error", {}).get("Code", ""))


def status_of(error: Any) -> int:
    """The HTTP status of a refusal; 0 where there is none."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def s3_place(uri: str) -> tuple[str, str]:
    """Bucket and key, or prefix, of `s3://bucket/key`; a key is taken as it is written.

    Raises:
        ValueError: it is none.
    """
    scheme, _, rest = uri.partition("://")
    bucket, _, key = rest.partition("/")
    if scheme != "s3" or not bucket or urlsplit(f"s3://{bucket}").netloc != bucket:
        raise ValueError(f"must be s3://bucket/..., got '{uri}'")
    return bucket, key
