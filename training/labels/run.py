"""Trains label models from a specification: the process that the graph launches, and a command of its own.

    soundstage train-labels RUN.json
    soundstage train-labels --kind speaker --manifest m.jsonl --output out

One process trains the models of several kinds one after the other: importing NeMo takes as long as either. Each kind
has a folder in the output with `checkpoint.nemo`, `bundle/` and, last, `training.json`; the same command after a kill
goes on at the last checkpoint, and after success returns at once.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from speech.corpus.manifest import Utterance
from speech.labels import Kind
from speech.store.objects import Objects
from speech.store.outputs import digest_file, parse_json, write_json
from training.asr import Interrupted
from training.batches import AudioCache
from training.labels.data import examples_of, rows_of_manifests
from training.labels.settings import LabelTrainingSettings
from training.process import Stop, Terminated, ended, exclusive, open_pipes, report_to_dagster, say
from training.recipe import TrainingError
from training.run import BUNDLE, CHECKPOINT, CHECKPOINTS, RECORD, drop_foreign_checkpoints
from training.specification import StoreSpec

EDITION = 1  # of how label models are made: raise it with any change that changes what comes of the same input
EXECUTION = {"threads", "checkpoint_every_s", "command", "max_runtime_s"}  # settings that leave the result alone
PARITY_CLIPS = 40


class LabelSpec(BaseModel):
    """Everything that a training of label models is asked for."""

    model_config = ConfigDict(extra="forbid")

    kinds: list[Kind] = Field(min_length=1, description="What is trained.")
    manifests: list[Path] = Field(
        min_length=1, description="JSON lines of normalised audio with speaker, language and split."
    )
    store: StoreSpec | None = Field(None, description="Where manifests' `store://` audio is.")
    output: Path
    settings: LabelTrainingSettings = LabelTrainingSettings()


@dataclass(frozen=True)
class _Source:
    rows: Sequence[Utterance]
    digests: Mapping[str, str]
    store: Objects | None


def fingerprint_of(spec: LabelSpec, kind: Kind) -> str:
    """SHA-256, as hex, of what decides a model: its kind, the settings and the data's bytes."""
    others = {f"{other}_steps" for other in get_args(Kind) if other != kind}
    identity = {
        "edition": EDITION,
        "kind": kind,
        "settings": spec.settings.model_dump(mode="json", exclude=EXECUTION | others),
        "manifests": sorted(digest_file(manifest) for manifest in spec.manifests),
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def command(specification: Path | None, changes: Mapping[str, Any]) -> int:
    """Train as a file says, with some of its fields replaced; tell how it went and return the exit code."""
    return ended(lambda stop: run(_spec(specification, changes), stop))


def run(spec: LabelSpec, stop: Stop | None = None) -> dict[str, Any]:
    """Train as specified into `spec.output`; return the record of each kind.

    Raises TrainingError for what the user must mend, and lets other errors through.
    """
    stop = stop or Stop()
    store = spec.store.open() if spec.store else None
    source = _Source(*rows_of_manifests(spec.manifests), store)
    try:
        spec.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"Output folder {spec.output} cannot be made: {error.strerror}.") from error
    with exclusive(spec.output), open_pipes() as pipes:
        records: dict[str, Any] = {
            kind: _trained(spec, kind, source, stop, pipes) for kind in dict.fromkeys(spec.kinds)
        }
        report_to_dagster(pipes, records)
        return records


def _trained(spec: LabelSpec, kind: Kind, source: _Source, stop: Stop, pipes: Any) -> dict[str, Any]:
    output, fingerprint = spec.output / kind, fingerprint_of(spec, kind)
    done = _finished(output, fingerprint)
    if done is not None:
        say(pipes, f"{kind} model: already trained ({done['steps']} steps); nothing to do.")
        return done
    began = time.monotonic()
    drop_foreign_checkpoints(output / CHECKPOINTS, fingerprint, pipes)
    examples = examples_of(kind, source.rows, spec.settings, source.store)
    say(
        pipes,
        f"{kind} model: {len(examples.labels)} classes, {examples.hours * 60:.1f} min of recordings; loading NeMo.",
    )
    from training.labels.export import export_labels
    from training.labels.fitting import fit_labels
    from training.network import quiet_nemo, save_checkpoint

    quiet_nemo()
    steps = spec.settings.speaker_steps if kind == "speaker" else spec.settings.language_steps
    try:
        with stop.deferred():
            fitted = fit_labels(
                examples,
                spec.settings,
                steps,
                output / CHECKPOINTS,
                lambda said: say(pipes, said),
                lambda: stop.asked,
            )
    except Interrupted as error:
        raise Terminated(str(error)) from error
    staging = output / ".staging"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    save_checkpoint(fitted.model, staging / CHECKPOINT)
    bundle = export_labels(
        fitted.model,
        staging / BUNDLE,
        kind=kind,
        labels=examples.labels,
        name=f"{kind}-{fingerprint[:8]}",
        lineage={
            "fingerprint": fingerprint,
            "seed": spec.settings.seed,
            "steps": fitted.steps,
            "manifests": sorted(source.digests.values()),
        },
        clips=_parity_clips(source),
    )
    record = {
        "kind": kind,
        "name": bundle.name,
        "fingerprint": fingerprint,
        "classes": len(examples.labels),
        "labels": list(examples.labels) if kind == "language" else [],
        "audio_hours": round(examples.hours, 6),
        "steps": fitted.steps,
        "loss": round(fitted.loss, 6),
        "seconds": round(fitted.seconds, 3),
        "wall_seconds": round(time.monotonic() - began, 3),
        "resumed_from": fitted.resumed_from,
        "parameters": sum(parameter.numel() for parameter in fitted.model.parameters()),
        "settings": spec.settings.model_dump(mode="json"),
        "parity": dict(bundle.parity),
        "bundle_digest": bundle.digest,
    }
    (output / RECORD).unlink(missing_ok=True)  # an older result is not whole once its files are replaced
    shutil.rmtree(output / BUNDLE, ignore_errors=True)
    for name in (CHECKPOINT, BUNDLE):
        os.replace(staging / name, output / name)
    write_json(output / RECORD, record)
    shutil.rmtree(staging, ignore_errors=True)
    shutil.rmtree(output / CHECKPOINTS, ignore_errors=True)
    say(pipes, f"{kind} model: {fitted.steps} steps, loss {fitted.loss:.3f}, {record['wall_seconds']:.0f} s.")
    return record


def _finished(output: Path, fingerprint: str) -> dict[str, Any] | None:
    """The record of a finished training of the same fingerprint; one of another is trained over."""
    try:
        record = dict(parse_json((output / RECORD).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
    whole = (output / CHECKPOINT).is_file() and (output / BUNDLE / "bundle.json").is_file()
    return record if whole and record.get("fingerprint") == fingerprint else None


def _parity_clips(source: _Source) -> list[np.ndarray]:
    """Dev utterances, a fixed sample; train utterances where there are none."""
    rows = [row for row in source.rows if row.split == "dev"] or list(source.rows)
    rows = sorted(rows, key=lambda row: hashlib.sha256(row.id.encode()).digest())[:PARITY_CLIPS]
    cache = AudioCache(0, source.store)
    return [cache.samples(row).astype(np.float32) / np.float32(32_768) for row in rows]


def _spec(specification: Path | None, changes: Mapping[str, Any]) -> LabelSpec:
    document: dict[str, Any] = {}
    if specification is not None:
        try:
            document = dict(json.loads(specification.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise TrainingError(f"Run specification {specification} cannot be read: {error}.") from error
    try:
        return LabelSpec.model_validate({**document, **changes})
    except ValidationError as error:
        fault = error.errors()[0]
        field = ".".join(str(part) for part in fault["loc"])
        raise TrainingError(f"Run specification: '{field}' is wrong or missing ({fault['msg'].lower()}).") from error
