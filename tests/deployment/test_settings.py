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
    assert settings.home == file.parent / ".soundstage"


def test_the_environment_wins_over_the_file_field_by_field(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("[gates]\nwer = 0.2\ncer = 0.1\n")
    monkeypatch.setenv("SOUNDSTAGE_GATES__WER", "0.05")
    monkeypatch.setenv("SOUNDSTAGE_PROMOTION__APPROVERS", '["ada","ben"]')
    settings = Settings.load()
    assert (settings.gates.wer, settings.gates.cer) == (0.05, 0.1)
    assert settings.promotion.approvers == ("ada", "ben")


def test_paths_are_relative_to_the_file_that_names_them(file: Path) -> None:
    """The daemon, the code server and a command line work in different folders."""
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
    assert settings.home == file.parent / "store"
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
        ("[[sources]]\nkind = 'kaldi'", "needs a path"),
        ("[gates]\nwer = 'low'", "gates.wer"),
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


def test_a_variable_that_is_no_json_is_not_blamed_on_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell takes the quotes of ["ada"] away unless it is quoted itself."""
    monkeypatch.setenv("SOUNDSTAGE_PROMOTION__APPROVERS", "[ada,ben]")
    with pytest.raises(SettingsError, match=r"SOUNDSTAGE_\* variable is not valid JSON"):
        Settings.load()


def test_a_file_that_is_named_and_missing_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOUNDSTAGE_CONFIG", str(tmp_path / "none.toml"))
    with pytest.raises(SettingsError, match="create it or unset the variable"):
        Settings.load()
