"""A thin client of Dagster's GraphQL API: launches runs and backfills, as the UI does, and reads how they went."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from speech_assets.partition_keys import partition_tags

LOCATION = "speech_assets.definitions"
REPOSITORY = "__repository__"
ASSET_JOB = "__ASSET_JOB"
LAUNCHED_BY = "soundstage/launched_by"  # run tag: who launched it; `user`, which proxies set, is taken too
HOME_METADATA = "soundstage/home"  # of each asset: the data store that the code location works on
SETTINGS_METADATA = "soundstage/settings"  # of `recordings`: JSON, a version of each table of the settings
POLL_S = 0.5
RUNS_A_PAGE = 100
RETRIED_TAG, AGAIN_TAG = "dagster/will_retry", "dagster/auto_retry_run_id"  # of a run that another takes the place of
RESTARTING = frozenset({502, 503, 504})  # what a proxy says while the server behind it is away
ENDED = frozenset({"SUCCESS", "FAILURE", "CANCELED"})

Found = TypeVar("Found")

LAUNCH = """
mutation Launch($params: ExecutionParams!) {
  launchPipelineExecution(executionParams: $params) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on RunConfigValidationInvalid { errors { message } }
    ... on Error { message }
  }
}
"""
LOAD_STATUS = """
query Locations {
  workspaceOrError {
    __typename
    ... on PythonError { message }
    ... on Workspace {
      locationEntries {
        name loadStatus
        locationOrLoadError { __typename ... on PythonError { message errorChain { error { message } } } }
      }
    }
  }
}
"""
RUN = """
query Run($id: ID!) {
  runOrError(runId: $id) {
    __typename
    ... on Run { status stepStats { stepKey status } tags { key value } }
    ... on Error { message }
  }
}
"""
FAILURES = """
query Failures($id: ID!) {
  logsForRun(runId: $id) {
    ... on EventConnection {
      events {
        __typename
        ... on ExecutionStepFailureEvent { stepKey error { message cause { message } } failureMetadata { description } }
        ... on RunFailureEvent { message }
        ... on AssetCheckEvaluationEvent {
          evaluation { checkName success description severity assetKey { path } }
        }
      }
    }
  }
}
"""
BACKFILL = """
mutation Backfill($params: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $params) {
    __typename
    ... on LaunchBackfillSuccess { backfillId }
    ... on Error { message }
  }
}
"""
BACKFILL_STATUS = """
query Status($id: String!) {
  partitionBackfillOrError(backfillId: $id) {
    __typename
    ... on Error { message }
    ... on PartitionBackfill {
      status
      error { message }
      assetBackfillData {
        assetBackfillStatuses {
          ... on AssetPartitionsStatusCounts {
            assetKey { path }
            numPartitionsTargeted numPartitionsMaterialized numPartitionsFailed
          }
        }
      }
    }
  }
}
"""
RUNS = """
query Runs($filter: RunsFilter!, $cursor: String, $limit: Int!) {
  runsOrError(filter: $filter, cursor: $cursor, limit: $limit) {
    __typename
    ... on Error { message }
    ... on Runs {
      results {
        runId status creationTime startTime endTime tags { key value } assetSelection { path }
        stats { ... on RunStatsSnapshot { launchTime endTime } }
      }
    }
  }
}
"""
STALE = """
query Stale($keys: [AssetKeyInput!]!, $partition: String) {
  assetNodes(assetKeys: $keys) { assetKey { path } staleStatus(partition: $partition) }
}
"""
DEPLOYMENT = """
query Deployment($keys: [AssetKeyInput!]!) {
  assetNodes(assetKeys: $keys) {
    partitionKeysByDimension { name partitionKeys }
    metadataEntries { label ... on TextMetadataEntry { text } }
  }
}
"""


class DagsterError(Exception):
    """Dagster refused a request, or a run did not end well."""


class DagsterUnreachable(DagsterError):
    """Dagster does not answer."""


@dataclass(frozen=True)
class Deployment:
    """What a code location was loaded with: its data store ("" where it does not say), languages and quarters.

    `versions` are those of its settings, by table; none where it does not say.
    """

    home: str
    languages: tuple[str, ...]
    quarters: tuple[str, ...]
    versions: Mapping[str, str]


@dataclass(frozen=True)
class AssetProgress:
    """How many partitions of an asset a backfill is to make, and has."""

    targeted: int
    materialized: int
    failed: int


@dataclass(frozen=True)
class BackfillStatus:
    """How far a backfill is, by asset."""

    status: str
    error: str | None
    assets: Mapping[str, AssetProgress]

    @property
    def ended(self) -> bool:
        """Whether nothing more will come of it."""
        return self.status not in {"REQUESTED", "CANCELING", "FAILING"}


class DagsterClient:
    """Launches runs in a running Dagster and reads how they went."""

    def __init__(self, url: str) -> None:
        import httpx

        self._http = httpx.Client(base_url=url, timeout=60)

    def query(self, text: str, **variables: Any) -> dict[str, Any]:
        """Send one GraphQL request.

        Raises:
            DagsterUnreachable: there is no answer.
            DagsterError: the answer holds errors.
        """
        import httpx

        try:
            answer = self._http.post("/graphql", json={"query": text, "variables": variables})
            if answer.status_code in RESTARTING:
                answer.raise_for_status()
        except (httpx.TransportError, httpx.HTTPStatusError) as error:
            why = str(error).partition("\n")[0]
            raise DagsterUnreachable(
                f"Dagster does not answer at {self._http.base_url} ({why}): start it with `make up`, or name its "
                "address in `dagster_url`"
            ) from error
        try:
            content = answer.json()
        except ValueError:
            raise DagsterError(
                f"what answers at {self._http.base_url} is not Dagster (status {answer.status_code}): name the address "
                "that needs no sign-in"
            ) from None
        if answer.status_code != 200 or content.get("errors"):
            raise DagsterError(f"Dagster refused the request: {content.get('errors') or answer.text[:300]}")
        return content["data"]

    def ask(self, text: str, field: str, wanted: str, failed: str, **variables: Any) -> dict[str, Any]:
        """The answer in a field of one GraphQL request, of the type that is wanted.

        Raises:
            DagsterError: as for `query`, or the answer is of another type: the sentence `failed`, and why.
        """
        found: dict[str, Any] = self.query(text, **variables)[field]
        if found["__typename"] != wanted:
            said = [found["message"]] if "message" in found else [each["message"] for each in found.get("errors", ())]
            raise DagsterError(f"{failed}: {'; '.join(said) or found['__typename']}")
        return found

    def wait_until_loaded(self, timeout_s: float) -> str | None:
        """Wait until Dagster has loaded the graph; returns what it could not do instead, None when all is well.

        Raises:
            DagsterUnreachable, DagsterError: as for `query`.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            workspace = self.query(LOAD_STATUS)["workspaceOrError"]
            entries = workspace.get("locationEntries") or []
            loaded = (entry["locationOrLoadError"] for entry in entries if entry["loadStatus"] == "LOADED")
            found = next(loaded, workspace)
            if found and found["__typename"] == "RepositoryLocation":
                return None
            if found and found["__typename"] == "PythonError":
                reasons = [found["message"], *(link["error"]["message"] for link in found.get("errorChain") or ())]
                return f"cannot load {LOCATION} ({reasons[-1].strip()})"
            time.sleep(POLL_S)
        return f"did not load {LOCATION} within {timeout_s:.0f} s"

    def deployment(self, asset: str) -> Deployment:
        """What the running code location was loaded with, as an asset with all its partitions shows it.

        Raises:
            DagsterError: it has no such asset, or the graph is not loaded.
        """
        nodes = self.query(DEPLOYMENT, keys=[{"path": [asset]}])["assetNodes"]
        if not nodes:
            raise DagsterError(f"Dagster at {self._http.base_url} has no asset '{asset}': it runs another graph")
        (node,) = nodes
        keys = {found["name"]: tuple(found["partitionKeys"]) for found in node["partitionKeysByDimension"]}
        said = {entry["label"]: entry.get("text", "") for entry in node["metadataEntries"]}
        versions = json.loads(said.get(SETTINGS_METADATA, "{}"))
        return Deployment(said.get(HOME_METADATA, ""), keys.get("language", ()), keys.get("quarter", ()), versions)

    def materialize(self, assets: Sequence[str], partition: str, tags: Mapping[str, str] | None = None) -> str:
        """Launch a run of some assets' partition, or of assets without (""); returns the run's id."""
        return self._launch(ASSET_JOB, {**partition_tags(partition), **(tags or {})}, assets=assets)

    def launch_job(self, job: str, config: Mapping[str, Any]) -> str:
        """Launch a job as from its launchpad; returns the run's id."""
        return self._launch(job, {}, config=config)

    def backfill(
        self, partitions: Mapping[str, Sequence[str]], title: str, tags: Mapping[str, str] | None = None
    ) -> str:
        """Launch a backfill of partitions, by asset; returns its id."""
        selected = [
            {
                "assetKey": {"path": [asset]},
                "partitions": {"ranges": [{"start": partition, "end": partition} for partition in wanted]},
            }
            for asset, wanted in partitions.items()
        ]
        params = {"partitionsByAssets": selected, "title": title, "tags": _pairs(tags)}
        failed = "the backfill was not launched"
        launched = self.ask(BACKFILL, "launchPartitionBackfill", "LaunchBackfillSuccess", failed, params=params)
        return str(launched["backfillId"])

    def backfill_status(self, backfill_id: str) -> BackfillStatus:
        """How far a backfill is.

        Raises:
            DagsterError: there is no such backfill.
        """
        failed = f"backfill {backfill_id} cannot be read"
        found = self.ask(BACKFILL_STATUS, "partitionBackfillOrError", "PartitionBackfill", failed, id=backfill_id)
        assets = {
            "/".join(one["assetKey"]["path"]): AssetProgress(
                one["numPartitionsTargeted"], one["numPartitionsMaterialized"], one["numPartitionsFailed"]
            )
            for one in (found["assetBackfillData"] or {}).get("assetBackfillStatuses") or ()
            if one
        }
        return BackfillStatus(found["status"], (found["error"] or {}).get("message"), assets)

    def wait_for_backfill(
        self,
        backfill_id: str,
        timeout_s: float = 86_400.0,
        told: Callable[[BackfillStatus], None] = lambda status: None,
    ) -> BackfillStatus:
        """Wait until a backfill has ended; `told` hears of each change until then.

        Raises:
            DagsterError: it did not end in time.
        """
        before: BackfillStatus | None = None

        def ended() -> BackfillStatus | None:
            nonlocal before
            found = self.backfill_status(backfill_id)
            if not found.ended and found != before and found.assets:
                told(found)
            before = found
            return found if found.ended else None

        return _waited_for(f"backfill {backfill_id}", ended, timeout_s)

    def runs(self, tags: Mapping[str, str], statuses: Sequence[str] = ()) -> list[dict[str, Any]]:
        """The runs that carry all of `tags`, newest first; `tags` of each are a mapping."""
        wanted: dict[str, Any] = {"tags": _pairs(tags), **({"statuses": list(statuses)} if statuses else {})}
        found: list[dict[str, Any]] = []
        while True:
            cursor = found[-1]["runId"] if found else None
            page = {"filter": wanted, "cursor": cursor, "limit": RUNS_A_PAGE}
            answer = self.ask(RUNS, "runsOrError", "Runs", "runs cannot be read", **page)
            found += [{**run, "tags": _tags(run)} for run in answer["results"]]
            if len(answer["results"]) < RUNS_A_PAGE:
                return found

    def _launch(
        self,
        job: str,
        tags: Mapping[str, str],
        *,
        assets: Sequence[str] | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> str:
        selector: dict[str, Any] = {
            "repositoryLocationName": LOCATION,
            "repositoryName": REPOSITORY,
            "pipelineName": job,
        }
        if assets is not None:
            selector["assetSelection"] = [{"path": [asset]} for asset in assets]
        params = {
            "selector": selector,
            "runConfigData": dict(config or {}),
            "mode": "default",
            "executionMetadata": {"tags": _pairs(tags)},
        }
        failed = f"'{job}' was not launched"
        launched = self.ask(LAUNCH, "launchPipelineExecution", "LaunchRunSuccess", failed, params=params)
        return str(launched["run"]["runId"])

    def run(self, run_id: str) -> dict[str, Any]:
        """Status and steps of a run.

        Raises:
            DagsterError: there is no such run.
        """
        return self.ask(RUN, "runOrError", "Run", f"run {run_id} cannot be read", id=run_id)

    def wait(self, run_id: str, timeout_s: float = 600.0) -> str:
        """Wait until a run, and whatever Dagster starts in its place, has ended; returns the status of the last.

        Raises:
            DagsterError: it did not end in time, or there is no such run.
        """

        def ended() -> str | None:
            found = self.run(self._last_try(run_id))
            status: str = found["status"]
            return status if status in ENDED and not _will_retry(found) else None

        return _waited_for(f"run {run_id}", ended, timeout_s)

    def _last_try(self, run_id: str) -> str:
        """The run that took a run's place, once Dagster has started it; else the run itself."""
        while (found := self.run(run_id)) and _will_retry(found) and (again := _tags(found).get(AGAIN_TAG)):
            run_id = again
        return run_id

    def why_failed(self, run_id: str) -> list[str]:
        """Sentences that say why a run failed: failed checks first, then failed steps."""
        events = self.query(FAILURES, id=self._last_try(run_id))["logsForRun"]["events"]
        checks = [
            f"{'/'.join(e['evaluation']['assetKey']['path'])}: check {e['evaluation']['checkName']} failed: "
            f"{e['evaluation']['description']}"
            for e in events
            if e["__typename"] == "AssetCheckEvaluationEvent"
            and not e["evaluation"]["success"]
            and e["evaluation"]["severity"] == "ERROR"
        ]
        steps = []
        for event in events:
            if event["__typename"] == "ExecutionStepFailureEvent":
                described = (event.get("failureMetadata") or {}).get("description")
                cause = (event["error"].get("cause") or {}).get("message")
                steps.append(f"{event['stepKey']}: {described or cause or event['error']['message']}".strip())
        return checks or steps or ["the run failed without a step's error: open it in Dagster"]

    def stale(self, assets: Sequence[str], partition: str) -> dict[str, str]:
        """Per asset: FRESH, STALE (an input or the code changed) or MISSING; `partition` is "" where there are none."""
        keys = [{"path": [asset]} for asset in assets]
        nodes = self.query(STALE, keys=keys, partition=partition or None)["assetNodes"]
        return {node["assetKey"]["path"][-1]: node["staleStatus"] for node in nodes}


def _pairs(tags: Mapping[str, str] | None) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in (tags or {}).items()]


def _tags(run: Mapping[str, Any]) -> dict[str, str]:
    return {tag["key"]: tag["value"] for tag in run["tags"]}


def _will_retry(run: Mapping[str, Any]) -> bool:
    return run["status"] == "FAILURE" and _tags(run).get(RETRIED_TAG) == "true"


def _waited_for(what: str, look: Callable[[], Found | None], timeout_s: float) -> Found:
    """What `look` finds at last; a Dagster that does not answer may be back at the next look."""
    deadline = time.monotonic() + timeout_s
    while True:
        away = None
        try:
            if (found := look()) is not None:
                return found
        except DagsterUnreachable as unreachable:
            away = unreachable
        if time.monotonic() > deadline:
            raise away or DagsterError(f"{what} did not end within {timeout_s:.0f} s: open it in Dagster")
        time.sleep(POLL_S)
