"""What is kept as JSON and read again: a frozen dataclass that is a `Record` is written and checked in one way."""

import functools
import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Self, cast

from pydantic import BeforeValidator, ConfigDict, TypeAdapter, ValidationError

# A figure that may not have been measured: NaN, and null in JSON, which has no NaN.
Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]


class RecordError(ValueError):
    """What was read is not the record; the message names the field and says what is wrong with it."""


class Record:
    """The base of such a dataclass; fields that it does not have are refused."""

    __pydantic_config__ = ConfigDict(extra="forbid", ser_json_inf_nan="null")

    def to_json(self) -> str:
        """As JSON text; NaN becomes null."""
        return _adapter(cast(Any, type(self))).dump_json(self).decode()

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        content: dict[str, Any] = json.loads(self.to_json())
        return content

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Read what `to_dict` gave. Raises RecordError."""
        try:
            record: Self = _adapter(cast(Any, cls)).validate_python(dict(content))
        except ValidationError as error:
            first = error.errors()[0]
            raise RecordError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
        return record


@functools.cache  # building one takes longer than reading a record with it
def _adapter(record: type) -> TypeAdapter[Any]:
    return TypeAdapter(record)
