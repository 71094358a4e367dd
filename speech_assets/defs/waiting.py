"""A fine-tune waits for earlier quarters that are being built, and holds nothing meanwhile that they could need.

It must not wait for them in Dagster's own way: a backfill takes everything downstream of a failed partition for failed,
and one broken quarter would hold back the models of the next three. So a backfill starts it as soon as its own quarter
is there, and it waits here for the others to be built, or to fail.

Whoever waits can hold up what it waits for. So its place in the pool is given back at once and asked for again at the
end; and where a run that it waits for gets no process, the run itself leaves its place in the queue: it ends, and
Dagster starts it again, behind the other. A run waits for earlier quarters alone, so no two wait for each other.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import dagster as dg

from speech_assets.defs.corpus import UTTERANCES
from speech_assets.partition_keys import PARTITION_TAG, partition_of

ENDED = (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)
WITHOUT_PROCESS = (*ENDED, dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.QUEUED)
CORPUS_WAIT_S = 3_600.0
QUEUED_WAIT_S = 60.0  # for a run to get its process: longer than the queue and the start of a lost run take
POLL_S = 1.0
RETRIED_TAG, RETRIES_TAG = "dagster/retry_on_asset_or_op_failure", "dagster/max_retries"


def wait_until_built(context: dg.AssetExecutionContext, quarters: Sequence[str], language: str) -> None:
    """Wait for runs, waiting or under way, that are to build the utterances of earlier quarters.

    Raises:
        dg.Failure: they did not end in time, or this run makes room for them and is started again behind them.
    """
    _refuse_for_good_again(context)
    partitions = {partition_of(quarter, language): quarter for quarter in quarters}

    def building() -> list[dg.DagsterRun]:
        return [run for key in partitions for run in _builders(context.instance, key, context.run_id)]

    runs = building()
    if not runs:
        return
    context.log.info(f"waiting for the utterances of {_quarters(runs, partitions)}, which are being built")
    deadline = time.monotonic() + CORPUS_WAIT_S
    moving = time.monotonic()
    with _pool_left(context):
        while runs := building():
            now = time.monotonic()
            if now > deadline:
                raise dg.Failure(
                    f"the utterances of {_quarters(runs, partitions)} in '{language}' have been under way for "
                    f"{CORPUS_WAIT_S:.0f} s: see what their runs wait for, then launch this partition again",
                    allow_retries=False,
                )
            if any(run.status not in WITHOUT_PROCESS for run in runs):
                moving = now
            elif now - moving > QUEUED_WAIT_S and context.instance.run_retries_enabled:
                raise _requeued(context, f"the utterances of {_quarters(runs, partitions)}")
            time.sleep(POLL_S)


def _builders(instance: dg.DagsterInstance, partition: str, this_run: str) -> list[dg.DagsterRun]:
    """The runs that are not over and are still to build a partition's utterances."""
    unfinished = dg.RunsFilter(
        statuses=[status for status in dg.DagsterRunStatus if status not in ENDED], tags={PARTITION_TAG: partition}
    )
    lost = dg.RunsFilter(
        statuses=[dg.DagsterRunStatus.FAILURE], tags={PARTITION_TAG: partition, "dagster/will_retry": "true"}
    )
    again = [run for run in instance.get_runs(lost) if run.is_complete_and_waiting_to_retry]
    runs = [
        run
        for run in (*instance.get_runs(unfinished), *again)
        if run.run_id != this_run and UTTERANCES in (run.asset_selection or {UTTERANCES})
    ]
    if not runs:
        return []
    found = instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=UTTERANCES, asset_partitions=[partition]), limit=1
    ).records
    return [run for run in runs if not found or found[0].run_id != run.run_id]


def _quarters(runs: Sequence[dg.DagsterRun], partitions: dict[str, str]) -> str:
    return ", ".join(sorted({partitions[run.tags[PARTITION_TAG]] for run in runs}))


@contextmanager
def _pool_left(context: dg.AssetExecutionContext) -> Iterator[None]:
    """Be without the step's place in its pool inside the block, and have one again when it ends well."""
    step = context.op_execution_context.get_step_execution_context().step
    storage, this = context.instance.event_log_storage, (context.run_id, step.key)
    claimed = storage.get_concurrency_info(step.pool).claimed_slots if step.pool else []
    if not step.pool or this not in {(slot.run_id, slot.step_key) for slot in claimed}:
        yield
        return
    storage.free_concurrency_slot_for_step(*this)
    yield
    priority = int(context.run.tags.get("dagster/priority", "0"))
    while not storage.claim_concurrency_slot(step.pool, *this, priority).is_claimed:
        time.sleep(POLL_S)


def _requeued(context: dg.AssetExecutionContext, what: str) -> dg.Failure:
    """Have Dagster start this run again at the end of its queue; the step that waits has to fail for it."""
    group = context.instance.get_run_group(context.run_id)
    started = len(list(group[1])) if group else 1
    context.instance.add_run_tags(context.run_id, {RETRIED_TAG: "true", RETRIES_TAG: str(started)})
    return dg.Failure(
        f"{what} are to be built by runs that got no process for {QUEUED_WAIT_S:.0f} s: this run makes room for them, "
        "and Dagster starts it again behind them",
        allow_retries=False,
    )


def _refuse_for_good_again(context: dg.AssetExecutionContext) -> None:
    """In a run that was started again: whatever fails from here on is no matter of the queue."""
    if context.run.tags.get(RETRIED_TAG) == "true":
        retries = max(context.instance.run_retries_max_retries, int(context.run.tags.get(RETRIES_TAG, "0")))
        context.instance.add_run_tags(context.run_id, {RETRIED_TAG: "false", RETRIES_TAG: str(retries)})
