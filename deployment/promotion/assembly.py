"""A deployment's registry and decisions, put together from its settings in one place."""

from deployment.promotion.decisions import Promotions
from deployment.promotion.rules import Rules
from deployment.promotion.signatures import Launchers
from deployment.registry.models import Registry
from deployment.registry.shelf import PLACE
from deployment.settings import Settings
from speech.store.objects import open_objects


def registry_of(settings: Settings) -> Registry:
    """The model registry, with the shelf of bundles in the data store."""
    return Registry(settings.tracking_uri, shelf=settings.home / PLACE)


def promotions_of(settings: Settings) -> Promotions:
    """Decisions about champions, with the approvers, rules and thresholds of the settings."""
    asked = settings.promotion
    rules = Rules(
        verdicts=settings.home / "verdicts",
        approvers=asked.approvers,
        launchers=Launchers(settings.home / "launchers"),
        gates=settings.gates,
        require_better=asked.require_better,
        two_person=asked.two_person,
        expires_days=asked.challenger_expires_days,
        allow_override=asked.allow_override,
    )
    return Promotions(registry_of(settings), open_objects(settings.home), rules, asked.signing_key)
