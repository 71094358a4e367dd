"""The main job, end to end, on this machine: `make demo`.

Quarters of the embedded corpus become validated manifests, fine-tuned models, judged candidates and MLflow versions;
one version is approved and released; the running server transcribes a recording that nobody trained on. Everything is
launched in a real Dagster through its API, as a person would from the UI. What is there already and has not changed is
not done again.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from deployment.batch.arrivals import hours_with_arrivals
from deployment.batch.arrivals.folder import SETTLED_S
from deployment.batch.settings import is_uri
from deployment.settings import Settings, SettingsError
from evaluation.gates import load_verdict
from speech.corpus.manifest import Utterance, hours_of
from speech.corpus.normalize import rows_of
from speech.store.outputs import StoreError
from speech_assets.backfill import UP_TO_DATE, unfinished
from speech_assets.chain import (
    BASE_CORPUS,
    CORPUS,
    INFERENCE,
    JUDGEMENT,
    LABEL_MODELS,
    LANGUAGE_BASE,
    LANGUAGE_INTENTS,
    MODELS,
)
from speech_assets.dagster_client import ENDED, LAUNCHED_BY, DagsterClient, DagsterError
from speech_assets.defs.corpus import refused_by
from speech_assets.defs.evaluation import load_evaluation
from speech_assets.defs.metadata import quarter_heading
from speech_assets.defs.partitions import Grid
from speech_assets.defs.resources import Workspace
from speech_assets.demo_hour import Spoken, outcome, write_uploads
from speech_assets.local import services
from speech_assets.partition_keys import partition_of, quarter_and_language_of

CANDIDATE = (*MODELS, *JUDGEMENT)
QUARTERS, OTHERS = 3, 1  # quarters of the demo, from the first: of the first language, and of each other
RELEASE_TIMEOUT_S = 180.0
POLL_S = 1.0
LINE_EVERY_S = 30.0  # where no terminal shows the bars


@dataclass(frozen=True)
class Step:
    """A run of the demo: some assets of one partition."""

    title: str
    assets: tuple[str, ...]
    partition: str


@dataclass
class ProgressLines:
    """What the bars show, as lines of a log: one when an asset begins, and one every half minute after it."""

    console: Console
    _said: dict[str, tuple[str, float]] = field(default_factory=dict)  # by title: asset and seconds of the last line

    def tell(self, title: str, asset: str, shown: str, elapsed_s: float) -> None:
        """Say what a run does, unless it was said just now; `asset` is empty while the run waits or is between two."""
        before, said_s = self._said.get(title, ("", 0.0))
        if asset in ("", before) and elapsed_s - said_s < LINE_EVERY_S:
            return
        self._said[title] = (asset or before, elapsed_s)
        took = timedelta(seconds=round(elapsed_s))
        self.console.print(f"  {title}: {shown} ({took})", highlight=False, markup=False, soft_wrap=True)


class Demo:
    """Launches the steps in a running Dagster, shows them, and sums up."""

    def __init__(self, settings: Settings, console: Console) -> None:
        self.settings = settings
        self.console = console
        self.workspace = Workspace(settings)
        self.store = self.workspace.store
        self.dagster = DagsterClient(settings.dagster_listens)
        self.refusals: dict[str, str] = {}

    def run_all(self, steps: Sequence[Step]) -> None:
        """Run steps side by side; a refused partition is noted and does not stop the others."""
        with Progress(
            SpinnerColumn(),
            TextColumn("{task.description:<28}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[now]}"),
            TimeElapsedColumn(),
            console=self.console,
            refresh_per_second=2,
        ) as progress:
            launched: dict[str, tuple[Step, TaskID]] = {}
            lines = None if self.console.is_terminal else ProgressLines(self.console)
            for step in steps:
                task = progress.add_task(step.title, total=len(step.assets), now="")
                todo = self._to_do(step)
                if not todo:
                    note = self.refusals.get(step.partition)
                    progress.update(task, completed=len(step.assets), now="refused before" if note else "unchanged")
                    continue
                launched[self.dagster.materialize(todo, step.partition, {LAUNCHED_BY: "make demo"})] = (step, task)
            while launched:
                time.sleep(POLL_S)
                for run_id, (step, task) in list(launched.items()):
                    run = self.dagster.run(run_id)
                    done = [s["stepKey"] for s in run["stepStats"] if s["status"] in {"SUCCESS", "SKIPPED"}]
                    now = [s["stepKey"] for s in run["stepStats"] if s["status"] == "IN_PROGRESS"]
                    training = self._training_progress(step, now)
                    shown = training or (now[0] if now else run["status"].lower().replace("_", " "))
                    progress.update(task, completed=len(done), now=shown)
                    if lines and run["status"] not in ENDED:
                        lines.tell(step.title, now[0] if now else "", shown, progress.tasks[task].elapsed or 0.0)
                    if run["status"] in ENDED:
                        self._ended(run_id, run, step, progress, task)
                        del launched[run_id]

    def _ended(self, run_id: str, run: Mapping[str, Any], step: Step, progress: Progress, task: TaskID) -> None:
        if run["status"] == "SUCCESS":
            progress.update(task, completed=len(step.assets), now="done")
            return
        reasons = self.dagster.why_failed(run_id)
        self.refusals[step.partition] = reasons[0]
        progress.update(task, now="[yellow]refused[/yellow]")
        for reason in reasons[:3]:
            progress.console.print(f"  [yellow]{step.title}[/yellow]: {escape(reason)}", highlight=False)

    def _to_do(self, step: Step) -> list[str]:
        """The assets of a step from the first that is missing or stale on, unless the partition was refused already."""
        stale = self.dagster.stale(step.assets, step.partition)
        todo = unfinished(step.assets, stale)
        if todo and (refusal := self._standing_refusal(step, stale)):
            self.refusals[step.partition] = refusal
            return []
        return todo

    def _standing_refusal(self, step: Step, stale: Mapping[str, str]) -> str | None:
        """Why a partition stands refused though what was judged is up to date; None when it does not."""
        quarter, language = quarter_and_language_of(step.partition)
        if not quarter or any(stale.get(asset, UP_TO_DATE) != UP_TO_DATE for asset in CORPUS):
            return None
        if failed := refused_by(self.workspace, quarter, language):
            return f"utterances: {', '.join(failed)} failed"
        if stale.get("verdict") != UP_TO_DATE:
            return None
        bundle = self.workspace.bundle(quarter, language)
        gates = dict.fromkeys(gate.name for gate in load_verdict(self.workspace.objects, bundle.digest).failures)
        return f"verdict: {', '.join(gates)} failed" if gates else None

    def _training_progress(self, step: Step, now: Sequence[str]) -> str | None:
        """What a running training says about itself."""
        partition = tuple(filter(None, quarter_and_language_of(step.partition)))
        for asset in {"base_model", "finetuned_model"}.intersection(now):
            for path in self.settings.local.joinpath("training", asset, *partition).glob("*/progress.json"):
                try:
                    said = json.loads(path.read_text())
                    wer = f", dev WER {said['wer']:.1%}" if said.get("wer") is not None else ""
                    loss = f", loss {said['loss']:.2f}" if said.get("loss") is not None else ""
                    left = f", {said['eta_s']:.0f} s left" if said.get("eta_s") else ""
                    at = f" {said['step']}/{said['max_steps']}" if said["step"] or wer else ""
                    return f"{asset} {said['phase']}{at}{loss}{wer}{left}"
                except (OSError, ValueError, KeyError, TypeError):
                    continue
        return None

    def approve(self, language: str) -> str | None:
        """Approve the newest version of a language, as a person would in the launchpad of `promote`; the run's id."""
        model = self.workspace.registered_name(language)
        versions = self.workspace.registry().versions(model)
        if not versions:
            raise DagsterError(f"no version of {model} passed its gates, so there is nothing to approve")
        version = versions[0]
        decision = self.workspace.promotions().current(language)
        if decision is not None and decision.digest == version.digest:
            self.console.print(f"{model} version {version.version} is the champion already", markup=False)
            return None
        self.console.print(f"approving {escape(model)} version {version.version} through the job [bold]promote[/bold]")
        decided = {
            "model": model,
            "version": version.version,
            "decision": "approve",
            "approver": self.settings.promotion.approvers[0],
            "reason": "Demonstration: all gates passed on unseen speakers.",
        }
        return self.dagster.launch_job("promote", {"ops": {"decide_promotion": {"config": decided}}})

    def require(self, run_id: str) -> None:
        """Wait for a run that has to succeed."""
        if self.dagster.wait(run_id) != "SUCCESS":
            raise DagsterError("; ".join(self.dagster.why_failed(run_id)))

    def wait_for_release(self, language: str) -> str:
        """Wait until the server itself reports the champion; returns its digest."""
        decision = self.workspace.promotions().current(language)
        assert decision is not None
        url = f"{self.settings.serving.url}/v1/release"
        with self.console.status("waiting for the release: verify, load, warm, probe, switch"):
            deadline = time.monotonic() + RELEASE_TIMEOUT_S
            while time.monotonic() < deadline:
                routed = httpx.get(url, timeout=10).json()["running"]["languages"].get(language, {}).get("active", {})
                if routed.get(decision.digest, 0) == 1:
                    return decision.digest
                time.sleep(POLL_S)
        raise DagsterError(
            f"the server did not take over {decision.digest[:12]} in time: open `serving_release` in Dagster"
        )

    def transcribe_unheard(self, quarter: str, language: str) -> None:
        """Send the server a recording of a test speaker, in the format it was delivered in."""
        tested = (row for row in self._rows("utterances", quarter, language) if row.split == "test")
        row = max(tested, key=lambda row: (row.duration_s or 0, row.id))
        audio = next(Path(r.audio) for r in self._rows("recordings", quarter, language) if r.id == row.id)
        url = f"{self.settings.serving.url}/v1/transcribe"
        started = time.monotonic()
        answer = httpx.post(
            url, params={"language": language}, files={"file": (audio.name, audio.read_bytes())}, timeout=60
        )
        answer.raise_for_status()
        said = answer.json()
        took = time.monotonic() - started
        self.console.print(
            f"\n[bold]A recording nobody trained on[/bold] ({escape(f'{audio.name}, speaker {row.speaker}')})"
        )
        self.console.print(f"  said        {row.text}", highlight=False, markup=False)
        self.console.print(f"  transcribed {said['text']}", highlight=False, markup=False)
        by = said["models"]["recognition"]
        self.console.print(
            f"  {row.duration_s:.1f} s of audio in {took * 1000:.0f} ms by {by}", highlight=False, markup=False
        )

    def transcribe_hour(self, quarter: str) -> Table:
        """Upload recordings of test speakers and what comes by mistake, and have their hour transcribed."""
        spoken = {language: self._spoken(quarter, language) for language in self.settings.languages}
        truth = write_uploads(self.settings.inference.folder(self.settings.local), spoken)
        time.sleep(SETTLED_S)  # an upload that is just being written is left for later
        self.require(self.dagster.launch_job("receive_uploads", {}))
        hour = self.workspace.hour(hours_with_arrivals(self.store.objects)[-1])
        if not hour.is_transcribed:
            self.require(self.dagster.materialize(INFERENCE, hour.key, {LAUNCHED_BY: "make demo"}))
        return outcome(hour, truth)

    def _spoken(self, quarter: str, language: str) -> list[Spoken]:
        delivered = {row.id: Path(row.audio) for row in self._rows("recordings", quarter, language)}
        rows = self._rows("utterances", quarter, language)
        return [Spoken(row, delivered[row.id]) for row in rows if row.split == "test"]

    def summary(self, partitions: Sequence[tuple[str, str]]) -> Table:
        """One row a partition, from what is stored."""
        table = Table(title="Quarters")
        for column in ("partition", "hours", "WER", "CER", "verdict", "version", "alias"):
            table.add_column(column)
        for quarter, language in partitions:
            table.add_row(quarter_heading(quarter, language), *self._outcome(quarter, language))
        return table

    def _outcome(self, quarter: str, language: str) -> tuple[str, ...]:
        """What became of a partition: hours, WER, CER, verdict, version, alias."""
        workspace, hours = self.workspace, "-"
        if self.store.exists("utterances", quarter, language):
            hours = f"{hours_of(self._rows('utterances', quarter, language)):.2f}"
        try:
            score = load_evaluation(workspace, quarter, language).sets["quarter"].score
            bundle = workspace.bundle(quarter, language)
        except StoreError:
            refused = ", ".join(refused_by(workspace, quarter, language))
            why = refused or self.refusals.get(partition_of(quarter, language), "")
            return hours, "-", "-", f"[yellow]refused: {escape(why)}[/yellow]", "-", "-"
        failed = load_verdict(workspace.objects, bundle.digest).failures
        said = f"[yellow]refused: {failed[0].name}[/yellow]" if failed else "[green]passed[/green]"
        versions = workspace.registry().versions(workspace.registered_name(language))
        version = next((version for version in versions if version.digest == bundle.digest), None)
        alias = ", ".join(version.aliases) if version else "-"
        return hours, f"{score.wer:.2%}", f"{score.cer:.2%}", said, version.version if version else "-", alias

    def _rows(self, asset: str, quarter: str, language: str) -> Iterator[Utterance]:
        return rows_of(self.store.current(asset, quarter, language))


def run(settings: Settings, console: Console) -> None:
    """Run the demo; it comes back only if a recording was transcribed by the approved model.

    Raises:
        SettingsError, ServiceError, DagsterError: it did not get there; the message says why.
    """
    started = time.monotonic()
    with services.running(settings, console) as running:
        _demonstrate(settings, console)
        minutes = (time.monotonic() - started) / 60
        console.print(f"\ndone in {minutes:.1f} minutes; the history is in {settings.home}", markup=False)
        services.show(running, console)
        console.print("These servers stop now; [bold]make up[/bold] starts them again with the same history.")


def _demonstrate(settings: Settings, console: Console) -> None:
    if not settings.promotion.approvers:
        raise SettingsError("nobody may approve: name someone in `approvers` of [promotion] in soundstage.toml")
    if is_uri(settings.inference.place(settings.local)):
        raise SettingsError("the demo uploads into a folder: leave `uploads` of [inference] in soundstage.toml out")
    languages, grid = settings.languages, Grid(settings)
    partitions = [
        (quarter, language)
        for place, language in enumerate(languages)
        for quarter in grid.first_quarters(OTHERS if place else QUARTERS)
    ]
    demo = Demo(settings, console)
    first = grid.first_quarters(1)[0]

    console.rule("1. the first quarter of each language: ingest, normalise, validate")
    for what, assets in (("corpus", CORPUS), ("base corpus", BASE_CORPUS)):
        demo.run_all(
            [
                Step(f"{what} of {quarter_heading(first, language)}", assets, partition_of(first, language))
                for language in languages
            ]
        )
    console.rule("2. models from scratch: a base and intents for each language; voices and languages told apart")
    bases = [Step(f"base model, {language}", LANGUAGE_BASE + LANGUAGE_INTENTS, language) for language in languages]
    demo.run_all([*bases, Step("voices and languages", LABEL_MODELS, "")])
    console.rule("3. every quarter: fine-tune, evaluate, judge, register")
    demo.run_all(
        [
            Step(
                f"model of {quarter_heading(quarter, language)}",
                CANDIDATE if quarter == first else CORPUS + CANDIDATE,
                partition_of(quarter, language),
            )
            for quarter, language in partitions
        ]
    )
    console.rule("4. a person approves, the server takes over")
    for run_id in [demo.approve(language) for language in languages]:
        if run_id is not None:
            demo.require(run_id)
    for language in languages:
        digest = demo.wait_for_release(language)
        console.print(f"the server reports bundle {digest[:12]} for '{language}'")
    demo.transcribe_unheard(first, languages[0])
    console.rule("5. an hour of uploads: transcribed, published or given to people")
    hour = demo.transcribe_hour(first)
    console.print()
    console.print(hour)
    console.print(demo.summary(partitions))
