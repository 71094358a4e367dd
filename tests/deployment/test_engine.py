"""The pool that works on an hour: order, workers that are killed, items that kill, and a pool whose owner dies."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from deployment.batch.engine import Lost, Pool
from deployment.batch.stages.models import Models
from speech.store.objects import open_objects

ROOT = Path(__file__).parents[2]


@pytest.fixture
def models(tmp_path: Path) -> Models:
    return Models(open_objects(tmp_path), {})


def doubled(number: int, models: Models) -> int:
    time.sleep(0.02 * (number % 3))
    return 2 * number


def who(_: int, models: Models) -> int:
    time.sleep(0.05)
    return os.getpid()


def killed_at(number: int, models: Models, fatal: int, once: Path | None = None) -> int:
    """Dies at one number: each time, or only the first time, which a file remembers."""
    if number == fatal and (once is None or not once.exists()):
        if once is not None:
            once.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * number


def refused_at(number: int, models: Models, fatal: int) -> int:
    if number == fatal:
        raise ValueError(f"{number} is refused")
    return number


def endless_at(number: int, models: Models, fatal: int) -> int:
    while number == fatal:
        time.sleep(1)
    return number


def slept(seconds: float, models: Models) -> float:
    time.sleep(seconds)
    return seconds


def test_the_work_for_each_item_is_timed_where_it_is_done(models: Models) -> None:
    """Waiting for a worker, and the start of one, are not the item's."""
    with Pool(models, 1) as pool:
        assert list(pool.each(slept, [0.2, 0.05])) == [0.2, 0.05]
        assert list(pool.each(slept, [])) == []
    assert [item for item, _ in pool.times] == [0.2, 0.05]
    assert [took_s for _, took_s in pool.times] == pytest.approx([0.2, 0.05], abs=0.04)
    assert pool.elapsed_s >= 0.25


@pytest.mark.parametrize("workers", [1, 3])
def test_results_come_in_the_order_of_the_items(models: Models, workers: int) -> None:
    with Pool(models, workers) as pool:
        assert list(pool.each(doubled, range(30))) == [2 * number for number in range(30)]
        assert list(pool.each(doubled, [])) == []
        assert list(pool.each(doubled, [7])) == [14]


def test_workers_stay_with_their_models(models: Models) -> None:
    with Pool(models, 2) as pool:
        assert len(set(pool.each(who, range(12))) | set(pool.each(who, range(12)))) <= 2


def test_a_worker_that_is_killed_costs_nothing(models: Models, tmp_path: Path) -> None:
    with Pool(models, 2) as pool:
        results = list(pool.each(partial(killed_at, fatal=5, once=tmp_path / "died"), range(20)))
    assert results == [2 * number for number in range(20)]


def test_an_item_that_kills_its_worker_each_time_is_lost_and_no_other(models: Models) -> None:
    with Pool(models, 2) as pool:
        results = list(pool.each(partial(killed_at, fatal=5), range(20)))
        assert list(pool.each(doubled, [1])) == [2]
    lost = results.pop(5)
    assert isinstance(lost, Lost)
    assert lost.item == 5
    assert results == [2 * number for number in range(20) if number != 5]


def test_an_item_without_end_is_lost_and_no_other(models: Models) -> None:
    with Pool(models, 2, longest_s=1.5) as pool:
        results = list(pool.each(partial(endless_at, fatal=2), range(6)))
    assert isinstance(results.pop(2), Lost)
    assert results == [0, 1, 3, 4, 5]


def test_idle_workers_that_were_killed_are_replaced(models: Models) -> None:
    with Pool(models, 2) as pool:
        for worker in set(pool.each(who, range(8))):
            os.kill(worker, signal.SIGKILL)
        assert list(pool.each(doubled, range(5))) == [0, 2, 4, 6, 8]


class Unreadable(Models):
    """Models that no worker can open."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (3,)


def test_workers_that_cannot_begin_are_no_fault_of_the_items(tmp_path: Path) -> None:
    """An hour must not become dead letters because memory or a library is missing."""
    with (
        Pool(Unreadable(open_objects(tmp_path), {}), 2) as pool,
        pytest.raises(RuntimeError, match="before they begin"),
    ):
        list(pool.each(doubled, range(4)))


def test_what_a_stage_raises_is_raised(models: Models) -> None:
    with Pool(models, 2) as pool, pytest.raises(ValueError, match="3 is refused"):
        list(pool.each(partial(refused_at, fatal=3), range(100)))


def test_workers_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from deployment.batch.engine import Pool\n"
        "from deployment.batch.stages.models import Models\n"
        "from speech.store.objects import open_objects\n"
        "from tests.deployment.test_engine import who\n"
        "if __name__ == '__main__':\n"
        f"    with Pool(Models(open_objects({str(tmp_path)!r}), {{}}), 2) as pool:\n"
        "        for pid in pool.each(who, range(10_000)):\n"
        "            print(pid, flush=True)\n"
    )
    script = tmp_path / "owner.py"
    script.write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    owner = subprocess.Popen([sys.executable, script], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    workers = {int(owner.stdout.readline()) for _ in range(8)}
    owner.kill()
    owner.wait()
    deadline = time.monotonic() + 20
    while any(alive(worker) for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [worker for worker in workers if alive(worker)]


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
