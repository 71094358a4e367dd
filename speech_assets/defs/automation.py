"""What starts by itself: assets with an automation condition, looked at often enough that a release does not wait."""

import dagster as dg

from speech_assets.defs.partitions import Grid

CHECK_INTERVAL_S = 10


def definitions(grid: Grid) -> dg.Definitions:
    """The sensor that looks at automation conditions."""
    return dg.Definitions(
        sensors=[
            dg.AutomationConditionSensorDefinition(
                "automation",
                target=dg.AssetSelection.all(),
                default_status=dg.DefaultSensorStatus.RUNNING,
                minimum_interval_seconds=CHECK_INTERVAL_S,
            )
        ]
    )
