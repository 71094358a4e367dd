"""What an hour is measured by, as numbers that plot over hours, for Prometheus, and for whom they should wake."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import dagster as dg

from deployment.batch.engine import Pool
from deployment.batch.hour import MEASURES
from deployment.batch.measures import (
    PLACE,
    REASONS,
    Errors,
    HourMeasures,
    StageTime,
    StageTimes,
    TruthError,
    measured,
    read_truth,
)
from speech.plain import to_plain
from speech.store.outputs import to_json
from speech_assets.defs.alerts import tell
from speech_assets.defs.metadata import markdown_table, place_of
from speech_assets.defs.resources import Workspace
from speech_assets.defs.retries import retried_when_unreachable


def note_times(
    context: dg.AssetExecutionContext,
    workspace: Workspace,
    pool: Pool,
    seconds: Iterable[tuple[str, float]],
    audio_s: float,
) -> dict[str, float]:
    """Keep how long this asset's stage took, by recording; returns the metadata that says so."""
    time = StageTime.of(seconds, pool.elapsed_s, audio_s)
    StageTimes(workspace.objects).note(context.partition_key, context.asset_key.to_user_string(), time)
    return {
        "seconds_p50": time.p50_s,
        "seconds_p95": time.p95_s,
        "seconds_p99": time.p99_s,
        "audio_hours_a_second": round(time.speed / 3600, 6),
    }


@retried_when_unreachable
def hour_measures(context: dg.AssetExecutionContext, workspace: dg.ResourceParam[Workspace]) -> dg.MaterializeResult:
    """The hour in numbers: what failed and why, how sure its transcripts are, and how right where truth is known."""
    hour, settings = workspace.hour(context.partition_key), workspace.settings
    try:
        truth = read_truth(Path(settings.inference.truth)) if settings.inference.truth else []
    except TruthError as refused:
        raise dg.Failure(str(refused), allow_retries=False) from refused
    found = measured(hour, truth)
    published = hour.publish(PLACE, {MEASURES: to_json(to_plain(found))})
    limit = settings.inference.alert_failed
    few = found.failed_share <= limit
    if not few:
        fresh = found.arrived - found.same_as_before
        tell(context, workspace, "failing", f"{found.failed} of {fresh} recordings cannot be used, over {limit:g}")
    return dg.MaterializeResult(
        metadata={
            **_plotted(found, settings.languages),
            "stages": markdown_table(
                ("stage", "recordings", "p50 s", "p95 s", "p99 s", "audio hours a second"),
                [
                    (stage, time.recordings, time.p50_s, time.p95_s, time.p99_s, round(time.speed / 3600, 6))
                    for stage, time in StageTimes(workspace.objects).of(hour.key).items()
                ],
            ),
            "manifest": place_of(published, MEASURES),
        },
        data_version=dg.DataVersion(published.digest),
        check_results=[
            dg.AssetCheckResult(
                check_name="failing_share",
                passed=few,
                severity=dg.AssetCheckSeverity.WARN,
                description=None if few else "people were told, as far as [alerts] names anybody",
                metadata={"share": found.failed_share, "limit": limit},
            )
        ],
    )


def _plotted(found: HourMeasures, languages: Iterable[str]) -> dict[str, Any]:
    """Numbers under the same names each hour; null where an hour cannot tell."""
    fresh = found.arrived - found.same_as_before
    reasons = {f"failed_share/{name}": found.failed_by_reason[name] / fresh if fresh else 0.0 for name in REASONS}
    return {
        "arrived": float(found.arrived),
        "published": float(found.published),
        "asked_about": float(found.asked_about),
        "failed_share": found.failed_share,
        **reasons,
        "audio_hours": round(found.audio_s / 3600, 4),
        "mean_confidence": _number(found.confidence),
        **{f"wer/{language}": _rate(found.errors_by_language, language) for language in languages},
        **{f"wer_of_corrected/{language}": _rate(found.reviewed_by_language, language) for language in languages},
        **{f"wer/domain/{domain}": _rate(found.errors_by_domain, domain) for domain in sorted(found.errors_by_domain)},
    }


def _rate(errors: Mapping[str, Errors], key: str) -> Any:
    wer = errors.get(key, Errors()).wer
    return _number(None if wer is None else round(wer, 4))


def _number(value: float | None) -> Any:
    return dg.MetadataValue.null() if value is None else value
