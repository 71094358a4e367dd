"""Jobs that wait: their recordings are received, their hours asked for, and who gave them is told of their end."""

import time
from datetime import UTC, datetime

import dagster as dg

from deployment.batch.arrivals import arrivals_of
from deployment.batch.jobs import ENDED
from deployment.batch.notices import deliver
from speech_assets.defs.inference.arrivals import digest_of, fetching
from speech_assets.defs.resources import Workspace
from speech_assets.partition_keys import PARTITION_TAG

LONGEST_S = 15.0  # of looking after jobs in a tick; the next one goes on with the others


def waiting_jobs(context: dg.SensorEvaluationContext, workspace: dg.ResourceParam[Workspace]) -> dg.SensorResult:
    """Runs for the hours that jobs wait for, and for recordings that they name; notices of those that have ended.

    An hour is asked for once for each set of its recordings, and not while it is being made, so jobs that come
    meanwhile share the next run. One whose run failed is left to the schedule `hourly_transcription`.
    """
    jobs = workspace.jobs
    waiting = {job.id: job for job in jobs.waiting()}
    after = [name for name in waiting if name > (context.cursor or "")]
    hours, unfetched, began, last = set(), [], time.monotonic(), ""
    for name in after + [name for name in waiting if name not in after]:
        if time.monotonic() - began > LONGEST_S:
            break
        view, last = jobs.settle(waiting[name], datetime.now(UTC)), name
        if view.status not in ENDED:
            if view.hour is None:
                unfetched.append(name)
            else:
                hours.add(view.hour)
    notices = deliver(workspace.objects, workspace.settings.inference, datetime.now(UTC))
    for why in notices.later:
        context.log.warning(f"not delivered, tried again later: {why}")
    for why in notices.dead:
        context.log.error(f"not delivered, and given up: {why}")
    requests, reasons = [], [f"{len(waiting)} jobs wait, {notices.sent} notices sent"]
    asked = fetching(context, unfetched)
    if isinstance(asked, dg.RunRequest):
        requests.append(asked)
    elif unfetched:
        reasons.append(asked)
    for hour in sorted(hours):
        made = _made(context, workspace, hour)
        if isinstance(made, dg.RunRequest):
            requests.append(made)
        else:
            reasons.append(made)
    skipped = None if requests else "; ".join(reasons)
    return dg.SensorResult(run_requests=requests, skip_reason=skipped, cursor=last)


def _made(context: dg.SensorEvaluationContext, workspace: Workspace, hour: str) -> dg.RunRequest | str:
    """A run of an hour; or why none is asked for."""
    if hour < (workspace.grid.hours.get_first_partition_key() or ""):
        return f"{hour} is of no partition: set `first_hour` to it"
    run = next(iter(context.instance.get_runs(dg.RunsFilter(tags={PARTITION_TAG: hour}), limit=1)), None)
    if run is not None and not run.is_finished:
        return f"{hour} is being made"
    recordings = digest_of(arrival.id for arrival in arrivals_of(workspace.objects, hour))
    return dg.RunRequest(run_key=f"{hour}/{recordings}", job_name="transcribe_hour", partition_key=hour)
