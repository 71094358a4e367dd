"""Which label model is in use: the last of its kind that passed its gates."""

from deployment.registry.in_use import digest_in_use, take_into_use
from deployment.registry.shelf import Shelf
from evaluation.labels import load_label_verdict
from speech.labels import Kind, LabelBundle
from speech.store.outputs import DataStore

PLACE = "label_champions"  # an output of each kind


def label_champion(store: DataStore, kind: Kind) -> LabelBundle | None:
    """The verified bundle of the label model in use; None where no model of that kind has passed yet.

    Raises:
        GateRefused: its verdict is missing, altered or foreign.
        BundleError: it is gone from the shelf, or its bytes are others.
    """
    digest = digest_in_use(store, PLACE, kind)
    if digest is None:
        return None
    load_label_verdict(store.objects, digest).require_passed()
    return Shelf(store.objects).load_labels(digest, kind)


def name_label_champion(store: DataStore, bundle: LabelBundle) -> None:
    """Take a bundle on the shelf into use. Raises GateRefused unless its verdict is there and passed."""
    load_label_verdict(store.objects, bundle.digest).require_passed()
    take_into_use(store, PLACE, bundle.kind, bundle.digest, name=bundle.name)
