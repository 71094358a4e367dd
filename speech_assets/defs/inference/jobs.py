"""Jobs that wait: their recordings are received, their hours asked for, and who gave them is told of their end."""

import time
from datetime import UTC, datetime

import dagster as dg

from deployment.batch.arrivals import arrivals_of
from deployment.batch.jobs import ENDED
from deployment.batch.notices import deliver
from speech_assets.defs.alerts import why_failed
from speech_assets.defs.inference.arrivals import digest_of, fetching, last_run
from speech_assets.defs.resources import Workspace
from speech_assets.partition_keys import PARTITION_TAG

LONGEST_S = 15.0  # of looking after jobs in a tick; the next one goes on with the others


def waiting_jobs(context: dg.SensorEvaluationContext, workspace: dg.ResourceParam[Workspace]) -> dg.SensorResult:
    """Runs for the hours that jobs wait for, and for recordings that they name; notices of those that have ended.

    An hour is asked for once for each set of its recordings, and not while it is being made, so jobs that come
    meanwhile share the next run. One whose run failed is asked for again some minutes later.
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
    """A run of an hour; or why none is asked for, which its jobs say where something is wrong."""
    if hour < (workspace.grid.hours.get_first_partition_key() or ""):
        reason = f"{hour} is of no partition: set `first_hour` of [inference] to it"
        workspace.jobs.delay(hour, reason)
        return reason
    last = last_run(context.instance, dg.RunsFilter(tags={PARTITION_TAG: hour}))
    if last.goes_on:
        return f"{hour} is being made"
    run = context.instance.get_run_by_id(last.failed) if last.failed else None
    why = why_failed(context.instance, run, "the run failed without a sentence") if run is not None else None
    workspace.jobs.delay(hour, why)
    if last.failed_lately:
        return f"{hour} failed, and is tried again later: {why}"
    recordings = digest_of(arrival.id for arrival in arrivals_of(workspace.objects, hour))
    key = f"{hour}/{recordings}/{last.failed or 'first'}"
    return dg.RunRequest(run_key=key, job_name="transcribe_hour", partition_key=hour)
