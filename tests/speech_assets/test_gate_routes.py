"""Ways around the gate through whatever can be launched, each refused with a sentence that names the reason.

Real assets and jobs run in process over a data store of their own, with a real MLflow database and real bundles, and
whatever moves a model is launched as a person, a backfill or a sensor would. Only training and recognition are left
out: the evaluation is scored from chosen texts. The rules themselves are tested where they stand, in
`tests/deployment`: here are a way into each asset and job, and what only the graph refuses.
"""

import datetime as dt
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest

from evaluation.gates import GateSettings, judge, load_verdict, save_verdict
from evaluation.results import Evaluation, NonSpeech
from speech.bundle import ModelBundle
from speech.corpus.manifest import Utterance
from speech.corpus.normalize import MANIFEST, Sorted
from speech.store.outputs import write_json
from tests.evaluation.conftest import result_of, rows_with
from tests.sounds import sound_bytes
from tests.toy_bundle import tones, write_toy_bundle

MODEL, QUARTER, LANGUAGE = "soundstage-en", "2024-01", "en"
PARTITION = f"{LANGUAGE}|{QUARTER}"


@cache
def sets_of(wrong: int, champion_wrong: int | None):  # type: ignore[no-untyped-def]
    champion = None if champion_wrong is None else rows_with(champion_wrong)
    return {
        "quarter": result_of(rows_with(wrong)),
        "benchmark": result_of(rows_with(wrong), champion),
    }


@dataclass
class Outcome:
    """How a run ended, and the sentence it failed with."""

    success: bool
    sentence: str
    result: Any


@dataclass
class House:
    """A deployment: its data store, and everything that can be launched in it."""

    home: Path
    settings: Any
    instance: Any
    bundles: Path
    graph: Any = None

    def ruled(self, gates: GateSettings | None = None, **rules: object) -> "House":
        """The same deployment after someone changed its settings."""
        promotion = self.settings.promotion.model_copy(update=rules)
        changed = {"promotion": promotion, **({"gates": gates} if gates else {})}
        return replace(self, settings=self.settings.model_copy(update=changed), graph=None)

    def told(self, url: str, channel: str) -> "House":
        """The same deployment with a Slack channel."""
        from pydantic import SecretStr

        slack = {"slack_token": SecretStr("xoxb-test"), "slack_url": url, "slack_channel": channel}
        alerts = self.settings.alerts.model_copy(update=slack)
        return replace(self, settings=self.settings.model_copy(update={"alerts": alerts}), graph=None)

    @property
    def workspace(self):  # type: ignore[no-untyped-def]
        from speech_assets.defs.resources import Workspace

        return Workspace(self.settings)

    @cached_property
    def promotions(self):  # type: ignore[no-untyped-def]
        return self.workspace.promotions()

    @property
    def registry(self):  # type: ignore[no-untyped-def]
        return self.promotions.registry

    @property
    def ledger(self) -> Path:
        return self.home / "ledger" / "en"

    def bundle(self, number: int) -> ModelBundle:
        folder = self.bundles / str(number)
        if not folder.exists():
            write_toy_bundle(folder, name=f"en-{number}", lineage={"number": number, "data": {}})
        return ModelBundle.load(folder)

    def verdict_file(self, number: int) -> Path:
        return self.home / "verdicts" / f"{self.bundle(number).digest}.json"

    def candidate(self, number: int, wrong: int = 0, champion: int | None = None, champion_wrong: int = 1) -> None:
        """What training, export and evaluation leave in the store: bundle, checkpoint and figures."""
        store, bundle = self.workspace.store, self.bundle(number)
        self.registry.shelf.put(bundle)
        with store.replace("model_bundle", QUARTER, LANGUAGE) as staging:
            write_json(staging.path / "bundle_digest.json", {"digest": bundle.digest})
        with store.replace("finetuned_model", QUARTER, LANGUAGE) as staging:
            digests = {"bundle_digest": bundle.digest, "checkpoint_digest": f"{number:064x}"}
            write_json(staging.path / "training.json", {"recipe": {"recipe": "toy"}, **digests})
        evaluation = Evaluation(
            bundle_digest=bundle.digest,
            model_name=bundle.name,
            language=LANGUAGE,
            partition=PARTITION,
            dataset_digests={"quarter": "1" * 64, "benchmark": "2" * 64},
            sets=sets_of(wrong, None if champion is None else champion_wrong),
            champion_digest=None if champion is None else self.bundle(champion).digest,
            champion_name=None if champion is None else f"en-{champion}",
            nonspeech=NonSpeech(0.0, 2.0, {"silence": 0.0}),
            parity={"utterances": 20, "equal": 1.0},
            rtfx=50.0,
        )
        with store.replace("evaluation", QUARTER, LANGUAGE) as staging:
            evaluation.save(staging.path)

    def judge(self, number: int, judged_at: dt.datetime | None = None, **figures: int) -> None:
        """Figures and their verdict."""
        self.candidate(number, **figures)
        folder = self.workspace.store.current("evaluation", QUARTER, LANGUAGE).path
        save_verdict(judge(Evaluation.load(folder), self.settings.gates, judged_at), self.workspace.objects)

    def register(self, number: int, **figures: Any) -> None:
        """A version that waits as challenger, registered by the asset itself."""
        self.judge(number, **figures)
        registered = self.materialize("registered_model")
        assert registered.success, registered.sentence

    def crown(self, number: int, **figures: Any) -> None:
        """A champion, approved as the job does it."""
        self.register(number, **figures)
        self.promotions.approve(LANGUAGE, MODEL, str(len(self.registry.versions(MODEL))), "Ada", "good")

    def materialize(self, *assets: str, partition: str = PARTITION, tags: dict[str, str] | None = None) -> Outcome:
        import dagster as dg

        return self._outcome(
            self._definitions()
            .resolve_implicit_global_asset_job_def()
            .execute_in_process(
                asset_selection=[dg.AssetKey(asset) for asset in assets],
                partition_key=partition,
                instance=self.instance,
                tags=tags,
                raise_on_error=False,
            )
        )

    def launch(self, job: str, op: str, config: dict[str, Any], tags: dict[str, str] | None = None) -> Outcome:
        return self._outcome(
            self._definitions()
            .resolve_job_def(job)
            .execute_in_process(
                run_config={"ops": {op: {"config": config}}}, instance=self.instance, tags=tags, raise_on_error=False
            )
        )

    def promote(self, version: str = "1", **change: Any) -> Outcome:
        asked = {"model": MODEL, "version": version, "decision": "approve", "approver": "Ada", "reason": "good"}
        return self.launch("promote", "decide_promotion", {**asked, **change})

    def rollback(self, version: str | None = None) -> Outcome:
        asked = {"model": MODEL, "approver": "Ada", "reason": "worse on calls"}
        return self.launch("rollback", "decide_rollback", {**asked, **({"version": version} if version else {})})

    def override(self, number: int, **change: Any) -> Outcome:
        asked = {"language": LANGUAGE, "quarter": QUARTER, "approver": "Ada", "reason": "only read speech matters here"}
        return self.launch(
            "override_gates", "decide_override", {**asked, "bundle_digest": self.bundle(number).digest, **change}
        )

    def release(self) -> Outcome:
        return self.materialize("serving_release", partition=LANGUAGE)

    def checks(self) -> dict[str, tuple[bool, str]]:
        """The checks of `champion`, run now."""
        job = self._definitions().resolve_job_def("check_champion")
        result = job.execute_in_process(instance=self.instance, raise_on_error=False)
        return {e.check_name: (e.passed, e.description) for e in result.get_asset_check_evaluations()}

    def tag(self, **tags: str) -> None:
        """Set tags on version 1 by hand, as people do in MLflow's UI."""
        for key, value in tags.items():
            self.registry.set_version_tag(MODEL, "1", key.replace("__", "."), value)

    def network(self, number: int = 1) -> Path:
        """The network of a bundle, where it is kept."""
        return self.home / "bundles" / self.bundle(number).digest / "network.onnx"

    def state(self) -> tuple[object, ...]:
        """Everything that a route could have moved."""
        champion = self.registry.champion(MODEL)
        release = self.home / "release" / "release.json"
        return (
            [path.read_bytes() for path in sorted(self.ledger.glob("*"))],
            [version.version for version in self.registry.versions(MODEL)],
            champion.version if champion else None,
            release.read_bytes() if release.exists() else b"",
        )

    def reconcile(self, **change: Any) -> Outcome:
        asked = {"language": LANGUAGE, "approver": "Ada", "reason": "looks right"}
        return self.launch("reconcile", "set_to_ledger", {**asked, **change})

    def _definitions(self):  # type: ignore[no-untyped-def]
        from speech_assets.definitions import build

        if self.graph is None:
            self.graph = build(self.settings)
        return self.graph

    @staticmethod
    def _outcome(result: Any) -> Outcome:
        failure = next((event for event in result.all_events if event.is_step_failure), None)
        if failure is None:
            return Outcome(result.success, "", result)
        data = failure.step_failure_data
        described = data.user_failure_data.description if data.user_failure_data else data.error_display_string
        return Outcome(result.success, described, result)


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bundles")


@pytest.fixture
def house(deployment, tmp_path: Path, bundles: Path, empty_registry: Callable[[Path], None]) -> House:  # type: ignore[no-untyped-def]
    import dagster as dg

    from deployment.settings import Settings

    empty_registry(tmp_path)
    settings = Settings.load()
    promotion = settings.promotion.model_copy(update={"approvers": ("Ada", "Bob")})
    serving = settings.serving.model_copy(update={"auto_release": False})  # releases are launched where they matter
    changed = {"languages": (LANGUAGE,), "gates": GateSettings(), "promotion": promotion, "serving": serving}
    settings = settings.model_copy(update={"home": str(tmp_path), **changed})
    return House(tmp_path, settings, dg.DagsterInstance.ephemeral(), bundles)


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def long_ago() -> dt.datetime:
    return dt.datetime.now(dt.UTC) - dt.timedelta(days=100)


# ------------------------------------------------------------------------------- routes: prepare, then what to launch

Launch = Callable[[], Outcome]
ROUTES: dict[str, tuple[Callable[[House], Launch], str]] = {}


def route(reason: str) -> Callable[[Callable[[House], Launch]], Callable[[House], Launch]]:
    """A way around the gate: the function prepares it and returns the launch that must be refused for this reason."""

    def add(prepare: Callable[[House], Launch]) -> Callable[[House], Launch]:
        ROUTES[prepare.__name__] = (prepare, reason)
        return prepare

    return add


@route("did not pass gate wer")
def registration_in_another_run_than_the_failed_check(house: House) -> Launch:
    """As a backfill of selected assets or a selection `without_checks()` does."""
    house.candidate(1, wrong=2)
    judged = house.materialize("verdict")
    assert [e.passed for e in judged.result.get_asset_check_evaluations()] == [False]
    return lambda: house.materialize("registered_model")


@route("network.onnx differs from its sha256")
def bundle_tampered_before_registration(house: House) -> Launch:
    house.judge(1)
    append(house.network())
    return lambda: house.materialize("registered_model")


@route("did not pass gate wer")
def verdict_failed_after_registration(house: House) -> Launch:
    house.register(1)
    house.judge(1, wrong=2)
    return house.promote


@route("'Eve' may not decide about production")
def approver_not_on_the_list(house: House) -> Launch:
    house.register(1)
    return lambda: house.promote(approver="Eve")


@route("did not pass gate wer: WER 30")
def override_of_one_verdict_used_for_a_later_one(house: House) -> Launch:
    allowed = house.ruled(allow_override=True)
    allowed.judge(1, wrong=2)
    assert allowed.override(1).success
    allowed.judge(1, wrong=3)
    return lambda: allowed.materialize("registered_model")


@route("entries were removed from its end")
def release_on_a_ledger_that_was_cut(house: House) -> Launch:
    house.crown(1)
    house.crown(2, champion=1)
    (house.ledger / "00000002.json").unlink()
    return house.release


@route("'Eve' may not decide")
def reconcile_by_somebody_else(house: House) -> Launch:
    house.crown(1)
    return lambda: house.reconcile(approver="Eve")


@route("evaluate and judge this bundle again")
def figures_of_another_bundle_registered(house: House) -> Launch:
    house.judge(2, wrong=1)
    other = house.workspace.store.current("evaluation", QUARTER, LANGUAGE).path / "evaluation.json"
    stale = other.read_bytes()
    house.judge(1)
    (house.workspace.store.current("evaluation", QUARTER, LANGUAGE).path / "evaluation.json").write_bytes(stale)
    return lambda: house.materialize("registered_model")


@route("was reached on another evaluation")
def evaluation_repeated_after_the_verdict(house: House) -> Launch:
    house.judge(1)
    house.candidate(1, wrong=1)
    return lambda: house.materialize("registered_model")


@route("materialise `model_bundle`, `evaluation` and `verdict` again")
def checkpoint_of_another_training_registered(house: House) -> Launch:
    house.judge(1)
    with house.workspace.store.replace("finetuned_model", QUARTER, LANGUAGE) as staging:
        digests = {"bundle_digest": house.bundle(2).digest, "checkpoint_digest": "2" * 64}
        write_json(staging.path / "training.json", {"recipe": {"recipe": "toy"}, **digests})
    return lambda: house.materialize("registered_model")


@route("is not what was registered")
def rollback_to_a_tampered_version(house: House) -> Launch:
    house.crown(1)
    house.crown(2, champion=1)
    append(house.network())
    return house.rollback


@route("did not pass transcripts_fit_audio")
def training_on_a_refused_quarter(house: House) -> Launch:
    with house.workspace.store.replace("utterances", QUARTER, LANGUAGE) as staging:
        Sorted((), ()).write(staging.path)
        write_json(staging.path / "validation.json", {"passed": False, "failed": ["transcripts_fit_audio"]})
    return lambda: house.materialize("finetuned_model")


@pytest.mark.parametrize("name", ROUTES)
def test_route_around_the_gate_is_refused(house: House, name: str) -> None:
    """Refused with one sentence that names the reason, and nothing has moved."""
    prepare, reason = ROUTES[name]
    launch = prepare(house)
    before = house.state()
    outcome = launch()
    assert not outcome.success
    assert reason in outcome.sentence
    assert "\n" not in outcome.sentence.strip(), "one sentence, not a stack"
    assert house.state() == before


# --------------------------------------------------------------------------------- what holds beside the plain refusals


def benchmark(house: House) -> None:
    """Golden utterances that the toy hears."""
    rows = []
    with house.workspace.store.replace("benchmark_set", LANGUAGE) as staging:
        for number, words in enumerate((["one", "two"], ["three", "four"])):
            (staging.path / f"{number}.wav").write_bytes(sound_bytes(tones(words), 16_000))
            rows.append(
                Utterance(
                    id=str(number),
                    audio=f"{number}.wav",
                    duration_s=1.3,
                    text=" ".join(words),
                    speaker=f"speaker {number}",
                    language=LANGUAGE,
                    domain="calls",
                    recorded_at=dt.date(2024, 1, 2),
                    split="test",
                )
            )
        Sorted(tuple(rows), ()).write(staging.path)
    assert (staging.published.path / MANIFEST).exists()


def test_an_alias_moved_by_hand_moves_nothing_and_shows(house: House) -> None:
    """The release follows the ledger; a check says that the registry says something else."""
    house.crown(1)
    house.register(2, champion=1)
    benchmark(house)
    assert all(house.checks()[name][0] for name in ("ledger_intact", "alias_follows_ledger"))
    house.registry.set_alias(MODEL, "champion", "2")
    passed, why = house.checks()["alias_follows_ledger"]
    assert not passed
    assert "version 2, but the ledger says version 1" in why
    released = house.release()
    assert released.success, released.sentence
    routes = json.loads((house.home / "release" / "release.json").read_text())["languages"]["en"]["routes"]
    assert [r["digest"] for r in routes if r["share"] > 0] == [house.bundle(1).digest]
    assert house.reconcile().success
    assert house.checks()["alias_follows_ledger"][0]
    assert house.registry.champion(MODEL).version == "1"


def test_an_edited_ledger_shows_in_its_check(house: House) -> None:
    house.crown(1)
    first = house.ledger / "00000001.json"
    first.write_text(first.read_text().replace('"Ada"', '"Bob"'))
    checks = house.checks()
    assert not checks["ledger_intact"][0]
    assert "entry 1 was changed" in checks["ledger_intact"][1]
    assert not checks["alias_follows_ledger"][0]


def test_a_waiting_challenger_says_who_must_do_what(house: House) -> None:
    """In Dagster's check and on the version in MLflow alike; the check passes again once someone has decided."""
    house.crown(1)
    house.register(2, champion=1)
    passed, why = house.checks()["challenger_waits"]
    assert not passed
    until = (dt.datetime.now(dt.UTC) + dt.timedelta(days=90)).date().isoformat()
    for part in (
        "soundstage-en version 2 waits for Ada or Bob to approve, reject or ask for changes",
        f"until {until}",
        "WER 0.00 % (95 % interval 0.00 % to 0.00 %) on the benchmark",
        "champion soundstage-en/1 has 10.00 %, the difference is -10.00 (-10.00 to -10.00) points",
    ):
        assert part in why
    version = house.registry.version(MODEL, "2")
    assert version.tags["soundstage.status"] == why
    for tag in ("soundstage.decision", "soundstage.approver", "soundstage.reason"):
        assert tag in version.description
    assert version.metrics["champion_benchmark_wer"] == pytest.approx(0.1)
    assert house.promote("2").success
    assert house.checks()["challenger_waits"][0]
    assert "champion, approved by Ada" in house.registry.version(MODEL, "2").tags["soundstage.status"]
    assert "champion until" in house.registry.version(MODEL, "1").tags["soundstage.status"]


def test_changes_made_bring_the_version_back(house: House) -> None:
    house.register(1)
    assert house.promote(decision="request_changes", reason="show the slice of calls").success
    assert house.registry.challenger(MODEL) is None
    house.register(1, judged_at=dt.datetime.now(dt.UTC) + dt.timedelta(seconds=2))
    assert house.registry.challenger(MODEL).version == "1"
    assert house.promote().success


def test_two_persons_are_needed_where_the_launcher_approves(house: House) -> None:
    strict = house.ruled(two_person=True)
    released_at_once = strict.settings.serving.model_copy(update={"auto_release": True})
    strict = replace(strict, settings=strict.settings.model_copy(update={"serving": released_at_once}), graph=None)
    benchmark(strict)
    strict.judge(1)
    assert strict.materialize("registered_model", tags={"soundstage/launched_by": "Ada"}).success
    assert "waits for Bob" in strict.checks()["challenger_waits"][1]
    assert strict.promote(approver="Ada").success
    assert [(e.action, e.launched_by) for e in strict.promotions.history(LANGUAGE)] == [("voice", "Ada")]
    assert strict.registry.champion(MODEL) is None
    assert strict.registry.challenger(MODEL).version == "1"
    assert not (house.home / "release").exists(), "one voice releases nothing"
    assert strict.promote(approver="Bob").success
    assert (house.home / "release" / "release.json").exists()
    assert strict.promotions.current(LANGUAGE).approver == "Bob"


def test_the_launcher_is_who_trained_and_not_who_registered(house: House) -> None:
    """Otherwise a colleague's registration would hide whose work it is."""
    import dagster as dg

    @dg.asset(name="finetuned_model", partitions_def=house.workspace.grid.quarter_language)
    def training() -> dg.MaterializeResult:
        return dg.MaterializeResult(data_version=dg.DataVersion("d" * 64))

    trained = {"partition_key": PARTITION, "instance": house.instance}
    dg.materialize([training], tags={"soundstage/launched_by": "Ada"}, **trained)
    house.judge(1)
    assert house.materialize("registered_model", tags={"soundstage/launched_by": "Bob"}).success
    assert house.registry.version(MODEL, "1").tags["launched_by"] == "Ada"
    dg.materialize([training], tags={"dagster/schedule_name": "retrain"}, **trained)
    house.judge(2)
    assert house.materialize("registered_model").success
    assert house.registry.version(MODEL, "2").tags["launched_by"] == "Ada, schedule retrain"


def test_an_override_is_signed_names_its_gates_and_is_served_and_rolled_back_to(house: House) -> None:
    """Refused, accepted for exactly this bundle, registered, approved, served, replaced and gone back to."""
    allowed = house.ruled(allow_override=True)
    benchmark(allowed)
    allowed.judge(1, wrong=2)
    assert not allowed.materialize("registered_model").success
    overridden = allowed.override(1)
    assert overridden.success, overridden.sentence
    assert allowed.materialize("registered_model").success
    assert "overridden" in allowed.registry.version(MODEL, "1").tags["verdict"]
    approved = allowed.promote(override_gates=True, reason="read speech only")
    assert approved.success, approved.sentence
    first, second = allowed.promotions.history(LANGUAGE)
    assert (first.action, first.version, first.digest) == ("override", "", house.bundle(1).digest)
    assert (second.action, second.approver, second.reason) == ("approve", "Ada", "read speech only")
    assert second.overridden == first.overridden
    assert "wer on quarter" in second.overridden
    house = allowed.ruled(allow_override=False)
    assert house.release().success, "what was decided holds when overriding is switched off again"
    house.crown(2, champion=1, champion_wrong=2)
    back = house.rollback()
    assert back.success, back.sentence
    assert house.promotions.current(LANGUAGE).overridden == second.overridden
    assert house.release().success
    house.judge(1, wrong=3)
    refused = house.release()
    assert "did not pass gate wer" in refused.sentence, "it was accepted with those figures, not with any"


def ticked(house: House) -> list[Any]:
    """What the sensor asks Dagster to launch now."""
    import dagster as dg

    from speech_assets.defs.approvals import approvals

    context = dg.build_sensor_context(instance=house.instance, resources={"workspace": house.workspace})
    return list(approvals.evaluate_tick(context).run_requests or ())


def started(house: House, request: Any) -> Outcome:
    """The run that Dagster's daemon would launch for a sensor's request."""
    return House._outcome(
        house._definitions()
        .resolve_job_def(request.job_name)
        .execute_in_process(
            run_config=request.run_config, tags=request.tags, instance=house.instance, raise_on_error=False
        )
    )


def test_a_decision_asked_for_by_tags_is_taken_once_and_answered(house: House) -> None:
    house.register(1)
    house.tag(soundstage__decision="approve", soundstage__approver="Ada")
    assert ticked(house) == []
    tags = house.registry.version(MODEL, "1").tags
    assert tags["soundstage.outcome"] == "waiting for the tags soundstage.reason"
    house.tag(soundstage__reason="all gates passed")
    (request,) = ticked(house)
    assert [again.run_key for again in ticked(house)] == [request.run_key], "Dagster launches a run key once"
    assert started(house, request).success
    assert house.promotions.current(LANGUAGE).approver == "Ada"
    tags = house.registry.version(MODEL, "1").tags
    assert tags["soundstage.outcome"].startswith("done: soundstage-en version 1 is the champion")
    assert "soundstage.decision" not in tags
    assert ticked(house) == []
    assert started(house, request).success, "the same run again, as after a retry"
    assert len(house.promotions.history(LANGUAGE)) == 1


@pytest.mark.parametrize(
    ("asked", "outcome"),
    [
        ({"approver": "Eve"}, "refused: 'Eve' may not decide about production (allowed: Ada, Bob)"),
        ({"decision": "aprove"}, "refused: soundstage.decision is 'aprove', not one of approve, reject, request"),
    ],
)
def test_a_request_that_may_not_be_granted_is_answered_in_mlflow(house: House, asked: Any, outcome: str) -> None:
    house.register(1)
    wanted = {"decision": "approve", "approver": "Ada", "reason": "good", **asked}
    house.tag(**{f"soundstage__{key}": value for key, value in wanted.items()})
    before = house.state()
    runs = [started(house, request) for request in ticked(house)]
    assert not any(run.success for run in runs)
    assert house.registry.version(MODEL, "1").tags["soundstage.outcome"].startswith(outcome)
    assert house.state() == before
    first = {request.run_key for request in ticked(house)}
    assert first == set(), "answered, so it is not taken again"
    house.tag(**{f"soundstage__{key}": value for key, value in wanted.items()})
    assert house.registry.version(MODEL, "1").tags["soundstage.requests_answered"] == "1"


def test_a_request_whose_run_was_killed_is_answered(house: House) -> None:
    """Dagster never launches a run key twice, so a person has to know that nothing more will come of it."""
    import dagster as dg

    house.register(1)
    wanted = {"decision": "approve", "approver": "Ada", "reason": "good"}
    house.tag(**{f"soundstage__{key}": value for key, value in wanted.items()})
    (request,) = ticked(house)
    killed = dg.DagsterRun(job_name="promote", status=dg.DagsterRunStatus.FAILURE, tags=dict(request.tags))
    house.instance.add_run(killed)
    assert ticked(house) == []
    outcome = house.registry.version(MODEL, "1").tags["soundstage.outcome"]
    assert killed.run_id in outcome
    assert "again" in outcome
    house.tag(**{f"soundstage__{key}": value for key, value in wanted.items()})
    (again,) = ticked(house)
    assert again.run_key != request.run_key
    assert started(house, again).success


def test_an_overdue_challenger_is_closed_by_the_system(house: House) -> None:
    house.register(1, judged_at=long_ago())
    assert "cannot be approved" in house.checks()["challenger_waits"][1]
    (looked,) = ticked(house)
    assert looked.job_name == "check_champion"
    (entry,) = house.promotions.history(LANGUAGE)
    assert (entry.action, entry.approver) == ("expire", "soundstage")
    assert house.registry.challenger(MODEL) is None
    assert ticked(house) == []
    house.register(1)
    assert house.promote().success, "judged anew, it may be approved"


def test_one_broken_language_does_not_stop_the_requests_of_others(house: House) -> None:
    """A ledger that was edited, and a number that only looks like one, which anyone can write into a tag."""
    from tests.deployment.conftest import make_verdict

    house.crown(1)
    house.register(2, champion=1, judged_at=long_ago())
    first = house.ledger / "00000001.json"
    first.write_text(first.read_text().replace('"Ada"', '"Bob"'))
    house = replace(house, settings=house.settings.model_copy(update={"languages": (LANGUAGE, "de")}), graph=None)
    german = write_toy_bundle(house.home / "german", "de", name="de-1")
    house.registry.register("soundstage-de", german.path, None, make_verdict(german), None, partition="de|2024-01")
    asked = {"approver": "Ada", "reason": "good", "decision": "approve", "requests_answered": "²"}
    for key, value in asked.items():
        house.registry.set_version_tag("soundstage-de", "1", f"soundstage.{key}", value)
    (request,) = ticked(house)
    assert request.run_key.startswith("soundstage-de/1/0/")


def unreachable_once(monkeypatch: pytest.MonkeyPatch, place: object, name: str, *, after: bool) -> list[str]:
    """MLflow cannot be reached at a function's first call, before or after it did its work; returns the calls."""
    from speech_assets.defs import retries

    monkeypatch.setattr(retries, "FIRST_WAIT_S", 0.0)
    real, calls = getattr(place, name), []

    def flaky(*args: Any, **options: Any) -> Any:
        calls.append(name)
        if len(calls) > 1:
            return real(*args, **options)
        if after:
            real(*args, **options)
        raise ConnectionError("the registry does not answer")

    monkeypatch.setattr(place, name, flaky)
    return calls


@pytest.mark.parametrize("after", [False, True], ids=["before it was recorded", "after it was recorded"])
def test_a_decision_is_tried_again_when_the_registry_cannot_be_reached(
    house: House, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    from deployment.promotion.decisions import Promotions

    house.register(1)
    calls = unreachable_once(monkeypatch, Promotions, "approve", after=after)
    approved = house.promote()
    assert approved.result.success, approved.sentence
    assert len(calls) == 2
    assert [e.action for e in house.promotions.history(LANGUAGE)] == ["approve"]


def test_a_rollback_that_is_tried_again_goes_back_once(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """The roll-back was taken, and only showing it failed."""
    from speech_assets.defs import approvals

    house.crown(1)
    house.crown(2, champion=1)
    house.crown(3, champion=2)
    calls = unreachable_once(monkeypatch, approvals, "log_checks", after=False)
    assert house.rollback().result.success
    assert len(calls) == 2
    assert house.promotions.current(LANGUAGE).version == "2"


def test_a_repair_is_tried_again_when_the_registry_cannot_be_reached(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deployment.promotion.decisions import Promotions

    house.crown(1)
    calls = unreachable_once(monkeypatch, Promotions, "reconcile", after=False)
    assert house.reconcile().result.success
    assert len(calls) == 2


def test_a_candidate_is_compared_with_the_ledgers_champion_though_its_version_was_deleted(house: House) -> None:
    """The alias goes with the version; the decision, and the copy that was served, do not."""
    from speech_assets.defs.evaluation import _champion

    house.crown(1)
    house.registry.mlflow.delete_model_version(MODEL, "1")
    assert house.registry.champion(MODEL) is None
    assert _champion(house.workspace, LANGUAGE).bundle.digest == house.bundle(1).digest
    house.register(2, champion=1)
    approved = house.promote("2")
    assert approved.success, approved.sentence
    assert house.promotions.check_alias(LANGUAGE, MODEL) is None


def test_a_champion_that_is_nowhere_says_the_way_out(house: House) -> None:
    import dagster as dg

    from speech_assets.defs.evaluation import _champion

    house.crown(1)
    house.crown(2, champion=1)
    house.registry.mlflow.delete_model_version(MODEL, "2")
    shutil.rmtree(house.network(2).parent)
    with pytest.raises(dg.Failure) as refused:
        _champion(house.workspace, LANGUAGE)
    assert "roll back to an earlier champion" in refused.value.description
    back = house.rollback()
    assert back.success, back.sentence
    assert _champion(house.workspace, LANGUAGE).bundle.digest == house.bundle(1).digest
    house.register(3, champion=1)
    assert house.promote("3").success


@pytest.fixture
def slack() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """A server that stands for Slack's API: its address, and what was posted to it."""
    posted: list[dict[str, str]] = []

    class Slack(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            fields = dict(parse_qsl(body)) if "json" not in self.headers["Content-Type"] else json.loads(body)
            posted.append({"method": self.path, "authorization": self.headers["Authorization"], **fields})
            answer = json.dumps({"ok": fields["channel"] != "#gone", "error": "channel_not_found"}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *arguments: object) -> None:
            """Say nothing: the test reads `posted`."""

    server = HTTPServer(("127.0.0.1", 0), Slack)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/api/", posted
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_slack_hears_of_challengers_and_decisions(house: House, slack) -> None:  # type: ignore[no-untyped-def]
    url, posted = slack
    told = house.told(url, "#models")
    told.register(1)
    told.register(1)
    (waits,) = posted
    assert (waits["method"], waits["authorization"]) == ("/api/chat.postMessage", "Bearer xoxb-test")
    assert waits["channel"] == "#models"
    for part in (
        "waits for Ada or Bob",
        "WER 0.00 %",
        "/jobs/promote/playground/setup?config=",
        "/reports/2024-01/en/",
    ):
        assert part in waits["text"]
    assert told.promote().success
    assert "is the champion of 'en', approved by Ada on " in posted[-1]["text"]
    assert "benchmark_wer 0.0000" in posted[-1]["text"]
    deaf = house.told(url, "#gone")
    deaf.register(2, champion=1)
    assert deaf.promote("2").success, "a channel that is gone does not stop a decision"
    assert len(posted) == 4


def test_the_verdict_names_its_age_and_comparison(house: House) -> None:
    house.crown(1)
    house.judge(2, champion=1)
    verdict = load_verdict(house.workspace.objects, house.bundle(2).digest)
    assert verdict.improves
    assert verdict.comparison.high < 0
    assert dt.datetime.now(dt.UTC) - dt.datetime.fromisoformat(verdict.judged_at) < dt.timedelta(minutes=5)


def test_the_report_shows_the_verdict_in_force(house: House) -> None:
    """What people read beside a decision is what was judged, whatever was judged before under other thresholds."""
    page = house.home / "pages" / "reports" / QUARTER / LANGUAGE / "index.html"
    house.candidate(1, wrong=1)
    assert not page.exists(), "nothing was judged yet"
    assert house.materialize("verdict").success
    assert "passed every gate" in page.read_text()
    stricter = house.ruled(gates=GateSettings(wer=0.01))
    assert stricter.materialize("verdict").result.get_asset_materialization_events()
    assert "passed every gate" not in page.read_text()
    assert "refused by" in page.read_text()


def test_reconcile_refuses_a_language_that_is_not_there(house: House) -> None:
    asked = {"language": "fr", "approver": "Ada", "reason": "tidying up"}
    outcome = house.launch("reconcile", "set_to_ledger", asked)
    assert not outcome.success
    assert "there is no model 'soundstage-fr'" in outcome.sentence
