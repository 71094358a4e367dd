"""Retraining that nobody has to launch: why it happens, and why it happens once.

Reasons only ask. The schedule `quarter_closed` asks for the quarter that has just ended, `late_recordings` for another
look at it, the sensor `falling_quality` when production does worse than its limit; each leaves a wish in the data
store under a name of its own, so that a tick which is repeated asks for nothing new. One sensor, `retraining`, starts
runs, and it also asks when it sees that the recipe or the base model is another than the one a model was made with. A
wish is served by any run of its partition that was created after the moment it speaks of, whoever launched that, so
reasons that come together end in one run; while a run is under way nothing is started; and the run key names the run
before it, so that Dagster itself drops a second start from the same state. (Declarative automation decides asset by
asset and knows neither schedules nor readings, and a changed recipe would set off every quarter at once: it is used for
the base model alone.)

Asking is on and starting is off: nothing trains unasked, on the embedded corpus or on yours, until someone switches the
sensor `retraining` on, which is one click in Dagster's UI.

A run covers everything from `recordings` to `registered_model`, so late recordings are in it and every gate is passed
or stops it; where nothing has changed, its training is not repeated.
"""

import hashlib
import logging
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime

import dagster as dg
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from speech.store.objects import LostRace, Missing
from speech.store.outputs import to_json
from speech.store.records import Document
from speech_assets.chain import CORPUS, JUDGEMENT, MODELS
from speech_assets.defs.metadata import quarter_heading
from speech_assets.defs.models import BASE_MODEL, FINETUNED_MODEL, recipe_version
from speech_assets.defs.partitions import Grid
from speech_assets.defs.resources import Workspace
from speech_assets.partition_keys import PARTITION_TAG, partition_of

log = logging.getLogger(__name__)
SENSOR_INTERVAL_S = 30
REASON_TAG = "soundstage/retraining"
RETRAIN = "retrain"  # the job
NEVER = datetime.min.replace(tzinfo=UTC)


def definitions(grid: Grid) -> dg.Definitions:
    """What asks for new models, and what starts them."""
    retrain = dg.define_asset_job(
        RETRAIN,
        selection=dg.AssetSelection.assets(*CORPUS, *MODELS, *JUDGEMENT),
        partitions_def=grid.quarter_language,
        description="One quarter of one language from what its source holds now to a version that waits for a "
        "decision.",
    )

    def asking(name: str, cron: str, reason: str, description: str) -> dg.ScheduleDefinition:
        @dg.schedule(
            name=name,
            cron_schedule=cron,
            description=description,
            target=retrain,
            execution_timezone="UTC",
            default_status=dg.DefaultScheduleStatus.RUNNING,
        )
        def ask_for_all(context: dg.ScheduleEvaluationContext, workspace: dg.ResourceParam[Workspace]) -> dg.SkipReason:
            now = context.scheduled_execution_time.astimezone(UTC)
            quarter, languages = workspace.grid.latest_closed_quarter(now), workspace.settings.languages
            if quarter is None:
                return dg.SkipReason("no quarter has ended yet")
            for language in languages:
                wish = Wish(reason=reason, asked_at=now)
                ask(workspace, quarter, language, f"{name.replace('_', '-')}-{now:%Y-%m-%d}", wish)
            return dg.SkipReason(f"asked for {quarter}: {', '.join(languages)} ({reason})")

        return ask_for_all

    settings = grid.settings.retraining
    return dg.Definitions(
        jobs=[retrain],
        schedules=[
            asking(
                "quarter_closed",
                settings.quarter_closed_cron,
                "the quarter has closed",
                "At the start of a quarter: asks for models of the quarter that has closed, in every language.",
            ),
            asking(
                "late_recordings",
                settings.late_recordings_cron,
                "recordings may have come late",
                "Asks for another look at the closed quarter, whose last transcripts tend to come late.",
            ),
        ],
        sensors=[
            dg.sensor(
                minimum_interval_seconds=SENSOR_INTERVAL_S,
                target=retrain,
                default_status=dg.DefaultSensorStatus.RUNNING,
                description="Asks for a new model of the latest closed quarter where production does worse than its "
                "limit.",
            )(falling_quality),
            dg.sensor(
                minimum_interval_seconds=SENSOR_INTERVAL_S,
                job=retrain,
                default_status=dg.DefaultSensorStatus.STOPPED,
                description="Starts one run for each partition that is asked for. Switch this on to have models made "
                "unasked.",
            )(retraining),
        ],
    )


class QualityReading(BaseModel):
    """How well a language does in production: `production_quality/<language>.json` in the data store."""

    model_config = ConfigDict(extra="allow")

    wer: float = Field(ge=0, description="Word error rate measured on corrected production transcripts (share).")
    limit: float = Field(gt=0, description="WER above which the language is to be trained again (share).")
    measured_at: AwareDatetime = Field(description="End of the period that was measured, with its time zone.")


class Wish(BaseModel):
    """A wish for a new model of a partition, from a moment on: a file in the data store, under a name of its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    reason: str
    asked_at: AwareDatetime


def ask(workspace: Workspace, quarter: str, language: str, name: str, wish: Wish, anew_after: datetime = NEVER) -> bool:
    """Note a wish under a name; False when it was noted before, unless that was before `anew_after`."""
    document = Document(workspace.objects, f"{_place(quarter, language)}/{name}.json")
    before = document.read()
    if before and ((noted := _parsed(document.key, before.data)) is None or noted.asked_at >= anew_after):
        return False
    with suppress(LostRace):
        document.replace(to_json(wish.model_dump(mode="json")), before)
        return True
    return False


def wishes(workspace: Workspace, quarter: str, language: str) -> list[Wish]:
    """The wishes for a partition; an object that is no wish asks for nothing."""
    objects = workspace.objects
    found = (_parsed(item.key, objects.read(item.key).data) for item in objects.list(_place(quarter, language)))
    return [wish for wish in found if wish]


def _place(quarter: str, language: str) -> str:
    return f"retraining/{quarter}/{language}"


def _parsed(key: str, data: bytes) -> Wish | None:
    try:
        return Wish.model_validate_json(data)
    except ValidationError as error:
        log.error("%s is no wish for retraining and asks for nothing: %s", key, error)
        return None


def falling_quality(context: dg.SensorEvaluationContext, workspace: dg.ResourceParam[Workspace]) -> dg.SkipReason:
    """A reading of production is worse than its limit."""
    quarter = workspace.grid.latest_closed_quarter()
    said = []
    for language in workspace.settings.languages:
        key = f"production_quality/{language}.json"
        try:
            reading = QualityReading.model_validate_json(workspace.objects.read(key).data)
        except Missing:
            continue
        except ValidationError as error:
            context.log.error(f"{key} cannot be read, so '{language}' is not watched: {error}")
            continue
        if reading.wer <= reading.limit or quarter is None:
            continue
        measured = reading.measured_at.astimezone(UTC)
        reason = f"production WER {reading.wer:.1%} is above its limit of {reading.limit:.1%}"
        # A time that lies ahead would ask for one model after the other until it is over.
        wish = Wish(reason=reason, asked_at=min(measured, datetime.now(UTC)))
        if ask(workspace, quarter, language, f"quality-{measured:%Y%m%dT%H%M%S}", wish):
            said.append(f"{language}: {reason}")
    return dg.SkipReason("; ".join(said) or "no new reading is worse than its limit")


def retraining(
    context: dg.SensorEvaluationContext, workspace: dg.ResourceParam[Workspace]
) -> dg.SensorResult | dg.SkipReason:
    """Whatever was asked for and not served yet."""
    quarter = workspace.grid.latest_closed_quarter()
    if quarter is None:
        return dg.SkipReason("no quarter has ended yet")
    wanted, said = [], []
    for language in workspace.settings.languages:
        partition = partition_of(quarter, language)
        runs = _runs_of(context.instance, partition)
        if any(_under_way(record.dagster_run) for record in runs):
            said.append(f"{quarter_heading(quarter, language)}: a run is under way")
            continue
        last = max(runs, key=lambda record: record.create_timestamp, default=None)
        since = last.create_timestamp.astimezone(UTC) if last else NEVER
        if workspace.settings.retraining.on_change:
            _ask_after_changes(context.instance, workspace, quarter, language)
        if reasons := [wish.reason for wish in wishes(workspace, quarter, language) if wish.asked_at > since]:
            why = "; ".join(dict.fromkeys(reasons))
            after = last.dagster_run.run_id if last else "none"
            wanted.append(
                dg.RunRequest(run_key=f"{partition} after {after}", partition_key=partition, tags={REASON_TAG: why})
            )
    if not wanted:
        return dg.SkipReason("; ".join(said) or "nothing is asked for")
    return dg.SensorResult(run_requests=wanted)


def _ask_after_changes(instance: dg.DagsterInstance, workspace: Workspace, quarter: str, language: str) -> None:
    """Ask where a partition's model was made with another recipe or base model than it would be made with now."""
    model = _latest(instance, FINETUNED_MODEL, partition_of(quarter, language))
    if model is None:
        return
    training = workspace.settings.training
    made_with, base_tags = _tags(model), _tags(_latest(instance, BASE_MODEL, language))
    for what, before, now in (
        ("recipe", made_with.get("dagster/code_version"), recipe_version(training.finetune_recipe, training)),
        ("base model", made_with.get("dagster/input_data_version/base_model"), base_tags.get("dagster/data_version")),
    ):
        if before and now and before != now:
            change = hashlib.sha256(f"{before} {now}".encode()).hexdigest()[:16]
            wish = Wish(reason=f"the {what} has changed", asked_at=datetime.now(UTC))
            name = f"{what.replace(' ', '-')}-{change}"
            ask(workspace, quarter, language, name, wish, anew_after=datetime.fromtimestamp(model.timestamp, UTC))


def _under_way(run: dg.DagsterRun) -> bool:
    """Whether something is still to come of a run: one that was lost is started again."""
    return not run.is_finished or run.is_complete_and_waiting_to_retry


def _latest(instance: dg.DagsterInstance, key: dg.AssetKey, partition: str) -> dg.EventLogRecord | None:
    wanted = dg.AssetRecordsFilter(asset_key=key, asset_partitions=[partition])
    return next(iter(instance.fetch_materializations(wanted, limit=1).records), None)


def _tags(record: dg.EventLogRecord | None) -> Mapping[str, str]:
    return (record.asset_materialization.tags if record and record.asset_materialization else None) or {}


def _runs_of(instance: dg.DagsterInstance, partition: str) -> list[dg.RunRecord]:
    """Every run that was to train a partition's model, whichever way it was launched."""
    return [
        record
        for record in instance.get_run_records(dg.RunsFilter(tags={PARTITION_TAG: partition}))
        if record.dagster_run.job_name == RETRAIN or FINETUNED_MODEL in (record.dagster_run.asset_selection or ())
    ]
