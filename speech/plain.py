"""Records as plain JSON values and back: dataclasses through one adapter, so that no record spells out its fields.

What is read has exactly the types of the fields (no number is taken for a text), and passes what the record itself
refuses. Keys that no field has are passed over; whether that is right is for the caller to say.
"""

import functools
import json
from collections.abc import Hashable
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

Record = TypeVar("Record")


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def to_plain(record: Any) -> dict[str, Any]:
    """A record, and those in it, as JSON values, in the order of its fields; computed fields come last."""
    values: dict[str, Any] = _adapter(record.__class__).dump_python(record, mode="json")
    return values


def from_plain(kind: type[Record], values: Any) -> Record:
    """The record of that kind with these JSON values; ValueError says which one is missing or wrong."""
    try:
        record: Record = _adapter(cast(Hashable, kind)).validate_json(json.dumps(values, allow_nan=False), strict=True)
        return record
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc'])) or kind.__name__}: {first['msg']}") from None
    except (TypeError, RecursionError) as error:
        raise ValueError(f"not JSON values ({error})") from None
