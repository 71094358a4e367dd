"""The model registry: MLflow versions that carry everything needed to judge, serve and continue a model.

A version is registered only with a passing verdict for exactly its bundle (or one whose failed gates people accepted in
the promotion ledger), once per bundle digest, and is handed out only after every byte was compared with that digest.
Bundle and checkpoint stay on their shelf (`deployment.registry.shelf`), and the version names them by digest; MLflow
keeps the lineage as tags and artifacts: partition, data digests, code revision, recipe, figures, verdict.

MLflow has no "create once" operation, so registration is made idempotent here: one run per digest collects the
artifacts and is continued if a process died half way; the version is created last, in one transaction with its tags;
and if two processes without a common lock (two machines, one server) still created one each, the lower number stays.
On SQLite a file lock beside the database serialises registration and the creation of the schema.

A tag can be edited by anyone with MLflow open; promotion therefore records the digest in the ledger as well.
"""

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from deployment.registry.mlflow_calls import MlflowCalls, RegistryError
from deployment.registry.shelf import Shelf
from evaluation.gates import GateRefused, Verdict, parse_verdict, sealed
from speech.bundle import MANIFEST, BundleError, ModelBundle
from speech.corpus.manifest import QUARTER_KEY
from speech.store.objects import Objects

CHAMPION = "champion"
CHALLENGER = "challenger"
EXPERIMENT = "soundstage-releases"  # one run per registered bundle; training runs live in their own experiments
BUNDLE_DIGEST_TAG = "bundle_digest"
CHECKPOINT_DIGEST_TAG = "checkpoint_digest"
OFFERED_TAG = "challenger_offered"  # set once the alias was given, so that a repeat never revives a rejected version
LAUNCHED_BY_TAG = "launched_by"  # who launched the training: names, comma-separated
WHERE_ALL_OF_IT_IS = """\
# Where the model is

This folder holds only `bundle.json`, which names every file of the bundle with its SHA-256. The bundle itself, with its
networks, is kept once, in the data store:

    {place}

Copy that folder to have the model; `soundstage transcribe --bundle FOLDER FILE...` transcribes with it.
"""
TAG_CHARACTERS = 2_500  # MLflow servers before 3 take 5,000 bytes


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

    @property
    def recency(self) -> tuple[str, int]:
        """What a version supersedes is smaller: an earlier quarter, and of one quarter what was registered before."""
        quarter = QUARTER_KEY.search(self.partition)
        return quarter[0] if quarter else "", int(self.version)


class Registry:
    """Model versions in MLflow.

    Args:
        tracking_uri: `sqlite:///.../mlflow.db` or the address of an MLflow server. With SQLite, artifacts lie in the
            folder `artifacts` beside the database, or below `mlflow/artifacts` of a data store in S3.
        store: the data store, which has the bundles.
    """

    def __init__(self, tracking_uri: str, store: Objects) -> None:
        self.tracking_uri = tracking_uri
        self.mlflow = MlflowCalls(tracking_uri)
        self.shelf = Shelf(store)

    def register(
        self,
        model: str,
        bundle: Path,
        checkpoint_digest: str | None,
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
        self.shelf.put(loaded)
        verdict_json = _sealed(verdict, loaded, overridden)
        tags = {
            BUNDLE_DIGEST_TAG: loaded.digest,
            **({CHECKPOINT_DIGEST_TAG: checkpoint_digest} if checkpoint_digest else {}),
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
        with self.mlflow.exclusive():
            found = self._find(model, loaded.digest)
            if found is None:
                artifacts = _Artifacts(bundle, self.shelf.place(loaded.digest), report, verdict_json, recipe)
                places = {"Bundle": self.shelf.place(loaded.digest)}
                if checkpoint_digest:
                    places["Checkpoint"] = self.shelf.checkpoint_place(checkpoint_digest)
                description = describe(model, loaded, tags, figures, run_links or {}, places, verdict, guide)
                found = self._create(model, loaded, tags, figures, artifacts, description)
            self.offer(model, found)
        return self.version(model, found)

    def verify(self, model: str, version_or_alias: str) -> ModelVersion:
        """Compare the bundle of a version with its digest.

        Raises:
            RegistryError: no such model, version or alias.
            BundleError: the bytes are not those that were registered.
        """
        wanted = self.version(model, version_or_alias)
        self.obtain(wanted.digest, wanted.name, wanted.version)
        return wanted

    def obtain(self, digest: str, model: str, version: str) -> Path:
        """The verified bundle of a digest, whatever became of the version that it was registered as.

        Raises:
            BundleError: it is not on the shelf, or its bytes are others.
        """
        try:
            return self.shelf.get(digest)
        except BundleError as error:
            raise BundleError(f"the bundle of {model} version {version} is not what was registered: {error}") from error

    @property
    def exists(self) -> bool:
        """False while nothing was ever written to a local registry; asking does not create it."""
        return self.mlflow.database is None or self.mlflow.database.exists()

    def champion(self, model: str) -> ModelVersion | None:
        """The version that carries the alias `champion`, if any."""
        return self._by_alias(model, CHAMPION)

    def challenger(self, model: str) -> ModelVersion | None:
        """The version that waits for a person's decision, if any."""
        return self._by_alias(model, CHALLENGER)

    def version(self, model: str, version_or_alias: str) -> ModelVersion:
        """One version, by number or alias.

        Raises:
            RegistryError: no such model, version or alias.
        """
        key = str(version_or_alias)
        aliases = self._aliases(model)
        number = key if key.isdigit() else aliases.get(key)
        if number is None:
            known = ", ".join(sorted(aliases)) or "none"
            raise RegistryError(f"model '{model}' has no version or alias '{key}' (aliases: {known})")
        from mlflow.exceptions import MlflowException

        try:
            entity = self.mlflow.get_model_version(model, number)
        except MlflowException as error:
            raise RegistryError(f"model '{model}' has no version {number}: {error.message}") from error
        return self._described(entity, aliases)

    def versions(self, model: str) -> tuple[ModelVersion, ...]:
        """All versions of a model, newest first; none when the model is not known."""
        aliases = self._aliases(model)
        return tuple(self._described(entity, aliases) for entity in self._search(f"name = '{_quoted(model)}'"))

    def deleted(self, model: str, version: str) -> bool:
        """Whether a version that was there is gone."""
        try:
            self.version(model, version)
        except RegistryError:
            return True
        return False

    def set_alias(self, model: str, alias: str, version: str) -> None:
        """Point an alias at a version. For the promotion ledger, which decides; nothing else should call this.

        Raises:
            RegistryError: no such version.
        """
        with _named_when_missing(f"model '{model}' has no version {version}"):
            self.mlflow.set_registered_model_alias(model, alias, version)

    def remove_alias(self, model: str, alias: str) -> None:
        """Remove an alias; a missing one is fine."""
        if alias in self._aliases(model):
            self.mlflow.delete_registered_model_alias(model, alias)

    def offer(self, model: str, number: str, *, again: bool = False) -> None:
        """Give a version the alias `challenger`, unless one of a newer quarter waits.

        Once in its life, so that a repeated registration never revives what was decided; `again` is for the promotion
        ledger, which knows that it may.
        """
        candidate = self.version(model, number)
        if OFFERED_TAG in candidate.tags and not again:
            return
        waiting = self.challenger(model)
        if waiting is not None and waiting.recency > candidate.recency:
            return
        if CHAMPION not in candidate.aliases:
            self.set_alias(model, CHALLENGER, number)
        self.set_version_tag(model, number, OFFERED_TAG, "true")

    def tagged(self, model: str, key: str) -> tuple[ModelVersion, ...]:
        """Versions of a model that carry a tag, newest first."""
        query = f"name = '{_quoted(model)}' and tags.`{key}` LIKE '%'"
        aliases = self._aliases(model)
        return tuple(self._described(entity, aliases) for entity in self._search(query))

    def set_version_tag(self, model: str, version: str, key: str, value: str) -> None:
        """Tag a version; of a text that is too long for a tag, the beginning.

        Raises:
            RegistryError: no such version.
        """
        said = value if len(value) <= TAG_CHARACTERS else value[: TAG_CHARACTERS - 1] + "…"
        with _named_when_missing(f"model '{model}' has no version {version}"):
            self.mlflow.set_model_version_tag(model, version, key, said)

    def remove_version_tag(self, model: str, version: str, key: str) -> None:
        """Take a tag off a version; a missing one is fine."""
        if key in self.version(model, version).tags:
            self.mlflow.delete_model_version_tag(model, version, key)

    def ensure_model(self, model: str, language: str) -> None:
        """Create a registered model without versions; one that is there is left as it is."""
        from mlflow.exceptions import MlflowException

        if self._model(model) is not None:
            return
        about = "Speech recognition. `champion` follows the promotion ledger; do not move it by hand."
        try:
            self.mlflow.create_registered_model(model, {"language": language}, description=about)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def set_model_tag(self, model: str, key: str, value: str) -> None:
        """Tag a model as a whole.

        Raises:
            RegistryError: no such model.
        """
        with _named_when_missing(f"there is no model '{model}'"):
            self.mlflow.set_registered_model_tag(model, key, value)

    def model_tag(self, model: str, key: str) -> str | None:
        """A model's tag, or None."""
        found = self._model(model)
        return None if found is None else dict(found.tags).get(key)

    def _create(
        self,
        model: str,
        bundle: ModelBundle,
        tags: Mapping[str, str],
        metrics: Mapping[str, float],
        artifacts: "_Artifacts",
        description: str,
    ) -> str:
        """Upload into the digest's run, then create the version; returns its number."""
        run_id, uri = self._run(model, bundle.digest, tags)
        artifacts.upload(self.mlflow, run_id)
        for name, value in metrics.items():
            self.mlflow.log_metric(run_id, _metric_name(name), value)
        self.ensure_model(model, bundle.language)
        created = self.mlflow.create_model_version(
            model, source=f"{uri}/bundle", run_id=run_id, tags=dict(tags), description=description
        )
        number = str(created.version)
        kept = self._find(model, bundle.digest) or number
        if kept != number:  # another machine registered the same bundle between our look and our creation
            self.mlflow.delete_model_version(model, number)
        self.mlflow.set_terminated(run_id, "FINISHED")
        return kept

    def _find(self, model: str, digest: str) -> str | None:
        """Lowest version number with this bundle digest."""
        found = self._search(f"name = '{_quoted(model)}' and tags.{BUNDLE_DIGEST_TAG} = '{_quoted(digest)}'")
        return str(min(int(entity.version) for entity in found)) if found else None

    def _search(self, query: str) -> list[Any]:
        found: list[Any] = []
        token: str | None = None
        while True:
            page = self.mlflow.search_model_versions(
                query, max_results=200, order_by=["version_number DESC"], page_token=token
            )
            found.extend(page)
            token = page.token
            if not token:
                return sorted(found, key=lambda entity: int(entity.version), reverse=True)

    def _run(self, model: str, digest: str, tags: Mapping[str, str]) -> tuple[str, str]:
        """The run that collects this digest's artifacts: a new one, or one that a dead process left unfinished."""
        experiment = self._experiment()
        query = f"tags.{BUNDLE_DIGEST_TAG} = '{_quoted(digest)}' and tags.model_name = '{_quoted(model)}'"
        left = self.mlflow.search_runs([experiment], query, max_results=1)
        run = (
            left[0]
            if left
            else self.mlflow.create_run(
                experiment,
                tags={**tags, "model_name": model},
                run_name=f"{model} {tags['partition']}".strip(),
            )
        )
        return run.info.run_id, run.info.artifact_uri

    def _experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        found = self.mlflow.get_experiment_by_name(EXPERIMENT)
        if found is None:
            database, home = self.mlflow.database, self.shelf.objects.home
            here = database and (database.parent / "artifacts").as_uri()
            location = f"{home}/mlflow/artifacts" if database and "://" in home else here
            try:
                return str(self.mlflow.create_experiment(EXPERIMENT, location))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                found = self.mlflow.get_experiment_by_name(EXPERIMENT)
        return str(found.experiment_id)

    def _model(self, model: str) -> Any | None:
        from mlflow.exceptions import MlflowException

        try:
            return self.mlflow.get_registered_model(model)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise

    def _aliases(self, model: str) -> dict[str, str]:
        found = self._model(model)
        return {} if found is None else {alias: str(version) for alias, version in dict(found.aliases).items()}

    def _by_alias(self, model: str, alias: str) -> ModelVersion | None:
        return self.version(model, alias) if alias in self._aliases(model) else None

    def _described(self, entity: Any, aliases: Mapping[str, str]) -> ModelVersion:
        number = str(entity.version)
        tags = dict(entity.tags)
        run = self.mlflow.get_run(entity.run_id) if entity.run_id else None
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


@dataclass(frozen=True)
class _Artifacts:
    """What a version's run holds.

    The version's source in MLflow is the folder `bundle` of it: a server takes no place outside of the run.
    """

    bundle: Path
    place: str  # where all of the bundle is kept
    report: Path | None
    verdict_json: str
    recipe: Mapping[str, Any] | str | None

    def upload(self, mlflow: MlflowCalls, run_id: str) -> None:
        mlflow.log_artifact(run_id, str(self.bundle / MANIFEST), "bundle")
        mlflow.log_text(run_id, WHERE_ALL_OF_IT_IS.format(place=self.place), "bundle/README.md")
        if self.report is not None:
            mlflow.log_artifact(run_id, str(self.report), "report")
        mlflow.log_text(run_id, self.verdict_json, "verdict/verdict.json")
        if self.recipe is not None:
            text = self.recipe if isinstance(self.recipe, str) else _json(dict(self.recipe))
            mlflow.log_text(run_id, text, "recipe.txt")


def describe(
    model: str,
    bundle: ModelBundle,
    tags: Mapping[str, str],
    metrics: Mapping[str, float],
    run_links: Mapping[str, str],
    places: Mapping[str, str],
    verdict: Verdict,
    guide: str = "",
) -> str:
    """The version's page in MLflow, in Markdown: figures, gates, lineage, links, and what its readers can do.

    `places` is where bundle and checkpoint lie, by what they are.
    """
    lines = [f"**{model}** ({bundle.language}) from partition `{tags['partition']}`", ""]
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
    lines += ["", *(f"{what} `{place}`  " for what, place in places.items())]
    lines += [f"Code revision `{tags['git_revision']}`  "] if tags["git_revision"] else []
    lines += [f"Training launched by {tags[LAUNCHED_BY_TAG]}  "] if LAUNCHED_BY_TAG in tags else []
    return "\n".join(lines)


def _sealed(verdict: Verdict, bundle: ModelBundle, overridden: Collection[str]) -> str:
    """The verdict as its own store writes it, read again by the rules that hold for every move forward."""
    if verdict.bundle_digest != bundle.digest:
        raise GateRefused(
            f"The verdict is foreign: it judges bundle {verdict.bundle_digest[:12]}, not {bundle.digest[:12]} in "
            f"{bundle.path}; evaluate and judge this bundle."
        )
    said = sealed(verdict)
    parse_verdict(said, bundle.digest).require_passed(language=bundle.language, overridden=overridden)
    return said.decode()


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
