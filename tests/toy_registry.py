"""Registered versions without training: toy bundles with passing verdicts in a real MLflow, and golden recordings.

Where a test is about servers alone, `approve` writes what they ask for, and no registry is needed.
"""

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from deployment.promotion.actions import Action
from deployment.promotion.ledger import GENESIS, Decision, Ledger
from evaluation.gates import load_verdict, save_verdict
from speech.bundle import ModelBundle
from speech.corpus.manifest import Utterance
from speech.corpus.normalize import Sorted
from speech.store.objects import Objects
from tests.deployment.conftest import make_verdict
from tests.sounds import sound_bytes
from tests.toy_bundle import tones, write_toy_bundle

GOLDEN = (("three", "four"), ("five", "six"), ("seven", "eight"))


def write_golden(workspace: Any, language: str = "en", golden: Sequence[Sequence[str]] = GOLDEN) -> None:
    """A benchmark set of a few recordings, one a speaker."""
    rows = []
    with workspace.store.replace("benchmark_set", language) as staging:
        for number, words in enumerate(golden):
            (staging.path / f"{number}.wav").write_bytes(sound_bytes(tones(words, language)))
            row = Utterance(
                id=str(number),
                audio=f"{number}.wav",
                duration_s=1.3,
                text=" ".join(words),
                speaker=f"speaker {number}",
                language=language,
                domain="calls",
                recorded_at=dt.date(2024, 1, 2),
                split="test",
            )
            rows.append(row)
        Sorted(tuple(rows), ()).write(staging.path)


def approve(objects: Objects, bundle: ModelBundle, **verdict: Any) -> Decision:
    """A bundle's verdict, passing unless figures are given, and its approval, in a data store without a registry."""
    save_verdict(make_verdict(bundle, **verdict), objects)
    return decide(objects, bundle, "approve", load_verdict(objects, bundle.digest).file_sha256)


def decide(objects: Objects, bundle: ModelBundle, action: Action, verdict_sha256: str = "", **more: Any) -> Decision:
    """An entry about a bundle in the ledger of its language."""
    ledger = Ledger(objects, bundle.language)
    entries = ledger.entries()
    return ledger.append(
        Decision(
            sequence=len(entries) + 1,
            time=dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds"),
            action=action,
            language=bundle.language,
            model=f"soundstage-{bundle.language}",
            version=str(len(entries) + 1),
            digest=bundle.digest,
            verdict_sha256=verdict_sha256,
            approver="Ada",
            reason="for a test",
            previous_champion="",
            previous_digest="",
            previous_hash=entries[-1].hash if entries else GENESIS,
            **more,
        )
    )


def register_versions(workspace: Any, *versions: Mapping[str, Any], language: str = "en") -> dict[str, str]:
    """Register toy bundles, made with these options, as versions 1, 2, ...; returns digest by version.

    Each was judged against the first one as champion, so the first can be approved first and then any other.
    """
    digests: dict[str, str] = {}
    report = Path(workspace.store.home, "report.html")
    report.write_text("<html>toy</html>")
    for number, options in enumerate(versions, start=1):
        folder = Path(workspace.store.home, "toys", language, str(number))
        bundle = write_toy_bundle(folder, language, name=f"{language}-{number}", **options)
        judged_at = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
        verdict = replace(make_verdict(bundle, champion=digests.get("1")), judged_at=judged_at)
        save_verdict(verdict, workspace.objects)
        registered = workspace.registry().register(
            workspace.registered_name(language),
            bundle.path,
            None,
            verdict,
            report,
            partition=f"{language}|2024-01",
            metrics={"wer": 0.05},
        )
        digests[registered.version] = bundle.digest
    return digests
