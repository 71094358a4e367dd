"""How the document, reports and steps are written: the JSON of a dataclass, checked field by field when it is read."""

import json
from dataclasses import asdict
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

from speech.store.outputs import parse_json

RELEASE_SCHEMA = 3
T = TypeVar("T")


class ReleaseDocumentError(Exception):
    """The release document, a report or a step cannot be read."""


class Form(Generic[T]):
    """How records of one kind are written; fields that it does not know are ignored when it reads them."""

    def __init__(self, kind: type[T], name: str) -> None:
        self._adapter, self._name = TypeAdapter(kind), name

    def values(self, record: Any) -> dict[str, Any]:
        """A record as JSON values."""
        return {"schema": RELEASE_SCHEMA, **asdict(record)}

    def write(self, record: Any) -> bytes:
        """A record as JSON."""
        return write_json(self.values(record))

    def of(self, values: Any) -> T:
        """A record from JSON values.

        Raises:
            ReleaseDocumentError: fields are missing or of other kinds.
        """
        try:
            return self._adapter.validate_python(values)
        except ValidationError as error:
            fault = error.errors()[0]
            where = ".".join(str(part) for part in fault["loc"])
            raise ReleaseDocumentError(f"{self._name} is not valid ({where}: {fault['msg']})") from error

    def read(self, data: bytes) -> T:
        """A record from JSON; raises as `of` does."""
        try:
            return self.of(parse_json(data))
        except ValueError as error:
            raise ReleaseDocumentError(f"{self._name} is not valid ({error})") from error


def write_json(values: Any) -> bytes:
    """JSON values as they are stored; a name that is not valid text is written without what is not."""
    return (json.dumps(values, ensure_ascii=False, indent=1, sort_keys=True) + "\n").encode(errors="replace")
