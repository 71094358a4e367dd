"""What arrived: received from where uploads come in, filed by hour, and the schedules that have both done."""

import hashlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import dagster as dg
from pydantic import Field

from deployment.batch.arrivals import arrivals_of, hour_of, hours_with_arrivals, receive
from deployment.batch.arrivals.inbox import receive_announced, waiting
from deployment.batch.arrivals.queue import take_events
from deployment.batch.hour import ARRIVALS
from speech.plain import to_lines
from speech_assets.defs.metadata import place_of
from speech_assets.defs.partitions import CPU_POOL
from speech_assets.defs.resources import Workspace
from speech_assets.defs.retries import retried_when_unreachable
from speech_assets.partition_keys import PARTITION_TAG

AFTER_FAILURE_S = 300.0  # until what a run failed to make is asked for again


@retried_when_unreachable
def incoming_audio(context: dg.AssetExecutionContext, workspace: dg.ResourceParam[Workspace]) -> dg.MaterializeResult:
    """The recordings that arrived within the hour, whole, by the digest of their bytes."""
    hour = workspace.hour(context.partition_key)
    arrivals = arrivals_of(workspace.objects, hour.key)
    published = hour.publish("incoming_audio", {ARRIVALS: to_lines(arrivals)})
    return dg.MaterializeResult(
        metadata={
            "recordings": len(arrivals),
            "bytes": sum(arrival.size for arrival in arrivals),
            "the_same_as_before": sum(arrival.same_as is not None for arrival in arrivals),
            "manifest": place_of(published, ARRIVALS),
        },
        data_version=dg.DataVersion(published.digest),
    )


class Looking(dg.Config):
    """Where a look for uploads goes."""

    listing: bool = Field(
        True, description="Whether the folder or bucket is looked through; else only what a queue has told of is taken."
    )


@dg.op(pool=CPU_POOL)
@retried_when_unreachable
def receive_what_came(context: dg.OpExecutionContext, config: Looking, workspace: dg.ResourceParam[Workspace]) -> None:
    """Receive what has come in since the last look."""
    settings, objects, told = workspace.settings, workspace.objects, context.log.warning
    place, languages = settings.inference.place(settings.local), settings.languages
    received = []
    if settings.inference.queue is not None:
        received += receive_announced(place, objects, languages, datetime.now(UTC), told)
    received += workspace.jobs.fetch(datetime.now(UTC), told)
    if config.listing:
        received += receive(place, objects, languages, refused=told)
    context.log.info(f"{len(received)} recordings received from {place}")


@dg.job(description="Take what has come in into the data store, under the present hour.")
def receive_uploads() -> None:
    """Uploads become arrivals of an hour."""
    receive_what_came()


def announced_uploads(
    context: dg.SensorEvaluationContext, workspace: dg.ResourceParam[Workspace]
) -> dg.SkipReason | dg.RunRequest:
    """What the queue tells of stands in the inbox; a run that fetches it, where none is under way."""
    settings = workspace.settings.inference
    if settings.queue is None or settings.uploads is None:
        return dg.SkipReason("`queue` of [inference] in soundstage.toml names no queue")
    taken = take_events(settings.queue, settings.uploads, workspace.objects)
    others = [f"{count} {what}" for what, count in sorted(taken.others.items())]
    said = f"{taken.messages} messages: {', '.join([f'{taken.new} new', f'{taken.again} known', *others])}"
    context.log.info(said)
    for reason in taken.put_aside:
        context.log.warning(f"put aside: {reason}")
    asked = fetching(context, waiting(workspace.objects))
    return dg.SkipReason(f"{said}; {asked}") if isinstance(asked, str) else asked


def fetching(context: dg.SensorEvaluationContext, waits: Iterable[str]) -> dg.RunRequest | str:
    """A run that fetches what waits; or why none is asked for.

    The key names what waits, and the run that failed before: what is new asks for another run, what failed is tried
    again a few minutes later, and what is refused for good is not asked for again and again.
    """
    names = tuple(waits)
    if not names:
        return "nothing waits to be fetched"
    last = last_run(context.instance, dg.RunsFilter(job_name=receive_uploads.name))
    if last.goes_on:
        return "a run is fetching what waits"
    if last.failed_lately:
        return f"run {last.failed[:8]} failed to fetch what waits, which is tried again later"
    return dg.RunRequest(
        run_key=f"{digest_of(names)}/{last.failed or 'first'}",
        job_name=receive_uploads.name,
        run_config={"ops": {"receive_what_came": {"config": {"listing": False}}}},
    )


@dataclass(frozen=True)
class LastRun:
    """How the last run of something went."""

    goes_on: bool = False
    failed: str = ""  # its id, if it has failed or was cancelled
    failed_lately: bool = False


def last_run(instance: dg.DagsterInstance, runs: dg.RunsFilter) -> LastRun:
    """The last of these runs; one that there is not has neither begun nor failed."""
    record = next(iter(instance.get_run_records(runs, limit=1)), None)
    if record is None:
        return LastRun()
    run = record.dagster_run
    failed = run.run_id if run.is_failure_or_canceled else ""
    lately = time.time() - (record.end_time or 0.0) < AFTER_FAILURE_S
    return LastRun(goes_on=not run.is_finished, failed=failed, failed_lately=bool(failed) and lately)


def digest_of(names: Iterable[str]) -> str:
    """A digest of a set of names, as run keys hold it."""
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()[:16]


def transcribe_what_came(
    context: dg.ScheduleEvaluationContext, workspace: dg.ResourceParam[Workspace]
) -> dg.SkipReason | list[dg.RunRequest]:
    """A run for each hour with recordings that are not transcribed yet, and that no run is at work on.

    The key names the recordings and the run before: an hour that got more of them, or whose run failed, is asked for
    again at the next tick, and never twice from the same state.
    """
    requests = []
    first = workspace.grid.hours.get_first_partition_key() or ""
    before = hour_of(context.scheduled_execution_time)
    arrived = hours_with_arrivals(workspace.objects)
    for hour, recordings in _untranscribed(workspace, [hour for hour in arrived if first <= hour < before]):
        run = next(iter(context.instance.get_runs(dg.RunsFilter(tags={PARTITION_TAG: hour}), limit=1)), None)
        if run is None or run.is_finished:
            key = f"{hour}/{recordings}/{run.run_id if run else 'first'}"
            requests.append(dg.RunRequest(run_key=key, partition_key=hour))
    why = "nothing that has arrived in an hour that has ended waits to be transcribed"
    if early := [hour for hour in arrived if hour < first]:
        why += f"; what arrived in {', '.join(early[:3])} is of no partition: set `first_hour` to {early[0]}"
    return requests or dg.SkipReason(why)


def _untranscribed(workspace: Workspace, hours: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Those of the hours that hold recordings that have not gone through, with a digest of their set."""
    for hour in hours:
        if not workspace.hour(hour).is_transcribed:
            yield hour, digest_of(arrival.id for arrival in arrivals_of(workspace.objects, hour))
