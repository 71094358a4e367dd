"""Trains one model from a specification: the process that the graph launches, and a command of its own.

    soundstage train RUN.json
    soundstage train --recipe tiny --language en --train m.jsonl --dev m.jsonl --output out

The output folder is the run's identity. While it runs, `progress.json` says where it is and
`checkpoints/` holds what a rerun needs: the same command after a kill goes on at the last checkpoint,
and after success returns at once. `training.json` appears last, so a folder that has one is whole.

On several devices Lightning starts this command again, once per device; only the first writes.
"""

import contextlib
import datetime as dt
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydantic import ValidationError

from speech.store.outputs import write_json
from training.asr import Interrupted, fit
from training.data import read_split, require_disjoint_speakers
from training.loop import Progress
from training.process import Stop, Terminated, ended, exclusive, open_pipes, rank, report_to_dagster, say
from training.recipe import Recipe, TrainingError, load_recipe
from training.specification import TrackingSpec, TrainingSpec, fingerprint_of

CHECKPOINT = "checkpoint.nemo"
BUNDLE = "bundle"
RECORD = "training.json"
PROGRESS = "progress.json"
CHECKPOINTS = "checkpoints"
PARITY_UTTERANCES = 100  # dev utterances whose text must survive the export


def command(specification: Path | None, changes: Mapping[str, Any], assignments: Sequence[str] = ()) -> int:
    """Train as a file says, with some of its fields replaced; tell how it went and return the exit code."""
    return ended(lambda stop: run(_spec(specification, changes, assignments), stop))


def run(spec: TrainingSpec, stop: Stop | None = None) -> dict[str, Any]:
    """Train as specified and publish into `spec.output`; return what training.json says.

    Raises TrainingError for what the user must mend, and lets other errors through.
    """
    stop = stop or Stop()
    first = rank() == 0
    recipe = load_recipe(spec.recipe, spec.overrides)
    store = spec.store.open() if spec.store else None
    train = read_split(spec.train, "train", spec.language, store)
    dev = read_split(spec.dev, "dev", spec.language, store)
    if not spec.shared_speakers:
        require_disjoint_speakers(train, dev)
    fingerprint = fingerprint_of(spec)
    output = spec.output
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"Output folder {output} cannot be made: {error.strerror}.") from error
    with exclusive(output) if first else contextlib.nullcontext(), open_pipes() as pipes:
        if first:
            done = _finished(output, fingerprint, spec.replace)
            if done is not None:
                say(pipes, f"{spec.name}: already trained ({done['steps']} steps); nothing to do.")
                report_to_dagster(pipes, done)
                return done
            drop_foreign_checkpoints(output / CHECKPOINTS, fingerprint, pipes)
        say(
            pipes,
            f"{spec.name}: recipe {recipe.name}, {len(train.utterances)} train utterances"
            f" ({train.hours * 60:.1f} min), {len(dev.utterances)} dev; loading NeMo, which takes half a minute.",
        )
        began = time.monotonic()
        with _Tracker(pipes) as tracker:
            if first and spec.mlflow is not None:
                tracker.start(spec, spec.mlflow, recipe, output / CHECKPOINTS / "mlflow_run_id")

            def report(progress: Progress) -> None:
                if first:
                    now = dt.datetime.now(dt.UTC)
                    write_json(output / PROGRESS, {**asdict(progress), "updated_at": now.isoformat(timespec="seconds")})
                    say(pipes, _line(progress))
                    tracker.metrics(progress)

            try:
                with stop.deferred():
                    fitted = fit(
                        recipe,
                        train,
                        dev,
                        language=spec.language,
                        checkpoints=output / CHECKPOINTS,
                        base=spec.base,
                        seed=spec.seed,
                        report=report,
                        should_stop=lambda: stop.asked,
                    )
            except Interrupted as error:
                report(Progress("stopped", error.step, recipe.max_steps))
                raise Terminated(str(error)) from error
            if not first:
                return {}
            last = Progress("exporting", fitted.steps, recipe.max_steps, fitted.epochs, fitted.loss, fitted.dev_wer)
            report(last)
            record = {
                **{name: value for name, value in vars(fitted).items() if name != "model"},
                "name": spec.name,
                "language": spec.language,
                "seed": spec.seed,
                "base": spec.base,
                "fingerprint": fingerprint,
                "recipe": recipe.model_dump(mode="json"),
                "manifest_digests": {**train.digests, **dev.digests},
                "train": _described(train),
                "dev": _described(dev),
                "wall_seconds": round(time.monotonic() - began, 3),
                "mlflow_run_id": tracker.run_id,
                "mlflow_experiment_id": tracker.experiment_id,
            }
            _publish(spec, record, fitted, dev, train)
            report(replace(last, phase="finished", cer=fitted.dev_cer, eta_s=0.0))
            tracker.summary(record)
        shutil.rmtree(output / CHECKPOINTS, ignore_errors=True)
        report_to_dagster(pipes, record)
        return record


# ------------------------------------------------------------------------------------------------ command line


def _spec(specification: Path | None, changes: Mapping[str, Any], assignments: Sequence[str]) -> TrainingSpec:
    document: dict[str, Any] = {}
    if specification is not None:
        try:
            document = json.loads(specification.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise TrainingError(f"Run specification {specification} cannot be read: {error}.") from error
        if not isinstance(document, dict):
            raise TrainingError(f"Run specification {specification} must be a JSON object.")
    document |= changes
    if assignments:
        document["overrides"] = {**document.get("overrides", {}), **dict(map(_assignment, assignments))}
    if "output" in document:
        document.setdefault("name", Path(document["output"]).name)
    try:
        return TrainingSpec.model_validate(document)
    except ValidationError as error:
        fault = error.errors()[0]
        field = ".".join(str(part) for part in fault["loc"])
        raise TrainingError(f"Run specification: '{field}' is wrong or missing ({fault['msg'].lower()}).") from error


def _assignment(text: str) -> tuple[str, Any]:
    import yaml

    key, equals, value = text.partition("=")
    if not equals or not key:
        raise TrainingError(f"--set {text}: write it as field=value, such as max_steps=300.")
    try:
        return key, yaml.safe_load(value)
    except (yaml.YAMLError, ValueError) as error:  # a date that there is not is a ValueError
        raise TrainingError(
            f"--set {text}: '{value}' is not a value as YAML writes it, such as 300, [0.9, 0.98] or text in quotes."
        ) from error


# ------------------------------------------------------------------------------------------------ output folder


def _finished(output: Path, fingerprint: str, replace: bool) -> dict[str, Any] | None:
    """Return the record of the same specification's finished run, if there is one."""
    path = output / RECORD
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        same = record["fingerprint"] == fingerprint
    except (ValueError, KeyError, TypeError):
        record, same = {}, False
    if same and (output / CHECKPOINT).is_file() and (output / BUNDLE / "bundle.json").is_file():
        shutil.rmtree(output / CHECKPOINTS, ignore_errors=True)
        return dict(record)
    if not same and not replace:
        raise TrainingError(
            f"{output} holds the finished result of another specification: choose another folder, or set replace."
        )
    return None


def drop_foreign_checkpoints(folder: Path, fingerprint: str, pipes: Any) -> None:
    """Begin afresh when the folder's checkpoints belong to another specification."""
    owner = folder / "fingerprint"
    if folder.is_dir() and (not owner.is_file() or owner.read_text().strip() != fingerprint):
        if any(folder.glob("step-*.pt")):
            say(pipes, "The checkpoints found belong to another specification; starting from the beginning.")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    owner.write_text(fingerprint + "\n")


def _publish(spec: TrainingSpec, record: dict[str, Any], fitted: Any, dev: Any, train: Any) -> None:
    """Write checkpoint and bundle aside, move them in, and write training.json last."""
    from training.batches import AudioCache
    from training.export import export
    from training.network import save_checkpoint

    output = spec.output
    staging = output / ".staging"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    save_checkpoint(fitted.model, staging / CHECKPOINT)
    cache = AudioCache(0, dev.store)
    sample = sorted(dev.utterances, key=lambda row: hashlib.sha256(row.id.encode()).digest())[:PARITY_UTTERANCES]
    bundle = export(
        fitted.model,
        tokenizer_path=output / CHECKPOINTS / "tokenizer" / "tokenizer.model",
        folder=staging / BUNDLE,
        language=spec.language,
        name=spec.name,
        # No times and no places: equal training gives an equal bundle, so an equal digest.
        lineage={
            "fingerprint": record["fingerprint"],
            "recipe": record["recipe"]["name"],
            "seed": spec.seed,
            "steps": fitted.steps,
            "dev_wer": round(fitted.dev_wer, 6),
            "train_manifests": list(train.digests.values()),
            "dev_manifests": list(dev.digests.values()),
        },
        parity_utterances=[cache.samples(row).astype("float32") / 32_768 for row in sample],
        variants=record["recipe"]["variants"],
    )
    record["bundle_digest"] = bundle.digest
    record["parity"] = dict(bundle.parity)
    (output / RECORD).unlink(missing_ok=True)  # an older result is not whole once its files are replaced
    shutil.rmtree(output / BUNDLE, ignore_errors=True)
    for name in (CHECKPOINT, BUNDLE):
        os.replace(staging / name, output / name)
    write_json(output / RECORD, record)
    shutil.rmtree(staging, ignore_errors=True)


def _described(rows: Any) -> dict[str, Any]:
    return {
        "utterances": len(rows.utterances),
        "speakers": len({row.speaker for row in rows.utterances}),
        "hours": round(rows.hours, 6),
        "left_out": dict(rows.left_out),
    }


# ------------------------------------------------------------------------------------------------ telling the world


def _line(progress: Progress) -> str:
    if progress.finding:
        return f"{progress.phase}: {progress.finding}."
    if progress.step == 0 and progress.wer is None:
        return progress.phase  # nothing is counted yet
    parts = [f"{progress.phase:<12} step {progress.step}/{progress.max_steps}, epoch {progress.epoch}"]
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.3f}")
    if progress.wer is not None:
        parts.append(f"dev WER {progress.wer:.1%}")
    if progress.audio_s_per_s:
        parts.append(f"{progress.audio_s_per_s:.0f} s of audio/s")
    if progress.eta_s:
        parts.append(f"{progress.eta_s:.0f} s to go")
    return ", ".join(parts)


class _Tracker:
    """MLflow logging that never costs a training run: a server that fails is reported once and left alone."""

    def __init__(self, pipes: Any) -> None:
        self.run_id: str | None = None
        self.experiment_id: str | None = None
        self._pipes = pipes
        self._client: Any = None

    def start(self, spec: TrainingSpec, tracking: TrackingSpec, recipe: Recipe, remembered: Path) -> None:
        """Begin a run, or go on with the one whose id is in the file `remembered`."""
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        with self._guarded():
            import pandas
            from mlflow.entities import Param
            from mlflow.tracking import MlflowClient

            client = self._client = MlflowClient(tracking_uri=tracking.tracking_uri)
            if remembered.is_file():
                run = client.get_run(remembered.read_text().strip())
                client.update_run(run.info.run_id, status="RUNNING")
            else:
                found = client.get_experiment_by_name(tracking.experiment)
                experiment = found.experiment_id if found else client.create_experiment(tracking.experiment)
                tags = {**tracking.tags, "language": spec.language, "recipe": recipe.name}
                run = client.create_run(experiment, tags=tags, run_name=spec.name)
                remembered.write_text(run.info.run_id)
                (fields,) = pandas.json_normalize(recipe.model_dump(mode="json")).to_dict("records")
                parameters = {"seed": spec.seed, "base": spec.base or "", **fields}
                params = [Param(key, str(value)[:500]) for key, value in parameters.items()]
                client.log_batch(run.info.run_id, params=params)
            self.run_id, self.experiment_id = str(run.info.run_id), str(run.info.experiment_id)

    def metrics(self, progress: Progress) -> None:
        """Log the numbers of a report at its step."""
        if progress.loss is None:
            return
        values = {key: getattr(progress, key) for key in ("loss", "learning_rate", "audio_s_per_s")}
        if progress.phase == "evaluated":
            values |= {"dev_wer": progress.wer, "dev_cer": progress.cer}
        self._log(values, progress.step)

    def summary(self, record: Mapping[str, Any]) -> None:
        """Log the final numbers, and what bundle came of them."""
        numbers = ("dev_wer", "dev_cer", "seconds", "audio_hours_seen")
        self._log({f"final_{key}": record[key] for key in numbers}, record["steps"])
        self._tell("set_tag", "bundle_digest", record["bundle_digest"])

    def _log(self, values: Mapping[str, float | None], step: int) -> None:
        now = int(time.time() * 1000)
        if self._client is not None:
            from mlflow.entities import Metric

            known = {key: float(value) for key, value in values.items() if value is not None}
            self._tell("log_batch", metrics=[Metric(key, value, now, step) for key, value in known.items()])

    def _tell(self, what: str, *values: Any, **named: Any) -> None:
        if self._client is not None:
            with self._guarded():
                getattr(self._client, what)(self.run_id, *values, **named)

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._client = None
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            say(self._pipes, f"MLflow cannot be used ({reason}); training goes on without it.")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the run as it went."""
        ended = "FINISHED" if kind is None else "KILLED" if issubclass(kind, Terminated) else "FAILED"
        self._tell("set_terminated", status=ended)
