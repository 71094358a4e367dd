"""Intent models, kept by their digest, and which is in use in a language: the last that passed its gates."""

from deployment.registry.in_use import digest_in_use, take_into_use
from evaluation.intents import load_intent_verdict
from speech.store.objects import Missing, Objects
from speech.store.outputs import DIGEST, DataStore
from speech.understanding.intents import IntentModel, IntentModelError, digest_of

MODELS = "intent_models"  # in the data store, by digest
PLACE = "intent_champions"  # an output of each language


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
    digest = digest_in_use(store, PLACE, language)
    if digest is None:
        return None
    load_intent_verdict(store.objects, digest).require_passed()
    return load_intent_model(store.objects, digest)


def name_intent_champion(store: DataStore, language: str, digest: str) -> None:
    """Take a model that is kept into use. Raises GateRefused unless its verdict is there and passed."""
    load_intent_verdict(store.objects, digest).require_passed()
    take_into_use(store, PLACE, language, digest)


def _key(digest: str) -> str:
    return f"{MODELS}/{digest}.npz"
