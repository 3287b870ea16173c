import pytest

from noria.contracts.error import ConfigError
from noria.settings import config_path, home, log_level, resolve_secret


def test_home_is_dot_noria_here_unless_the_environment_says_otherwise(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert home({}) == tmp_path / ".noria"
    assert home({"NORIA_HOME": "/srv/noria"}).as_posix() == "/srv/noria"
    assert home({"NORIA_HOME": "state"}) == tmp_path / "state"


def test_the_configuration_is_found_here_or_by_its_variable(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config_path({}) is None
    (tmp_path / "noria.json").write_text("{}")
    assert config_path({}) == tmp_path / "noria.json"
    (tmp_path / "noria.yaml").write_text("")
    assert config_path({}) == tmp_path / "noria.yaml"
    (tmp_path / "other.yaml").write_text("")
    assert config_path({"NORIA_CONFIG": "other.yaml"}) == tmp_path / "other.yaml"


def test_a_named_configuration_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="NORIA_CONFIG names"):
        config_path({"NORIA_CONFIG": str(tmp_path / "absent.yaml")})


def test_the_log_level_is_checked():
    assert log_level({}) == "info"
    assert log_level({"NORIA_LOG": "DEBUG"}) == "debug"
    with pytest.raises(ConfigError, match="Did you mean 'warning'"):
        log_level({"NORIA_LOG": "warn"})


def test_a_secret_comes_from_a_variable_or_a_file_without_its_newline(tmp_path):
    (tmp_path / "key").write_text("s3cret\n")
    assert resolve_secret("env:K", {"K": " s3cret\n"}) == "s3cret"
    assert resolve_secret(f"file:{tmp_path}/key", {}) == "s3cret"
    assert resolve_secret("", {}) == ""


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("env:K", "variable K is not set"),
        ("env:EMPTY", "'env:EMPTY' is empty"),
        ("file:/nowhere/key", "/nowhere/key cannot be read: No such file"),
        ("sk-live-4242", "must not stand in the configuration"),
        ("env:sk-live-4242", "not a variable name"),
    ],
)
def test_a_secret_that_cannot_be_had_is_named_and_never_shown(reference, said):
    with pytest.raises(ConfigError) as e:
        resolve_secret(reference, {"EMPTY": " \n", "OTHER": "s3cret"})
    assert said in str(e.value)
    assert "sk-live" not in str(e.value)
