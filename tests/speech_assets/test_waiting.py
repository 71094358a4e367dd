"""A fine-tune that waits for earlier quarters holds nothing that they need: no place in the pool, none in the queue."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

EARLIER = "en|2024-01"
POOL = "training"


@pytest.fixture
def instance(deployment: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Dagster with a training pool of one place, and run retries as `dagster.yaml` has them."""
    import dagster as dg

    from speech_assets.defs import waiting

    monkeypatch.setattr(waiting, "POLL_S", 0.02)
    monkeypatch.setattr(waiting, "QUEUED_WAIT_S", 0.2)
    monkeypatch.setattr(waiting, "CORPUS_WAIT_S", 20.0)
    retries = {"enabled": True, "max_retries": 3, "retry_on_asset_or_op_failure": False}
    with dg.DagsterInstance.local_temp(str(tmp_path), overrides={"run_retries": retries}) as found:
        found.event_log_storage.set_concurrency_slots(POOL, 1)
        yield found


def earlier_run(instance: Any, status: str) -> Any:
    """A run that is to build the utterances of the quarter before."""
    import dagster as dg

    run = dg.DagsterRun(
        job_name="__ASSET_JOB",
        status=dg.DagsterRunStatus[status],
        tags={"dagster/partition": EARLIER},
        asset_selection=frozenset({dg.AssetKey("utterances")}),
    )
    return instance.add_run(run)


def finetune(instance: Any, after: Callable[[], None] = lambda: None, tags: dict[str, str] | None = None) -> Any:
    """The run of a step in the training pool that waits for the quarter before, then does what is given."""
    import dagster as dg

    from speech_assets.defs.waiting import wait_until_built

    @dg.asset(pool=POOL)
    def finetuned(context: dg.AssetExecutionContext) -> None:
        wait_until_built(context, ["2024-01"], "en")
        after()

    return dg.materialize([finetuned], instance=instance, raise_on_error=False, tags=tags)


def holders(instance: Any) -> list[str]:
    """The steps that hold a place in the pool."""
    return [slot.step_key for slot in instance.event_log_storage.get_concurrency_info(POOL).claimed_slots]


def asking(instance: Any) -> list[str]:
    """The steps that hold a place in the pool or wait for one."""
    return [step.step_key for step in instance.event_log_storage.get_concurrency_info(POOL).pending_steps]


def until(true: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_waiting_fine_tune_leaves_its_place_in_the_pool_and_takes_it_again(instance: Any) -> None:
    """With a limit of one, the base model or the training that others wait for would never begin."""
    run = earlier_run(instance, "STARTED")
    seen: list[list[str]] = []
    results: list[Any] = []
    waiter = threading.Thread(target=lambda: results.append(finetune(instance, lambda: seen.append(holders(instance)))))
    waiter.start()
    until(lambda: holders(instance) == ["finetuned"])
    until(lambda: asking(instance) == [])  # Dagster frees the place first, and who asks before the end waits for ever
    storage = instance.event_log_storage
    until(lambda: storage.claim_concurrency_slot(POOL, run.run_id, "training_of_another").is_claimed)
    instance.report_run_canceled(run)  # a failed one would be started again, and be waited for
    time.sleep(0.1)
    assert seen == [], "it trains with a place of its own only"
    storage.free_concurrency_slot_for_step(run.run_id, "training_of_another")
    waiter.join(30)
    assert results[0].success, [event.message for event in results[0].all_events if event.is_failure]
    assert seen == [["finetuned"]]
    assert holders(instance) == []


def test_a_fine_tune_does_not_keep_in_the_queue_what_it_waits_for(instance: Any) -> None:
    """All places taken by runs that wait for one that has none: the last to come makes room, and comes again."""
    earlier_run(instance, "NOT_STARTED")
    ended = finetune(instance)
    assert not ended.success
    run = instance.get_run_by_id(ended.run_id)
    assert run.tags["dagster/will_retry"] == "true"
    failure = next(event for event in ended.all_events if event.is_step_failure)
    assert "makes room" in failure.step_failure_data.user_failure_data.description


def test_a_run_that_came_again_fails_for_good_where_it_is_refused(instance: Any) -> None:
    """Its tags come from the run before, and must not have Dagster repeat what a gate has refused."""

    def refused() -> None:
        import dagster as dg

        raise dg.Failure("a gate refused", allow_retries=False)

    again = finetune(instance, refused, {"dagster/retry_on_asset_or_op_failure": "true", "dagster/max_retries": "2"})
    assert not again.success
    tags = instance.get_run_by_id(again.run_id).tags
    assert tags.get("dagster/will_retry", "false") == "false"
    assert tags["dagster/max_retries"] == "3", "of a run whose process is lost"


def test_a_fine_tune_waits_on_while_one_of_them_is_under_way(instance: Any) -> None:
    started, queued = earlier_run(instance, "STARTED"), earlier_run(instance, "NOT_STARTED")
    results: list[Any] = []
    waiter = threading.Thread(target=lambda: results.append(finetune(instance)))
    waiter.start()
    until(lambda: holders(instance) == ["finetuned"])
    until(lambda: holders(instance) == [])
    time.sleep(0.5)
    assert results == []
    for run in (queued, started):
        instance.report_run_canceled(run)
    waiter.join(30)
    assert results[0].success
