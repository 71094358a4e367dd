"""Whether a replica may serve a bundle: someone approved exactly this one, and its verdict still says that it passed.

The release document says which bundle lies where and what share it gets, and whoever may write to the data store can
write it by hand. So a replica takes nobody's word that a bundle may be served: it looks into the ledger and the
verdicts of the data store that it follows, each time it loads one. What serves already is not looked at again.

Not covered: the registry's note of the ledger's end, which only a release compares (a replica knows no registry).
"""

from deployment.promotion.actions import PRODUCTION
from deployment.promotion.ledger import Ledger, LedgerError, champion_in_force
from deployment.promotion.rules import require_still_passed
from evaluation.gates import GateRefused
from speech.store.objects import Objects, StoreError


class NotApproved(Exception):
    """A bundle may not be served; the message is one sentence that says why."""


def require_approved(objects: Objects, language: str, digest: str, key: bytes | None = None) -> None:
    """Refuse a bundle that no decision put into production, or whose verdict does not let it pass any more.

    Failed gates are accepted as far as that decision says, and only for the verdict that it was taken on.

    Args:
        objects: the data store, which holds `ledger/` and `verdicts/`.
        key: with which entries have to be signed; None: they need not be.

    Raises:
        NotApproved: no approval or rollback about exactly this digest, a rejection since, a broken ledger, or a verdict
            that is missing, altered, foreign or not passed.
    """
    refused = f"bundle {digest[:12]} is not served for '{language}'"
    try:
        ledger = Ledger(objects, language, key)
        entries = ledger.entries()
        about = [entry for entry in entries if entry.digest == digest]
        decision = next((entry for entry in reversed(about) if entry.action in (*PRODUCTION, "reject")), None)
        if decision is None or decision.action == "reject":
            why = f"{decision.approver} rejected it" if decision else f"nobody approved it ({ledger.name})"
            remedy = (
                "materialise `serving_release` in Dagster, which serves the ledger's champion"
                if champion_in_force(entries)
                else "approve a version with the job `promote`, which releases it"
            )
            raise NotApproved(f"{refused}: {why}; {remedy}")
        require_still_passed(objects, decision)
    except (LedgerError, GateRefused, StoreError, OSError) as error:
        raise NotApproved(f"{refused}: {error}") from error
