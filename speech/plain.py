"""Records as plain JSON values and back: dataclasses through one adapter, so that no record spells out its fields.

What is read has exactly the types of the fields (no number is taken for a text), and passes what the record itself
refuses. Keys that no field has are passed over, except by a `Record`, which refuses them.
"""

import functools
import json
import math
from collections.abc import Hashable, Iterable, Mapping
from typing import Annotated, Any, Self, TypeVar, cast

from pydantic import BeforeValidator, ConfigDict, TypeAdapter, ValidationError

Kind = TypeVar("Kind")
# A figure that may not have been measured: NaN, and null in JSON, which has no NaN.
Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def to_plain(record: Any) -> dict[str, Any]:
    """A record, and those in it, as JSON values, in the order of its fields; computed fields come last."""
    return _adapter(record.__class__).dump_python(record, mode="json")


def from_plain(kind: type[Kind], values: Any) -> Kind:
    """The record of that kind with these JSON values; ValueError says which one is missing or wrong."""
    try:
        return _adapter(cast(Hashable, kind)).validate_json(json.dumps(values, allow_nan=False), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc'])) or kind.__name__}: {first['msg']}") from None
    except (TypeError, RecursionError) as error:
        raise ValueError(f"not JSON values ({error})") from None


def to_lines(records: Iterable[Any]) -> bytes:
    """Records as JSON lines."""
    return b"".join(_adapter(record.__class__).dump_json(record) + b"\n" for record in records)


def from_lines(kind: type[Kind], data: bytes) -> list[Kind]:
    """The records of that kind that `to_lines` wrote; ValueError says which line is none."""
    found = []
    for number, line in enumerate(data.splitlines(), 1):
        try:
            found.append(_adapter(cast(Hashable, kind)).validate_json(line, strict=True))
        except ValidationError as error:
            first = error.errors()[0]
            raise ValueError(f"line {number}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    return found


class Record:
    """The base of dataclasses whose figures may be missing: NaN is null in their JSON, and each key is a field."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    def to_json(self) -> str:
        """As JSON text."""
        return _adapter(cast(Hashable, self.__class__)).dump_json(self).decode()

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return json.loads(self.to_json())

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_dict` gave; ValueError says which field is missing or wrong."""
        return from_plain(cls, values)
