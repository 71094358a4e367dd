"""Which label model is in use: the last of its kind that passed its gates.

The asset that trains one names it here once it has passed, and not before, so a candidate that is refused leaves the
former one in use. Whoever takes it reads its verdict again.
"""

from deployment.registry.shelf import Shelf
from evaluation.gates import GateRefused
from evaluation.labels import load_label_verdict
from speech.labels import Kind, LabelBundle
from speech.store.objects import Missing
from speech.store.outputs import DataStore, parse_json, write_json

PLACE = "label_champions"  # an output of each kind
_NAME = "champion.json"


def label_champion(store: DataStore, kind: Kind) -> LabelBundle | None:
    """The verified bundle of the label model in use; None where no model of that kind has passed yet.

    Raises:
        GateRefused: its verdict is missing, altered or foreign.
        BundleError: it is gone from the shelf, or its bytes are others.
    """
    try:
        record = parse_json(store.current(PLACE, kind).read(_NAME))
    except Missing:
        return None
    try:
        digest = str(record["digest"])
    except (TypeError, LookupError):
        raise GateRefused(f"{PLACE}/{kind} names no model: materialise its asset again.") from None
    load_label_verdict(store.objects, digest).require_passed()
    return Shelf(store.objects).load_labels(digest, kind)


def name_label_champion(store: DataStore, bundle: LabelBundle) -> None:
    """Take a bundle on the shelf into use. Raises GateRefused unless its verdict is there and passed."""
    load_label_verdict(store.objects, bundle.digest).require_passed()
    with store.replace(PLACE, bundle.kind) as staging:
        write_json(staging.path / _NAME, {"digest": bundle.digest, "name": bundle.name})
