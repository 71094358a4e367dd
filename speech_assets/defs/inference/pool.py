"""The processes that an hour's assets work with, and what they say of it."""

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

import dagster as dg

from deployment.batch.engine import Pool
from deployment.batch.stages.models import Models
from speech.bundle import ModelBundle
from speech_assets.defs.resources import Workspace

SAY_EVERY_S = 10.0
DoneT = TypeVar("DoneT")


def pool_of(workspace: Workspace, bundles: Mapping[str, ModelBundle] | None = None) -> Pool:
    """As many processes as `[inference] workers` says; `bundles` are the champions that they may need."""
    return Pool(Models(workspace.objects, bundles or {}), workspace.settings.inference.workers)


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
