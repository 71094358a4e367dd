"""What arrived: received from where uploads come in, filed by hour, and the schedules that have both done."""

import hashlib
from collections.abc import Iterator

import dagster as dg

from deployment.batch.arrivals import arrivals_of, hour_of, hours_with_arrivals, receive
from deployment.batch.hour import ARRIVALS
from speech.plain import to_lines
from speech_assets.defs.metadata import place_of
from speech_assets.defs.partitions import CPU_POOL
from speech_assets.defs.resources import Workspace
from speech_assets.defs.retries import retried_when_unreachable
from speech_assets.partition_keys import PARTITION_TAG


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


@dg.op(pool=CPU_POOL)
@retried_when_unreachable
def receive_what_came(context: dg.OpExecutionContext, workspace: dg.ResourceParam[Workspace]) -> None:
    """Receive what has come in since the last look."""
    settings = workspace.settings
    place = settings.inference.place(settings.local)
    received = receive(place, workspace.objects, settings.languages, refused=context.log.warning)
    context.log.info(f"{len(received)} recordings received from {place}")


@dg.job(description="Take what has come in into the data store, under the present hour.")
def receive_uploads() -> None:
    """Uploads become arrivals of an hour."""
    receive_what_came()


def transcribe_what_came(
    context: dg.ScheduleEvaluationContext, workspace: dg.ResourceParam[Workspace]
) -> dg.SkipReason | list[dg.RunRequest]:
    """A run for each hour with recordings that are not transcribed yet, and that no run is at work on.

    The key names the recordings and the run before: an hour that got more of them, or whose run failed, is asked for
    again at the next tick, and never twice from the same state.
    """
    requests = []
    for hour, recordings in _untranscribed(workspace, before=hour_of(context.scheduled_execution_time)):
        before = next(iter(context.instance.get_runs(dg.RunsFilter(tags={PARTITION_TAG: hour}), limit=1)), None)
        if before is None or before.is_finished:
            key = f"{hour}/{recordings}/{before.run_id if before else 'first'}"
            requests.append(dg.RunRequest(run_key=key, partition_key=hour))
    return requests or dg.SkipReason("nothing that has arrived in an hour that has ended waits to be transcribed")


def _untranscribed(workspace: Workspace, before: str) -> Iterator[tuple[str, str]]:
    """Hours that have ended and hold recordings that have not gone through, with a digest of their list."""
    first = workspace.grid.hours.get_first_partition_key() or ""
    for hour in hours_with_arrivals(workspace.objects):
        if not first <= hour < before:
            continue
        if not workspace.hour(hour).is_transcribed:
            arrivals = to_lines(arrivals_of(workspace.objects, hour))
            yield hour, hashlib.sha256(arrivals).hexdigest()[:16]
