"""What a team decides, in one typed place: `soundstage.toml`, overridden by `SOUNDSTAGE_*` variables.

A nested field is reached with two underscores: `SOUNDSTAGE_GATES__WER=0.10`. Unknown keys and variables are refused, so
that a typing error is an error and not a silent default. Each table stands beside the code that it configures and is
gathered here; only those that nothing below the graph reads are declared here.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar, get_args, get_origin

from pydantic import BeforeValidator, Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)
from pydantic_settings import SettingsError as SourceError

from deployment.addresses import WebAddress, listens_at
from deployment.batch.settings import InferenceSettings
from deployment.pages import PagesSettings
from deployment.promotion.settings import PromotionSettings
from deployment.registry.settings import RegistrySettings
from deployment.serving.settings import ServingSettings
from evaluation.corpus.expectations import CorpusSettings
from evaluation.gates import GateSettings
from evaluation.intents import IntentGateSettings
from evaluation.labels import LabelGateSettings
from speech.corpus.manifest import LANGUAGE_TAG, QUARTER_KEY
from speech.corpus.sources import Source
from speech.corpus.synthetic import SyntheticSettings
from speech.settings import Section
from speech.store.objects import Objects, open_objects
from training.intents import IntentSettings
from training.labels.settings import LabelTrainingSettings
from training.settings import TrainingSettings

PREFIX = "SOUNDSTAGE_"
CONFIG_VARIABLE = "SOUNDSTAGE_CONFIG"
DEFAULT_CONFIG = "soundstage.toml"
DEFAULT_HOME = ".soundstage"
FOLDER_VARIABLE = "SOUNDSTAGE_FOLDER"  # where a relative name of the file begins; else the current folder
NO_SETTINGS = frozenset(
    {CONFIG_VARIABLE, FOLDER_VARIABLE, "SOUNDSTAGE_DAGSTER_STORAGE", "SOUNDSTAGE_DEBUG", "SOUNDSTAGE_REAL_DATA"}
)
KUBERNETES = re.compile(r"\w+_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_[0-9]+_\w+)")  # of a service, in each pod
ONE_SLASH = re.compile(r"s3:(?!//)")
SectionT = TypeVar("SectionT", TrainingSettings, InferenceSettings)
EARLIEST_QUARTER = "1900-01"  # Dagster cannot list the quarters from the year 1 on


class SettingsError(Exception):
    """The settings cannot be used; the message names the file, the field and what it must be."""


class PoolsSettings(Section):
    """How many runs of a kind go on side by side; `make up` writes these limits into Dagster."""

    training: int = Field(2, ge=1, description="Trainings at once.")
    gpu: int = Field(1, ge=1, description="Users of the GPUs at once, where `training.pool` is `gpu`.")
    cpu: int = Field(
        max(2, os.cpu_count() or 1), ge=1, description="Steps of corpus, evaluation and registration at once."
    )


class RetrainingSettings(Section):
    """When models are asked for without a launch; the sensor `retraining` in Dagster answers, once switched on."""

    quarter_closed_cron: str = Field("0 6 1 1,4,7,10 *", description="When the quarter that closed is asked for (UTC).")
    late_recordings_cron: str = Field(
        "0 6 1 * *", description="When recordings that came late are looked for in the latest closed quarter (UTC)."
    )
    on_change: bool = Field(
        False,
        description="Train again when a recipe has changed: base models at once, the latest closed quarter of a "
        "language when its recipe or its base model is another than its model was made with.",
    )


class AlertsSettings(Section):
    """Who hears of a run that failed for good; Slack hears of challengers and decisions too.

    Give the secrets by environment: SOUNDSTAGE_ALERTS__SLACK_TOKEN.
    """

    webhook_url: SecretStr | None = Field(None, description="Gets a POST with JSON: partition, reason, link, run.")
    pagerduty_key: SecretStr | None = Field(None, description="Integration key of a PagerDuty service (Events v2).")
    pagerduty_url: str = Field("https://events.pagerduty.com/v2/enqueue", description="Where PagerDuty takes events.")
    slack_token: SecretStr | None = Field(None, description="Token of a Slack app that may write to the channel.")
    slack_channel: str = Field("#speech-models", description="Slack channel.")
    slack_url: str = Field("https://slack.com/api/", description="Where Slack's Web API is.")


class SourceCode(Section):
    """Where this code is hosted, so that an asset in Dagster's UI opens the line that defines it."""

    url: str = Field(description="Repository on GitHub or GitLab, such as https://github.com/acme/speech.")
    branch: str = Field("main", description="Branch that is deployed.")


class Settings(BaseSettings):
    """Everything a team edits. `Settings.load()` reads the file and the environment."""

    model_config = SettingsConfigDict(
        env_prefix="SOUNDSTAGE_",
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        nested_model_default_partial_update=True,
    )

    home: Annotated[str, BeforeValidator(lambda home: str(home) if isinstance(home, Path) else home)] = Field(
        DEFAULT_HOME,
        min_length=1,
        description="Data store: audio, manifests, models, verdicts, ledger. A folder, or s3://bucket/prefix.",
    )
    work: Path | None = Field(
        None,
        description="Folder of this machine for what is in no store: Dagster's and MLflow's SQLite, logs, trainings "
        "under way. None: the home where that is a folder, else .soundstage.",
    )
    cache: Path | None = Field(
        None, description="Folder for local copies of what is in S3; None: in the user's cache folder."
    )
    cache_bytes: int = Field(20 * 2**30, ge=0, description="How much of what is in S3 is kept there (bytes).")
    languages: tuple[str, ...] = Field(("en", "de"), min_length=1, description="Languages, as primary BCP-47 tags.")
    first_quarter: str = Field("2024-01", description="First quarter, as its first month (YYYY-MM).")
    sources: tuple[Source, ...] = Field((Source(kind="synthetic"), Source(kind="reviewed")), min_length=1)
    synthetic: SyntheticSettings = Field(default_factory=SyntheticSettings)
    training: TrainingSettings = Field(default_factory=TrainingSettings)
    gates: GateSettings = Field(default_factory=GateSettings)
    label_models: LabelTrainingSettings = Field(default_factory=LabelTrainingSettings)
    intents: IntentSettings = Field(default_factory=IntentSettings)
    intent_gates: IntentGateSettings = Field(default_factory=IntentGateSettings)
    label_gates: LabelGateSettings = Field(default_factory=LabelGateSettings)
    corpus: CorpusSettings = Field(default_factory=CorpusSettings)
    dagster_url: WebAddress = Field(
        "http://127.0.0.1:3000",
        description="Where people open Dagster; links point there. Behind a proxy `make up` starts it on "
        "127.0.0.1:3000.",
    )
    owners: tuple[str, ...] = Field(
        ("team:speech",), description="Who Dagster shows as owners of every asset: mail addresses or `team:` names."
    )
    source_code: SourceCode | None = Field(
        None, description="Where code links lead; None: to the files on this machine."
    )
    registry: RegistrySettings = Field(default_factory=RegistrySettings)
    promotion: PromotionSettings = Field(default_factory=PromotionSettings)
    pages: PagesSettings = Field(default_factory=PagesSettings)
    pools: PoolsSettings = Field(default_factory=PoolsSettings)
    retraining: RetrainingSettings = Field(default_factory=RetrainingSettings)
    alerts: AlertsSettings = Field(default_factory=AlertsSettings)
    serving: ServingSettings = Field(default_factory=ServingSettings)
    inference: InferenceSettings = Field(default_factory=InferenceSettings)

    @property
    def objects(self) -> Objects:
        """The data store."""
        return open_objects(self.home, self.cache, self.cache_bytes)

    @property
    def local(self) -> Path:
        """This machine's folder for what is in no store."""
        return self.work or Path(DEFAULT_HOME if "://" in self.home else self.home)

    @property
    def tracking_uri(self) -> str:
        """Where MLflow keeps runs and model versions."""
        return self.registry.tracking_uri or f"sqlite:///{self.local / 'mlflow' / 'mlflow.db'}"

    @property
    def dagster_listens(self) -> str:
        """Where Dagster listens on this machine."""
        return listens_at(self.dagster_url, 3000)

    @field_validator("languages")
    @classmethod
    def _language_tags(cls, languages: tuple[str, ...]) -> tuple[str, ...]:
        bad = [tag for tag in languages if not LANGUAGE_TAG.fullmatch(tag)]
        if bad or len(set(languages)) != len(languages):
            raise ValueError(f"must be distinct lower-case BCP-47 primary tags such as 'en'; got {list(languages)}")
        return languages

    @field_validator("home")
    @classmethod
    def _folder_or_bucket(cls, home: str) -> str:
        if ONE_SLASH.match(home):
            raise ValueError(f"must be a folder or s3://bucket/prefix; got '{home}'")
        return home

    @field_validator("training", "inference")
    @classmethod
    def _languages_that_there_are(cls, section: SectionT, info: ValidationInfo) -> SectionT:
        """What names a language names one of the deployment's."""
        named = section.base if isinstance(section, TrainingSettings) else (section.language,)
        known = info.data.get("languages", named)
        if unknown := [tag for tag in named if tag is not None and tag not in known]:
            raise ValueError(f"{', '.join(unknown)}: not among `languages`, {', '.join(known)}")
        return section

    @field_validator("inference")
    @classmethod
    def _uploads_beside_the_home(cls, inference: InferenceSettings, info: ValidationInfo) -> InferenceSettings:
        """Else what is kept would be received as uploads, again and again."""
        home, uploads = (f"{place or ''}".rstrip("/") + "/" for place in (info.data.get("home"), inference.uploads))
        if "://" in uploads and home.startswith(uploads):
            raise ValueError(f"uploads: '{inference.uploads}' holds the data store, {home[:-1]}: choose another prefix")
        return inference

    @field_validator("first_quarter")
    @classmethod
    def _quarter_start(cls, quarter: str) -> str:
        if not QUARTER_KEY.fullmatch(quarter):
            raise ValueError(f"must be the first month of a quarter, such as 2024-01 or 2024-04; got '{quarter}'")
        today = f"{datetime.now(UTC):%Y-%m}"
        if quarter > today:
            raise ValueError(f"must have begun: today is {today}; got '{quarter}'")
        if quarter < EARLIEST_QUARTER:
            raise ValueError(f"must not be before {EARLIEST_QUARTER}; got '{quarter}'")
        return quarter

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment wins over the file, which wins over the defaults."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml_file=settings_file())

    @classmethod
    def load(cls, *, trains: bool = True) -> Self:
        """Read the settings; relative paths in them are relative to the file that names them.

        `trains` is whether this process launches trainings, so that their recipes have to be here: a machine that only
        serves has the settings without them.

        Raises:
            SettingsError: the file named by SOUNDSTAGE_CONFIG is missing, is not TOML, or a field is wrong; or a
                SOUNDSTAGE_* variable is no setting.
        """
        path = settings_file()
        if CONFIG_VARIABLE in os.environ and not path.is_file():
            raise SettingsError(f"{CONFIG_VARIABLE} names {path}, which is not a file: create it or unset the variable")
        _refuse_unknown_variables(os.environ)
        try:
            settings = cls()
        except ValidationError as error:
            raise SettingsError(_problems(error, path, os.environ)) from error
        except SourceError as error:
            raise SettingsError(_no_json(os.environ) or str(error)) from error
        except ValueError as error:  # tomllib's decode error is a ValueError
            raise SettingsError(f"{path} is not valid TOML: {error}") from error
        if named := _holding_nul(settings.model_dump(mode="json")):
            raise SettingsError(
                f"settings in {path} or SOUNDSTAGE_* cannot be used: {named} holds a NUL character, which no name of a "
                "file can: write it anew"
            )
        folder = path.parent
        sources = tuple(source.under(folder) for source in settings.sources)
        training = settings.training.under(folder)
        if trains and (problem := training.problem()):
            place = _variable_of(problem.partition(":")[0].split("."), os.environ) or f"settings in {path}"
            raise SettingsError(f"{place} cannot be used: {problem}")
        inference = settings.inference
        places = {
            "inference": inference.model_copy(
                update={
                    "uploads": placed(folder, inference.place(settings.local)),
                    "truth": inference.truth and placed(folder, inference.truth),
                }
            ),
            "home": placed(folder, settings.home),
            "work": folder / settings.local.expanduser() if "://" in settings.home or settings.work else None,
            "cache": settings.cache and folder / settings.cache.expanduser(),
        }
        return settings.model_copy(update={**places, "sources": sources, "training": training})


def settings_file() -> Path:
    """Where this process reads its settings, if there is a file."""
    return (Path(os.environ.get(FOLDER_VARIABLE, "")) / os.environ.get(CONFIG_VARIABLE, DEFAULT_CONFIG)).absolute()


def handed_on() -> dict[str, str]:
    """Variables with which a process in any folder reads the settings that this one reads.

    Where there is a file they name it, so that its loss is an error there. Where there is none they name the folder
    that it would be in: no other folder's file takes its place.
    """
    path = settings_file()
    if path.is_file():
        return {CONFIG_VARIABLE: str(path)}
    return {FOLDER_VARIABLE: str(path.parent)}


def placed(folder: Path, home: str) -> str:
    """A home whose path is relative to `folder`, or to the user's by `~`; one that is no folder stays as it is."""
    return home if "://" in home else str(folder / Path(home).expanduser())


def _refuse_unknown_variables(environment: Mapping[str, str]) -> None:
    """Pydantic refuses an unknown name inside a table, and passes over one that no field begins with."""
    fields = Settings.model_fields
    for name, value in environment.items():
        asked = name.upper()
        if not asked.startswith(PREFIX) or asked in NO_SETTINGS or value.startswith(("tcp://", "udp://")):
            continue
        first = asked.removeprefix(PREFIX).partition("__")[0].lower()
        if first in fields or KUBERNETES.fullmatch(asked):
            continue
        tables = {field: getattr(info.annotation, "model_fields", {}) for field, info in fields.items()}
        known = [f"{PREFIX}{field}__{inner}".upper() for field, table in tables.items() for inner in table]
        near = get_close_matches(asked, [*known, *(f"{PREFIX}{field}".upper() for field in fields)], 1, 0.8)
        meant = f" (did you mean {near[0]}?)" if near else ""
        raise SettingsError(
            f"{name} is no setting{meant}: correct or unset it; the fields are in deployment/settings.py"
        )


def _holding_nul(value: object, name: str = "") -> str:
    """The field whose text holds a NUL character; "" where none does."""
    if isinstance(value, dict):
        inside = value.items()
    elif isinstance(value, list):
        inside = enumerate(value)  # type: ignore[assignment]
    else:
        return name if isinstance(value, str) and "\0" in value else ""
    found = (_holding_nul(part, f"{name}.{key}" if name else str(key)) for key, part in inside)
    return next(filter(None, found), "")


def _problems(error: ValidationError, path: Path, environment: Mapping[str, str]) -> str:
    """What is wrong, a sentence a field: where it was given, what it must be, and what it is.

    Pydantic also calls a list too short when what it holds is wrong.
    """
    found = error.errors()
    inside = {e["loc"][:depth] for e in found for depth in range(1, len(e["loc"]))}
    said: dict[str, list[str]] = {}
    for each in found:
        if each["type"] == "too_short" and each["loc"] in inside:
            continue
        variable = _variable_of(each["loc"], environment)
        field = ".".join(map(str, each["loc"]))
        named = "" if variable and field.upper() == variable.removeprefix(PREFIX).replace("__", ".") else f"{field}: "
        said.setdefault(variable or f"settings in {path}", []).append(named + _sentence(each))
    return "; ".join(f"{place} cannot be used: {'; '.join(problems)}" for place, problems in said.items())


def _sentence(problem: ErrorDetails) -> str:
    """What a field must be, and what it is; a secret is not repeated."""
    loc, given = problem["loc"], problem["input"]
    must = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        near = get_close_matches(str(loc[-1]), getattr(_annotation(loc[:-1]), "model_fields", ()), 1)
        return "is no setting" + (f" (did you mean {near[0]}?)" if near else "")
    if problem["type"] == "tuple_type":
        must = f"must be a list{_listed(loc, str(given))}"
    shown = isinstance(given, str | int | float) and "Secret" not in str(_annotation(loc))
    return f"{must}, got {given!r}" if shown and str(given) not in must else must


def _variable_of(loc: Sequence[int | str], environment: Mapping[str, str]) -> str | None:
    """The variable that gives a field, by itself or in the JSON of a table around it; None: the file does."""
    given = {name.upper(): (name, value) for name, value in environment.items()}
    for depth in range(len(loc), 0, -1):
        name, value = given.get((PREFIX + "__".join(map(str, loc[:depth]))).upper(), (None, ""))
        if name is not None and _holds(value, loc[depth:]):
            return name
    return None


def _holds(text: str, keys: Sequence[int | str]) -> bool:
    """Whether the JSON of a variable has a value at those keys, or is wrong itself before they are reached."""
    try:
        value: Any = json.loads(text) if keys else None
    except ValueError:
        return True
    for key in keys:
        inner = dict(enumerate(value)) if isinstance(value, list) else value
        if not isinstance(inner, dict):
            return True
        if key not in inner:
            return False
        value = inner[key]
    return True


def _no_json(environment: Mapping[str, str]) -> str | None:
    """Which variable is a list or a table and no JSON, and how it is written; None where there is none."""
    for name, value in environment.items():
        loc = name.lower().removeprefix(PREFIX.lower()).split("__")
        kind = _annotation(loc) if name.upper().startswith(PREFIX) else None
        try:
            if kind is not None:
                json.loads(value)
        except ValueError:
            if get_origin(kind) is tuple:
                return f"{name} cannot be used: must be a list in JSON{_listed(loc, value, quote=True)}, got {value!r}"
            if fields := getattr(kind, "model_fields", None):
                return f"{name} cannot be used: must be a table in JSON; or set {name}__{next(iter(fields)).upper()}"
            if get_origin(kind) in (dict, Mapping):
                return f'{name} cannot be used: must be a table in JSON, as \'{{"name": "value"}}\', got {value!r}'
    return None


def _listed(loc: Sequence[int | str], text: str, quote: bool = False) -> str:
    """How what was meant is written as a list, where it is one of texts; in quotes that a shell leaves alone."""
    if get_args(_annotation(loc))[:1] != (str,):
        return ""
    items = json.dumps([item for part in text.split(",") if (item := part.strip(" []'\""))], ensure_ascii=False)
    return f", as '{items}'" if quote else f", as {items}"


def _annotation(loc: Sequence[int | str]) -> Any:
    """The type of a field of the settings; None for what is none."""
    kind: Any = Settings
    for name in loc:
        field = getattr(kind, "model_fields", {}).get(name)
        kind = field.annotation if field else None
    return kind
