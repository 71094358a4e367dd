"""The settings: one file, typed, and an error that names the field and what it must be."""

from pathlib import Path

import pytest

from deployment.settings import Settings, SettingsError


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "soundstage.toml"
    path.write_text("")
    monkeypatch.setenv("SOUNDSTAGE_CONFIG", str(path))
    return path


def test_everything_has_a_default(file: Path) -> None:
    settings = Settings.load()
    assert settings.sources[0].kind == "synthetic"
    assert settings.promotion.approvers == (), "nobody approves until the team names someone"
    assert settings.home == str(file.parent / ".soundstage")


def test_the_environment_wins_over_the_file_field_by_field(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("[gates]\nwer = 0.2\ncer = 0.1\n")
    monkeypatch.setenv("SOUNDSTAGE_GATES__WER", "0.05")
    monkeypatch.setenv("SOUNDSTAGE_PROMOTION__APPROVERS", '["ada","ben"]')
    settings = Settings.load()
    assert (settings.gates.wer, settings.gates.cer) == (0.05, 0.1)
    assert settings.promotion.approvers == ("ada", "ben")


def test_paths_are_relative_to_the_file_that_names_them(file: Path) -> None:
    """The daemon, the code server and a command line work in different folders."""
    (file.parent / "recipes").mkdir()
    (file.parent / "recipes" / "ours.yaml").write_text("max_steps: 10")
    file.write_text(
        """
home = "store"
[[sources]]
kind = "kaldi"
path = "calls"
[training]
base_recipe = "recipes/ours.yaml"
[training.base]
en = "models/base.nemo"
de = "stt_de_fastconformer"
"""
    )
    settings = Settings.load()
    assert settings.home == str(file.parent / "store")
    assert settings.sources[0].path == str(file.parent / "calls")
    assert settings.training.base_recipe == str(file.parent / "recipes" / "ours.yaml")
    assert settings.training.finetune_recipe == "finetune", "a name is no path"
    assert settings.training.base == {"en": str(file.parent / "models" / "base.nemo"), "de": "stt_de_fastconformer"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("langauges = ['en']", "langauges"),
        ("languages = ['en', 'en']", "distinct"),
        ("first_quarter = '2024-02'", "first month of a quarter"),
        ("first_quarter = '0000-01'", "first_quarter: must not be before"),
        ("first_quarter = '9999-01'", "first_quarter: must have begun"),
        ("dagster_url = 'http://127.0.0.1:99999'", "dagster_url: must be http"),
        ("dagster_url = 'dagster.example.org'", "dagster_url: must be http"),
        ("[pages]\nurl = 'http://127.0.0.1:0'", "pages.url: must be http"),
        ("[registry]\nui_url = 'http://[::1'", "registry.ui_url: must be http"),
        ("[gates]\nwer = 15", "gates.wer: Input should be less than or equal to 1"),  # a percentage
        ("[training]\nbase_recipe = 'tinyy'", "training.base_recipe: Unknown recipe 'tinyy'.* finetune, small, tiny"),
        ("[training]\nfinetune_recipe = 'none.yaml'", "training.finetune_recipe: .*none.yaml cannot be read"),
        ("[training.overrides]\nmax_step = 3", "training.overrides: .*'max_step'"),
        ("[[sources]]\nkind = 'kaldi'", "needs a path"),
        ("[gates]\nwer = 'low'", "gates.wer"),
        ("[inference]\nfirst_hour = '2026-13-45-99'", "inference.first_hour: must be an hour"),
        ("home = 's3:/recordings'", "home: must be a folder or s3://bucket/prefix"),
        ("[inference]\nuploads = 's3:/bucket/in'", "inference.uploads: must be s3://bucket/..., got 's3:/bucket/in'"),
        ("[inference]\nuploads = 'gs://bucket/in'", "inference.uploads: must be s3://bucket/..., got 'gs://bucket/in'"),
        (
            "home = 's3://b/home'\n[inference]\nuploads = 's3://b'",
            "uploads: 's3://b' holds the data store, s3://b/home",
        ),
        ("[inference.jobs]\nsources = ['/calls']", "inference.jobs.sources: must be s3://bucket/..., got '/calls'"),
        ("[inference.jobs]\ntopic = 'jobs'", "inference.jobs.topic: must be the ARN of a topic"),
        (
            "[inference.jobs]\nwebhook_secret = 'hush'",
            "inference.jobs.webhook_secret: must be whsec_",
        ),
        ("[inference]\nqueue = 'https://sqs/1/q'", "inference: `queue` tells of a bucket: set `uploads`"),
        ("[inference]\nlanguage = 'fr'", "inference: fr: not among `languages`, en, de"),
        ("[training.base]\nfr = 'stt_fr'", "training: fr: not among `languages`, en, de"),
        ("[gates", "is not valid TOML"),
    ],
)
def test_what_cannot_be_used_is_named(file: Path, content: str, said: str) -> None:
    file.write_text(content)
    with pytest.raises(SettingsError, match=said) as refused:
        Settings.load()
    assert str(file) in str(refused.value)


@pytest.mark.parametrize(
    ("content", "field"),
    [
        ("[[sources]]\nkind = 'kalid'\npath = 'calls'", "sources.0.kind"),
        ("[[sources]]\nkind = 'kaldi'\npath = 'calls'\nrecorded_at = '2024-13-01'", "sources.0.recorded_at"),
        ("languages = [1]", "languages.0"),
        ("sources = []", "sources"),
    ],
)
def test_one_mistake_is_one_error(file: Path, content: str, field: str) -> None:
    """The source with the mistake is there: nobody should look for one that is missing."""
    file.write_text(content)
    with pytest.raises(SettingsError) as refused:
        Settings.load()
    problems = str(refused.value).split("cannot be used: ")[1].split("; ")
    assert [problem.split(": ")[0] for problem in problems] == [field]


def test_a_machine_that_only_serves_needs_no_recipe(file: Path) -> None:
    file.write_text("[training]\nbase_recipe = 'elsewhere.yaml'")
    with pytest.raises(SettingsError, match="training.base_recipe"):
        Settings.load()
    assert Settings.load(trains=False).training.base_recipe == str(file.parent / "elsewhere.yaml")


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("SOUNDSTAGE_LANGUAGES", "en", """must be a list in JSON, as '["en"]', got 'en'"""),
        ("soundstage_languages", "en,de", """must be a list in JSON, as '["en", "de"]', got 'en,de'"""),
        ("SOUNDSTAGE_LANGUAGES", '"en"', """must be a list, as ["en"]"""),
        ("SOUNDSTAGE_PROMOTION__APPROVERS", "[ada,ben]", """must be a list in JSON, as '["ada", "ben"]'"""),
        ("SOUNDSTAGE_SOURCES", "calls", "must be a list in JSON, got 'calls'"),
        ("SOUNDSTAGE_GATES", "wer=0.1", "must be a table in JSON; or set SOUNDSTAGE_GATES__WER"),
        ("SOUNDSTAGE_TRAINING__OVERRIDES", "max_steps=3", "must be a table in JSON, as "),
        (
            "SOUNDSTAGE_GATES__WER",
            "low",
            "Input should be a valid number, unable to parse string as a number, got 'low'",
        ),
        ("SOUNDSTAGE_GATES", '{"wer": "low"}', "gates.wer: Input should be a valid number"),
        ("SOUNDSTAGE_GATES__WERR", "0.1", "is no setting (did you mean wer?)"),
        ("SOUNDSTAGE_TRAINING__BASE_RECIPE", "tinyy", "training.base_recipe: Unknown recipe 'tinyy'"),
        ("SOUNDSTAGE_PROMOTION__LEDGER_KEY", "short", "Value should have at least 16 items after validation, not 5"),
    ],
)
def test_what_a_variable_cannot_be_is_said_of_the_variable(
    file: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str
) -> None:
    """The file is not to blame. A shell takes the quotes of ["ada"] away unless it is quoted itself."""
    file.write_text("[gates]\ncer = 0.1\n")
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError) as refused:
        Settings.load()
    assert str(refused.value).startswith(f"{variable} cannot be used: {said}")


def test_a_mistake_of_the_file_is_not_blamed_on_a_variable_beside_it(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text("languages = 'en'\n[gates]\nwer = 'low'")
    monkeypatch.setenv("SOUNDSTAGE_GATES", '{"cer": 2}')
    with pytest.raises(SettingsError) as refused:
        Settings.load()
    by_file, by_variable = str(refused.value).split("; SOUNDSTAGE_GATES cannot be used: ")
    assert by_file.startswith(f'settings in {file} cannot be used: languages: must be a list, as ["en"]; gates.wer: ')
    assert by_variable == "gates.cer: Input should be less than or equal to 1, got 2"


@pytest.mark.parametrize("key", ["ledger_key", "ledger_kye"])
def test_a_secret_is_never_repeated(file: Path, key: str) -> None:
    """A refusal stands in logs, and in Dagster for everybody to read."""
    file.write_text(f"[promotion]\n{key} = 'hush'")
    with pytest.raises(SettingsError, match=f"promotion.{key}") as refused:
        Settings.load()
    assert "hush" not in str(refused.value)


def test_a_file_that_is_named_and_missing_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOUNDSTAGE_CONFIG", str(tmp_path / "none.toml"))
    with pytest.raises(SettingsError, match="create it or unset the variable"):
        Settings.load()


@pytest.mark.parametrize(
    ("text", "field"),
    [
        (r'home = "a\u0000b"', "home"),
        (r'work = "a\u0000b"', "work"),
        (r'sources = [{kind = "table", path = "a\u0000b"}]', "sources.0.path"),
        ('training.base.en = "a\\u0000b.nemo"', "training.base.en"),
    ],
)
def test_a_nul_in_a_place_is_refused_by_its_field(file: Path, text: str, field: str) -> None:
    """The system's calls end a name there, and Python's refusal names neither the file nor the field."""
    file.write_text(text)
    with pytest.raises(SettingsError, match=f"{field} holds a NUL character"):
        Settings.load()


@pytest.mark.parametrize("name", ["SOUNDSTAGE_GATE__WER", "SOUNDSTAGE_GATES_WER", "soundstage_gate__wer"])
def test_a_variable_that_sets_nothing_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A threshold with a typing error in its name would not be in force, and nobody would know."""
    monkeypatch.setenv(name, "0.05")
    with pytest.raises(SettingsError, match=f"{name} is no setting .did you mean SOUNDSTAGE_GATES__WER"):
        Settings.load()


def test_variables_that_are_no_settings_may_be_there(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kubernetes gives every pod those of a service that is named `soundstage`."""
    monkeypatch.setenv("SOUNDSTAGE_REAL_DATA", "/data")
    monkeypatch.setenv("SOUNDSTAGE_DAGSTER_STORAGE", "/data/dagster")
    monkeypatch.setenv("SOUNDSTAGE_SERVICE_HOST", "10.0.0.3")
    monkeypatch.setenv("SOUNDSTAGE_PORT", "tcp://10.0.0.3:8080")
    monkeypatch.setenv("SOUNDSTAGE_PORT_8080_TCP_ADDR", "10.0.0.3")
    assert Settings.load().gates.wer == 0.15


@pytest.mark.parametrize(
    ("opened", "listens"),
    [
        ("http://127.0.0.1:3100/", "http://127.0.0.1:3100"),
        ("http://localhost:3100", "http://localhost:3100"),
        ("https://dagster.example.org", "http://127.0.0.1:3000"),
        ("https://127.0.0.1:8443", "http://127.0.0.1:3000"),
        ("http://127.0.0.1/dagster", "http://127.0.0.1:3000"),
        ("http://192.0.2.1:3000", "http://127.0.0.1:3000"),
    ],
)
def test_behind_a_proxy_a_service_listens_on_its_usual_port(file: Path, opened: str, listens: str) -> None:
    file.write_text(f"dagster_url = '{opened}'")
    settings = Settings.load()
    assert settings.dagster_url == opened.rstrip("/"), "links lead to where people open it"
    assert settings.dagster_listens == listens


def test_an_address_of_version_6_has_its_brackets(file: Path) -> None:
    file.write_text("[serving]\nhost = '::1'")
    assert Settings.load().serving.url == "http://[::1]:8080"


def test_a_tilde_is_the_folder_of_the_user(file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    file.write_text(
        "home = '~/store'\ncache = '~/copies'\n[inference]\nuploads = '~/in'\n"
        "[[sources]]\nkind = 'nemo'\npath = '~/a.json'\n"
    )
    settings = Settings.load()
    places = (settings.home, str(settings.cache), settings.inference.uploads, settings.sources[0].path)
    assert places == tuple(str(tmp_path / "me" / name) for name in ("store", "copies", "in", "a.json"))


def test_a_bucket_of_uploads_stays_as_it_is_written(file: Path) -> None:
    file.write_text("[inference]\nuploads = 's3://calls/in/'")
    assert Settings.load().inference.uploads == "s3://calls/in/"


def test_an_empty_home_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unset variable of a script must not make the folder of the code a data store."""
    monkeypatch.setenv("SOUNDSTAGE_HOME", "")
    with pytest.raises(SettingsError, match="SOUNDSTAGE_HOME"):
        Settings.load()


def test_a_home_in_s3_leaves_a_folder_of_this_machine_for_what_is_in_no_store(file: Path) -> None:
    file.write_text('home = "s3://recordings/asr"\n')
    settings = Settings.load()
    assert settings.home == settings.objects.home == "s3://recordings/asr"
    assert settings.local == file.parent / ".soundstage"
    assert settings.tracking_uri == f"sqlite:///{file.parent}/.soundstage/mlflow/mlflow.db"
    file.write_text('home = "store"\nwork = "scratch"\n')
    assert Settings.load().local == file.parent / "scratch"
