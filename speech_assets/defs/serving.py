"""Serving: a new champion goes to the serving tier, is tried there, and takes over or goes back.

The jobs that decide about a champion release it themselves, in the same run (`release_decided`): an approval or a
rollback takes effect within seconds and not when a sensor looks next, and its run shows how the release went. The asset
`serving_release` does the same for whoever launches it, and by itself when a champion appears in any other way.

The history of releases is kept by `deployment.release.folder`, an object a step; the asset shows it as a table. A
release that went back is an observation of the asset, so that it is seen there too. `serves_the_champion` asks every
replica what it really runs; `watch_serving` has it look every few minutes, and anybody can at any time.
"""

import statistics
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg

from deployment.promotion.decisions import REFUSALS, Promotions
from deployment.promotion.ledger import Decision, LedgerError
from deployment.release.canary import Canary, Summary
from deployment.release.folder import ReleaseFolder
from deployment.release.history import Transition
from deployment.release.life import Replicas, silence
from deployment.release.reports import LanguageReport
from deployment.release.rollout import RolloutFailed, RolloutResult, roll_out
from speech.corpus.manifest import Utterance
from speech.corpus.normalize import rows_of
from speech_assets.defs.metadata import markdown_table
from speech_assets.defs.partitions import Grid
from speech_assets.defs.resources import Workspace
from speech_assets.defs.retries import retried_when_unreachable, unreachable

GOLDEN_UTTERANCES = 5  # probes of a release, each of another speaker of the benchmark
SHOWN_STEPS = 40  # of the history, the newest first
HISTORY = "when (UTC)|version|state|share|after s|requests|errors|empty|p50 / p95 ms|why".split("|")
CHAMPION = dg.AssetKey("champion")
RELEASE = dg.AssetKey("serving_release")
SERVES_THE_CHAMPION = "serves_the_champion"
RELEASES_ITSELF = {"soundstage/release": "in this run"}  # run tag of jobs that decide and release at once

_moved_by_others = dg.AutomationCondition.any_deps_updated() & ~dg.AutomationCondition.any_deps_match(
    dg.AutomationCondition.all_new_updates_have_run_tags(tag_values=RELEASES_ITSELF)
)


def definitions(grid: Grid) -> dg.Definitions:
    """What the serving tier runs, as an asset with its check, and who looks at it."""
    return dg.Definitions(
        assets=[
            dg.asset(
                key=RELEASE,
                partitions_def=grid.languages,
                group_name="serving",
                kinds={"fastapi"},
                code_version="1",
                deps=[CHAMPION],
                automation_condition=_moved_by_others & ~dg.AutomationCondition.in_progress()
                if grid.settings.serving.auto_release
                else None,
            )(serving_release)
        ],
        asset_checks=[serves_the_champion],
        jobs=[check_serving],
        schedules=[watch_serving],
    )


@retried_when_unreachable
def serving_release(context: dg.AssetExecutionContext, workspace: dg.ResourceParam[Workspace]) -> dg.MaterializeResult:
    """What the serving tier runs for a language: the champion, verified, loaded, probed, tried on a share, switched to.

    On any failure the tier keeps what it had. Where no replica runs yet, the champion is verified and probed here and
    written to the release document, which a replica follows as soon as it starts.
    """
    metadata, digest = release_champion(context, workspace, context.partition_key)
    return dg.MaterializeResult(metadata=metadata, data_version=dg.DataVersion(digest))


@dg.op
@retried_when_unreachable
def release_decided(
    context: dg.OpExecutionContext, workspace: dg.ResourceParam[Workspace], language: str | None
) -> None:
    """Release the champion that was decided about in this run, and prove it by the replicas' own reports.

    Without a language nothing was moved; without `serving.auto_release` somebody launches the release.
    """
    if language is None or not workspace.settings.serving.auto_release:
        context.log.info("nothing to release" if language is None else "serving.auto_release is off: not released")
        return
    metadata, digest = release_champion(context, workspace, language)
    context.log_event(
        dg.AssetMaterialization(RELEASE, partition=language, metadata=metadata, tags={"dagster/data_version": digest})
    )
    log_check(context, workspace)


@dg.asset_check(
    asset=RELEASE,
    name=SERVES_THE_CHAMPION,
    description="Every live replica reports that it runs the ledger's champions, and nothing else, for all requests.",
)
def serves_the_champion(workspace: dg.ResourceParam[Workspace]) -> dg.AssetCheckResult:
    """Compare what each replica reports with the ledger. Not partitioned: Dagster runs such checks by themselves."""
    return compare_serving(workspace)


check_serving = dg.define_asset_job(
    "check_serving",
    selection=dg.AssetSelection.checks_for_assets(RELEASE),
    description="Ask every replica of the serving tier what it really runs; changes nothing.",
)


@dg.schedule(
    job=check_serving,
    cron_schedule="*/10 * * * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="A replica that runs something else than the champion, or none that runs at all, shows within minutes.",
)
def watch_serving(workspace: dg.ResourceParam[Workspace]) -> dg.RunRequest | dg.SkipReason:
    """A run of `check_serving`, which costs a process, once there is something to look at."""
    folder = ReleaseFolder(workspace.objects)
    if folder.look() is None and not folder.reports():
        return dg.SkipReason("nothing was released yet, and no replica of the serving tier was started")
    return dg.RunRequest()


def release_champion(
    context: dg.AssetExecutionContext | dg.OpExecutionContext, workspace: Workspace, language: str
) -> tuple[dict[str, Any], str]:
    """Release the champion of a language; returns what to show of it, and the bundle's digest.

    Raises:
        dg.Failure: it may not be served, or it went back, or another version was put into production meanwhile; the
            serving tier runs what it ran before. What could not be reached is raised as it is.
    """
    promotions, settings = workspace.promotions(), workspace.settings.serving
    try:
        decision = promotions.releasable(language)
        promotions.registry.obtain(decision.digest, decision.model, decision.version)
        result = roll_out(
            workspace.objects,
            language,
            decision.digest,
            _golden(workspace, language),
            model=decision.model,
            version=decision.version,
            canary=Canary(
                share=settings.canary_share,
                seconds=settings.canary_s,
                requests=settings.canary_requests,
                max_error_rate=settings.canary_max_error_rate,
                max_latency_ratio=settings.canary_max_latency_ratio,
                max_empty_share=settings.canary_max_empty_share,
            ),
            timeout_s=settings.release_timeout_s,
            drain_s=settings.drain_s,
            allow_no_replica=True,
            superseded=_superseded(promotions, decision),
        )
    except RolloutFailed as failed:
        metadata = {"history": _history(workspace, language), **_trial(failed.transitions)}
        context.log_event(dg.AssetObservation(RELEASE, partition=language, metadata=metadata))
        log_check(context, workspace)
        if isinstance(failed.__cause__, OSError) and unreachable(failed.__cause__):
            raise  # the data store was away for a moment: it says nothing about the bundle
        raise dg.Failure(str(failed), metadata=metadata, allow_retries=False) from failed
    except REFUSALS as refused:
        if unreachable(refused):
            raise
        raise dg.Failure(str(refused), allow_retries=False) from refused
    return {
        "model": decision.model,
        "version": int(decision.version),
        "bundle_digest": decision.digest,
        "approved_by": decision.approver,
        **_figures(result, decision.digest),
        "history": _history(workspace, language),
    }, decision.digest


def _superseded(promotions: Promotions, decision: Decision) -> Callable[[], str | None]:
    """Why a release must not go on: its download and its wait for another take time, in which people decide."""

    def reason() -> str | None:
        now = promotions.current(decision.language)
        if now is not None and now.digest == decision.digest:
            return None
        other = f"version {now.version} is" if now else "the ledger names none"
        return f"version {decision.version} is no longer the champion: {other}"

    return reason


def compare_serving(workspace: Workspace) -> dg.AssetCheckResult:
    """Whether every live replica runs the champions of the ledger, all languages together."""
    replicas, promotions = Replicas(ReleaseFolder(workspace.objects)), workspace.promotions()
    tier = replicas.settled()
    live, unheard = tier.live, silence(tier.silent)
    wrong: list[str] = [unheard] * bool(unheard)
    champions: list[str] = []
    rows: list[tuple[str, ...]] = []
    for language in workspace.settings.languages:
        try:
            decision = promotions.current(language)
        except LedgerError as broken:
            wrong.append(str(broken))
            continue
        wrong += replicas.differences(language, *((decision.digest, decision.version) if decision else (None,)))
        champion = f"version {decision.version} ({decision.digest[:12]})" if decision else "none"
        champions += [f"{language} {champion}"] if decision else []
        for replica in live:
            report = replica.languages.get(language, LanguageReport())
            runs = [f"{report.versions.get(d) or d[:12]} ({share:.0%})" for d, share in sorted(report.active.items())]
            standby = [report.versions.get(d) or d[:12] for d in report.loaded if d not in report.active]
            rows.append(
                (language, champion, replica.replica, ", ".join(runs) or "nothing", ", ".join(standby), replica.url)
            )
    if wrong:
        described = f"{'; '.join(wrong)}. Materialise `serving_release`, or read in its history what stopped it."
    elif not live:
        described = "no replica of the serving tier is alive, so nobody is served: start one with `make up`"
    else:
        described = f"{len(live)} live replicas run the champions: {', '.join(champions) or 'none yet, so nothing'}"
    return dg.AssetCheckResult(
        passed=bool(live) and not wrong,
        severity=dg.AssetCheckSeverity.ERROR if wrong else dg.AssetCheckSeverity.WARN,
        description=described,
        check_name=SERVES_THE_CHAMPION,
        metadata={
            "replicas": len(live),
            "reports": markdown_table(("language", "champion", "replica", "runs", "standby", "answers at"), rows),
        },
    )


def log_check(context: dg.AssetExecutionContext | dg.OpExecutionContext, workspace: Workspace) -> None:
    """Evaluate `serves_the_champion` in the middle of a run, so that it never tells of yesterday."""
    result = compare_serving(workspace)
    context.log_event(
        dg.AssetCheckEvaluation(  # type: ignore[arg-type]  # taken by Dagster, missing in its annotation
            asset_key=RELEASE,
            check_name=SERVES_THE_CHAMPION,
            passed=result.passed,
            metadata=result.metadata,
            severity=result.severity,
            description=result.description,
            blocking=False,
        )
    )


def _figures(result: RolloutResult, digest: str) -> dict[str, Any]:
    """A release in figures that plot over time."""
    return {
        "replicas": len(result.replicas),
        "seconds": round(result.seconds, 2),
        "changed": result.changed,
        "standby": ", ".join(other[:12] for other in result.previous if other != digest) or "none",
        **_trial(result.transitions),
        "probes": markdown_table(
            ("replica", "recording", "text", "ms"),
            [(p.replica, Path(p.audio).name, p.text, f"{p.latency_s * 1000:.0f}") for p in result.probes],
        ),
    }


def _trial(steps: Sequence[Transition]) -> dict[str, Any]:
    """The canary's figures, where there was one."""
    for step in steps:
        if step.figures and step.against:
            return {
                "canary_requests": step.figures.requests,
                "canary_errors": step.figures.errors,
                "canary_empty_share": step.figures.empty_share,
                "canary_p50_ms": _ms(step.figures.p50_s),
                "canary_p95_ms": _ms(step.figures.p95_s),
                "former_p50_ms": _ms(step.against.p50_s),
                "former_p95_ms": _ms(step.against.p95_s),
            }
    return {}


def _history(workspace: Workspace, language: str) -> dg.MarkdownMetadataValue:
    steps = ReleaseFolder(workspace.objects).history(language, SHOWN_STEPS)
    rows = [
        (
            datetime.fromisoformat(step.time).astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S"),
            step.version or step.digest[:12],
            step.state,
            f"{step.share:.0%}",
            f"{step.seconds:.1f}",
            *_cells(step.figures),
            step.reason,
        )
        for step in reversed(steps)
    ]
    return markdown_table(HISTORY, rows)


def _cells(figures: Summary | None) -> tuple[str, ...]:
    if not figures:
        return "", "", "", ""
    times = f"{_ms(figures.p50_s):.0f} / {_ms(figures.p95_s):.0f}"
    return str(figures.requests), str(figures.errors), f"{figures.empty_share:.0%}", times


def _ms(seconds: float | None) -> float:
    return round((seconds or 0.0) * 1000, 1)


def _golden(workspace: Workspace, language: str) -> list[Path]:
    """The audio of a few benchmark utterances, one a speaker, nearest to the set's median duration.

    Typical recordings, and always the same: a quiet one of a single word would refuse a bundle that serves well.
    """
    rows = list(rows_of(workspace.store.current("benchmark_set", language)))
    median_s = statistics.median(row.duration_s or 0 for row in rows) if rows else 0.0
    chosen: dict[str, Utterance] = {}
    for row in sorted(rows, key=lambda row: (abs((row.duration_s or 0) - median_s), row.id)):
        chosen.setdefault(row.speaker, row)
    return [Path(workspace.objects.located(row.audio)) for row in list(chosen.values())[:GOLDEN_UTTERANCES]]
