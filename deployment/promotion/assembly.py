"""A deployment's registry and decisions, put together from its settings in one place."""

from deployment.promotion.decisions import Promotions
from deployment.promotion.rules import Rules
from deployment.registry.models import Registry
from deployment.settings import Settings
from speech.store.objects import Objects


def registry_of(settings: Settings, objects: Objects) -> Registry:
    """The model registry, with the shelf of bundles in the data store."""
    return Registry(settings.tracking_uri, objects)


def promotions_of(settings: Settings, objects: Objects) -> Promotions:
    """Decisions about champions in a data store, with the approvers, rules and thresholds of the settings."""
    asked = settings.promotion
    rules = Rules(
        objects=objects,
        approvers=asked.approvers,
        gates=settings.gates,
        require_better=asked.require_better,
        two_person=asked.two_person,
        expires_days=asked.challenger_expires_days,
        allow_override=asked.allow_override,
    )
    return Promotions(registry_of(settings, objects), rules, asked.signing_key)
