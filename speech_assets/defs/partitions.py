"""Quarter x language for what is learnt, hours for what is transcribed, and which partitions of an asset another reads.

A quarter's key is its first month (`2024-04`, read as 2024 Q2): Dagster's format strings have no quarter.

No asset names a backfill policy. Without one a backfill gives each partition a run of its own, which gates need, since
they judge a partition; `BackfillPolicy.multi_run(1)` does the same, but its runs are ranges, and Dagster records what
checks found in a range without its partition.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property

import dagster as dg

from deployment.batch.settings import HOUR_FORMAT
from deployment.settings import Settings
from speech.corpus.manifest import quarter_of

CPU_POOL = "cpu"  # whatever keeps a core busy and is no training

same_language = dg.MultiToSingleDimensionPartitionMapping("language")


def in_its_language(quarters: dg.PartitionMapping) -> dg.MultiPartitionMapping:
    """What a quarter reads of others, each language of its own."""
    return dg.MultiPartitionMapping(
        {
            "quarter": dg.DimensionPartitionMapping("quarter", quarters),
            "language": dg.DimensionPartitionMapping("language", dg.IdentityPartitionMapping()),
        }
    )


same_quarter_and_language = in_its_language(dg.TimeWindowPartitionMapping())


@dataclass(frozen=True)
class Grid:
    """The partitions of a deployment, as its settings say."""

    settings: Settings

    @cached_property
    def quarters(self) -> dg.TimeWindowPartitionsDefinition:
        """Every quarter from the first to the running one, which can be built before it closes."""
        return dg.TimeWindowPartitionsDefinition(
            start=datetime.strptime(self.settings.first_quarter, "%Y-%m"),
            fmt="%Y-%m",
            cron_schedule="0 0 1 1,4,7,10 *",
            end_offset=1,
        )

    @cached_property
    def hours(self) -> dg.TimeWindowPartitionsDefinition:
        """Every hour, UTC, from the first that recordings may have arrived in to the running one."""
        first = self.settings.inference.first_hour
        return dg.TimeWindowPartitionsDefinition(
            start=datetime.strptime(first, HOUR_FORMAT) if first else self.quarters.start,
            fmt=HOUR_FORMAT,
            cron_schedule="0 * * * *",
            end_offset=1,
        )

    @cached_property
    def languages(self) -> dg.StaticPartitionsDefinition:
        """The languages."""
        return dg.StaticPartitionsDefinition(list(self.settings.languages))

    @cached_property
    def quarter_language(self) -> dg.MultiPartitionsDefinition:
        """Every quarter in every language."""
        return dg.MultiPartitionsDefinition({"quarter": self.quarters, "language": self.languages})

    @cached_property
    def base_quarter_language(self) -> dg.MultiPartitionsDefinition:
        """The quarters that base models learn from, as partitions of their own.

        A language's base model then depends on exactly its own first quarters, which no mapping from all quarters to a
        language can say.
        """
        last = self.first_quarters(self.settings.training.base_quarters)[-1]
        quarters = dg.TimeWindowPartitionsDefinition(
            start=self.quarters.start,
            end=self.quarters.time_window_for_partition_key(last).end,
            fmt=self.quarters.fmt,
            cron_schedule=self.quarters.cron_schedule,
        )
        return dg.MultiPartitionsDefinition({"quarter": quarters, "language": self.languages})

    @cached_property
    def training_window(self) -> dg.MultiPartitionMapping:
        """A fine-tune reads its own quarter and those before it that the window holds, in its language."""
        first = 1 - self.settings.training.window
        return in_its_language(
            dg.TimeWindowPartitionMapping(start_offset=first, allow_nonexistent_upstream_partitions=True)
        )

    def first_quarters(self, count: int) -> list[str]:
        """Keys of the first `count` quarters."""
        return list(self.quarters.get_partition_keys()[:count])

    def window_ending(self, quarter: str, count: int) -> list[str]:
        """Keys of `quarter` and of the up to `count - 1` quarters before it, oldest first."""
        keys = self.quarters.get_partition_keys()
        end = keys.index(quarter) + 1
        return list(keys[max(0, end - count) : end])

    def previous_quarter(self, quarter: str) -> str | None:
        """The key before `quarter`, or None for the first."""
        window = self.window_ending(quarter, 2)
        return window[0] if len(window) == 2 else None

    def running_quarter(self) -> str:
        """Key of the quarter that has begun and not ended, by UTC."""
        return quarter_of(datetime.now(UTC).date())

    def latest_closed_quarter(self, now: datetime | None = None) -> str | None:
        """Key of the newest quarter that has ended by `now` (UTC; the present by default); None before the first."""
        keys = self.quarters.get_partition_keys(current_time=now or datetime.now(UTC))
        return keys[-2] if len(keys) > 1 else None  # the last is the running quarter


def quarter_and_language(context: dg.AssetExecutionContext | dg.AssetCheckExecutionContext) -> tuple[str, str]:
    """The two keys of the running partition."""
    keys = context.partition_key.keys_by_dimension
    return keys["quarter"], keys["language"]
