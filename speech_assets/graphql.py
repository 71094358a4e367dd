"""A thin client of Dagster's GraphQL API: the demo and the tests launch runs with it, as the UI does."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

LOCATION = "speech_assets.definitions"
REPOSITORY = "__repository__"
ASSET_JOB = "__ASSET_JOB"
ENDED = frozenset({"SUCCESS", "FAILURE", "CANCELED"})

LAUNCH = """
mutation Launch($params: ExecutionParams!) {
  launchPipelineExecution(executionParams: $params) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message }
    ... on RunConfigValidationInvalid { errors { message } }
    ... on PipelineNotFoundError { message }
    ... on InvalidSubsetError { message }
  }
}
"""
RUN = """
query Run($id: ID!) {
  runOrError(runId: $id) {
    __typename
    ... on Run { status startTime endTime stepStats { stepKey status } }
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
STALE = """
query Stale($keys: [AssetKeyInput!]!, $partition: String!) {
  assetNodes(assetKeys: $keys) { assetKey { path } staleStatus(partition: $partition) }
}
"""


class DagsterError(Exception):
    """Dagster refused a request, or a run did not end well."""


class DagsterClient:
    """Launches runs in a running Dagster and reads how they went."""

    def __init__(self, url: str) -> None:
        import httpx

        self._http = httpx.Client(base_url=url, timeout=60)

    def query(self, text: str, **variables: Any) -> dict[str, Any]:
        """Send one GraphQL request.

        Raises:
            DagsterError: the answer holds errors.
        """
        answer = self._http.post("/graphql", json={"query": text, "variables": variables})
        content = answer.json()
        if answer.status_code != 200 or content.get("errors"):
            raise DagsterError(f"Dagster refused the request: {content.get('errors') or answer.text[:300]}")
        data: dict[str, Any] = content["data"]
        return data

    def materialize(self, assets: Sequence[str], partition: str, tags: Mapping[str, str] | None = None) -> str:
        """Launch a run of some assets' partition; returns the run's id."""
        return self._launch(
            ASSET_JOB,
            {"dagster/partition": partition, **partition_tags(partition), **(tags or {})},
            assets=assets,
        )

    def launch_job(self, job: str, config: Mapping[str, Any], tags: Mapping[str, str] | None = None) -> str:
        """Launch a job as from its launchpad; returns the run's id."""
        return self._launch(job, tags or {}, config=config)

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
            "executionMetadata": {"tags": [{"key": key, "value": value} for key, value in tags.items()]},
        }
        result = self.query(LAUNCH, params=params)["launchPipelineExecution"]
        if result["__typename"] != "LaunchRunSuccess":
            why = result.get("message") or "; ".join(error["message"] for error in result.get("errors", []))
            raise DagsterError(f"'{job}' was not launched: {why or result['__typename']}")
        run_id: str = result["run"]["runId"]
        return run_id

    def run(self, run_id: str) -> dict[str, Any]:
        """Status and steps of a run."""
        found: dict[str, Any] = self.query(RUN, id=run_id)["runOrError"]
        return found

    def wait(self, run_id: str, timeout_s: float = 600.0) -> str:
        """Wait until a run has ended; returns its status."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            status: str = self.run(run_id)["status"]
            if status in ENDED:
                return status
            time.sleep(0.5)
        raise DagsterError(f"run {run_id} did not end within {timeout_s:.0f} s: open it in Dagster")

    def why_failed(self, run_id: str) -> list[str]:
        """Sentences that say why a run failed: failed checks first, then failed steps."""
        events = self.query(FAILURES, id=run_id)["logsForRun"]["events"]
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
        """Per asset: FRESH, STALE (an input or the code changed) or MISSING."""
        nodes = self.query(STALE, keys=[{"path": [asset]} for asset in assets], partition=partition)["assetNodes"]
        return {node["assetKey"]["path"][-1]: node["staleStatus"] for node in nodes}


def partition_tags(partition: str) -> dict[str, str]:
    """The tags by which Dagster finds the dimensions of a `language|quarter` partition."""
    if "|" not in partition:
        return {}
    language, quarter = partition.split("|")
    return {"dagster/partition/language": language, "dagster/partition/quarter": quarter}
