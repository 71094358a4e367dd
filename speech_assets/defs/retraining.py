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
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

import dagster as dg
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from speech.store.objects import LostRace, Missing, Objects
from speech.store.outputs import to_json
from speech.store.records import Document
from speech_assets.chain import CORPUS, JUDGEMENT, MODELS
from speech_assets.defs.metadata import quarter_heading
from speech_assets.defs.models import BASE_MODEL, FINETUNED_MODEL, recipe_version
from speech_assets.defs.partitions import Grid
from speech_assets.defs.resources import Workspace
from speech_assets.partition_keys import PARTITION_TAG, partition_of
from training.settings import TrainingSettings

log = logging.getLogger(__name__)
SENSOR_INTERVAL_S = 30
REASON_TAG = "soundstage/retraining"
RETRAIN = "retrain"  # the job


def definitions(grid: Grid) -> dg.Definitions:
    """What asks for new models, and what starts them."""
    retrain = dg.define_asset_job(
        RETRAIN,
        selection=dg.AssetSelection.assets(*CORPUS, *MODELS, *JUDGEMENT),
        partitions_def=grid.quarter_language,
        description="One quarter of one language from what its source holds now to a version that waits for a "
        "decision.",
    )
    schedule = partial(
        dg.schedule,
        target=retrain,
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
    )
    settings = grid.settings.retraining
    return dg.Definitions(
        jobs=[retrain],
        schedules=[
            schedule(
                cron_schedule=settings.quarter_closed_cron,
                description="At the start of a quarter: asks for models of the quarter that has closed, in every "
                "language.",
            )(quarter_closed),
            schedule(
                cron_schedule=settings.late_recordings_cron,
                description="Asks for another look at the closed quarter, whose last transcripts tend to come late.",
            )(late_recordings),
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
    """A wish for a new model of a partition, from a moment on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    reason: str
    asked_at: AwareDatetime


@dataclass(frozen=True)
class Change:
    """Something that a partition's model was made with and that is another one now."""

    name: str  # of the change from the one to the other
    reason: str
    model_made_at: datetime


class Wishes:
    """Wishes in the data store, one object each."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def ask(self, quarter: str, language: str, name: str, wish: Wish, *, anew_after: datetime | None = None) -> bool:
        """Note a wish under a name; False when it was noted before, unless that was before `anew_after`."""
        document = Document(self._objects, f"{_place(quarter, language)}/{name}.json")
        before = document.read()
        if before is not None:
            noted = self._parsed(document.key, before.data)
            if noted is None or anew_after is None or noted.asked_at >= anew_after:
                return False
        try:
            document.replace(to_json(wish.model_dump(mode="json")), before)
        except LostRace:
            return False
        return True

    def of(self, quarter: str, language: str) -> Iterator[Wish]:
        """The wishes for a partition, by their names; an object that is no wish asks for nothing."""
        for item in self._objects.list(_place(quarter, language)):
            if noted := self._parsed(item.key, self._objects.read(item.key).data):
                yield noted

    @staticmethod
    def _parsed(key: str, data: bytes) -> Wish | None:
        try:
            return Wish.model_validate_json(data)
        except ValidationError as error:
            log.error("%s is no wish for retraining and asks for nothing: %s", key, error)
            return None


def _place(quarter: str, language: str) -> str:
    return f"retraining/{quarter}/{language}"


def _ask_for_all(context: dg.ScheduleEvaluationContext, workspace: Workspace, name: str, reason: str) -> dg.SkipReason:
    now = context.scheduled_execution_time.astimezone(UTC)
    quarter = workspace.grid.latest_closed_quarter(now)
    if quarter is None:
        return dg.SkipReason("no quarter has ended yet")
    for language in workspace.settings.languages:
        Wishes(workspace.objects).ask(quarter, language, f"{name}-{now:%Y-%m-%d}", Wish(reason=reason, asked_at=now))
    return dg.SkipReason(f"asked for {quarter}: {', '.join(workspace.settings.languages)} ({reason})")


def quarter_closed(context: dg.ScheduleEvaluationContext, workspace: dg.ResourceParam[Workspace]) -> dg.SkipReason:
    """The quarter has closed."""
    return _ask_for_all(context, workspace, "quarter-closed", "the quarter has closed")


def late_recordings(context: dg.ScheduleEvaluationContext, workspace: dg.ResourceParam[Workspace]) -> dg.SkipReason:
    """Recordings may have come late."""
    return _ask_for_all(context, workspace, "late-recordings", "recordings may have come late")


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
        if Wishes(workspace.objects).ask(quarter, language, f"quality-{measured:%Y%m%dT%H%M%S}", wish):
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
        since = last.create_timestamp.astimezone(UTC) if last else datetime.min.replace(tzinfo=UTC)
        wishes = Wishes(workspace.objects)
        if workspace.settings.retraining.on_change:
            for change in changes(context.instance, workspace.settings.training, quarter, language):
                wish = Wish(reason=change.reason, asked_at=datetime.now(UTC))
                wishes.ask(quarter, language, change.name, wish, anew_after=change.model_made_at)
        if reasons := [wish.reason for wish in wishes.of(quarter, language) if wish.asked_at > since]:
            why = "; ".join(dict.fromkeys(reasons))
            after = last.dagster_run.run_id if last else "none"
            wanted.append(
                dg.RunRequest(run_key=f"{partition} after {after}", partition_key=partition, tags={REASON_TAG: why})
            )
    if not wanted:
        return dg.SkipReason("; ".join(said) or "nothing is asked for")
    return dg.SensorResult(run_requests=wanted)


def changes(instance: dg.DagsterInstance, settings: TrainingSettings, quarter: str, language: str) -> list[Change]:
    """What differs between the partition's model and what would be trained now; empty where there is no model."""
    model = _latest(instance, FINETUNED_MODEL, partition_of(quarter, language))
    if model is None or model.asset_materialization is None:
        return []
    made_with = model.asset_materialization.tags or {}
    made_at = datetime.fromtimestamp(model.timestamp, UTC)
    found = []
    before, now = made_with.get("dagster/code_version"), recipe_version(settings.finetune_recipe, settings)
    if before not in {None, now}:
        found.append(Change(_change("recipe", before, now), "the recipe has changed", made_at))
    base = _latest(instance, BASE_MODEL, language)
    if base is not None and base.asset_materialization is not None:
        before = made_with.get("dagster/input_data_version/base_model")
        now = (base.asset_materialization.tags or {}).get("dagster/data_version", "")
        if before not in {None, now}:
            found.append(Change(_change("base-model", before, now), "the base model has changed", made_at))
    return found


def _change(what: str, before: str | None, now: str) -> str:
    return f"{what}-{hashlib.sha256(f'{before} {now}'.encode()).hexdigest()[:16]}"


def _under_way(run: dg.DagsterRun) -> bool:
    """Whether something is still to come of a run: one that was lost is started again."""
    return not run.is_finished or run.is_complete_and_waiting_to_retry


def _latest(instance: dg.DagsterInstance, key: dg.AssetKey, partition: str) -> dg.EventLogEntry | None:
    found = instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=key, asset_partitions=[partition]), limit=1
    ).records
    return found[0].event_log_entry if found else None


def _runs_of(instance: dg.DagsterInstance, partition: str) -> list[dg.RunRecord]:
    """Every run that was to train a partition's model, whichever way it was launched."""
    return [
        record
        for record in instance.get_run_records(dg.RunsFilter(tags={PARTITION_TAG: partition}))
        if record.dagster_run.job_name == RETRAIN or FINETUNED_MODEL in (record.dagster_run.asset_selection or ())
    ]
