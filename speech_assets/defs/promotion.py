"""Promotion: what passed is registered and waits; a person's decision makes it the champion.

`champion` has no function to run: only the jobs `promote` and `rollback` write it, after the verdict of exactly that
bundle was read again. Both are launched from Dagster's launchpad, where their fields are described.
"""

from collections.abc import Callable
from enum import Enum

import dagster as dg
from pydantic import Field

from deployment.promotion import Decision, LedgerError, PromotionRefused
from deployment.registry import RegistryError
from evaluation.gates import GateRefused, require_passed
from speech.bundle import BundleError, ModelBundle
from speech_assets.defs.evaluation import REPORT, load_evaluation, verdict
from speech_assets.defs.metadata import markdown_table, quarter_heading
from speech_assets.defs.models import BUNDLE, CHECKPOINT, training_record
from speech_assets.defs.partitions import (
    CPU_POOL,
    languages,
    one_partition_a_run,
    quarter_and_language,
    quarter_language,
)
from speech_assets.defs.resources import Workspace, git_revision
from speech_assets.defs.retries import retried_when_unreachable

CHAMPION = dg.AssetKey("champion")


class Choice(Enum):
    """What an approver can decide about a version."""

    approve = "approve"
    reject = "reject"


class PromotionConfig(dg.Config):
    """A person's decision about a registered version."""

    model: str = Field(description="Registered model, such as soundstage-en.")
    version: str = Field(description="Its version, such as 3; MLflow and the asset `registered_model` show it.")
    decision: Choice = Field(description="approve: it becomes the champion and is released. reject: it never will.")
    approver: str = Field(description="Your name, as it stands in `promotion.approvers` of soundstage.toml.")
    reason: str = Field(description="Why, in a sentence that will make sense in a year; kept in the ledger.")


class RollbackConfig(dg.Config):
    """A person's decision to go back to an earlier champion."""

    model: str = Field(description="Registered model, such as soundstage-en.")
    version: str | None = Field(None, description="Version to go back to; empty: the champion before the present one.")
    approver: str = Field(description="Your name, as it stands in `promotion.approvers` of soundstage.toml.")
    reason: str = Field(description="Why, in a sentence that will make sense in a year; kept in the ledger.")


@dg.asset(
    partitions_def=quarter_language,
    group_name="promotion",
    pool=CPU_POOL,
    backfill_policy=one_partition_a_run,
    kinds={"mlflow"},
    code_version="1",
    deps=[verdict],
)
@retried_when_unreachable
def registered_model(context: dg.AssetExecutionContext, workspace: dg.ResourceParam[Workspace]) -> dg.MaterializeResult:
    """An MLflow version with its lineage, waiting as `challenger`; only with a passing verdict for this very bundle."""
    quarter, language = quarter_and_language(context)
    store, settings = workspace.store, workspace.settings
    bundle = ModelBundle.load(store.current("model_bundle", quarter, language).path / BUNDLE)
    try:
        passed = require_passed(workspace.verdicts, bundle.digest, language=language, settings=settings.gates)
    except GateRefused as refused:
        raise dg.Failure(str(refused), allow_retries=False) from refused
    evaluation = load_evaluation(workspace, quarter, language)
    model = store.current("finetuned_model", quarter, language).path
    record = training_record(model)
    version = workspace.registry().register(
        workspace.model_name(language),
        bundle.path,
        model / CHECKPOINT,
        passed,
        store.current("evaluation", quarter, language).path / REPORT,
        partition=context.partition_key,
        dataset_digests={**evaluation.dataset_digests, **bundle.lineage.get("data", {})},
        git_revision=git_revision(),
        run_links={
            "dagster": f"{settings.dagster_url}/runs/{context.run.run_id}",
            "training": workspace.mlflow_run_url(record),
            "report": f"{settings.pages.url}/reports/{quarter}/{language}/",
        },
        recipe=record.get("recipe"),
        metrics={
            f"{key}_{measure}": getattr(part.score, measure)
            for key, part in evaluation.sets.items()
            for measure in ("wer", "cer")
        },
    )
    return dg.MaterializeResult(
        metadata={
            "quarter": quarter_heading(quarter, language),
            "model": version.name,
            "version": int(version.version),
            "aliases": ", ".join(version.aliases),
            "bundle_digest": version.digest,
            "mlflow": dg.MetadataValue.url(
                f"{settings.registry.ui_url}/#/models/{version.name}/versions/{version.version}"
            ),
            "next": f"launch `promote` with model {version.name}, version {version.version}",
        },
        data_version=dg.DataVersion(version.digest),
    )


champion = dg.AssetSpec(
    key=CHAMPION,
    partitions_def=languages,
    group_name="promotion",
    kinds={"mlflow"},
    deps=[
        dg.AssetDep(registered_model, partition_mapping=dg.MultiToSingleDimensionPartitionMapping("language")),
    ],
    description="The version of a language that people put into production. Written by the jobs `promote` and "
    "`rollback` alone; the ledger says who decided what, when and why.",
)


def _decide(context: dg.OpExecutionContext, decide: Callable[[], Decision]) -> Decision:
    """Take a decision; every refusal is a failed run with one sentence, and never retried."""
    try:
        decision = decide()
    except (PromotionRefused, GateRefused, BundleError, LedgerError, RegistryError) as refused:
        raise dg.Failure(str(refused), allow_retries=False) from refused
    context.log.info(f"{decision.approver}: {decision.action} {decision.model}/{decision.version}: {decision.reason}")
    return decision


def _report(context: dg.OpExecutionContext, workspace: Workspace, decision: Decision) -> None:
    """Show the champion in force after a decision."""
    history = workspace.promotions().history(decision.language)
    context.log_event(
        dg.AssetMaterialization(
            CHAMPION,
            partition=decision.language,
            metadata={
                "model": decision.model,
                "version": int(decision.version),
                "bundle_digest": decision.digest,
                "decision": decision.action,
                "approver": decision.approver,
                "reason": decision.reason,
                "before": decision.previous_champion or "none",
                "ledger": markdown_table(
                    ("#", "when (UTC)", "what", "version", "who", "why"),
                    [(d.sequence, d.time[:16], d.action, d.version, d.approver, d.reason) for d in reversed(history)],
                ),
            },
            tags={"dagster/data_version": decision.digest},
        )
    )


@dg.op
def decide_promotion(
    context: dg.OpExecutionContext, workspace: dg.ResourceParam[Workspace], config: PromotionConfig
) -> None:
    """Approve or reject a registered version."""
    language = workspace.language_of(config.model)
    promotions = workspace.promotions()
    choose = promotions.approve if config.decision is Choice.approve else promotions.reject
    decision = _decide(
        context,
        lambda: choose(language, config.model, config.version, config.approver, config.reason),
    )
    if config.decision is Choice.approve:
        _report(context, workspace, decision)


@dg.op
def decide_rollback(
    context: dg.OpExecutionContext, workspace: dg.ResourceParam[Workspace], config: RollbackConfig
) -> None:
    """Make an earlier champion the champion again."""
    language = workspace.language_of(config.model)
    decision = _decide(
        context,
        lambda: workspace.promotions().rollback(
            language, config.approver, config.reason, version=config.version, model=config.model
        ),
    )
    _report(context, workspace, decision)


@dg.job(
    description="Decide about a registered version: approve makes it the champion, which is then released; reject "
    "closes it. Refused without a passing verdict for exactly that bundle."
)
def promote() -> None:
    """A person's decision."""
    decide_promotion()


@dg.job(description="Go back to an earlier champion; it is released like any other.")
def rollback() -> None:
    """A person's decision to go back."""
    decide_rollback()
