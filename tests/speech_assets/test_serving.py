"""Decisions and releases in Dagster, with a real replica: who runs what, and what the asset page says about it."""

import errno
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import Tier
from tests.toy_registry import register_versions, write_golden

MODEL, LANGUAGE = "soundstage-en", "en"
PROMOTE = {"model": MODEL, "decision": "approve", "approver": "Ada", "reason": "better on calls"}
ROLLBACK = {"model": MODEL, "approver": "Ada", "reason": "worse on calls"}


@dataclass
class Served:
    """A deployment and its serving tier."""

    tier: Tier
    workspace: Any
    instance: Any
    definitions: Any

    def launch(self, job: str, op: str, **config: str) -> Any:
        return self._run(job, run_config={"ops": {op: {"config": config}}})

    def check(self) -> Any:
        """The check alone, as anybody can run it at any time."""
        result = self._run("check_serving")
        assert result.success
        return result.get_asset_check_evaluations()[0]

    def materialize(self, asset: str) -> Any:
        import dagster as dg

        graph = self.definitions.resolve_implicit_global_asset_job_def()
        return graph.execute_in_process(
            asset_selection=[dg.AssetKey(asset)],
            partition_key=LANGUAGE,
            instance=self.instance,
            raise_on_error=False,
        )

    def running(self) -> dict[str, float]:
        """What the replica itself says."""
        report = self.tier.wait("a", lambda report: LANGUAGE in report.languages)
        return dict(report.languages[LANGUAGE].active)

    def _run(self, job: str, **options: Any) -> Any:
        return self.definitions.resolve_job_def(job).execute_in_process(
            instance=self.instance, raise_on_error=False, **options
        )


@pytest.fixture
def served(deployment, tmp_path: Path, empty_registry: Callable[[Path], None]):  # type: ignore[no-untyped-def]
    import dagster as dg

    from deployment.settings import Settings
    from speech_assets.definitions import build
    from speech_assets.defs.resources import Workspace

    empty_registry(tmp_path)
    settings = Settings.load()
    promotion = settings.promotion.model_copy(update={"approvers": ("Ada",), "require_better": False})
    serving = settings.serving.model_copy(update={"canary_s": 1.5, "canary_requests": 20, "drain_s": 5.0})
    gates = type(settings.gates)()
    changed = {"home": str(tmp_path), "promotion": promotion, "serving": serving, "gates": gates}
    workspace = Workspace(settings.model_copy(update=changed))
    write_golden(workspace)
    tier = Tier(tmp_path)
    yield Served(tier, workspace, dg.DagsterInstance.ephemeral(), build(workspace.settings))
    for process in tier.processes.values():
        process.kill()
        process.wait()


def materialized(result: Any) -> dict[str, Any]:
    event = next(
        e for e in result.all_events if e.is_step_materialization and e.asset_key.to_user_string() == "serving_release"
    )
    return {key: value.value for key, value in event.materialization.metadata.items()}


def failure(result: Any) -> tuple[str, str]:
    event = next(e for e in result.all_events if e.is_step_failure)
    return event.step_key, event.step_failure_data.user_failure_data.description


def test_a_decision_is_served_when_its_run_ends_and_going_back_takes_seconds(served: Served) -> None:
    served.tier.start("a")
    digests = register_versions(served.workspace, {}, {"confuse": [("one", "two")]})
    first = served.launch("promote", "decide_promotion", version="1", **PROMOTE)
    assert first.success, failure(first)
    assert served.running() == {digests["1"]: 1.0}
    second = served.launch("promote", "decide_promotion", version="2", **PROMOTE)
    assert second.success, failure(second)
    assert served.running() == {digests["2"]: 1.0}
    shown = materialized(second)
    assert shown["version"] == 2
    assert shown["canary_requests"] >= 20
    assert shown["canary_errors"] == 0
    assert "the canary passed" in shown["history"]
    back = served.launch("rollback", "decide_rollback", **ROLLBACK)
    assert back.success, failure(back)
    decided = served.workspace.promotions().current(LANGUAGE)
    assert decided.action == "rollback"
    assert served.running() == {digests["1"]: 1.0}
    assert "on standby" in materialized(back)["history"]
    assert materialized(back)["seconds"] < 10
    for result in (first, second, back):
        (check,) = [e for e in result.get_asset_check_evaluations() if e.check_name == "serves_the_champion"]
        assert check.passed, check.description


def test_probes_are_typical_recordings_each_of_another_speaker(served: Served) -> None:
    """A quiet one of a single word, the shortest of all, would refuse a version that serves well."""
    import datetime as dt

    from speech.corpus.manifest import Utterance
    from speech.corpus.normalize import Sorted
    from speech_assets.defs.serving import _golden

    spoken = [
        ("a", 0.3),
        ("a", 4.1),
        ("b", 0.2),
        ("b", 4.4),
        ("c", 3.9),
        ("c", 4.0),
        ("d", 11.0),
        ("e", 7.0),
        ("f", 2.0),
    ]
    with served.workspace.store.replace("benchmark_set", LANGUAGE) as staging:
        rows = []
        for number, (speaker, duration_s) in enumerate(spoken):
            (staging.path / f"{number}.wav").write_bytes(b"RIFF")
            day = dt.date(2024, 1, 2)
            of = {"speaker": speaker, "language": LANGUAGE, "domain": "calls", "recorded_at": day, "split": "test"}
            rows.append(
                Utterance(id=str(number), audio=f"{number}.wav", duration_s=duration_s, text=str(duration_s), **of)
            )
        Sorted(tuple(rows), ()).write(staging.path)
    probes = _golden(served.workspace, LANGUAGE)
    around_the_median = [4.0, 4.1, 4.4, 2.0, 7.0]
    assert [spoken[int(audio.stem)][1] for audio in probes] == around_the_median
    assert [audio.name for audio in probes] == ["5.wav", "1.wav", "3.wav", "8.wav", "7.wav"]
    assert _golden(served.workspace, LANGUAGE) == probes


def test_a_rejection_moves_nothing(served: Served) -> None:
    register_versions(served.workspace, {})
    result = served.launch("promote", "decide_promotion", version="1", **{**PROMOTE, "decision": "reject"})
    assert result.success, failure(result)
    assert served.tier.folder.read().revision == 0


def test_the_champion_is_served_again_from_its_verified_copy_whatever_became_of_its_version(served: Served) -> None:
    """What was approved is a digest, and these are its bytes: nothing that MLflow says is needed to serve them."""
    served.tier.start("a")
    digests = register_versions(served.workspace, {})
    assert served.launch("promote", "decide_promotion", version="1", **PROMOTE).success
    registry = served.workspace.registry()
    registry.set_version_tag(MODEL, "1", "bundle_digest", "e" * 64)
    edited = served.materialize("serving_release")
    assert edited.success, failure(edited)
    registry.mlflow.delete_model_version(MODEL, "1")
    deleted = served.materialize("serving_release")
    assert deleted.success, failure(deleted)
    assert served.running() == {digests["1"]: 1.0}


def test_a_release_that_went_back_is_seen_at_its_run_its_asset_and_its_check(served: Served) -> None:
    import dagster as dg

    served.tier.start("a")
    digests = register_versions(served.workspace, {}, {"effort": 60})
    assert served.launch("promote", "decide_promotion", version="1", **PROMOTE).success
    slow = served.launch("promote", "decide_promotion", version="2", **PROMOTE)
    assert not slow.success
    step, sentence = failure(slow)
    assert step == "release_decided", "the decision stands, its release went back"
    assert "its answers take" in sentence
    assert served.running() == {digests["1"]: 1.0}
    (observed,) = served.instance.fetch_observations(dg.AssetKey("serving_release"), limit=5).records
    assert "returned" in observed.asset_observation.metadata["history"].value
    assert observed.asset_observation.metadata["canary_p50_ms"].value > 0
    check = served.check()
    assert not check.passed
    assert "replica a at http" in check.description
    assert "runs version 1 (" in check.description
    assert "but the champion is version 2 (" in check.description


def test_the_check_asks_the_replicas_and_not_the_document(served: Served) -> None:
    """Nobody released anything: a replica that runs something else is found all the same."""
    from deployment.release.document import LanguageRelease

    served.tier.start("a")
    digests = register_versions(served.workspace, {}, {"confuse": [("one", "two")]})
    assert served.check().passed, "no champion, and nothing is served"
    assert served.launch("promote", "decide_promotion", version="1", **PROMOTE).success
    folder = served.tier.folder
    former = folder.read().languages[LANGUAGE]
    assert served.launch("promote", "decide_promotion", version="2", **PROMOTE).success
    assert served.check().passed
    folder.set_language(LANGUAGE, former)
    assert served.running() == {digests["1"]: 1.0}
    check = served.check()
    assert not check.passed
    assert f"but the champion is version 2 ({digests['2'][:12]})" in check.description
    never = served.tier.bundle("never-judged", approved=False, confuse=[("three", "four")])
    served.tier.serve(never)
    assert served.running() == {digests["1"]: 1.0}, "what serves goes on"
    assert "nobody approved it" in served.check().description
    folder.set_language(LANGUAGE, LanguageRelease(()))
    assert served.running() == {}
    assert "runs nothing" in served.check().description
    served.tier.stop("a")
    gone = served.check()
    assert not gone.passed
    assert gone.severity.value == "WARN"
    assert "no replica of the serving tier is alive" in gone.description


def test_a_champion_moved_by_other_means_is_released_by_the_asset(served: Served) -> None:
    """Jobs that release in their own run do not cause a second one."""
    import dagster as dg

    register_versions(served.workspace, {})
    watched = dg.AssetSelection.assets("serving_release")

    def asked(cursor: Any = None) -> Any:
        return dg.evaluate_automation_conditions(
            served.definitions, served.instance, asset_selection=watched, cursor=cursor
        )

    candidate = dg.AssetMaterialization(dg.AssetKey("registered_model"), partition=f"{LANGUAGE}|2024-01")
    served.instance.report_runless_asset_event(candidate)
    first = asked()
    assert served.launch("promote", "decide_promotion", version="1", **PROMOTE).success
    second = asked(first.cursor)
    assert second.total_requested == 0
    moved = dg.AssetMaterialization(dg.AssetKey("champion"), partition=LANGUAGE)
    served.instance.report_runless_asset_event(moved)
    assert asked(second.cursor).total_requested == 1


def test_a_slow_release_does_not_undo_a_rollback_that_was_decided_meanwhile(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever goes back is in a hurry, and a download takes minutes: the older decision comes too late."""
    from deployment.registry.models import Registry

    served.tier.start("a")
    digests = register_versions(served.workspace, {}, {"confuse": [("one", "two")]})
    for version in ("1", "2"):
        assert served.launch("promote", "decide_promotion", version=version, **PROMOTE).success
    obtain, went_back = Registry.obtain, []

    def slow(registry: Registry, digest: str, model: str, version: str) -> Path:
        found = obtain(registry, digest, model, version)
        if version == "2" and not went_back:
            with ThreadPoolExecutor(1) as other:
                went_back.append(other.submit(served.launch, "rollback", "decide_rollback", **ROLLBACK).result())
        return found

    monkeypatch.setattr(Registry, "obtain", slow)
    late = served.materialize("serving_release")
    assert went_back[0].success, failure(went_back[0])
    assert not late.success
    assert "version 2 is no longer the champion: version 1 is" in failure(late)[1]
    assert served.running() == {digests["1"]: 1.0}
    assert served.tier.folder.history(LANGUAGE)[-1].state == "refused"
    assert served.check().passed


def test_a_registry_that_cannot_be_reached_is_tried_again_and_a_refusal_is_not(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deployment.registry.models import Registry, RegistryError
    from speech_assets.defs import retries

    monkeypatch.setattr(retries, "FIRST_WAIT_S", 0.05)
    register_versions(served.workspace, {})
    refused = served.materialize("serving_release")
    assert "no champion yet" in failure(refused)[1]
    assert not any(event.is_step_up_for_retry for event in refused.all_events)
    assert served.launch("promote", "decide_promotion", version="1", **PROMOTE).success
    obtain, away = Registry.obtain, [1, 2]

    def unreliable(registry: Registry, digest: str, model: str, version: str) -> Path:
        if away:
            away.pop()
            raise RegistryError("MLflow does not answer") from ConnectionError("connection refused")
        return obtain(registry, digest, model, version)

    monkeypatch.setattr(Registry, "obtain", unreliable)
    released = served.materialize("serving_release")
    assert released.success, failure(released)
    assert sum(event.is_step_up_for_retry for event in released.all_events) == 2


def test_a_data_store_that_was_away_during_a_release_is_tried_again(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deployment.release.document import ReleaseDocument
    from deployment.release.folder import ReleaseFolder
    from speech_assets.defs import retries

    monkeypatch.setattr(retries, "FIRST_WAIT_S", 0.05)
    digests = register_versions(served.workspace, {})
    promotions = served.workspace.promotions()
    promotions.approve(LANGUAGE, MODEL, "1", "Ada", "better on calls")
    write, away = ReleaseFolder.set_language, [1]

    def unreliable(folder: ReleaseFolder, language: str, *release: Any) -> ReleaseDocument:
        if away:
            away.pop()
            raise OSError(errno.ESTALE, "Stale file handle")
        return write(folder, language, *release)

    monkeypatch.setattr(ReleaseFolder, "set_language", unreliable)
    released = served.materialize("serving_release")
    assert released.success, failure(released)
    assert [step.state for step in served.tier.folder.history(LANGUAGE)] == ["verify", "returned", "verify", "full"]
    (route,) = served.tier.folder.read().languages[LANGUAGE].routes
    assert route.digest == digests["1"]


def test_the_schedule_looks_once_there_is_something_to_look_at(served: Served) -> None:
    import dagster as dg

    from speech_assets.defs.serving import watch_serving

    def tick() -> Any:
        context = dg.build_schedule_context(instance=served.instance, resources={"workspace": served.workspace})
        return watch_serving.evaluate_tick(context)

    assert "nothing was released yet" in tick().skip_message
    served.tier.serve(served.tier.bundle("en-1"))
    assert len(tick().run_requests) == 1
    (served.tier.home / "release" / "release.json").unlink()
    assert not tick().run_requests
    served.tier.start("a")
    assert len(tick().run_requests) == 1, "a replica that lives is looked at whatever became of the document"
