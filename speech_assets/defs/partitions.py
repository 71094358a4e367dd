"""Quarter x language, and which partitions of one asset another reads.

A quarter's key is its first month (`2024-04`, read as 2024 Q2): Dagster's format strings have no quarter.

No asset names a backfill policy. Without one a backfill gives each partition a run of its own, which gates need, since
they judge a partition; `BackfillPolicy.multi_run(1)` does the same, but its runs are ranges, and Dagster records what
checks found in a range without its partition.
"""

from datetime import UTC, datetime

import dagster as dg

from deployment.settings import Settings

SETTINGS = Settings.load()
CPU_POOL = "cpu"  # whatever keeps a core busy and is no training
PARTITION_TAG = "dagster/partition"

quarters = dg.TimeWindowPartitionsDefinition(
    start=datetime.strptime(SETTINGS.first_quarter, "%Y-%m"),
    fmt="%Y-%m",
    cron_schedule="0 0 1 1,4,7,10 *",
    end_offset=1,  # the running quarter can be built before it closes
)
languages = dg.StaticPartitionsDefinition(list(SETTINGS.languages))
quarter_language = dg.MultiPartitionsDefinition({"quarter": quarters, "language": languages})

same_language = dg.MultiToSingleDimensionPartitionMapping("language")


# A fine-tune reads its own quarter and those before it that the window holds, in its language.
training_window = dg.MultiPartitionMapping(
    {
        "quarter": dg.DimensionPartitionMapping(
            "quarter",
            dg.TimeWindowPartitionMapping(
                start_offset=1 - SETTINGS.training.window, allow_nonexistent_upstream_partitions=True
            ),
        ),
        "language": dg.DimensionPartitionMapping("language", dg.IdentityPartitionMapping()),
    }
)


def first_quarters(count: int) -> list[str]:
    """Keys of the first `count` quarters."""
    keys = quarters.get_partition_keys()[:count]
    return list(keys)


# The quarters that base models learn from, as partitions of their own: a language's base model then depends on exactly
# its own first quarters, which no mapping from all quarters to a language can say.
base_quarter_language = dg.MultiPartitionsDefinition(
    {
        "quarter": dg.TimeWindowPartitionsDefinition(
            start=quarters.start,
            end=quarters.time_window_for_partition_key(first_quarters(SETTINGS.training.base_quarters)[-1]).end,
            fmt=quarters.fmt,
            cron_schedule=quarters.cron_schedule,
        ),
        "language": languages,
    }
)
same_quarter_and_language = dg.MultiPartitionMapping(
    {
        "quarter": dg.DimensionPartitionMapping("quarter", dg.TimeWindowPartitionMapping()),
        "language": dg.DimensionPartitionMapping("language", dg.IdentityPartitionMapping()),
    }
)


def window_ending(quarter: str, count: int) -> list[str]:
    """Keys of `quarter` and of the up to `count - 1` quarters before it, oldest first."""
    keys = quarters.get_partition_keys()
    end = keys.index(quarter) + 1
    return list(keys[max(0, end - count) : end])


def previous_quarter(quarter: str) -> str | None:
    """The key before `quarter`, or None for the first."""
    window = window_ending(quarter, 2)
    return window[0] if len(window) == 2 else None


def latest_closed_quarter(now: datetime | None = None) -> str | None:
    """Key of the newest quarter that has ended by `now` (UTC; the present by default); None before the first has."""
    keys = quarters.get_partition_keys(current_time=now or datetime.now(UTC))
    return keys[-2] if len(keys) > 1 else None  # the last is the running quarter


def partition_of(quarter: str, language: str) -> str:
    """Key of a partition as Dagster writes it: 'en|2024-04'."""
    return str(dg.MultiPartitionKey({"quarter": quarter, "language": language}))


def quarter_and_language(context: dg.AssetExecutionContext | dg.AssetCheckExecutionContext) -> tuple[str, str]:
    """The two keys of the running partition."""
    keys = context.partition_key.keys_by_dimension
    return keys["quarter"], keys["language"]
