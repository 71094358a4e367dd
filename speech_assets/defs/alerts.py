"""Tells people when a run has failed for good: Slack, PagerDuty, or any webhook.

Only what the settings name is sent to. A run that is tried again is not reported: its last try is. A service that does
not answer is logged and does not keep the others from hearing.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import dagster as dg

from deployment.settings import AlertsSettings
from speech_assets.defs.partitions import Grid
from speech_assets.defs.resources import Workspace
from speech_assets.partition_keys import PARTITION_TAG
from speech_assets.slack import links, post

SENSOR_INTERVAL_S = 10
TIMEOUT_S = 10.0
REASONS = 3  # sentences in a message; the run's page has the rest


@dataclass(frozen=True)
class Alert:
    """A run that failed for good, or a partition that people should look at, as people and programs read it."""

    run_id: str
    job: str
    partition: str
    reason: str
    url: str
    recipe: str
    git_revision: str
    outcome: str = "failed"

    @property
    def title(self) -> str:
        """One line: what happened."""
        return f"{self.job} {self.outcome}{f' for {self.partition}' if self.partition else ''}"


def send(alert: Alert, settings: AlertsSettings) -> list[str]:
    """Send an alert to everything that the settings name; returns a sentence for each that did not take it."""
    problems = []
    for name, sender in _senders(settings):
        try:
            sender(alert)
        except Exception as error:  # whatever a service does, the others must hear
            problems.append(f"{name} did not take the alert: {type(error).__name__}: {error}")
    return problems


def tell(context: dg.AssetExecutionContext, workspace: Workspace, outcome: str, reason: str) -> None:
    """Tell people of a partition of the asset that runs, as far as the settings name anybody."""
    url = f"{workspace.settings.dagster_url}/runs/{context.run_id}"
    asset = context.asset_key.to_user_string()
    alert = Alert(context.run_id, asset, context.partition_key, reason, url, "", "", outcome=outcome)
    for problem in send(alert, workspace.settings.alerts):
        context.log.error(problem)


def configured(settings: AlertsSettings) -> bool:
    """Whether anybody is told."""
    return any(True for _ in _senders(settings))


def _senders(settings: AlertsSettings) -> Iterator[tuple[str, Callable[[Alert], None]]]:
    if settings.webhook_url is not None:
        url = settings.webhook_url.get_secret_value()
        yield "the webhook", lambda alert: _post(url, {**asdict(alert), "title": alert.title})
    if settings.pagerduty_key is not None:
        key = settings.pagerduty_key.get_secret_value()
        yield "PagerDuty", lambda alert: _post(settings.pagerduty_url, _pagerduty_event(alert, key))
    if settings.slack_token is not None:
        yield "Slack", lambda alert: post(_slack_text(alert), settings)


def _post(url: str, content: object) -> None:
    import httpx

    httpx.post(url, json=content, timeout=TIMEOUT_S).raise_for_status()


def _pagerduty_event(alert: Alert, key: str) -> dict[str, object]:
    """An event of PagerDuty's Events API v2; failures of one partition are one incident."""
    return {
        "routing_key": key,
        "event_action": "trigger",
        "dedup_key": f"soundstage/{alert.job}/{alert.partition or alert.run_id}",
        "client": "Soundstage",
        "links": [{"href": alert.url, "text": "the run in Dagster"}],
        "payload": {
            "summary": f"{alert.title}: {alert.reason}"[:1024],  # the longest that the API takes
            "source": "soundstage",
            "severity": "error",
            "custom_details": asdict(alert),
        },
    }


def _slack_text(alert: Alert) -> str:
    return f"*{alert.title}*\n{alert.reason}\n{links({'the run in Dagster': alert.url})}"


def why_failed(instance: dg.DagsterInstance, run: dg.DagsterRun, otherwise: str) -> str:
    """Why a run failed, in its own sentences: failed checks first, then failed steps."""
    checks, steps = [], []
    wanted = {dg.DagsterEventType.ASSET_CHECK_EVALUATION, dg.DagsterEventType.STEP_FAILURE}
    for entry in instance.all_logs(run.run_id, of_type=wanted):
        event = entry.dagster_event
        if event is None:
            continue
        if event.event_type is dg.DagsterEventType.STEP_FAILURE:
            data = event.step_failure_data
            said = data.user_failure_data.description if data.user_failure_data else None
            error = (data.error.cause or data.error).message if data.error else ""
            steps.append(f"{event.step_key}: {(said or error or 'it failed').strip().splitlines()[0]}")
        else:
            check = event.asset_check_evaluation_data
            if not check.passed and check.severity is dg.AssetCheckSeverity.ERROR:
                checks.append(
                    f"{check.asset_key.to_user_string()}: {check.check_name}: {check.description or 'failed'}"
                )
    return "; ".join((checks or steps or [otherwise])[:REASONS])


def definitions(grid: Grid) -> dg.Definitions:
    """The sensor of runs that failed."""
    running = configured(grid.settings.alerts)
    return dg.Definitions(
        sensors=[
            dg.run_failure_sensor(
                name="alerts",
                minimum_interval_seconds=SENSOR_INTERVAL_S,
                default_status=dg.DefaultSensorStatus.RUNNING if running else dg.DefaultSensorStatus.STOPPED,
                description="Tells Slack, PagerDuty or a webhook that a run failed for good, with its partition and "
                "the reason.",
            )(alerts)
        ]
    )


def alerts(context: dg.RunFailureSensorContext, workspace: dg.ResourceParam[Workspace]) -> None:
    """A run has failed."""
    run = context.dagster_run
    if json.loads(run.tags.get("dagster/will_retry", "false")):
        return
    alert = Alert(
        run.run_id,
        run.job_name.strip("_").lower().replace("asset_job", "materialisation"),
        run.tags.get(PARTITION_TAG, ""),
        why_failed(context.instance, run, context.failure_event.message or "the run failed without a sentence"),
        f"{workspace.settings.dagster_url}/runs/{run.run_id}",
        run.tags.get("soundstage/recipe", ""),
        run.tags.get("soundstage/git_revision", ""),
    )
    for problem in send(alert, workspace.settings.alerts):
        context.log.error(problem)
