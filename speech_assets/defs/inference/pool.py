"""The processes that an hour's assets work with, and what they say of it."""

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

import dagster as dg

from deployment.batch.engine import Pool
from deployment.batch.stages.models import Models
from deployment.registry.label_champions import label_champion
from speech.bundle import ModelBundle
from speech.labels import Kind, LabelBundle
from speech_assets.defs.resources import Workspace
from speech_assets.defs.retries import refusals_are_final

SAY_EVERY_S = 10.0
DoneT = TypeVar("DoneT")


def pool_of(
    workspace: Workspace,
    bundles: Mapping[str, ModelBundle] | None = None,
    labels: Mapping[Kind, LabelBundle] | None = None,
) -> Pool:
    """As many processes as `[inference] workers` says; `bundles` and `labels` are the models that they may need."""
    return Pool(Models(workspace.objects, bundles or {}, labels), workspace.settings.inference.workers)


def label_model(workspace: Workspace, kind: Kind) -> LabelBundle | None:
    """The label model of a kind that is in use; None where none has passed its gates yet.

    Raises:
        dg.Failure: there is one that may not be used.
    """
    with refusals_are_final():
        return label_champion(workspace.store, kind)


def told(context: dg.AssetExecutionContext, done: Iterable[DoneT], count: int) -> Iterator[DoneT]:
    """What is done, and now and then a line in the run's log that says how far it is."""
    began = said = time.monotonic()
    for number, one in enumerate(done, 1):
        yield one
        now = time.monotonic()
        if now - said >= SAY_EVERY_S:
            said, left_s = now, (now - began) / number * (count - number)
            context.log.info(
                f"{number:,} of {count:,} done, {number / (now - began):.1f} a second, {left_s:.0f} s to go"
            )
