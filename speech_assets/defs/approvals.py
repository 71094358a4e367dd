"""Approvals: how people decide about registered versions, in Dagster's launchpad or by tags in MLflow.

Dagster has no approval button: a job with typed fields is one. Whoever works in MLflow sets three tags on the version
instead (its description names them); the sensor launches `promote` for each such request once, and the answer, a
refusal too, is written back to the version. Every decision is an entry in the ledger, taken under the same rules
wherever it was asked for.

What the ledger cannot know is whether a name is its owner's: a proxy before Dagster and MLflow has to sign people in.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC

import dagster as dg
from pydantic import Field

from deployment.promotion.actions import CHOICES, PRODUCTION, Choice
from deployment.promotion.decisions import Promotions
from deployment.promotion.ledger import Decision, LedgerError
from deployment.promotion.tag_requests import APPROVER_TAG, DECISION_TAG, TagRequest, answer, remark
from deployment.registry.models import RegistryError
from speech_assets.defs.metadata import markdown_table
from speech_assets.defs.partitions import Grid
from speech_assets.defs.promotion import CHAMPION, log_checks, version_urls
from speech_assets.defs.resources import Workspace
from speech_assets.defs.retries import refusals_are_final, retried_when_unreachable
from speech_assets.defs.serving import RELEASES_ITSELF, release_decided
from speech_assets.slack import announce, links

REQUEST_TAG = "soundstage/request"  # run tag: the request in MLflow that a run of `promote` answers
CHECK_INTERVAL_S = 30


class SignedConfig(dg.Config):
    """Who decides, and why."""

    approver: str = Field(description="Your name, as it stands in `promotion.approvers` of soundstage.toml.")
    reason: str = Field(description="Why, in a sentence that will make sense in a year; kept, and told with it.")


class PromotionConfig(SignedConfig):
    """A person's decision about a registered version."""

    model: str = Field(description="Registered model, such as soundstage-en.")
    version: str = Field(description="Its version, such as 3; MLflow and the asset `registered_model` show it.")
    decision: Choice = Field(description=". ".join(f"{word}: {meant}" for word, meant in CHOICES.items()))
    override_gates: bool = Field(
        False,
        description="Approve although it failed the gates that `override_gates` accepted for exactly this bundle, or "
        "is not better than the champion. Only where `promotion.allow_override` is set; the ledger names the gates.",
    )


class RollbackConfig(SignedConfig):
    """A person's decision to go back to an earlier champion."""

    model: str = Field(description="Registered model, such as soundstage-en.")
    version: str | None = Field(None, description="Version to go back to; empty: the champion before the present one.")


class OverrideConfig(SignedConfig):
    """A person's decision to accept the failed gates of one bundle."""

    language: str = Field(description="Language of the model, such as en.")
    quarter: str = Field(description="Its quarter, as its first month, such as 2024-04.")
    bundle_digest: str = Field(
        description="All 64 digits of `bundle_digest`, from the metadata of the `verdict` that you read: only this "
        "bundle and this verdict are meant, and no later one of the same quarter."
    )


class ReconcileConfig(SignedConfig):
    """Which registry is set to its ledger, and who says so."""

    language: str = Field(
        description="Language of the ledger, such as en. Read its last entry first: one that the registry does not "
        "know is taken for a decision that was interrupted."
    )


def definitions(grid: Grid) -> dg.Definitions:
    """The jobs that people decide with, and who takes requests from elsewhere."""
    return dg.Definitions(
        jobs=[promote, rollback, override_gates, reconcile, check_champion],
        schedules=[watch_champion],
        sensors=[approvals],
    )


def _show(context: dg.OpExecutionContext, workspace: Workspace, promotions: Promotions, decision: Decision) -> str:
    """Show a decision that was taken, and tell of it; returns it as a sentence."""
    said = _sentence(decision)
    context.log.info(said)
    if decision.action in PRODUCTION:
        _report(context, promotions, decision)
    log_checks(context, workspace, promotions)
    announce(_told(workspace, promotions, decision), workspace.settings.alerts, context.log)
    return said


def _report(context: dg.OpExecutionContext, promotions: Promotions, decision: Decision) -> None:
    """Show the champion in force after a decision."""
    history = promotions.history(decision.language)
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
                "overridden_gates": ", ".join(decision.overridden) or "none",
                "training_launched_by": decision.launched_by or "unknown",
                "before": decision.previous_champion or "none",
                "ledger": markdown_table(
                    ("#", "when (UTC)", "what", "version", "who", "why", "accepting"),
                    [
                        (d.sequence, d.time[:16], d.action, d.version, d.approver, d.reason, ", ".join(d.overridden))
                        for d in reversed(history)
                    ],
                ),
            },
            tags={"dagster/data_version": decision.digest},
        )
    )


@dg.op
@retried_when_unreachable
def decide_promotion(
    context: dg.OpExecutionContext, workspace: dg.ResourceParam[Workspace], config: PromotionConfig
) -> str | None:
    """Approve or reject a registered version, or ask for changes to it."""
    promotions = workspace.promotions()
    with _answered(context, promotions) as tell:
        with refusals_are_final():
            language = workspace.language_of(config.model)
            about = (config.model, config.version, config.approver, config.reason)
            if config.decision == "approve":
                decision = promotions.approve(language, *about, override_gates=config.override_gates)
            else:
                decision = promotions.close(language, config.decision, *about)
        tell(f"done: {_show(context, workspace, promotions, decision)}")
    return language if decision.action in PRODUCTION else None  # one of two voices moves nothing yet


@dg.op
@retried_when_unreachable
def decide_rollback(
    context: dg.OpExecutionContext, workspace: dg.ResourceParam[Workspace], config: RollbackConfig
) -> str:
    """Make an earlier champion the champion again."""
    promotions, language = workspace.promotions(), workspace.language_of(config.model)
    launched = context.instance.get_run_record_by_id(context.run_id)
    since = launched.create_timestamp.astimezone(UTC) if launched else None  # a try that Dagster repeats goes back once
    with refusals_are_final():
        decision = promotions.rollback(
            language, config.approver, config.reason, version=config.version, model=config.model, since=since
        )
    _show(context, workspace, promotions, decision)
    return language


@dg.op
@retried_when_unreachable
def decide_override(
    context: dg.OpExecutionContext, workspace: dg.ResourceParam[Workspace], config: OverrideConfig
) -> None:
    """Accept the failed gates of exactly one bundle."""
    promotions, language = workspace.promotions(), config.language
    with refusals_are_final():
        decision = promotions.override(
            language,
            workspace.registered_name(language),
            workspace.bundle(config.quarter, language).path,
            config.bundle_digest.strip(),
            config.approver,
            config.reason,
        )
    _show(context, workspace, promotions, decision)


@dg.job(
    description="Decide about a registered version: approve makes it the champion, which is then released; reject "
    "closes it for good; request_changes closes it until it was judged again. An approval is refused without a passing "
    "verdict for exactly that bundle.",
    tags=RELEASES_ITSELF,
)
def promote() -> None:
    """A person's decision, and its release."""
    release_decided(decide_promotion())


@dg.job(
    description="Go back to an earlier champion, released in the same run: the one before the present champion "
    "is still loaded in every replica, so that takes seconds.",
    tags=RELEASES_ITSELF,
)
def rollback() -> None:
    """A person's decision to go back, and its release."""
    release_decided(decide_rollback())


@dg.job(
    description="Accept the failed gates of exactly one bundle, so that `registered_model` takes it and `promote` can "
    "approve it with `override_gates`. Off unless `promotion.allow_override` is set; an entry in the ledger."
)
def override_gates() -> None:
    """A person's decision to accept what the gates refused."""
    decide_override()


@dg.op
@retried_when_unreachable
def set_to_ledger(
    context: dg.OpExecutionContext, workspace: dg.ResourceParam[Workspace], config: ReconcileConfig
) -> None:
    """Set the aliases of a language's model to what its ledger says."""
    promotions, model = workspace.promotions(), workspace.registered_name(config.language)
    workspace.language_of(model)  # refuses a language that this deployment does not have
    with refusals_are_final():
        found = promotions.reconcile(config.language, model, config.approver, config.reason)
    said = f"{config.approver} set {model} to its ledger: {config.reason}; found: {found or 'that they agree'}"
    context.log.info(said)
    log_checks(context, workspace, promotions)
    announce(said, workspace.settings.alerts, context.log)


@dg.job(
    description="Set MLflow's aliases of a language to what its ledger says, after `alias_follows_ledger` failed: they "
    "were moved by hand, or a decision's run was killed before they followed it."
)
def reconcile() -> None:
    """A person's repair; nothing is decided by it."""
    set_to_ledger()


check_champion = dg.define_asset_job(
    "check_champion",
    selection=dg.AssetSelection.checks_for_assets(CHAMPION),
    description="Look whether the ledger is intact, MLflow's alias follows it, and someone has to decide.",
)

watch_champion = dg.ScheduleDefinition(
    name="watch_champion",
    job=check_champion,
    cron_schedule="17 * * * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="An alias moved by hand or an edited ledger shows within the hour.",
)


@dg.sensor(
    jobs=[promote, check_champion],
    minimum_interval_seconds=CHECK_INTERVAL_S,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Takes decisions that people ask for by tags on a version in MLflow, each once, and closes challengers "
    "that waited too long.",
)
def approvals(
    context: dg.SensorEvaluationContext, workspace: dg.ResourceParam[Workspace]
) -> Iterator[dg.RunRequest | dg.SkipReason]:
    """One run a request; what waited too long is closed here, and the checks of `champion` then look again."""
    promotions = workspace.promotions()
    if not promotions.registry.exists:
        yield dg.SkipReason("nothing was registered yet")
        return
    for language in workspace.settings.languages:
        try:
            yield from _asked_for(context, workspace, promotions, language)
        except (LedgerError, RegistryError) as broken:  # one language's trouble is not the others'
            context.log.error(f"nothing more can be done for '{language}' now: {broken}")


def _asked_for(
    context: dg.SensorEvaluationContext, workspace: Workspace, promotions: Promotions, language: str
) -> Iterator[dg.RunRequest]:
    """The runs that a language's requests ask for, and one of the checks where its challenger was overdue."""
    registry, model = promotions.registry, workspace.registered_name(language)
    for version in registry.tagged(model, DECISION_TAG):
        request = TagRequest.on(version)
        key = request.key
        runs = context.instance.get_runs(dg.RunsFilter(tags={REQUEST_TAG: key}), limit=1)
        if request.missing:
            remark(registry, request, f"waiting for the tags {request.missing}")
        elif request.decision not in CHOICES:
            known = ", ".join(CHOICES)
            answer(registry, key, f"refused: {DECISION_TAG} is '{request.decision}', not one of {known}")
        elif not runs:
            asked = {name: value for name, value in vars(request).items() if name != "number"}
            config = {"ops": {"decide_promotion": {"config": asked}}}
            yield dg.RunRequest(key, job_name="promote", run_config=config, tags={REQUEST_TAG: key})
        elif runs[0].is_failure_or_canceled and runs[0].tags.get("dagster/will_retry") != "true":
            url = f"{workspace.settings.dagster_url}/runs/{runs[0].run_id}"
            answer(registry, key, f"failed: {url} ended without an answer; set {APPROVER_TAG} and the others again")
    if closed := promotions.expire(language, model):
        announce(_told(workspace, promotions, closed), workspace.settings.alerts, context.log)
        yield dg.RunRequest(f"{model}/{closed.sequence}", job_name="check_champion")


@contextmanager
def _answered(context: dg.OpExecutionContext, promotions: Promotions) -> Iterator[Callable[[str], None]]:
    """Write the outcome back to MLflow where a decision was asked for there; a refusal is an outcome too."""
    key = context.run.tags.get(REQUEST_TAG)

    def tell(outcome: str) -> None:
        if key is not None:
            answer(promotions.registry, key, outcome)

    try:
        yield tell
    except dg.Failure as refused:
        tell(f"refused: {refused.description}")
        raise


def _sentence(decision: Decision) -> str:
    about = f"{decision.model} version {decision.version}" if decision.version else f"bundle {decision.digest[:12]}"
    accepting = f" (accepting failed gates: {', '.join(decision.overridden)})" if decision.overridden else ""
    made = f" is the champion of '{decision.language}'," if decision.action in PRODUCTION else ":"
    return f"{about}{made} {decision.done}{accepting} (decision {decision.sequence})"


def _told(workspace: Workspace, promotions: Promotions, decision: Decision) -> str:
    """A decision as Slack hears of it: what it was, the figures of its version, and where to read on."""
    said, urls = [_sentence(decision)], {"champion": f"{workspace.settings.dagster_url}/assets/champion"}
    with suppress(RegistryError):  # an override has no version, and somebody may have deleted another's
        version = promotions.registry.version(decision.model, decision.version)
        said.append(", ".join(f"{name} {value:.4f}" for name, value in sorted(version.metrics.items())))
        urls |= version_urls(workspace, version)
    return "\n".join((*said, links(urls)))
