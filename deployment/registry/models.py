"""The model registry: MLflow versions that carry everything needed to judge, serve and continue a model.

A version is registered only with a passing verdict for exactly its bundle (or one whose failed gates people accepted in
the promotion ledger), once per bundle digest, and is handed out only after every byte was compared with that digest.
The tags and artifacts are the lineage: partition, data digests, code revision, recipe, figures, and the verdict itself.

MLflow has no "create once" operation, so registration is made idempotent here: one run per digest collects the
artifacts and is continued if a process died half way; the version is created last, in one transaction with its tags;
and if two processes without a common lock (two machines, one server) still created one each, the lower number stays.
On SQLite a file lock beside the database serialises registration and the creation of the schema.

Not covered: someone with write access to both the database and the artifacts can replace a model and its digest
together. Promotion therefore records the digest in the ledger as well.
"""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from evaluation.gates import GateRefused, Verdict, require_passed, save_verdict
from speech.bundle import BundleError, ModelBundle
from speech.store.outputs import DIGEST

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHAMPION = "champion"
CHALLENGER = "challenger"
EXPERIMENT = "soundstage-releases"  # one run per registered bundle; training runs live in their own experiments
BUNDLE_DIGEST_TAG = "bundle_digest"
OFFERED_TAG = "challenger_offered"  # set once the alias was given, so that a repeat never revives a rejected version
LAUNCHED_BY_TAG = "launched_by"  # who launched the training: names, comma-separated
LOCK_TIMEOUT_S = 600.0  # uploading a checkpoint of some GB to a slow disk
BUSY_TIMEOUT_S = 60.0
TAG_CHARACTERS = 2_500  # MLflow servers before 3 take 5,000 bytes
BUSY_PAUSE_S = 0.2
SQLITE_BUSY = ("database is locked", "database table is locked", "database schema is locked")

T = TypeVar("T")


class RegistryError(Exception):
    """The registry has no such model or version, or cannot be used."""


@dataclass(frozen=True)
class ModelVersion:
    """One registered model version.

    Attributes:
        version: MLflow's version number, as it writes it.
        digest: digest of the bundle, from the version's tags.
        aliases: aliases that point here, such as `champion` and `challenger`.
        metrics: figures given at registration.
        uri: where MLflow keeps the artifacts of the version's run.
    """

    name: str
    version: str
    digest: str
    partition: str = ""
    aliases: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    description: str = ""
    run_id: str = ""
    uri: str = ""
    created_at: datetime | None = None


class Registry:
    """Model versions in MLflow.

    Args:
        tracking_uri: `sqlite:///.../mlflow.db` or the address of an MLflow server. With SQLite, artifacts lie in the
            folder `artifacts` beside the database.
        cache: where verified bundles are kept, one folder per digest; by default `bundles` beside the database, or a
            folder in the user's cache for a server.
    """

    def __init__(self, tracking_uri: str, cache: Path | None = None) -> None:
        self.tracking_uri = tracking_uri
        self._database = sqlite_path(tracking_uri)
        if cache is None:
            cache = (
                self._database.parent / "bundles"
                if self._database
                else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "soundstage" / "bundles"
            )
        self.cache = cache
        self._connected: MlflowClient | None = None

    def register(
        self,
        model_name: str,
        bundle: Path,
        checkpoint: Path | None,
        verdict: Verdict,
        report: Path | None,
        *,
        partition: str,
        dataset_digests: Mapping[str, str] | Sequence[str] = (),
        git_revision: str = "",
        run_links: Mapping[str, str] | None = None,
        recipe: Mapping[str, Any] | str | None = None,
        metrics: Mapping[str, float] | None = None,
        launched_by: str = "",
        overridden: Collection[str] = (),
        guide: str = "",
    ) -> ModelVersion:
        """Register a bundle with its lineage and make it the challenger; the same bundle again is the same version.

        `overridden` are the failed gates that people accepted for this bundle in the promotion ledger; `guide`
        stands in the version's description and tells its readers what they can do.

        Raises:
            GateRefused: the verdict did not pass, or is about another bundle, model or language.
            BundleError: the bundle's files are not what its `bundle.json` says.
        """
        loaded = ModelBundle.load(bundle)
        verdict_json = _sealed(verdict, loaded, overridden)
        tags = {
            BUNDLE_DIGEST_TAG: loaded.digest,
            "language": loaded.language,
            "partition": partition,
            "dataset_digests": _json(
                dict(dataset_digests) if isinstance(dataset_digests, Mapping) else list(dataset_digests)
            ),
            "git_revision": git_revision,
            "verdict": "passed" if verdict.passed else f"overridden: {', '.join(overridden)}",
            **({LAUNCHED_BY_TAG: launched_by} if launched_by else {}),
            "verdict_sha256": hashlib.sha256(verdict_json.encode()).hexdigest(),
            **({"recipe": recipe} if isinstance(recipe, str) else {}),
            **{f"link.{label}": link for label, link in (run_links or {}).items()},
        }
        figures = {name: float(value) for name, value in (metrics or {}).items() if value is not None}
        with self._exclusive():
            found = self._find(model_name, loaded.digest)
            if found is None:
                artifacts = _Artifacts(bundle, checkpoint, report, verdict_json, recipe)
                description = describe(model_name, loaded, tags, figures, run_links or {}, verdict, guide)
                found = self._create(model_name, loaded, tags, figures, artifacts, description)
            self.offer(model_name, found)
        return self.version(model_name, found)

    def download(self, model_name: str, version_or_alias: str) -> Path:
        """A verified local copy of a version's bundle; the folder is named by the bundle's digest.

        Raises:
            RegistryError: no such model, version or alias.
            BundleError: the bytes are not those that were registered.
        """
        wanted = self.version(model_name, version_or_alias)
        target = self._kept(wanted)
        if target.exists():
            try:
                ModelBundle.load(target, wanted.digest)
                return target
            except BundleError:
                shutil.rmtree(target, ignore_errors=True)  # a damaged copy; the registry's own decides
        with self._fetched(wanted) as folder:
            try:
                os.replace(folder, target)
            except OSError:  # another process was faster, which is as good
                ModelBundle.load(target, wanted.digest)
        return target

    def verify(self, model_name: str, version_or_alias: str) -> ModelVersion:
        """Compare the bundle that the registry holds now, not a cached copy, with the version's digest.

        Raises:
            RegistryError: no such model, version or alias.
            BundleError: the bytes are not those that were registered.
        """
        wanted = self.version(model_name, version_or_alias)
        with self._fetched(wanted):
            return wanted

    def cached(self, digest: str) -> Path | None:
        """The verified local copy of a bundle, whether or not a version still names it; None when there is none."""
        if not DIGEST.fullmatch(digest):
            return None
        try:
            return ModelBundle.load(self.cache / digest, digest).path
        except BundleError:
            return None

    def obtain(self, digest: str, model_name: str, version: str) -> Path:
        """The bundle of a digest, whatever became of its version: the verified copy kept here, else the registry's.

        Raises:
            RegistryError, BundleError: as for `download`, where no copy is kept.
        """
        return self.cached(digest) or self.download(model_name, version)

    @property
    def exists(self) -> bool:
        """False while nothing was ever written to a local registry; asking does not create it."""
        return self._database is None or self._database.exists()

    def champion(self, model_name: str) -> ModelVersion | None:
        """The version that carries the alias `champion`, if any."""
        return self._by_alias(model_name, CHAMPION)

    def challenger(self, model_name: str) -> ModelVersion | None:
        """The version that waits for a person's decision, if any."""
        return self._by_alias(model_name, CHALLENGER)

    def version(self, model_name: str, version_or_alias: str) -> ModelVersion:
        """One version, by number or alias.

        Raises:
            RegistryError: no such model, version or alias.
        """
        key = str(version_or_alias)
        aliases = self._aliases(model_name)
        number = key if key.isdigit() else aliases.get(key)
        if number is None:
            known = ", ".join(sorted(aliases)) or "none"
            raise RegistryError(f"model '{model_name}' has no version or alias '{key}' (aliases: {known})")
        from mlflow.exceptions import MlflowException

        try:
            entity = self._retry(lambda client: client.get_model_version(model_name, number))
        except MlflowException as error:
            raise RegistryError(f"model '{model_name}' has no version {number}: {error.message}") from error
        return self._described(entity, aliases)

    def versions(self, model_name: str) -> tuple[ModelVersion, ...]:
        """All versions of a model, newest first; none when the model is not known."""
        aliases = self._aliases(model_name)
        return tuple(self._described(entity, aliases) for entity in self._search(f"name = '{_quoted(model_name)}'"))

    def deleted(self, model_name: str, version: str) -> bool:
        """Whether a version that was there is gone."""
        try:
            self.version(model_name, version)
        except RegistryError:
            return True
        return False

    def set_alias(self, model_name: str, alias: str, version: str) -> None:
        """Point an alias at a version. For the promotion ledger, which decides; nothing else should call this.

        Raises:
            RegistryError: no such version.
        """
        with _named_when_missing(f"model '{model_name}' has no version {version}"):
            self._retry(lambda client: client.set_registered_model_alias(model_name, alias, version))

    def remove_alias(self, model_name: str, alias: str) -> None:
        """Remove an alias; a missing one is fine."""
        if alias in self._aliases(model_name):
            self._retry(lambda client: client.delete_registered_model_alias(model_name, alias))

    def offer(self, model_name: str, number: str, *, again: bool = False) -> None:
        """Give a version the alias `challenger`, unless a newer version was registered meanwhile.

        Once in its life, so that a repeated registration never revives what was decided; `again` is for the promotion
        ledger, which knows that it may.
        """
        candidate = self.version(model_name, number)
        if OFFERED_TAG in candidate.tags and not again:
            return
        newest = max((int(v.version) for v in self.versions(model_name)), default=0)
        if int(number) == newest and CHAMPION not in candidate.aliases:
            self.set_alias(model_name, CHALLENGER, number)
        self.set_version_tag(model_name, number, OFFERED_TAG, "true")

    def tagged(self, model_name: str, key: str) -> tuple[ModelVersion, ...]:
        """Versions of a model that carry a tag, newest first."""
        query = f"name = '{_quoted(model_name)}' and tags.`{key}` LIKE '%'"
        aliases = self._aliases(model_name)
        return tuple(self._described(entity, aliases) for entity in self._search(query))

    def set_version_tag(self, model_name: str, version: str, key: str, value: str) -> None:
        """Tag a version; of a text that is too long for a tag, the beginning.

        Raises:
            RegistryError: no such version.
        """
        said = value if len(value) <= TAG_CHARACTERS else value[: TAG_CHARACTERS - 1] + "…"
        with _named_when_missing(f"model '{model_name}' has no version {version}"):
            self._retry(lambda client: client.set_model_version_tag(model_name, version, key, said))

    def remove_version_tag(self, model_name: str, version: str, key: str) -> None:
        """Take a tag off a version; a missing one is fine."""
        if key in self.version(model_name, version).tags:
            self._retry(lambda client: client.delete_model_version_tag(model_name, version, key))

    def ensure_model(self, model_name: str, language: str) -> None:
        """Create a registered model without versions; one that is there is left as it is."""
        from mlflow.exceptions import MlflowException

        if self._model(model_name) is not None:
            return
        about = "Speech recognition. `champion` follows the promotion ledger; do not move it by hand."
        try:
            self._retry(
                lambda client: client.create_registered_model(model_name, {"language": language}, description=about)
            )
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def set_model_tag(self, model_name: str, key: str, value: str) -> None:
        """Tag a model as a whole.

        Raises:
            RegistryError: no such model.
        """
        with _named_when_missing(f"there is no model '{model_name}'"):
            self._retry(lambda client: client.set_registered_model_tag(model_name, key, value))

    def model_tag(self, model_name: str, key: str) -> str | None:
        """A model's tag, or None."""
        model = self._model(model_name)
        return None if model is None else dict(model.tags).get(key)

    def _create(
        self,
        model_name: str,
        bundle: ModelBundle,
        tags: Mapping[str, str],
        metrics: Mapping[str, float],
        artifacts: "_Artifacts",
        description: str,
    ) -> str:
        """Upload into the digest's run, then create the version; returns its number."""
        run_id, uri = self._run(model_name, bundle.digest, tags)
        artifacts.upload(lambda send: self._retry(lambda client: send(client, run_id)))
        for name, value in metrics.items():
            self._retry(lambda client, n=name, v=value: client.log_metric(run_id, _metric_name(n), v))  # type: ignore[misc]
        self.ensure_model(model_name, bundle.language)
        created = self._retry(
            lambda client: client.create_model_version(
                model_name, source=f"{uri}/bundle", run_id=run_id, tags=dict(tags), description=description
            )
        )
        number = str(created.version)
        kept = self._find(model_name, bundle.digest) or number
        if kept != number:  # another machine registered the same bundle between our look and our creation
            self._retry(lambda client: client.delete_model_version(model_name, number))
        self._retry(lambda client: client.set_terminated(run_id, "FINISHED"))
        return kept

    def _find(self, model_name: str, digest: str) -> str | None:
        """Lowest version number with this bundle digest."""
        found = self._search(f"name = '{_quoted(model_name)}' and tags.{BUNDLE_DIGEST_TAG} = '{_quoted(digest)}'")
        return str(min(int(entity.version) for entity in found)) if found else None

    def _search(self, query: str) -> list[Any]:
        found: list[Any] = []
        token: str | None = None
        while True:
            page = self._retry(
                lambda client, at=token: client.search_model_versions(  # type: ignore[misc]
                    query, max_results=200, order_by=["version_number DESC"], page_token=at
                )
            )
            found.extend(page)
            token = page.token
            if not token:
                return sorted(found, key=lambda entity: int(entity.version), reverse=True)

    def _run(self, model_name: str, digest: str, tags: Mapping[str, str]) -> tuple[str, str]:
        """The run that collects this digest's artifacts: a new one, or one that a dead process left unfinished."""
        experiment = self._experiment()
        query = f"tags.{BUNDLE_DIGEST_TAG} = '{_quoted(digest)}' and tags.model_name = '{_quoted(model_name)}'"
        left = self._retry(lambda client: client.search_runs([experiment], query, max_results=1))
        run = (
            left[0]
            if left
            else self._retry(
                lambda client: client.create_run(
                    experiment,
                    tags={**tags, "model_name": model_name},
                    run_name=f"{model_name} {tags['partition']}".strip(),
                )
            )
        )
        return run.info.run_id, run.info.artifact_uri

    def _experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        found = self._retry(lambda client: client.get_experiment_by_name(EXPERIMENT))
        if found is None:
            location = (self._database.parent / "artifacts").as_uri() if self._database else None
            try:
                return str(self._retry(lambda client: client.create_experiment(EXPERIMENT, location)))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                found = self._retry(lambda client: client.get_experiment_by_name(EXPERIMENT))
        return str(found.experiment_id)

    def _model(self, model_name: str) -> Any | None:
        from mlflow.exceptions import MlflowException

        try:
            return self._retry(lambda client: client.get_registered_model(model_name))
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise

    def _aliases(self, model_name: str) -> dict[str, str]:
        model = self._model(model_name)
        return {} if model is None else {alias: str(version) for alias, version in dict(model.aliases).items()}

    def _by_alias(self, model_name: str, alias: str) -> ModelVersion | None:
        return self.version(model_name, alias) if alias in self._aliases(model_name) else None

    def _described(self, entity: Any, aliases: Mapping[str, str]) -> ModelVersion:
        number = str(entity.version)
        tags = dict(entity.tags)
        run = self._retry(lambda client: client.get_run(entity.run_id)) if entity.run_id else None
        return ModelVersion(
            name=entity.name,
            version=number,
            digest=tags.get(BUNDLE_DIGEST_TAG, ""),
            partition=tags.get("partition", ""),
            aliases=tuple(sorted(alias for alias, version in aliases.items() if version == number)),
            tags=tags,
            metrics=dict(run.data.metrics) if run else {},
            description=entity.description or "",
            run_id=entity.run_id or "",
            uri=run.info.artifact_uri if run else "",
            created_at=datetime.fromtimestamp(entity.creation_timestamp / 1000, UTC),
        )

    def _kept(self, wanted: ModelVersion) -> Path:
        """Where the local copy of a version's bundle belongs; its tag can be edited by anyone, so it is no path yet."""
        if not DIGEST.fullmatch(wanted.digest):
            found = f"is {wanted.digest[:80]!r}, not 64 hexadecimal digits" if wanted.digest else "is missing"
            raise BundleError(
                f"the tag '{BUNDLE_DIGEST_TAG}' of {wanted.name} version {wanted.version} {found}, so it cannot be "
                "verified: register the bundle again"
            )
        return self.cache / wanted.digest

    @contextmanager
    def _fetched(self, wanted: ModelVersion) -> Iterator[Path]:
        """The registry's bundle of a version in a temporary folder beside the cache, verified."""
        self._kept(wanted)
        name = f"{wanted.name} version {wanted.version}"
        self.cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.cache, prefix=".fetch-", ignore_cleanup_errors=True) as scratch:
            try:
                folder = Path(self._retry(lambda client: client.download_artifacts(wanted.run_id, "bundle", scratch)))
            except Exception as error:  # MLflow raises its own, OSError or the storage library's, by backend
                raise BundleError(f"the bundle of {name} cannot be fetched from {wanted.uri}: {error}") from error
            try:
                ModelBundle.load(folder, wanted.digest)
            except BundleError as error:
                raise BundleError(f"the registry's bundle of {name} is not what was registered: {error}") from error
            yield folder

    def _client(self) -> "MlflowClient":
        if self._connected is None:
            os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
            os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
            from mlflow import MlflowClient

            if self._database:
                self._database.parent.mkdir(parents=True, exist_ok=True)
                with _locked(self._database.with_suffix(".schema.lock")):  # two first users must not both migrate
                    self._connected = MlflowClient(self.tracking_uri, self.tracking_uri)
                    self._connected.search_registered_models(max_results=1)
            else:
                self._connected = MlflowClient(self.tracking_uri, self.tracking_uri)
        return self._connected

    def _retry(self, call: Callable[["MlflowClient"], T]) -> T:
        """Call MLflow, waiting while another process holds SQLite's write lock."""
        deadline = time.monotonic() + BUSY_TIMEOUT_S
        client = self._client()
        while True:
            try:
                return call(client)
            except Exception as error:  # MLflow wraps the driver's error in its own, or not, by code path
                if not any(sign in str(error) for sign in SQLITE_BUSY) or time.monotonic() > deadline:
                    raise
            time.sleep(BUSY_PAUSE_S)

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """One registration at a time on this database; a server's users rely on the lowest number instead."""
        if self._database is None:
            yield
            return
        self._database.parent.mkdir(parents=True, exist_ok=True)
        with _locked(self._database.with_suffix(".lock")):
            yield


@dataclass(frozen=True)
class _Artifacts:
    """What a version's run holds."""

    bundle: Path
    checkpoint: Path | None
    report: Path | None
    verdict_json: str
    recipe: Mapping[str, Any] | str | None

    def upload(self, log: Callable[[Callable[["MlflowClient", str], None]], None]) -> None:
        log(lambda client, run: client.log_artifacts(run, str(self.bundle), "bundle"))
        for folder, source in (("checkpoint", self.checkpoint), ("report", self.report)):
            if source is not None:
                log(lambda client, run, f=folder, s=source: _log_path(client, run, s, f))  # type: ignore[misc]
        log(lambda client, run: client.log_text(run, self.verdict_json, "verdict/verdict.json"))
        if self.recipe is not None:
            text = self.recipe if isinstance(self.recipe, str) else _json(dict(self.recipe))
            log(lambda client, run: client.log_text(run, text, "recipe.txt"))


def describe(
    model_name: str,
    bundle: ModelBundle,
    tags: Mapping[str, str],
    metrics: Mapping[str, float],
    run_links: Mapping[str, str],
    verdict: Verdict,
    guide: str = "",
) -> str:
    """The version's page in MLflow, in Markdown: figures, gates, lineage, links, and what its readers can do."""
    lines = [f"**{model_name}** ({bundle.language}) from partition `{tags['partition']}`", ""]
    if metrics:
        lines += ["| figure | value |", "|---|---|", *(f"| {n} | {v:.4g} |" for n, v in sorted(metrics.items())), ""]
    lines += [" · ".join(f"[{label}]({link})" for label, link in sorted(run_links.items())), ""] if run_links else []
    lines += [guide, ""] if guide else []
    lines += ["### Gates", "", "| gate | value | threshold | |", "|---|---|---|---|"]
    lines += [
        f"| {gate.label} | {_figure(gate.value)} {gate.unit} | {_figure(gate.threshold)} | "
        f"{'passed' if gate.passed else 'FAILED'} |"
        for gate in verdict.gates
    ]
    lines += ["", f"Bundle `{bundle.digest}`  "]
    lines += [f"Code revision `{tags['git_revision']}`  "] if tags["git_revision"] else []
    lines += [f"Training launched by {tags[LAUNCHED_BY_TAG]}  "] if LAUNCHED_BY_TAG in tags else []
    return "\n".join(lines)


def sqlite_path(tracking_uri: str) -> Path | None:
    """The database file of a `sqlite:///` address, or None for any other address."""
    if not tracking_uri.startswith("sqlite:///"):
        return None
    return Path(tracking_uri.removeprefix("sqlite:///").split("?")[0]).absolute()


def _sealed(verdict: Verdict, bundle: ModelBundle, overridden: Collection[str]) -> str:
    """The verdict as its own store writes it, read again by the rules that hold for every move forward."""
    if verdict.bundle_digest != bundle.digest:
        raise GateRefused(
            f"The verdict is foreign: it judges bundle {verdict.bundle_digest[:12]}, not {bundle.digest[:12]} in "
            f"{bundle.path}; evaluate and judge this bundle."
        )
    with tempfile.TemporaryDirectory(prefix="soundstage-verdict-") as scratch:
        path = save_verdict(verdict, Path(scratch))
        require_passed(Path(scratch), bundle.digest, language=bundle.language, overridden=overridden)
        return path.read_text()


def _log_path(client: "MlflowClient", run_id: str, source: Path, folder: str) -> None:
    if source.is_dir():
        client.log_artifacts(run_id, str(source), folder)
    else:
        client.log_artifact(run_id, str(source), folder)


@contextmanager
def _named_when_missing(sentence: str) -> Iterator[None]:
    """Say in our own words that MLflow has no such thing; whatever else it raises is left as it is."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise RegistryError(f"{sentence}: {error.message}") from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an advisory lock; it is freed by the kernel when the process dies."""
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise RegistryError(
                        f"{path} has been locked by another process for {LOCK_TIMEOUT_S:.0f} s: end it and try again"
                    ) from None
                time.sleep(0.05)
        yield


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, indent=1)


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else str(value)


def _quoted(value: str) -> str:
    if "'" in value or "\\" in value:
        raise RegistryError(f"'{value}' cannot name a model or digest: use letters, digits, '-', '_' and '.'")
    return value


def _metric_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "_-./ " else "_" for c in name)
