"""The cluster's secret: where it is read from, which texts are refused, and who may see it."""

from __future__ import annotations

import os
import random
import secrets
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from fleetlm import cookies
from fleetlm.cli import cookie as cookie_command
from fleetlm.cookies import TAKEN, find_weakness, take_cookies
from fleetlm.errors import SettingsError
from fleetlm.settings import Settings
from tests.unit.test_settings import COOKIE, LONGEST, refused

# ── where it is read from ────────────────────────────────────────────────────────────────────────


def test_a_cookie_file(tmp_path: Path) -> None:
    path = tmp_path / "cookie"
    path.write_text(f"{COOKIE}\n")
    assert Settings.from_env({"FLEETLM_COOKIE_FILE": str(path)}).cookie == COOKIE


def test_the_longest_cookie_file(tmp_path: Path) -> None:
    path = tmp_path / "cookie"
    path.write_text(LONGEST + "\n")
    cookie = Settings.from_env({"FLEETLM_COOKIE_FILE": str(path)}).cookie
    assert cookie == LONGEST


@pytest.mark.parametrize("content", ["", "\n", "short", "s" * 15 + "\n", "x" * 4097, "x" * 99_999])
def test_a_cookie_file_of_a_wrong_length(tmp_path: Path, content: str) -> None:
    path = tmp_path / "cookie"
    path.write_text(content)
    error = refused(FLEETLM_COOKIE_FILE=str(path))
    assert error.variable == "FLEETLM_COOKIE_FILE"
    assert error.value == str(path)
    assert "16 to 4,096 characters, the same on every node" in error.allowed
    assert "fleetlm cookie" in error.hint


def test_a_cookie_file_that_cannot_be_read(tmp_path: Path) -> None:
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe\x00" * 20)
    for path, reason in [
        (str(tmp_path / "missing"), "No such file or directory"),
        (str(tmp_path), "Is a directory"),
        (str(binary), "not a text file"),
        ("/a\x00b", "not a text file"),
        ("", ""),
    ]:
        error = refused(FLEETLM_COOKIE_FILE=path)
        assert (error.variable, error.value) == ("FLEETLM_COOKIE_FILE", path)
        assert error.allowed == "a readable text file"
        assert reason in error.hint


def test_one_cookie_only(tmp_path: Path) -> None:
    path = tmp_path / "cookie"
    path.write_text(COOKIE)
    error = refused(FLEETLM_COOKIE=COOKIE, FLEETLM_COOKIE_FILE=str(path))
    assert error.variable == "FLEETLM_COOKIE_FILE"
    assert "Unset one of them" in str(error)
    assert COOKIE not in str(error)


def test_the_cookie_is_shown_nowhere() -> None:
    settings = Settings.from_env({"FLEETLM_COOKIE": COOKIE, "DNS_CLUSTER_QUERY": "worker"})
    assert COOKIE not in repr(settings)
    assert COOKIE not in str(settings)
    assert COOKIE not in repr(settings.effective())
    assert settings.effective()["FLEETLM_COOKIE"] == "(set)"
    for cookie in ("c0ffee-c0ffee", "c0ffee" * 1000):
        assert "c0ffee" not in str(refused(FLEETLM_COOKIE=cookie))
        assert "c0ffee" not in repr(refused(FLEETLM_COOKIE=cookie))


def test_a_second_cookie_is_for_the_time_in_which_the_cookie_is_changed(tmp_path: Path) -> None:
    other = "another one, twice as secret"
    settings = Settings.from_env({"FLEETLM_COOKIE": COOKIE, "FLEETLM_COOKIE_OLD": f"{other}\n"})
    assert (settings.cookie, settings.other_cookies) == (COOKIE, (other,))
    assert other not in f"{settings!r} {settings.effective()}"
    assert settings.effective()["FLEETLM_COOKIE_OLD"] == "(set)"
    path = tmp_path / "cookies"
    path.touch(0o600)
    path.write_text(f"\n{COOKIE}\n {other} \n\n")
    assert Settings.from_env({"FLEETLM_COOKIE_FILE": str(path)}) == settings
    path.write_text(f"{COOKIE}\n")
    both = {"FLEETLM_COOKIE_FILE": str(path), "FLEETLM_COOKIE_OLD": other}
    assert Settings.from_env(both) == settings
    assert Settings.from_env({"FLEETLM_COOKIE": COOKIE, "FLEETLM_COOKIE_OLD": COOKIE}).other_cookies == ()


def test_a_second_cookie_that_cannot_be_used_is_refused_and_not_shown(tmp_path: Path) -> None:
    assert "FLEETLM_COOKIE beside it" in str(refused(FLEETLM_COOKIE_OLD=COOKIE))
    assert COOKIE not in str(refused(FLEETLM_COOKIE_OLD=COOKIE))
    short = refused(FLEETLM_COOKIE=COOKIE, FLEETLM_COOKIE_OLD="short-c0ffee")
    assert short.variable == "FLEETLM_COOKIE_OLD"
    assert "c0ffee" not in str(short)
    path = tmp_path / "cookies"
    path.write_text("\n".join(COOKIE + str(number) for number in range(5)))
    assert "up to 4 cookies" in str(refused(FLEETLM_COOKIE_FILE=str(path)))


# ── which texts are refused ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("cookie", "why"),
    [
        ("a" * 16, "only 1 different character"),
        ("a" * 4000, "only 1 different character"),
        ("abababababababab", "only 2 different characters"),
        ("000000000000000000012345"[:20], "only 2 different characters"),
        ("abcdefghabcdefgh", "repeats the same 8 characters"),
        ("k3xQ9w!k3xQ9w!k3xQ9w!k3xQ", "repeats the same 7 characters"),
        ("changemechangeme", "repeats the same 8 characters"),
        ("password12345678", "well-known words and sequences"),
        ("Password-Password!1"[:19], "well-known words and sequences"),
        ("fleetlm-fleetlm!", "well-known words and sequences"),
        ("1234567890123456789", "well-known words and sequences"),
        ("abcdefghijklmnopqrstuvwxyz", "well-known words and sequences"),
        ("0123456789abcdef", "well-known words and sequences"),
        ("zyxwvutsrqponmlkjihgfedcba", "well-known words and sequences"),
        ("replace_me_secret_cookie", "well-known words and sequences"),
        ("qwertyuiopasdfgh", "well-known words and sequences"),
        ("QWERTYUIOPasdfgh", "well-known words and sequences"),
        ("0987654321qwertz", "well-known words and sequences"),
        ("1q2w3e4r5t6y7u8i", "well-known words and sequences"),
        ("qazwsxedcrfvtgby", "well-known words and sequences"),
        ("zaq12wsxcde34rfv", "well-known words and sequences"),
        ("a1b2c3d4e5f6g7h8", "well-known words and sequences"),
        ("aabbccddeeff0011", "well-known words and sequences"),
        ("qwer1234asdf5678", "well-known words and sequences"),
        ("monkeydragon1234", "well-known words and sequences"),
        ("p@ssw0rdP@ssw0rd1", "well-known words and sequences"),
        ("MySecretCookie12", "well-known words and sequences"),
        ("supersecretcookie", "well-known words and sequences"),
        ("thisisasecretkey", "well-known words and sequences"),
        ("1234567890123456", "well-known words and sequences"),
        ("passwordpassword", "repeats the same 8 characters"),
    ],
)
def test_a_cookie_that_everybody_would_guess_is_refused_and_not_shown(cookie: str, why: str) -> None:
    assert why in find_weakness(cookie)
    error = refused(FLEETLM_COOKIE=cookie)
    assert why in error.hint
    assert "fleetlm cookie" in error.hint
    assert cookie not in f"{error} {error!r}"
    for field in ({"cookie": cookie}, {"cookie": COOKIE, "other_cookies": (cookie,)}):
        with pytest.raises(SettingsError, match="nobody can guess") as caught:
            Settings(**field)
        assert cookie not in str(caught.value)


@pytest.mark.parametrize(
    "cookie",
    [
        "correct horse battery staple",
        "a-secret-of-enough-characters",
        "old-cookie-0123456789",
        "sixteen characters",
        "8305175264939401",
        "äöüßéèêñç-łøåœ-žš",
    ],
)
def test_a_cookie_that_a_person_made_with_some_care_is_accepted(cookie: str) -> None:
    assert find_weakness(cookie) == ""


@pytest.mark.parametrize("count", [200, pytest.param(2_000, marks=pytest.mark.long)])
def test_random_cookies_are_accepted_whatever_made_them(count: int) -> None:
    rng = random.Random(7)
    for _ in range(count):
        made = [
            f"{rng.getrandbits(64):016x}",
            rng.randbytes(32).hex(),
            str(uuid.UUID(int=rng.getrandbits(128))),
            "".join(rng.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", k=20)),
            "".join(rng.choices("0123456789", k=24)),
        ]
        assert [find_weakness(each) for each in made] == [""] * len(made), made


@given(st.text(min_size=1, max_size=40))
def test_any_text_has_a_weakness_or_none_and_that_is_a_beginning_of_a_sentence(text: str) -> None:
    why = find_weakness(text)
    assert not why or why.startswith("It ")


def test_the_command_prints_a_good_cookie_and_never_the_same_one(capsys: pytest.CaptureFixture[str]) -> None:
    made = set()
    for _ in range(20):
        assert cookie_command.run() == 0
        (line,) = capsys.readouterr().out.splitlines()
        assert Settings.from_env({"FLEETLM_COOKIE": line}).cookie == line
        assert len(line) >= 43
        made.add(line)
    assert len(made) == 20


# ── who may see it ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        (0o400, ""),
        (0o600, ""),
        (0o440, "its group can read it"),
        (0o620, "its group can change it"),
        (0o444, "every user of this machine can read it"),
        (0o644, "every user of this machine can read it"),
        (0o602, "every user of this machine can change it"),
    ],
)
def test_a_cookie_file_that_others_can_open_is_a_warning(tmp_path: Path, mode: int, words: str) -> None:
    path = tmp_path / "cookie"
    path.write_text(COOKIE)
    path.chmod(mode)
    settings = Settings.from_env({"FLEETLM_COOKIE_FILE": str(path)})
    assert settings.cookie == COOKIE
    if not words:
        assert settings.warnings == ()
        return
    (warning,) = settings.warnings
    assert f"FLEETLM_COOKIE_FILE is {path}, and {words}: chmod 0400 it" in warning


def test_the_group_of_a_mounted_secret_may_read_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kubernetes gives the files of a secret to root and, with ``fsGroup``, to the group of the pod."""
    path = tmp_path / "cookie"
    path.write_text(COOKIE)
    path.chmod(0o440)
    uid = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: uid + 1)
    assert Settings.from_env({"FLEETLM_COOKIE_FILE": str(path)}).warnings == ()


def test_a_file_variable_that_holds_the_cookie_itself_is_not_shown() -> None:
    error = refused(FLEETLM_COOKIE_FILE=COOKIE)
    assert COOKIE not in f"{error} {error!r}"
    assert COOKIE not in str(refused(FLEETLM_COOKIE=COOKIE, FLEETLM_COOKIE_FILE=COOKIE))


def test_a_taken_cookie_is_left_to_this_process_and_to_no_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cookies, "_taken", {})
    other = secrets.token_hex(16)
    env = {"FLEETLM_COOKIE": COOKIE, "FLEETLM_COOKIE_OLD": other, "PATH": "/bin"}
    before = Settings.from_env(env)
    take_cookies(env)
    assert env == {TAKEN: "1", "PATH": "/bin"}
    assert Settings.from_env(env) == before, "another node of this process"
    assert Settings.from_env({**env, "FLEETLM_NODE_SLOT": "1"}).cookie == COOKIE
    take_cookies(env)
    assert Settings.from_env(env) == before, "nothing was there to be taken again"
    assert Settings.from_env({**env, "FLEETLM_COOKIE": other}).cookie == other, "what is given counts"
    assert Settings.from_env({"PATH": "/bin"}).cookie is None

    probe = "from fleetlm import Settings; Settings.from_env()"
    child = subprocess.run(
        [sys.executable, "-c", probe], env=env, capture_output=True, text=True, check=False
    )
    assert child.returncode == 1
    assert "FLEETLM_COOKIE_TAKEN is '1'; allowed: only beside a cookie" in child.stderr
    assert COOKIE not in child.stderr


def test_an_environment_without_a_cookie_stays_as_it_is() -> None:
    env = {"FLEETLM_COOKIE_FILE": "/run/secrets/cookie", "PATH": "/bin"}
    take_cookies(env)
    assert env == {"FLEETLM_COOKIE_FILE": "/run/secrets/cookie", "PATH": "/bin"}


def test_a_cookie_can_be_required_everywhere() -> None:
    error = refused(FLEETLM_REQUIRE_COOKIE="1", FLEETLM_INSECURE="1", FLEETLM_NODE_IP="127.0.0.1")
    assert error.variable == "FLEETLM_REQUIRE_COOKIE"
    assert "fleetlm cookie" in error.hint
    assert Settings.from_env({"FLEETLM_REQUIRE_COOKIE": "1", "FLEETLM_COOKIE": COOKIE}).require_cookie
    with pytest.raises(SettingsError, match=r"Settings\.require_cookie is True"):
        Settings(require_cookie=True)
    with pytest.raises(SettingsError):
        Settings(require_cookie=True, cookie=COOKIE).replace(cookie=None)
