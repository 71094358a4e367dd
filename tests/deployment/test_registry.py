"""The registry keeps one version per bundle, only of what passed, and hands out only what was registered."""

import json
import os
import shutil
import signal
import sqlite3
import time
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest

from deployment.registry.models import Registry, RegistryError
from evaluation.gates import GateRefused, load_verdict, save_verdict
from speech.bundle import BundleError, ModelBundle
from speech.store.objects import open_objects
from tests.deployment.conftest import forked
from tests.toy_bundle import write_toy_bundle

MODEL = "soundstage-en"


def _artifacts(version) -> Path:
    return Path(unquote(urlparse(version.uri).path))


def test_version_carries_its_whole_lineage(house):
    """Who looks at a version in a year must find data, code, figures and the verdict without asking anyone."""
    version = house.register(1)
    bundle = house.bundle(1)
    assert (version.name, version.version, version.digest) == (MODEL, "1", bundle.digest)
    assert version.aliases == ("challenger",)
    assert version.partition == "en|2024-04"
    assert version.metrics == {"wer": 0.05, "cer": 0.02}
    assert version.tags["verdict"] == "passed"
    assert version.tags["git_revision"] == "0123abc"
    assert json.loads(version.tags["dataset_digests"]) == {"train": "c" * 64}
    assert "| wer | 0.05 |" in version.description
    assert "[training run](http://127.0.0.1:5000/run)" in version.description
    kept = _artifacts(version)
    assert kept.is_relative_to(house.home / "mlflow" / "artifacts")
    saved = (house.home / "verdicts" / f"{bundle.digest}.json").read_bytes()
    assert (kept / "verdict" / "verdict.json").read_bytes() == saved
    assert (kept / "report" / "report.html").read_text() == "<html>report</html>"
    assert version.tags["checkpoint_digest"] == "d" * 64
    assert f"Checkpoint `{house.home}/checkpoints/{'d' * 64}/checkpoint.nemo`" in version.description
    assert json.loads((kept / "recipe.txt").read_text())["max_steps"] == 300


def test_who_downloads_a_version_from_mlflow_is_told_where_its_networks_are(house, monkeypatch):
    """They are kept once, on the shelf; a download that lacks them without a word looks like a damaged model."""
    import mlflow

    house.register(1)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", house.registry.tracking_uri)
    got = Path(mlflow.artifacts.download_artifacts(f"models:/{MODEL}/1"))
    assert sorted(path.name for path in got.iterdir()) == ["README.md", "bundle.json"]
    place = f"{house.home}/bundles/{house.bundle(1).digest}"
    assert f"    {place}\n" in (got / "README.md").read_text()
    assert (got / "bundle.json").read_bytes() == (Path(place) / "bundle.json").read_bytes()
    assert ModelBundle.load(Path(place)).digest == house.bundle(1).digest


def test_same_bundle_is_registered_once(house):
    """A repeated asset run must not fill the registry with copies, nor bring back a challenger that was decided."""
    first = house.register(1)
    house.registry.remove_alias(MODEL, "challenger")
    again = house.register(1)
    assert again.version == first.version
    assert again.aliases == ()
    assert len(house.registry.versions(MODEL)) == 1


def test_newest_version_is_the_challenger(house):
    house.register(1)
    second = house.register(2)
    assert second.aliases == ("challenger",)
    assert [v.version for v in house.registry.versions(MODEL)] == ["2", "1"]
    assert house.registry.champion(MODEL) is None
    assert house.registry.challenger(MODEL).version == "2"


def test_an_older_quarter_registered_later_does_not_take_a_newer_challengers_place(house):
    """A backfill of old quarters must not push aside what people are to decide about."""
    house.register(1, partition="en|2024-07")
    older = house.register(2, partition="en|2024-01")
    assert older.aliases == ()
    assert house.registry.challenger(MODEL).version == "1"
    newer = house.register(3, partition="en|2024-10")
    assert newer.aliases == ("challenger",)
    assert house.register(4, partition="en|2024-10").aliases == ("challenger",), "of one quarter, the later"


def test_an_older_quarter_waits_where_nobody_newer_does(house):
    house.register(1, partition="en|2024-07")
    house.registry.remove_alias(MODEL, "challenger")  # as a decision does
    assert house.register(2, partition="en|2024-01").aliases == ("challenger",)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda v: replace(v, bundle_digest="f" * 64), "foreign"),
        (lambda v: replace(v, language="de"), "foreign"),
        (lambda v: replace(v, gates=()), "incomplete"),
        (lambda v: replace(v, gates=(replace(v.gates[0], passed=False), *v.gates[1:]), passed=False), "did not pass"),
    ],
    ids=["other bundle", "other language", "no gates", "failed gate"],
)
def test_registers_nothing_without_a_passing_verdict(house, verdict_of, change, reason):
    bundle = house.bundle(1)
    with pytest.raises(GateRefused, match=reason):
        house.registry.register(MODEL, bundle.path, None, change(verdict_of(bundle)), None, partition="en|2024-04")
    assert house.registry.versions(MODEL) == ()


def test_damaged_bundle_is_not_registered(house, verdict_of):
    bundle = house.bundle(1)
    with (bundle.path / "network.onnx").open("ab") as file:
        file.write(b"x")
    with pytest.raises(BundleError, match="differs from its sha256"):
        house.registry.register(MODEL, bundle.path, None, verdict_of(bundle), None, partition="p")


def test_the_bytes_that_were_registered_are_obtained(house):
    version = house.register(1)
    found = house.registry.obtain(version.digest, MODEL, "1")
    assert ModelBundle.load(found).digest == house.bundle(1).digest
    assert house.registry.verify(MODEL, "challenger") == version


def _append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


@pytest.mark.parametrize(
    "tamper",
    [
        lambda house, kept: _append(kept / "network.onnx"),
        lambda house, kept: _append(kept / "bundle.json"),
        lambda house, kept: (kept / "tokenizer.model").unlink(),
        lambda house, kept: (kept / "extra.py").write_text("print()"),
        lambda house, kept: write_toy_bundle(kept, name="other"),
        lambda house, kept: shutil.rmtree(kept),
        lambda house, kept: house.registry.mlflow.set_model_version_tag(MODEL, "1", "bundle_digest", "f" * 64),
        lambda house, kept: house.registry.mlflow.delete_model_version_tag(MODEL, "1", "bundle_digest"),
    ],
    ids=["network", "bundle.json", "missing file", "extra file", "another", "gone", "tag changed", "tag removed"],
)
def test_a_bundle_that_is_not_what_was_registered_is_refused(house, tamper):
    """The serving tier runs what the registry says; a swapped file there must never reach a listener."""
    version = house.register(1)
    tamper(house, house.home / "bundles" / version.digest)
    with pytest.raises(BundleError, match="is not what was registered"):
        house.registry.verify(MODEL, "1")


def test_a_damaged_bundle_is_put_back_by_who_has_it(house):
    """There is one copy; the asset that made it makes the same bytes again."""
    version = house.register(1)
    _append(house.registry.shelf.get(version.digest) / "network.onnx")
    with pytest.raises(BundleError):
        house.registry.shelf.get(version.digest)
    house.register(1)
    assert house.registry.verify(MODEL, "1").digest == version.digest


def test_what_is_gone_from_the_shelf_says_how_it_comes_back(house):
    """Where it was fetched from is here: what helps is to make it again, which nobody guesses from `fetch it again`."""
    shelf, digest = house.registry.shelf, house.register(1).digest
    anew = "materialise `finetuned_model` of its quarter in Dagster: the same data and recipe make the same bytes anew"
    network = shelf.get(digest) / "network.onnx"
    _append(network)
    with pytest.raises(BundleError, match=f"network.onnx differs from its sha256 in bundle.json; {anew}"):
        shelf.load(digest)
    network.unlink()
    with pytest.raises(BundleError, match=f"network.onnx is missing; {anew}"):
        shelf.load(digest)
    shutil.rmtree(network.parent)
    with pytest.raises(BundleError, match=f"there is no bundle at {network.parent}; {anew}"):
        shelf.load(digest)
    checkpoint = house.home / "checkpoint.nemo"
    checkpoint.write_bytes(b"weights")
    kept = shelf.checkpoint(shelf.put_checkpoint(checkpoint))
    digest = kept.parent.name
    _append(kept)
    with pytest.raises(BundleError, match="not those of the training; materialise `base_model` of en in Dagster"):
        shelf.checkpoint(digest, "`base_model` of en")
    kept.unlink()
    with pytest.raises(BundleError, match="no checkpoint at .*; materialise `base_model` or `finetuned_model`"):
        shelf.checkpoint(digest)


@pytest.mark.parametrize("tag", ["../ledger", "{home}/ledger", "ledger", "F" * 64, "f" * 64 + "\n"])
def test_an_edited_digest_tag_names_no_folder(house, tag):
    """Anyone with MLflow open can edit the tag; a path in it must neither be read nor be removed."""
    house.register(1)
    precious = house.home / "ledger" / "en.jsonl"
    precious.parent.mkdir()
    precious.write_text("decisions")
    house.registry.set_version_tag(MODEL, "1", "bundle_digest", tag.format(home=house.home))
    with pytest.raises(BundleError, match="64 hexadecimal digits"):
        house.registry.verify(MODEL, "1")
    assert precious.read_text() == "decisions"


def test_a_bundle_stays_when_its_version_is_gone(house):
    digest = house.register(1).digest
    house.registry.mlflow.delete_model_version(MODEL, "1")
    assert house.registry.obtain(digest, MODEL, "1") == house.home / "bundles" / digest


@pytest.mark.parametrize("key", ["7", "champion", "nonsense"])
def test_unknown_version_is_named(house, key):
    house.register(1)
    with pytest.raises(RegistryError, match=key):
        house.registry.verify(MODEL, key)
    with pytest.raises(RegistryError, match="soundstage-xx"):
        house.registry.version("soundstage-xx", "1")


def _register(house, bundle: ModelBundle, die_after: str = "") -> None:
    registry = Registry(house.registry.tracking_uri, open_objects(house.home))
    if die_after:
        client = registry.mlflow.client
        real = getattr(client, die_after)

        def dying(*args: object, **options: object) -> object:
            real(*args, **options)
            os.kill(os.getpid(), signal.SIGKILL)

        setattr(client, die_after, dying)
    verdict = load_verdict(open_objects(house.home), bundle.digest)
    registry.register(MODEL, bundle.path, None, verdict, None, partition="p")


@pytest.mark.parametrize("step", ["create_run", "log_artifact", "create_model_version", "set_registered_model_alias"])
def test_killed_registration_is_completed_without_duplicates(house, verdict_of, step):
    """kill -9 at any step, then the same call: one version, one run, challenger set."""
    bundle = house.bundle(1)
    save_verdict(verdict_of(bundle), open_objects(house.home))
    pid = forked(lambda: _register(house, bundle, step))
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    version = house.register(1)
    assert [v.version for v in house.registry.versions(MODEL)] == [version.version] == ["1"]
    assert version.aliases == ("challenger",)
    client = house.registry.mlflow.client
    assert len(client.search_runs([client.get_experiment_by_name("soundstage-releases").experiment_id])) == 1
    assert house.registry.verify(MODEL, "1")


def test_two_processes_register_the_same_bundles_at_once(house, verdict_of):
    """Backfilled quarters register in parallel, and a retry may overlap with what it retries."""
    bundles = [house.bundle(number) for number in range(3)]
    for bundle in bundles:
        save_verdict(verdict_of(bundle), open_objects(house.home))

    def all_of(order: list[ModelBundle]) -> None:
        for bundle in order:
            _register(house, bundle)

    processes = [forked(lambda order=order: all_of(order)) for order in (bundles, bundles[::-1])]
    assert [os.waitpid(pid, 0)[1] for pid in processes] == [0, 0]
    assert sorted(v.digest for v in house.registry.versions(MODEL)) == sorted(bundle.digest for bundle in bundles)


class _LateLook(Registry):
    """Looks for the bundle just before another machine registers it."""

    looks = 0

    def _find(self, model: str, digest: str) -> str | None:
        self.looks += 1
        return None if self.looks == 1 else super()._find(model, digest)


def test_race_between_machines_keeps_the_lower_version(house, verdict_of):
    """Two machines share a server but no file lock: the later one takes its version back."""
    house.register(1)
    bundle = house.bundle(1)
    late = _LateLook(house.registry.tracking_uri, open_objects(house.home))
    kept = late.register(MODEL, bundle.path, None, verdict_of(bundle), None, partition="en|2024-04")
    assert kept.version == "1"
    assert [v.version for v in house.registry.versions(MODEL)] == ["1"]


def test_registration_waits_for_a_locked_database(house):
    """SQLite allows one writer; a long write elsewhere must delay a registration, not fail it."""
    house.register(1)
    ready, tell = os.pipe()

    def hold() -> None:
        connection = sqlite3.connect(house.home / "mlflow" / "mlflow.db", isolation_level=None)
        connection.execute("BEGIN EXCLUSIVE")
        os.write(tell, b"x")
        time.sleep(7)  # longer than the five seconds that SQLite's driver waits by itself
        connection.execute("ROLLBACK")

    pid = forked(hold)
    os.read(ready, 1)
    assert house.register(2).version == "2"
    os.waitpid(pid, 0)
