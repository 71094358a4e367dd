"""What starts by itself: assets with an automation condition, looked at often enough that a release does not wait."""

import dagster as dg

CHECK_INTERVAL_S = 10

automation = dg.AutomationConditionSensorDefinition(
    "automation",
    target=dg.AssetSelection.all(),
    default_status=dg.DefaultSensorStatus.RUNNING,
    minimum_interval_seconds=CHECK_INTERVAL_S,
)
