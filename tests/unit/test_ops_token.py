"""The token of the ops listener: which texts are refused, where it is read from, and who sees it."""

from __future__ import annotations

import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from fleetlm import Settings, SettingsError, ops_token
from fleetlm.ops_token import OPS_TAKEN, take_token

TOKEN = "nPq7-wJ2_rT9xYb4mLc8"
LOOPBACK = {"FLEETLM_OPS": "127.0.0.1:4380"}


def refused(**env: str) -> SettingsError:
    with pytest.raises(SettingsError) as caught:
        Settings.from_env(env)
    return caught.value


def test_it_is_read_from_the_environment_or_a_file(tmp_path: Path) -> None:
    assert Settings.from_env({"FLEETLM_OPS_TOKEN": f" {TOKEN}\n"}).ops_token == TOKEN
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    path.chmod(0o400)
    settings = Settings.from_env({"FLEETLM_OPS_TOKEN_FILE": str(path)})
    assert (settings.ops_token, settings.warnings) == (TOKEN, ())
    path.chmod(0o644)
    (warning,) = Settings.from_env({"FLEETLM_OPS_TOKEN_FILE": str(path)}).warnings
    assert warning.startswith(f"FLEETLM_OPS_TOKEN_FILE is {path}, and every user of this machine can read it")
    assert Settings(ops_token=TOKEN).ops_token == TOKEN
    assert Settings.from_env({}).ops_token is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "short",
        "x" * 4_097,
        "x" * 20,
        "changemechangeme",
        f"{TOKEN} {TOKEN}",
        f"{TOKEN}ä",
        f"{TOKEN}\x07a",
    ],
)
def test_a_token_that_is_easy_to_guess_or_fits_no_header_is_refused_and_not_shown(text: str) -> None:
    error = refused(FLEETLM_OPS_TOKEN=text)
    assert error.variable == "FLEETLM_OPS_TOKEN"
    assert "fleetlm cookie" in error.hint
    assert not text or text not in str(error)
    with pytest.raises(SettingsError, match=r"Settings\.ops_token is \(masked\)"):
        Settings(ops_token=text)


def test_both_variables_and_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    assert "only one of" in refused(FLEETLM_OPS_TOKEN=TOKEN, FLEETLM_OPS_TOKEN_FILE="/x").allowed
    assert "No such file" in refused(FLEETLM_OPS_TOKEN_FILE=str(tmp_path / "none")).hint
    assert TOKEN not in str(refused(FLEETLM_OPS_TOKEN_FILE=TOKEN)), "somebody put the token there"


def test_nothing_shows_it() -> None:
    settings = Settings.from_env({**LOOPBACK, "FLEETLM_OPS_TOKEN": TOKEN})
    assert settings.effective()["FLEETLM_OPS_TOKEN"] == "(set)"
    assert TOKEN not in repr(settings) + str(settings.effective())
    assert TOKEN not in str(refused(FLEETLM_OPS_TOKNE=TOKEN))


@pytest.mark.parametrize("place", [":4380", "0.0.0.0:4380", "10.0.0.1:4380", "[::]:4380", "[fd00::1]:1-9"])
def test_where_others_reach_the_listener_a_token_is_needed(place: str) -> None:
    error = refused(FLEETLM_OPS=place)
    assert (error.variable, error.value) == ("FLEETLM_OPS", place)
    assert "FLEETLM_OPS_TOKEN" in error.hint
    with pytest.raises(SettingsError, match=r"Settings\.ops is"):
        Settings(ops=place)
    assert Settings(ops=place, ops_token=TOKEN).ops is not None
    assert Settings.from_env({"FLEETLM_OPS": place, "FLEETLM_OPS_TOKEN": TOKEN}).ops_token == TOKEN


def test_a_taken_token_is_left_to_this_process_and_to_no_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops_token, "_taken", {})
    env = {**LOOPBACK, "FLEETLM_OPS_TOKEN": TOKEN, "PATH": "/bin"}
    before = Settings.from_env(env)
    take_token(env)
    assert env == {**LOOPBACK, OPS_TAKEN: "1", "PATH": "/bin"}
    assert Settings.from_env(env) == before, "another node of this process"
    take_token(env)
    assert Settings.from_env(env) == before
    other = secrets.token_urlsafe(16)
    assert Settings.from_env({**env, "FLEETLM_OPS_TOKEN": other}).ops_token == other, "what is given counts"
    without = {name: value for name, value in env.items() if name != "FLEETLM_OPS"}
    assert Settings.from_env(without).ops_token is None, "no listener, no token"

    probe = "from fleetlm import Settings; Settings.from_env()"
    child = subprocess.run(
        [sys.executable, "-c", probe], env=env, capture_output=True, text=True, check=False
    )
    assert child.returncode == 1
    assert "FLEETLM_OPS_TOKEN_TAKEN is '1'; allowed: only beside a token" in child.stderr
    assert TOKEN not in child.stderr
