"""Serving: a new champion goes to the serving tier, is probed there with real audio, and takes over or goes back."""

from pathlib import Path

import dagster as dg

from speech.corpus import MANIFEST
from speech.manifest import audio_location, read_manifest
from speech_assets.defs.metadata import markdown_table
from speech_assets.defs.partitions import SETTINGS, languages
from speech_assets.defs.promotion import CHAMPION
from speech_assets.defs.resources import Workspace

GOLDEN_UTTERANCES = 5  # probes of a release; the shortest of the benchmark's, one a speaker


@dg.asset(
    partitions_def=languages,
    group_name="serving",
    kinds={"fastapi"},
    code_version="1",
    deps=[CHAMPION],
    automation_condition=dg.AutomationCondition.any_deps_updated() & ~dg.AutomationCondition.in_progress()
    if SETTINGS.serving.auto_release
    else None,
)
def serving_release(context: dg.AssetExecutionContext, workspace: dg.ResourceParam[Workspace]) -> dg.MaterializeResult:
    """What the serving tier runs for a language: the champion, verified, probed with real audio, then switched to.

    On any failure the tier keeps what it had. Where no replica runs yet, the champion is verified and probed here and
    written to the release document, which a replica follows as soon as it starts.
    """
    from deployment.promotion import LedgerError, PromotionRefused
    from deployment.registry import RegistryError
    from deployment.rollout import GoldenUtterance, ReleaseFailed, release
    from evaluation.gates import GateRefused
    from speech.bundle import BundleError

    language = context.partition_key
    promotions, registry = workspace.promotions(), workspace.registry()
    try:
        decision = promotions.releasable(language)
        bundle = registry.download(decision.model, decision.version)
        result = release(
            workspace.store.root,
            language,
            bundle,
            decision.digest,
            [GoldenUtterance(audio, text) for audio, text in _golden(workspace, language)],
            model=decision.model,
            version=decision.version,
            timeout_s=workspace.settings.serving.release_timeout_s,
            allow_no_replica=True,
        )
    except (PromotionRefused, LedgerError, GateRefused, RegistryError, BundleError, ReleaseFailed) as refused:
        raise dg.Failure(str(refused), allow_retries=False) from refused
    return dg.MaterializeResult(
        metadata={
            "model": decision.model,
            "version": int(decision.version),
            "bundle_digest": decision.digest,
            "replicas": len(result.replicas),
            "seconds": round(result.seconds, 2),
            "approved_by": decision.approver,
            "changed": result.changed,
            "probes": markdown_table(
                ("replica", "recording", "text", "ms"),
                [(p.replica, Path(p.audio).name, p.text, f"{p.latency_s * 1000:.0f}") for p in result.probes],
            ),
        },
        data_version=dg.DataVersion(decision.digest),
    )


def _golden(workspace: Workspace, language: str) -> list[tuple[Path, str]]:
    """Audio and reference of a few benchmark utterances, each of another speaker."""
    manifest = workspace.store.current("benchmark_set", language).path / MANIFEST
    chosen: dict[str, tuple[Path, str]] = {}
    for row in sorted(read_manifest(manifest), key=lambda row: (row.duration_s or 0, row.id)):
        chosen.setdefault(row.speaker, (Path(audio_location(row, manifest)), row.text))
    return list(chosen.values())[:GOLDEN_UTTERANCES]
