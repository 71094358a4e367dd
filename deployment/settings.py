"""What a team decides, in one typed place: `soundstage.toml`, overridden by `SOUNDSTAGE_*` variables.

A nested field is reached with two underscores: `SOUNDSTAGE_GATES__WER=0.10`. Unknown keys and variables are refused, so
that a typing error is an error and not a silent default. Thresholds of the gates and of the corpus checks are declared
beside the code that applies them, in `evaluation`, and gathered here.
"""

import os
import re
import socket
from collections.abc import Mapping
from datetime import UTC, date, datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)
from pydantic_settings import SettingsError as SourceError

from evaluation.corpus.expectations import CorpusSettings
from evaluation.gates import GateSettings
from speech.corpus.manifest import LANGUAGE_TAG, QUARTER_KEY
from training.recipe import TrainingError, load_recipe

PREFIX = "SOUNDSTAGE_"
CONFIG_VARIABLE = "SOUNDSTAGE_CONFIG"
DEFAULT_CONFIG = "soundstage.toml"
NO_SETTINGS = frozenset({CONFIG_VARIABLE, "SOUNDSTAGE_DAGSTER_STORAGE", "SOUNDSTAGE_DEBUG", "SOUNDSTAGE_REAL_DATA"})
KUBERNETES = re.compile(r"\w+_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_[0-9]+_\w+)")  # of a service, in each pod
EARLIEST_QUARTER = "1900-01"  # Dagster cannot list the quarters from the year 1 on


class SettingsError(Exception):
    """The settings cannot be used; the message names the file, the field and what it must be."""


def _web_address(url: str) -> str:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port out of range, or a bracket without its other half
        usable = False
    if not usable:
        raise ValueError(f"must be http:// or https://, a host, and a port from 1 to 65535 or none; got '{url}'")
    return url.rstrip("/")


WebAddress = Annotated[str, AfterValidator(_web_address)]


def listens_at(url: str, usual_port: int) -> str:
    """Where a service listens that people open at `url`.

    There, if it is `http` with a port at a host of this machine. Anything else is the address of a proxy, and the
    service behind it listens on 127.0.0.1 and its usual port.
    """
    parts = urlsplit(url)
    if parts.scheme == "http" and parts.hostname and parts.port and _is_here(parts.hostname):
        return f"http://{parts.netloc}"
    return f"http://127.0.0.1:{usual_port}"


def _is_here(host: str) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        try:
            probe.bind((host, 0))
        except (OSError, UnicodeError):
            return False
    return True


class Section(BaseModel):
    """Base of every table of the settings file: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(Section):
    """Where the recordings of one or more languages come from."""

    kind: Literal["synthetic", "kaldi", "table", "nemo", "lhotse", "common_voice"] = Field(
        description="How transcripts and audio are laid out; `synthetic` is the embedded corpus."
    )
    path: str | None = Field(None, description="Folder or manifest file of the source; not used by `synthetic`.")
    audio_root: str | None = Field(
        None,
        description="Folder that the recordings' paths are relative to; None: the manifest's own. A Kaldi recipe's are "
        "relative to where it is run.",
    )
    language: str | None = Field(
        None,
        description="Language of rows that do not say it; None: the only one of `languages`, or the rows must say it.",
    )
    speaker: str | None = Field(
        None, description="Speaker of rows that do not say it, for a source of one voice; None: the rows must say it."
    )
    domain: str = Field("unknown", description="Domain of rows that do not say it.")
    recorded_at: date | None = Field(None, description="Date of rows that do not say it; it decides their quarter.")

    @model_validator(mode="after")
    def _path_where_needed(self) -> Self:
        if self.kind != "synthetic" and not self.path:
            raise ValueError(f"a source of kind '{self.kind}' needs a path")
        return self


class Synthetic(Section):
    """Size and faults of the embedded corpus."""

    minutes: float = Field(70.0, gt=0, description="Minutes of speech per quarter and language.")
    speakers: int = Field(200, ge=4, description="Voices heard in a quarter.")
    seed: int = Field(0, description="Same seed, same bytes.")
    corrupt: tuple[str, ...] = Field(
        ("en|2024-07",), description="Partitions (`language|quarter`) whose transcripts slipped against the audio."
    )


class Training(Section):
    """How models are made."""

    base: dict[str, str] = Field(
        default_factory=dict,
        description="Per language: a published checkpoint's name or a trusted `.nemo` path; a language not named here "
        "is trained from scratch with `base_recipe` on the `base_quarters` first quarters.",
    )
    base_recipe: str = Field("tiny", description="Recipe of a base model trained from scratch (name or YAML path).")
    finetune_recipe: str = Field("finetune", description="Recipe of the quarterly fine-tune (name or YAML path).")
    base_quarters: int = Field(1, ge=1, description="Quarters, from the first, that a base model learns from.")
    window: int = Field(4, ge=1, description="Quarters that a fine-tune reads: its own and those before it.")
    seed: int = Field(0, description="Seed of initialisation, augmentation and order.")
    threads: int = Field(
        max(1, (os.cpu_count() or 1) // 2),
        ge=1,
        description="CPU threads of a training process; half the cores, since two run side by side. More threads than "
        "cores make both crawl.",
    )
    max_runtime_s: int = Field(
        7_200, gt=0, description="A training process is stopped after this many seconds; it leaves a checkpoint."
    )
    command: str = Field(
        "soundstage train",
        min_length=1,
        description="What trains: called with the path of a specification, it leaves `checkpoint.nemo`, `bundle/` and "
        "`training.json` in the folder named there (the whole contract stands in speech_assets/defs/processes.py).",
    )
    pool: Literal["training", "gpu"] = Field(
        "training",
        description="Pool that trainings queue in; `gpu` where they share the devices with other work. Its limit, and "
        "those of the other pools, are in [pools].",
    )
    price_per_device_hour: float = Field(
        0.0,
        ge=0,
        description="What an hour of one device (a GPU, or a machine without one) costs, in your currency; `cost` of "
        "a model in Dagster is its training's device hours times this. 0: no cost is shown.",
    )
    overrides: dict[str, float | int | str | bool] = Field(
        default_factory=dict, description="Recipe fields to replace in both recipes, such as `max_steps`."
    )


class Registry(Section):
    """Where model versions live."""

    tracking_uri: str | None = Field(None, description="MLflow server; None: SQLite and a folder under `home`.")
    ui_url: WebAddress = Field(
        "http://127.0.0.1:5000",
        description="Where people open MLflow; links point there. Behind a proxy `make up` starts it on "
        "127.0.0.1:5000.",
    )
    model_prefix: str = Field("soundstage", description="Registered models are named `<prefix>-<language>`.")

    @property
    def ui_listens(self) -> str:
        """Where MLflow listens on this machine."""
        return listens_at(self.ui_url, 5000)


class Promotion(Section):
    """Who may move a model to production, and what they may decide."""

    approvers: tuple[str, ...] = Field(
        (), description="Names that may approve, reject and roll back. Empty: nobody can, until the team names someone."
    )
    two_person: bool = Field(
        False,
        description="The person who launched a training cannot be the only one to approve its model. Who that was is "
        "the run tag `soundstage/launched_by` (or `user`); a training that nobody signed needs two approvers. A "
        "roll-back needs one in any case. Off by default: Dagster itself does not know its users, so the rule is worth "
        "as much as the tag.",
    )
    require_better: bool = Field(
        True,
        description="A model that is merely as good as the champion is not approved: the paired interval of their WER "
        "on the frozen benchmark must lie below zero.",
    )
    challenger_expires_days: int = Field(
        90, ge=1, description="A challenger judged longer ago than this is closed and must be judged again (days)."
    )
    allow_override: bool = Field(
        False,
        description="Approvers may accept failed gates of one bundle, in the job `override_gates` and then in "
        "`promote`; each is an entry in the ledger with its reason. A missing or altered verdict stays a refusal.",
    )
    ledger_key: SecretStr | None = Field(
        None,
        min_length=16,
        description="Key by which every entry of the ledgers is signed; one without its signature is then refused. Set "
        "SOUNDSTAGE_PROMOTION__LEDGER_KEY, so that it is not on the disk of the data store. None: nothing is signed.",
    )

    @property
    def signing_key(self) -> bytes | None:
        """The ledger key's bytes, if there is one."""
        return self.ledger_key.get_secret_value().encode() if self.ledger_key else None


class Serving(Section):
    """The serving tier."""

    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on.")
    port: int = Field(8080, ge=1, le=65_535, description="Port to listen on.")
    threads: int = Field(1, ge=1, description="Threads of one recognition.")
    release_timeout_s: float = Field(
        60.0, gt=0, description="A release goes back when loading, warming or switching takes longer (seconds)."
    )
    auto_release: bool = Field(True, description="A new champion is released without another launch.")
    canary_share: float = Field(
        0.1,
        ge=0,
        le=0.5,
        description="Share of a language's requests that a new version gets while it is on trial; 0: no trial.",
    )
    canary_s: float = Field(
        20.0,
        gt=0,
        description="Longest trial; requests that customers do not bring in this time, the release asks itself, with "
        "the recordings of its probes (seconds).",
    )
    canary_requests: int = Field(
        50, ge=1, description="Requests to the new version after which the trial ends earlier (requests)."
    )
    canary_max_error_rate: float = Field(
        0.02,
        ge=0,
        le=1,
        description="Highest share of its requests that the new version may fail on (share); the old version answers "
        "those, so no customer notices.",
    )
    canary_max_latency_ratio: float = Field(
        1.5,
        gt=0,
        description="Highest ratio of the new version's seconds for an answer to the old one's: median, and with 100 "
        "answers of each the 95th percentile.",
    )
    canary_max_empty_share: float = Field(
        0.1,
        ge=0,
        le=1,
        description="By how much its share of empty transcripts may exceed the old version's (absolute share).",
    )
    drain_s: float = Field(
        30.0, ge=0, description="Longest wait for requests on the old version; none is cut off after it (seconds)."
    )

    @property
    def url(self) -> str:
        """Where the server of this machine listens."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


class Pools(Section):
    """How many runs of a kind go on side by side; `make up` writes these limits into Dagster."""

    training: int = Field(2, ge=1, description="Trainings at once.")
    gpu: int = Field(1, ge=1, description="Users of the GPUs at once, where `training.pool` is `gpu`.")
    cpu: int = Field(
        max(2, os.cpu_count() or 1), ge=1, description="Steps of corpus, evaluation and registration at once."
    )


class Retraining(Section):
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


class Alerts(Section):
    """Who hears of a run that failed for good; Slack hears of challengers and decisions too.

    Give the secrets by environment: SOUNDSTAGE_ALERTS__SLACK_TOKEN.
    """

    webhook_url: SecretStr | None = Field(None, description="Gets a POST with JSON: partition, reason, link, run.")
    pagerduty_key: SecretStr | None = Field(None, description="Integration key of a PagerDuty service (Events v2).")
    pagerduty_url: str = Field("https://events.pagerduty.com/v2/enqueue", description="Where PagerDuty takes events.")
    slack_token: SecretStr | None = Field(None, description="Token of a Slack app that may write to the channel.")
    slack_channel: str = Field("#speech-models", description="Slack channel.")
    slack_url: str = Field("https://slack.com/api/", description="Where Slack's Web API is.")


class Pages(Section):
    """The index of all quarters, evaluation reports and Data Docs."""

    url: WebAddress = Field(
        "http://127.0.0.1:5001",
        description="Where people open the pages; links point there. Behind a proxy they are served on 127.0.0.1:5001.",
    )

    @property
    def listens(self) -> str:
        """Where the pages are served on this machine."""
        return listens_at(self.url, 5001)


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

    home: Path = Field(Path(".soundstage"), description="Data store: audio, manifests, models, verdicts, ledger.")
    languages: tuple[str, ...] = Field(("en", "de"), min_length=1, description="Languages, as primary BCP-47 tags.")
    first_quarter: str = Field("2024-01", description="First quarter, as its first month (YYYY-MM).")
    sources: tuple[Source, ...] = Field(
        (Source(kind="synthetic", path=None, language=None, speaker=None, domain="unknown", recorded_at=None),),
        min_length=1,
    )
    synthetic: Synthetic = Field(default_factory=Synthetic)
    training: Training = Field(default_factory=Training)
    gates: GateSettings = Field(default_factory=GateSettings)
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
    registry: Registry = Field(default_factory=Registry)
    promotion: Promotion = Field(default_factory=Promotion)
    pages: Pages = Field(default_factory=Pages)
    pools: Pools = Field(default_factory=Pools)
    retraining: Retraining = Field(default_factory=Retraining)
    alerts: Alerts = Field(default_factory=Alerts)
    serving: Serving = Field(default_factory=Serving)

    @property
    def tracking_uri(self) -> str:
        """Where MLflow keeps runs and model versions."""
        return self.registry.tracking_uri or f"sqlite:///{self.home / 'mlflow' / 'mlflow.db'}"

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
        path = os.environ.get(CONFIG_VARIABLE, DEFAULT_CONFIG)
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml_file=path)

    @classmethod
    def load(cls, *, trains: bool = True) -> Self:
        """Read the settings; relative paths in them are relative to the file that names them.

        `trains` is whether this process launches trainings, so that their recipes have to be here: a machine that only
        serves has the settings without them.

        Raises:
            SettingsError: the file named by SOUNDSTAGE_CONFIG is missing, is not TOML, or a field is wrong; or a
                SOUNDSTAGE_* variable is no setting.
        """
        path = Path(os.environ.get(CONFIG_VARIABLE, DEFAULT_CONFIG)).absolute()
        if CONFIG_VARIABLE in os.environ and not path.is_file():
            raise SettingsError(f"{CONFIG_VARIABLE} names {path}, which is not a file: create it or unset the variable")
        _refuse_unknown_variables(os.environ)
        try:
            settings = cls()
        except ValidationError as error:
            raise SettingsError(f"settings in {path} or SOUNDSTAGE_* cannot be used: {_problems(error)}") from error
        except SourceError as error:
            raise SettingsError(
                f"a SOUNDSTAGE_* variable is not valid JSON, which tables and lists are written in: {error}"
            ) from error
        except ValueError as error:  # tomllib's decode error is a ValueError
            raise SettingsError(f"{path} is not valid TOML: {error}") from error
        folder = path.parent
        sources = tuple(
            source.model_copy(
                update={
                    name: str(folder / given) for name in ("path", "audio_root") if (given := getattr(source, name))
                }
            )
            for source in settings.sources
        )
        training = settings.training
        recipes = {
            name: str(folder / recipe)
            for name in ("base_recipe", "finetune_recipe")
            if (recipe := getattr(training, name)).endswith((".yaml", ".yml"))
        }
        base = {tag: str(folder / base) if base.endswith(".nemo") else base for tag, base in training.base.items()}
        training = training.model_copy(update={"base": base, **recipes})
        if trains and (problem := _recipe_problem(training)):
            raise SettingsError(f"settings in {path} or SOUNDSTAGE_* cannot be used: {problem}")
        return settings.model_copy(update={"home": folder / settings.home, "sources": sources, "training": training})


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


def _recipe_problem(training: Training) -> str | None:
    """What keeps a recipe from being read, or an override from being laid over it."""
    for field in ("base_recipe", "finetune_recipe"):
        named = field
        try:
            load_recipe(getattr(training, field))
            named = "overrides"
            load_recipe(getattr(training, field), training.overrides)
        except TrainingError as error:
            return f"training.{named}: {error}"
    return None


def _problems(error: ValidationError) -> str:
    """What is wrong, by field; pydantic also calls a list too short when what it holds is wrong."""
    found = error.errors()
    inside = {e["loc"][:depth] for e in found for depth in range(1, len(e["loc"]))}
    wrong = [e for e in found if not (e["type"] == "too_short" and e["loc"] in inside)]
    return "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg'].removeprefix('Value error, ')}" for e in wrong)
