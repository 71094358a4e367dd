"""Which intent model is in use in a language: the last that passed its gates.

The asset that trains one names it here once it has passed, and not before, so a candidate that is refused leaves the
former one in use. Whoever takes it reads its verdict again.
"""

from evaluation.gates import GateRefused
from evaluation.intents import load_intent_verdict
from speech.store.objects import Missing, Objects
from speech.store.outputs import DIGEST, DataStore, parse_json, write_json
from speech.understanding.intents import IntentModel, IntentModelError, digest_of

MODELS = "intent_models"  # in the data store, by digest
PLACE = "intent_champions"  # an output of each language
_NAME = "champion.json"


def put_intent_model(objects: Objects, model: IntentModel) -> str:
    """Keep a model, once; its digest."""
    data = model.to_bytes()
    digest = digest_of(data)
    objects.put(_key(digest), data)
    return digest


def load_intent_model(objects: Objects, digest: str) -> IntentModel:
    """The model of a digest, each byte compared with it. Raises IntentModelError where it is not there or another."""
    if not DIGEST.fullmatch(digest):
        raise IntentModelError(f"{digest[:80]!r} is not the digest of an intent model")
    try:
        return IntentModel.from_bytes(objects.read(_key(digest)).data, digest)
    except Missing:
        raise IntentModelError(f"intent model {digest[:12]} is gone: materialise `intent_model` again") from None


def intent_champion(store: DataStore, language: str) -> IntentModel | None:
    """The verified model in use; None where none has passed in that language yet.

    Raises:
        GateRefused: its verdict is missing, altered or foreign.
        IntentModelError: it is gone, or its bytes are others.
    """
    try:
        record = parse_json(store.current(PLACE, language).read(_NAME))
    except Missing:
        return None
    try:
        digest = str(record["digest"])
    except (TypeError, LookupError):
        raise GateRefused(f"{PLACE}/{language} names no model: materialise `intent_model` again.") from None
    load_intent_verdict(store.objects, digest).require_passed()
    return load_intent_model(store.objects, digest)


def name_intent_champion(store: DataStore, language: str, digest: str) -> None:
    """Take a model that is kept into use. Raises GateRefused unless its verdict is there and passed."""
    load_intent_verdict(store.objects, digest).require_passed()
    with store.replace(PLACE, language) as staging:
        write_json(staging.path / _NAME, {"digest": digest})


def _key(digest: str) -> str:
    return f"{MODELS}/{digest}.npz"
