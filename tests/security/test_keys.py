"""Keys have names, scopes and ends; the file holds no key and is read again when it changes."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from fastapi.routing import APIRoute

from onsight.api import keys as keys_module
from onsight.api.auth import ALWAYS_OPEN, ANY_KEY, scope_of
from onsight.api.keys import PREFIX, Key, KeyBook, Scope, new_key, read_keys, write_keys
from onsight.core.errors import StartError
from tests.api.conftest import Bench
from tests.cli.conftest import RunCommand
from tests.servers import served, wait_until

Build = Callable[..., Bench]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def given(file: Path, *scopes: Scope, name: str = "robin", lasts: timedelta | None = None) -> str:
    """A new key in `file`; its text."""
    text, key = new_key(name, scopes, None if lasts is None else datetime.now(UTC) + lasts)
    write_keys(file, (*read_keys(file), key))
    return text


def test_every_route_says_what_it_needs(build: Build) -> None:
    routes = [route.path for route in build().app.routes if isinstance(route, APIRoute)]
    unsaid = [
        path
        for path in routes
        if scope_of(path) is None and path != "/" and path not in ALWAYS_OPEN and not path.startswith(ANY_KEY)
    ]
    assert unsaid == []
    assert len(routes) >= 10


@pytest.mark.parametrize(
    ("scope", "path", "status"),
    [
        ("chat", "/v1/chat/completions", 400),
        ("chat", "/v1/models", 200),
        ("chat", "/metrics", 403),
        ("chat", "/nowhere", 404),
        ("embed", "/v1/chat/completions", 403),
        ("embed", "/v1/caption", 403),
        ("embed", "/v1/responses", 403),
        ("embed", "/", 200),
        ("embed", "/v1/rerank", 400),
        ("chat", "/v1/rerank", 403),
        ("admin", "/v1/chat/completions", 400),
        ("admin", "/metrics", 200),
    ],
)
async def test_a_key_opens_its_scopes_and_no_more(
    scope: Scope, path: str, status: int, build: Build, file: Path
) -> None:
    text = given(file, scope)
    bench = build(keys=KeyBook(file=file))
    bench.headers = {"authorization": f"Bearer {text}"}
    posted = path.startswith(("/v1/c", "/v1/r"))
    answer = await (bench.post(path, {}) if posted else bench.get(path))
    assert answer.status_code == status, answer.text
    if status == 403:
        assert answer.json()["error"]["code"] == "permission_denied"
        assert text not in answer.text


def test_a_change_of_the_file_counts_at_once_and_a_faulty_one_does_not(
    file: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys_module, "_LOOK_AGAIN_S", 0.0)
    book = KeyBook(file=file)
    text = given(file, "chat")
    found = book.find(text)
    assert found is not None
    assert (found.name, found.scopes) == ("robin", ("chat",))
    whole = file.read_text()
    file.write_text(whole[:40])
    assert book.find(text) is not None
    assert "stay as they were" in caplog.text
    write_keys(file, ())
    assert book.find(text) is None
    file.write_text(whole)
    assert book.find(text) is not None
    file.unlink()
    assert book.find(text) is None


def test_a_file_that_could_not_be_read_is_read_once_it_can_though_nothing_of_it_changed(
    file: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys_module, "_LOOK_AGAIN_S", 0.0)
    text = given(file, "chat")
    book = KeyBook(file=file)
    write_keys(file, ())

    def forbidden(*_: object) -> str:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as unreadable:
        unreadable.setattr(Path, "read_text", forbidden)
        assert [book.find(text) is None for _ in range(3)] == [False] * 3
        assert caplog.text.count("the keys stay as they were, revoked ones too") == 1
        unreadable.setattr(keys_module, "_TELL_AGAIN_S", 0.0)
        book._tell_s = 0.0
        assert [book.find(text) is None for _ in range(2)] == [False] * 2
        assert caplog.text.count("the keys stay as they were, revoked ones too") == 3
    assert book.find(text) is None


def test_an_expired_key_opens_nothing(file: Path) -> None:
    gone, good = (
        given(file, "chat", lasts=timedelta(seconds=-1)),
        given(file, "chat", name="b", lasts=timedelta(days=1)),
    )
    book = KeyBook(file=file)
    assert book.find(gone) is None
    assert book.find(good) is not None


def test_the_file_holds_no_key_and_is_its_owners_alone(file: Path) -> None:
    text = given(file, "chat", "embed")
    assert text.startswith(PREFIX)
    assert len(text) > 40
    assert text not in file.read_text()
    assert text.removeprefix(PREFIX) not in file.read_text()
    assert stat.S_IMODE(os.stat(file).st_mode) == 0o600
    assert [path.name for path in file.parent.iterdir()] == ["keys.json"]


def test_a_file_that_is_there_keeps_its_mode(file: Path) -> None:
    given(file, "chat")
    file.chmod(0o640)
    given(file, "chat", name="b")
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_a_file_that_is_there_keeps_its_owner(file: Path) -> None:
    given(file, "chat")
    os.chown(file, 12_345, 12_346)
    given(file, "chat", name="b")
    assert (file.stat().st_uid, file.stat().st_gid) == (12_345, 12_346)


def test_who_may_not_keep_its_owner_is_told_so_and_changes_nothing(
    file: Path, run: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    given(file, "chat")
    before = file.read_bytes()

    def forbidden(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "fchown", forbidden)
    done = run("keys", "revoke", "robin", "--keys-file", str(file))
    assert (done.code, "run this as that user or as root" in done.err) == (2, True), done.err
    assert str(file.stat().st_uid) in done.err
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == ["keys.json"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"scopes": ["root"]}, "keys.0.scopes.0"),
        ({"scopes": []}, "keys.0.scopes"),
        ({"digest": "00"}, "keys.0.digest"),
        ({"name": "a\nb"}, "keys.0.name"),
        ({"expires": "2026-01-01T00:00:00"}, "time zone"),
        ({"key": "in clear"}, "keys.0.key"),
    ],
)
def test_a_file_that_is_not_ours_stops_the_start_by_the_place(file: Path, change: dict[str, object], said: str) -> None:
    given(file, "chat")
    stored = json.loads(file.read_text())
    stored["keys"][0] |= change
    file.write_text(json.dumps(stored))
    with pytest.raises(StartError, match=said) as caught:
        KeyBook(file=file)
    assert "in clear" not in str(caught.value)


def test_keys_are_made_listed_and_revoked(run: RunCommand, file: Path) -> None:
    named = ("--keys-file", str(file))
    made = run("keys", "add", "ci", "--scopes", "chat", "--lasts", "30d", *named)
    assert made.code == 0, made.err
    text = made.out.strip()
    found = KeyBook(file=file).find(text)
    assert found is not None
    assert found.scopes == ("chat",)
    (key,) = read_keys(file)
    assert key.expires is not None
    assert timedelta(days=29) < key.expires - datetime.now(UTC) <= timedelta(days=30)
    listed = run("keys", "list", *named).out
    assert "ci" in listed
    assert "good" in listed
    assert text not in listed
    assert "already" in run("keys", "add", "ci", *named).err
    assert run("keys", "revoke", "ci", *named).code == 0
    assert read_keys(file) == ()
    assert "no key named 'ci'" in run("keys", "revoke", "ci", *named).err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("a", "--scopes", "chat,root"), "'root' is none of chat, embed, admin"),
        (("a", "--lasts", "3y"), "write a number and h, d or w"),
        (("a b",), "a key's name has"),
    ],
)
def test_what_makes_no_key_is_one_sentence(run: RunCommand, file: Path, arguments: tuple[str, ...], said: str) -> None:
    done = run("keys", "add", *arguments, "--keys-file", str(file))
    assert (done.code, said in done.err) == (2, True), done.err
    assert not file.exists()


def test_without_a_named_file_the_way_to_name_one_is_said(run: RunCommand) -> None:
    assert "--keys-file FILE" in run("keys", "list").err


def test_a_running_server_learns_of_keys_and_of_their_end(file: Path, tmp_path: Path) -> None:
    text = given(file, "chat")
    with served("fake", "--engine", "fake", "--keys-file", str(file)) as server:
        with httpx.Client(base_url=server.url) as client:

            def status(key: str) -> int:
                return client.get("/v1/models", headers={"authorization": f"Bearer {key}"}).status_code

            assert client.get("/v1/models").status_code == 401
            assert status(text) == 200
            second = given(file, "embed", name="second")
            wait_until(lambda: status(second) == 200)
            write_keys(file, tuple(key for key in read_keys(file) if key.name == "second"))
            wait_until(lambda: status(text) == 401)
            assert status(second) == 200
        assert text not in server.log()
        assert second not in server.log()


def test_a_name_is_all_that_is_known_of_a_caller() -> None:
    _, key = new_key("robin", ("chat",))
    assert isinstance(key, Key)
    assert set(key.model_dump()) == {"name", "digest", "scopes", "created", "expires"}
