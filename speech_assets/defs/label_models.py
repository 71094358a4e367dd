"""Label models: who speaks, and in which language, of the first quarters of all languages.

Both are trained by one process, since importing NeMo takes as long as training either. What it leaves is calibrated on
the dev speakers and judged on the test speakers; its verdict is kept whatever it says, and only a model that passed is
taken into use (`deployment/registry/label_champions.py`). One that is refused leaves the former one in use.
"""

import hashlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import dagster as dg
import numpy as np

from deployment.registry.label_champions import label_champion, name_label_champion
from evaluation.gates import GateRefused
from evaluation.labels import LabelVerdict, calibrated, clips_of_rows, judge_labels, save_label_verdict
from speech.audio.decode import decode
from speech.bundle import BundleError
from speech.corpus.manifest import Utterance
from speech.corpus.normalize import MANIFEST, rows_of
from speech.labels import Kind, LabelBundle
from speech.store.objects import StoreError
from speech.store.outputs import DIGEST_CHARS, Published, digest_file, parse_json, write_json
from speech_assets.defs.corpus import validated_utterances
from speech_assets.defs.metadata import markdown_table
from speech_assets.defs.models import BUNDLE, BUNDLE_DIGEST, FINGERPRINT, ROOT, SPECIFICATION, training_command
from speech_assets.defs.partitions import Grid
from speech_assets.defs.processes import SupervisedProcess, alone_in, clear_abandoned
from speech_assets.defs.resources import Workspace, version_of
from speech_assets.defs.retries import refusals_are_final, retried_when_unreachable
from speech_assets.partition_keys import partition_of
from training.labels.run import EDITION, LabelSpec, fingerprint_of
from training.specification import StoreSpec

ASSETS: Mapping[str, Kind] = {"speaker_model": "speaker", "language_id_model": "language"}
CHECKPOINT_DIGEST = "checkpoint_digest"
RECORD = "training.json"
GATES = "gates_passed"


def definitions(grid: Grid) -> dg.Definitions:
    """The label models, as assets with their checks."""
    settings = grid.settings
    changed = (
        (dg.AutomationCondition.code_version_changed() | dg.AutomationCondition.any_deps_updated())
        & ~dg.AutomationCondition.in_progress()
        & ~dg.AutomationCondition.any_deps_missing()
        & dg.AutomationCondition.all_deps_blocking_checks_passed()
    )
    version = version_of(str(EDITION), settings.label_models, settings.label_gates)
    described = {
        "speaker_model": "What tells voices apart: a direction in space for a clip, the same for clips of one voice.",
        "language_id_model": "What tells languages apart: a probability of each, and of none of them.",
    }
    made = dg.multi_asset(
        specs=[
            dg.AssetSpec(
                name,
                deps=["base_corpus"],
                group_name="models",
                kinds={"pytorch", "onnx"},
                code_version=version,
                description=described[name],
                automation_condition=changed if settings.retraining.on_change else None,
                skippable=True,
            )
            for name in ASSETS
        ],
        check_specs=[
            dg.AssetCheckSpec(
                GATES,
                asset=name,
                blocking=True,
                description="Every gate of [label_gates] on held-out speakers; a model that fails is not taken into "
                "use, and the former one stays.",
            )
            for name in ASSETS
        ],
        can_subset=True,
        pool=settings.training.pool,
    )(label_models)
    return dg.Definitions(assets=[made])


def label_models(
    context: dg.AssetExecutionContext,
    workspace: dg.ResourceParam[Workspace],
    pipes: dg.ResourceParam[SupervisedProcess],
) -> Iterator[dg.MaterializeResult]:
    """The models that are asked for, trained by one process, calibrated, judged, and used where they passed."""
    yield from _made(context, workspace, pipes)


@retried_when_unreachable
def _made(
    context: dg.AssetExecutionContext, workspace: Workspace, pipes: SupervisedProcess
) -> list[dg.MaterializeResult]:
    asked = [name for name in ASSETS if dg.AssetKey(name) in context.op_execution_context.selected_asset_keys]
    corpora = {
        partition_of(quarter, language): validated_utterances(workspace, quarter, language)
        for language in workspace.settings.languages
        for quarter in workspace.grid.first_quarters(workspace.settings.training.base_quarters)
    }
    spec = _specification(workspace, [ASSETS[name] for name in asked], list(corpora.values()))
    prints = {name: fingerprint_of(spec, ASSETS[name]) for name in asked}
    missing = [name for name in asked if _kept(workspace, name, prints[name]) is None]
    if missing:
        _train(context, workspace, pipes, spec, missing, prints, corpora)
    return [_judged(workspace, name, corpora) for name in asked]


def _specification(workspace: Workspace, kinds: Sequence[Kind], corpora: Sequence[Published]) -> LabelSpec:
    whole = workspace.settings
    return LabelSpec(
        kinds=list(kinds),
        manifests=[corpus.file(MANIFEST) for corpus in corpora],
        store=StoreSpec(home=whole.home, cache=whole.cache, cache_bytes=whole.cache_bytes),
        output=whole.local / "training" / "label_models",
        settings=whole.label_models,
    )


def _train(
    context: dg.AssetExecutionContext,
    workspace: Workspace,
    pipes: SupervisedProcess,
    spec: LabelSpec,
    names: Sequence[str],
    prints: Mapping[str, str],
    corpora: Mapping[str, Published],
) -> None:
    """Train in a process of its own, calibrate what comes of it, and publish a record of each model."""
    settings = workspace.settings.label_models
    shelf = workspace.registry().shelf
    identity = hashlib.sha256("\0".join(prints[name] for name in names).encode()).hexdigest()
    work = spec.output / identity[:DIGEST_CHARS]
    dev = clips_of_rows(_rows(corpora), "dev", _samples(workspace))
    with alone_in(work) as alone:
        document = spec.model_copy(update={"output": work, "kinds": [ASSETS[name] for name in names]})
        write_json(work / SPECIFICATION, document.model_dump(mode="json"))
        pipes.run(
            context=context,
            command=[*training_command(settings.command), str(work / SPECIFICATION)],
            cwd=ROOT,
            alone=alone,
            max_runtime_s=settings.max_runtime_s,
            setting="label_models.max_runtime_s",
        )
        for name in names:
            folder = work / ASSETS[name]
            record = parse_json((folder / RECORD).read_bytes())
            with TemporaryDirectory(dir=work) as scratch, refusals_are_final():
                tuned = calibrated(LabelBundle.load(folder / BUNDLE), dev, Path(scratch) / BUNDLE)
                bundle = shelf.put_labels(tuned)
            record |= {
                "data": {partition: digest_file(corpus.file(MANIFEST)) for partition, corpus in corpora.items()},
                "threshold": bundle.threshold,
                "temperature": bundle.temperature,
                FINGERPRINT: prints[name],
                BUNDLE_DIGEST: bundle.digest,
                CHECKPOINT_DIGEST: shelf.put_checkpoint(folder / "checkpoint.nemo"),
            }
            with workspace.store.replace(name) as staging:
                write_json(staging.path / RECORD, record)
        shutil.rmtree(work, ignore_errors=True)
    clear_abandoned(work.parent)


def _judged(workspace: Workspace, name: str, corpora: Mapping[str, Published]) -> dg.MaterializeResult:
    """The verdict on a model that is on the shelf; it is taken into use where it passed."""
    kind = ASSETS[name]
    record = parse_json(workspace.store.current(name).read(RECORD))
    bundle = workspace.registry().shelf.load_labels(record[BUNDLE_DIGEST], kind)
    verdict = judge_labels(
        bundle,
        clips_of_rows(_rows(corpora), "test", _samples(workspace)),
        workspace.settings.label_gates,
        record["data"],
    )
    save_label_verdict(verdict, workspace.objects)
    if verdict.passed:
        name_label_champion(workspace.store, bundle)
    return dg.MaterializeResult(
        asset_key=name,
        metadata={
            "model": bundle.name,
            "bundle_digest": bundle.digest,
            **{_key(gate.name, gate.slice): gate.value for gate in verdict.gates if np.isfinite(gate.value)},
            "threshold": bundle.threshold,
            "temperature": bundle.temperature,
            "classes": record["classes"],
            "steps": record["steps"],
            "loss": record["loss"],
            "training_seconds": record["seconds"],
            "parameters": record["parameters"],
            "in_use": _in_use(workspace, kind),
            "gates": markdown_table(
                ("gate", "passed", "why"), [(gate.label, gate.passed, gate.explanation) for gate in verdict.gates]
            ),
            "data": markdown_table(("partition", "manifest sha256"), list(record["data"].items())),
        },
        data_version=dg.DataVersion(bundle.digest),
        check_results=[
            dg.AssetCheckResult(asset_key=name, check_name=GATES, passed=verdict.passed, description=_why(verdict))
        ],
    )


def _kept(workspace: Workspace, name: str, fingerprint: str) -> LabelBundle | None:
    """The model of the output in force, if it is what this very training came to, and is whole."""
    try:
        record = parse_json(workspace.store.current(name).read(RECORD))
        if record.get(FINGERPRINT) != fingerprint:
            return None
        return workspace.registry().shelf.load_labels(record[BUNDLE_DIGEST], ASSETS[name])
    except (StoreError, BundleError, OSError, ValueError, LookupError):
        return None


def _rows(corpora: Mapping[str, Published]) -> Iterator[Utterance]:
    for corpus in corpora.values():
        yield from rows_of(corpus)


def _samples(workspace: Workspace) -> Any:
    return lambda row: decode(workspace.objects.located(row.audio)).samples


def _in_use(workspace: Workspace, kind: Kind) -> str:
    try:
        used = label_champion(workspace.store, kind)
    except (GateRefused, BundleError) as refused:
        return str(refused)
    return used.name if used is not None else "none: no model of this kind has passed yet"


def _why(verdict: LabelVerdict) -> str:
    failed = " ".join(f"{gate.label}: {gate.explanation}" for gate in verdict.gates if not gate.passed)
    return failed or "all gates passed"


def _key(gate: str, of: str) -> str:
    return f"{gate}_{of.partition('=')[2]}" if of else gate
