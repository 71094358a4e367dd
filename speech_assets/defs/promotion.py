"""Promotion: what passed is registered and waits; a person's decision makes it the champion.

`champion` has no function to run: only the jobs of `approvals` write it, after the verdict of exactly that bundle was
read again. Its checks say whether someone has to decide, and whether the ledger and the registry still say the same.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import dagster as dg

from deployment.promotion.actions import CHOICES
from deployment.promotion.aliases import STATUS_TAG
from deployment.promotion.decisions import Promotions, Waiting
from deployment.promotion.ledger import LedgerError
from deployment.promotion.signatures import UNSIGNED
from deployment.promotion.tag_requests import APPROVER_TAG, DECISION_TAG, OUTCOME_TAG, REASON_TAG
from deployment.registry.models import LAUNCHED_BY_TAG, ModelVersion
from evaluation.gates import GateRefused, Verdict, load_verdict
from evaluation.report import REPORT_NAME
from evaluation.results import Evaluation
from speech.bundle import ModelBundle
from speech.store.outputs import DataStore, StoreError
from speech_assets.dagster_client import LAUNCHED_BY, LOCATION
from speech_assets.defs.evaluation import REPORT_PLACE, figures_of, load_evaluation
from speech_assets.defs.metadata import markdown_table, quarter_heading
from speech_assets.defs.models import BUNDLE_DIGEST, CHECKPOINT_DIGEST, FINETUNED_MODEL, training_record
from speech_assets.defs.partitions import CPU_POOL, Grid, quarter_and_language, same_language
from speech_assets.defs.resources import Workspace, git_revision
from speech_assets.defs.retries import refusals_are_final, retried_when_unreachable
from speech_assets.slack import announce, links

CHAMPION = dg.AssetKey("champion")

Found = TypeVar("Found")


def definitions(grid: Grid) -> dg.Definitions:
    """Registered models and champions, as assets with their checks."""
    return dg.Definitions(
        assets=[
            dg.asset(
                partitions_def=grid.quarter_language,
                group_name="promotion",
                pool=CPU_POOL,
                kinds={"mlflow"},
                code_version="1",
                deps=["verdict"],
            )(registered_model),
            dg.AssetSpec(
                key=CHAMPION,
                partitions_def=grid.languages,
                group_name="promotion",
                kinds={"mlflow"},
                deps=[dg.AssetDep("registered_model", partition_mapping=same_language)],
                description="The version of a language that people put into production. Written by the jobs `promote` "
                "and `rollback` alone; the ledger says who decided what, when and why.",
            ),
        ],
        asset_checks=[_asset_check(check) for check in CHECKS],
    )


@retried_when_unreachable
def registered_model(context: dg.AssetExecutionContext, workspace: dg.ResourceParam[Workspace]) -> dg.MaterializeResult:
    """An MLflow version with its lineage, waiting as `challenger`; only with a passing verdict for this very bundle.

    Failed gates stand in the way unless approvers accepted them for exactly this bundle and verdict, with the job
    `override_gates`.
    """
    quarter, language = quarter_and_language(context)
    store, settings, promotions = workspace.store, workspace.settings, workspace.promotions()
    with refusals_are_final():
        bundle = workspace.bundle(quarter, language)
        accepted = promotions.overridden(language, bundle.digest)
        found = load_verdict(workspace.objects, bundle.digest)
        passed = found.require_passed(language=language, settings=settings.gates, overridden=accepted)
        evaluation = load_evaluation(workspace, quarter, language)
        record = training_record(store.current("finetuned_model", quarter, language))
        _require_one_line(bundle, passed, evaluation, record[BUNDLE_DIGEST], context.partition_key)
    launched_by = _launched_by(context)
    promotions.rules.launchers.note(bundle.digest, launched_by)
    version = promotions.registry.register(
        workspace.registered_name(language),
        bundle.path,
        record[CHECKPOINT_DIGEST],
        passed,
        _report(store, quarter, language),
        partition=context.partition_key,
        dataset_digests={
            **evaluation.dataset_digests,
            **{f"train {quarter_read}": digest for quarter_read, digest in record.get("data", {}).items()},
        },
        git_revision=git_revision(),
        run_links={
            "dagster": f"{settings.dagster_url}/runs/{context.run.run_id}",
            "training": workspace.mlflow_run_url(record),
            "report": f"{settings.pages.url}/reports/{quarter}/{language}/",
        },
        recipe=record.get("recipe"),
        metrics=figures_of(evaluation),
        launched_by=", ".join(launched_by),
        overridden=accepted,
        guide=decision_guide(workspace),
    )
    with refusals_are_final():
        waiting = promotions.offer(language, version)
    if waiting:
        urls = {"decide": launchpad(workspace, waiting.version), **version_urls(workspace, waiting.version)}
        announce(f"{waiting.sentence}\n{links(urls)}", settings.alerts, context.log)
    log_checks(context, workspace, promotions)
    version = promotions.registry.version(version.name, version.version)
    return dg.MaterializeResult(
        metadata={
            "quarter": quarter_heading(quarter, language),
            "model": version.name,
            "version": int(version.version),
            "aliases": ", ".join(version.aliases),
            "bundle_digest": version.digest,
            "mlflow": dg.MetadataValue.url(version_urls(workspace, version)["MLflow"]),
            "status": version.tags.get(STATUS_TAG, ""),
            "launched_by": version.tags.get(LAUNCHED_BY_TAG, ""),
            "decide": dg.MetadataValue.md(f"[open the launchpad]({launchpad(workspace, version)})"),
        },
        data_version=dg.DataVersion(version.digest),
    )


def log_checks(
    context: dg.OpExecutionContext | dg.AssetExecutionContext, workspace: Workspace, promotions: Promotions
) -> None:
    """Bring the champion's checks up to date within a run that changed what they look at."""
    for check in CHECKS:
        result = check(workspace, promotions)
        context.log_event(
            dg.AssetCheckEvaluation(  # type: ignore[arg-type]  # taken by Dagster, missing in its annotation
                asset_key=CHAMPION,
                check_name=check.__name__,
                passed=result.passed,
                severity=result.severity,
                description=result.description,
                metadata=result.metadata or {},
            )
        )


def challenger_waits(workspace: Workspace, promotions: Promotions) -> dg.AssetCheckResult:
    """Whether someone has to decide about a challenger: who, on what figures, until when, and where to read more."""
    found, broken = _each(workspace, promotions, promotions.waiting)
    return dg.AssetCheckResult(
        passed=not found and not broken,
        severity=dg.AssetCheckSeverity.WARN,
        description=". ".join([w.sentence for w in found] + broken) or "nobody has to decide anything",
        metadata={
            "to_decide": dg.MetadataValue.md("\n\n".join(_page(workspace, w) for w in found) or "nothing"),
            "who_may_approve": ", ".join(workspace.settings.promotion.approvers) or "nobody yet",
            **{f"{w.version.name}: {label}": value for w in found for label, value in _shown(workspace, w).items()},
        },
    )


def ledger_intact(workspace: Workspace, promotions: Promotions) -> dg.AssetCheckResult:
    """Whether each language's ledger is the chain of decisions that was written, and none is missing at its end."""

    def count(language: str, model: str) -> tuple[str, int]:
        return language, len(promotions.whole(language, model))

    entries, broken = _each(workspace, promotions, count)
    return dg.AssetCheckResult(
        passed=not broken,
        description=". ".join(broken) or "every entry is as it was written",
        metadata={"decisions": markdown_table(("language", "entries"), entries)},
    )


def alias_follows_ledger(workspace: Workspace, promotions: Promotions) -> dg.AssetCheckResult:
    """Whether MLflow's alias `champion` points to what people decided; releases follow the ledger in any case."""
    differing, broken = _each(workspace, promotions, promotions.check_alias)
    wrong = [*differing, *broken]
    return dg.AssetCheckResult(passed=not wrong, description=". ".join(wrong) or "every alias is as decided")


def _each(
    workspace: Workspace, promotions: Promotions, look: Callable[[str, str], Found | None]
) -> tuple[list[Found], list[str]]:
    """What a look at each language and its model finds, and why the ledgers of others cannot be relied on."""
    found: list[Found] = []
    broken: list[str] = []
    for language in workspace.settings.languages if promotions.registry.exists else ():
        try:
            seen = look(language, workspace.registered_name(language))
        except LedgerError as error:
            broken.append(str(error))
        else:
            found += [] if seen is None else [seen]
    return found, broken


CHECKS = (challenger_waits, ledger_intact, alias_follows_ledger)


def _asset_check(check: Callable[[Workspace, Promotions], dg.AssetCheckResult]) -> dg.AssetChecksDefinition:
    @dg.asset_check(asset=CHAMPION, name=check.__name__, description=check.__doc__)
    def looked_at(workspace: dg.ResourceParam[Workspace]) -> dg.AssetCheckResult:
        return check(workspace, workspace.promotions())

    return looked_at


def _shown(workspace: Workspace, waiting: Waiting) -> dict[str, Any]:
    """What an approver reads about one challenger: figures that plot, dates and links."""
    metrics = waiting.version.metrics
    return {
        **{name: metrics[name] for name in ("benchmark_wer", "champion_benchmark_wer") if name in metrics},
        "champion": waiting.champion or "none yet",
        "training_launched_by": ", ".join(waiting.launchers) or UNSIGNED,
        **({"expires": f"{waiting.expires_at:%Y-%m-%d}"} if waiting.expires_at else {}),
        **{label: dg.MetadataValue.url(url) for label, url in version_urls(workspace, waiting.version).items()},
    }


def _page(workspace: Workspace, waiting: Waiting) -> str:
    """All figures of a challenger, under a link to a launchpad that is filled in: too long a link for metadata."""
    version = waiting.version
    figures = markdown_table(("figure", "value"), [(name, f"{v:.4f}") for name, v in sorted(version.metrics.items())])
    title = f"[Decide about {version.name} version {version.version}]({launchpad(workspace, version)})"
    return f"{title}\n\n{figures.md_str or 'no figures'}"


def decision_guide(workspace: Workspace) -> str:
    """How people decide about a version, for its page in MLflow."""
    approvers = ", ".join(workspace.settings.promotion.approvers) or "nobody yet"
    choices = ", ".join(f"`{word}` ({meant})" for word, meant in CHOICES.items())
    return "\n".join(
        (
            "### To decide",
            "",
            f"Approve, reject or ask for changes in [Dagster]({launchpad(workspace)}), or here, by setting "
            "these tags on this version:",
            "",
            "| tag | value |",
            "|---|---|",
            f"| `{APPROVER_TAG}` | your name: {approvers} |",
            f"| `{REASON_TAG}` | why, in a sentence |",
            f"| `{DECISION_TAG}` | {choices}; set it last |",
            "",
            f"They are taken within a minute, and the answer is in `{OUTCOME_TAG}`. `{STATUS_TAG}` says who has to do "
            "what until when.",
        )
    )


def launchpad(workspace: Workspace, version: ModelVersion | None = None) -> str:
    """Where people launch `promote`; with a version, its fields are filled in but for the decision itself."""
    url = f"{workspace.settings.dagster_url}/locations/{LOCATION}/jobs/promote/playground"
    if version is None:
        return url
    fields = (
        f"model: {version.name}",
        f'version: "{version.version}"',
        f"decision:   # {', '.join(CHOICES)}",
        f"approver:   # {', '.join(workspace.settings.promotion.approvers)}",
        "reason:   # why, in a sentence that will make sense in a year",
    )
    config = "\n      ".join(("ops:\n  decide_promotion:\n    config:", *fields))
    return f"{url}/setup?config={quote(config)}"


def launcher(run: dg.DagsterRun | None) -> str:
    """Who launched a run: the person that its tags name, the schedule or sensor that asked for it, or `unknown`."""
    tags = run.tags if run else {}
    if name := tags.get(LAUNCHED_BY) or tags.get("user"):
        return name
    for tag, kind in (("dagster/schedule_name", "schedule"), ("dagster/sensor_name", "sensor")):
        if tag in tags:
            return f"{kind} {tags[tag]}"
    return UNSIGNED


def _require_one_line(
    bundle: ModelBundle, judged: Verdict, evaluation: Evaluation, trained: str, partition: str
) -> None:
    """Refuse to register figures, data or a checkpoint that belong to another bundle than the one that was judged."""
    short = bundle.digest[:12]
    if evaluation.digest != judged.evaluation_digest:
        raise GateRefused(
            f"The verdict of bundle {short} was reached on another evaluation than the one of {partition} that is "
            "there now: evaluate and judge this bundle again (materialise `evaluation` and `verdict`)."
        )
    if trained != bundle.digest:
        raise GateRefused(
            f"Bundle {short} of {partition} was not made from the `finetuned_model` that is there now "
            f"({trained[:12]}): materialise `model_bundle`, `evaluation` and `verdict` again."
        )


def _report(store: DataStore, quarter: str, language: str) -> Path | None:
    """The page that was written with the verdict; it shows what was judged, and nothing rests on it."""
    try:
        return store.current(REPORT_PLACE, quarter, language).file(REPORT_NAME)
    except StoreError:
        return None


def _launched_by(context: dg.AssetExecutionContext) -> tuple[str, ...]:
    """Everyone who launched a run that trained this very model, or this run where no training is on record."""
    filters = dg.AssetRecordsFilter(asset_key=FINETUNED_MODEL, asset_partitions=[context.partition_key])
    records = context.instance.fetch_materializations(filters, limit=100).records
    versions = [_data_version(record) for record in records]
    runs = {record.run_id for record, version in zip(records, versions, strict=True) if version == versions[0]}
    found = {launcher(context.instance.get_run_by_id(run_id)) for run_id in runs} or {launcher(context.run)}
    return tuple(sorted(found))


def _data_version(record: dg.EventLogRecord) -> str | None:
    tags: dict[str, Any] = dict((record.asset_materialization and record.asset_materialization.tags) or {})
    return tags.get("dagster/data_version")


def version_urls(workspace: Workspace, version: ModelVersion) -> dict[str, str]:
    """Where to read more about a version, by what it is."""
    mlflow = f"{workspace.settings.registry.ui_url}/#/models/{version.name}/versions/{version.version}"
    report = version.tags.get("link.report")
    return {"MLflow": mlflow, **({"report": report} if report else {})}
