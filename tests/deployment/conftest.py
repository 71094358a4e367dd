"""What the deployment tests share: a home folder with a real MLflow registry, toy bundles and verdicts."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from deployment.promotion.decisions import Promotions
from deployment.promotion.ledger import Decision
from deployment.promotion.rules import Rules
from deployment.promotion.settings import PromotionSettings
from deployment.registry.models import ModelVersion, Registry
from evaluation.gates import AT_LEAST, AT_MOST, REQUIRED_GATES, GateResult, GateSettings, Verdict, save_verdict
from evaluation.results import BENCHMARK, QUARTER
from speech.bundle import ModelBundle
from speech.store.objects import Objects, open_objects
from tests.toy_bundle import write_toy_bundle

MODEL = "soundstage-en"
TODAY = datetime.now(UTC).isoformat(timespec="seconds")


def _gate(name: str, test_set: str, wer: float) -> GateResult:
    explanation = f"{name} was measured."
    if name in ("evidence", "export_parity"):
        return GateResult(name, 1.0, 0.99, True, explanation, test_set=test_set, sense=AT_LEAST)
    value, threshold = (wer, 0.15) if name == "wer" else (0.0, 0.0)
    return GateResult(name, value, threshold, value <= threshold, explanation, test_set=test_set, sense=AT_MOST)


def make_verdict(bundle: ModelBundle, *, champion: str | None = None, wer: float = 0.05) -> Verdict:
    """A complete verdict; it passes when `wer` is within 0.15."""
    per_set = ("wer", "cer", "evidence")
    judged = [(name, test_set) for name in per_set for test_set in (QUARTER, BENCHMARK)]
    judged += [(name, "") for name in REQUIRED_GATES if name not in per_set]
    gates = tuple(_gate(name, test_set, wer) for name, test_set in judged)
    return Verdict(
        bundle_digest=bundle.digest,
        model_name=MODEL,
        language=bundle.language,
        partition="en|2024-04",
        passed=all(gate.passed for gate in gates),
        gates=gates,
        dataset_digests={"quarter": "a" * 64},
        evaluation_digest="b" * 64,
        champion_digest=champion,
        settings=GateSettings().model_dump(mode="json"),
        judged_at=TODAY,
    )


def make_rules(objects: Objects, gates: GateSettings | None = None, **asked: object) -> Rules:
    """Rules under which Ada decides, about models that are no worse than the champion."""
    changed = {"approvers": ("Ada",), "require_better": False, **asked}
    return Rules(objects, PromotionSettings.model_validate(changed), gates or GateSettings())


def make_decision(number: int, previous: str, reason: str = "good") -> Decision:
    """An approval that fits after the entry of that hash."""
    return Decision(
        sequence=number,
        time="2024-07-01T00:00:00.000+00:00",
        action="approve",
        language="en",
        model=MODEL,
        version=str(number),
        digest=f"{number:064x}",
        verdict_sha256="0" * 64,
        approver="Ada",
        reason=reason,
        previous_champion="",
        previous_digest="",
        previous_hash=previous,
    )


def rewrite(home: Path, change: Callable[[list[bytes]], list[bytes]], language: str = "en") -> None:
    """Change a ledger's entries behind its back, and number them anew."""
    folder = home / "ledger" / language
    before = [path.read_bytes() for path in sorted(folder.iterdir())]
    shutil.rmtree(folder)
    folder.mkdir()
    for number, entry in enumerate(change(before), start=1):
        (folder / f"{number:08d}.json").write_bytes(entry)


def forked(work: Callable[[], None]) -> int:
    """Run `work` in another process, whose number is returned; the database must not have been opened in this one."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return pid


@dataclass
class House:
    """A home folder and the floor's parts over it."""

    home: Path
    registry: Registry
    promotions: Promotions
    swaps: list[tuple[str, str]] = field(default_factory=list)

    def bundle(self, number: int, language: str = "en") -> ModelBundle:
        """A bundle of its own digest for each number."""
        folder = self.home / "models" / f"{language}-{number}"
        return (
            ModelBundle.load(folder)
            if folder.exists()
            else write_toy_bundle(folder, language, name=f"{language}-{number}", lineage={"number": number})
        )

    def register(
        self, number: int, champion: str | None = None, launched_by: str = "", partition: str = "en|2024-04"
    ) -> ModelVersion:
        """Judge, save the verdict and register."""
        bundle = self.bundle(number)
        verdict = make_verdict(bundle, champion=champion)
        save_verdict(verdict, open_objects(self.home))
        if launched_by:
            self.promotions.rules.launchers.note(bundle.digest, (launched_by,))
        report = self.home / "report.html"
        report.write_text("<html>report</html>")
        return self.registry.register(
            MODEL,
            bundle.path,
            "d" * 64,  # of a checkpoint, which nobody opens here
            verdict,
            report,
            partition=partition,
            dataset_digests={"train": "c" * 64},
            git_revision="0123abc",
            run_links={"training run": "http://127.0.0.1:5000/run"},
            recipe={"recipe": "tiny", "max_steps": 300},
            metrics={"wer": 0.05, "cer": 0.02},
            launched_by=launched_by,
        )

    @property
    def champion(self) -> str | None:
        """The version that the registry's alias points to."""
        found = self.registry.champion(MODEL)
        return found.version if found else None

    def approve(self, number: int, champion: str | None = None) -> Decision:
        """Register a version and have Ada approve it."""
        version = self.register(number, champion)
        return self.promotions.approve("en", MODEL, version.version, "Ada", f"quarter {number} is better")

    def restarted(self, **changes: object) -> Promotions:
        """The promotions of a new process, or with other rules."""
        registry = Registry(self.registry.tracking_uri, open_objects(self.home))
        return self.promotions_over(registry, **changes)

    def promotions_over(self, registry: Registry, **rules: object) -> Promotions:
        """Promotions under some rules, with another registry."""
        return Promotions(registry, make_rules(open_objects(self.home), **rules))


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with its tables: making one takes a second or two."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    Registry(f"sqlite:///{path}", open_objects(path.parent)).versions(MODEL)
    return path


@pytest.fixture
def house(tmp_path: Path, empty_database: Path) -> House:
    (tmp_path / "mlflow").mkdir()
    shutil.copy(empty_database, tmp_path / "mlflow" / "mlflow.db")
    objects = open_objects(tmp_path)
    registry = Registry(f"sqlite:///{tmp_path / 'mlflow' / 'mlflow.db'}", objects)
    promotions = Promotions(registry, make_rules(objects))
    return House(tmp_path, registry, promotions)


@pytest.fixture
def verdict_of() -> Callable[..., Verdict]:
    return make_verdict


@pytest.fixture
def changed_verdict() -> Callable[..., Verdict]:
    return replace


@pytest.fixture
def home(tmp_path: Path) -> Objects:
    """An empty data store in a folder."""
    return open_objects(tmp_path / "home")
