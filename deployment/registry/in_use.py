"""Which of the small models beside the recogniser is in use: a document that names its digest.

The asset that trains one names it once it has passed, and not before, so a candidate that is refused leaves the former
one in use. Whoever takes it reads its verdict again.
"""

from evaluation.gates import GateRefused
from speech.store.objects import Missing
from speech.store.outputs import DataStore, parse_json, write_json

_NAME = "champion.json"


def digest_in_use(store: DataStore, place: str, key: str) -> str | None:
    """The digest of the model in use; None where none has passed yet. Raises GateRefused where nothing can be read."""
    try:
        return str(parse_json(store.current(place, key).read(_NAME))["digest"])
    except Missing:
        return None
    except (ValueError, TypeError, LookupError):
        raise GateRefused(f"{place}/{key} names no model: materialise its asset again.") from None


def take_into_use(store: DataStore, place: str, key: str, digest: str, **more: str) -> None:
    """Name the model in use, after its verdict was read."""
    with store.replace(place, key) as staging:
        write_json(staging.path / _NAME, {"digest": digest, **more})
