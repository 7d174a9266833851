"""Keys: who holds one, what it opens, until when. The file holds digests alone, and is read again when it changes."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import secrets
import stat
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from onsight.core.errors import StartError

_log = logging.getLogger(__name__)

Scope = Literal["chat", "embed", "admin"]
"""`chat`: whatever makes a model write. `embed`: vectors and scores. `admin`: metrics, and all that the others open."""

SCOPES: tuple[Scope, ...] = get_args(Scope)
PREFIX = "onsight-"
_LOOK_AGAIN_S = 1.0
_TELL_AGAIN_S = 60.0


def _with_time_zone(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        raise ValueError("it has no time zone; end it with Z")
    return moment


Moment = Annotated[datetime, AfterValidator(_with_time_zone)]


class Key(BaseModel):
    """What the file knows of a key: `digest` is its SHA-256 in hexadecimal. A key is 256 random bits, so that nobody
    can try them all and no slower digest is needed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9._@-]{1,64}$")
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    scopes: tuple[Scope, ...] = Field(min_length=1)
    created: Moment
    expires: Moment | None = None

    @property
    def expired(self) -> bool:
        return self.expires is not None and self.expires <= datetime.now(UTC)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    keys: tuple[Key, ...] = ()


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: a key's name, and what it opens."""

    name: str
    scopes: tuple[Scope, ...]

    def may(self, scope: Scope) -> bool:
        return scope in self.scopes or "admin" in self.scopes


class KeyBook:
    """The keys that open the server: the one in the settings, which opens everything, and those of the file."""

    def __init__(self, fixed: str | None = None, file: Path | None = None) -> None:
        """Raises StartError for a file that is there and cannot be read; one that is not there yet holds no keys."""
        self._fixed = None if fixed is None else digest_of(fixed)
        self._file = file
        self._stamp: tuple[int, int, int] | None = None
        self._looked_s = self._tell_s = time.monotonic()
        self._keys: tuple[Key, ...] = ()
        if file is not None:
            self._stamp = _stamp(file)
            self._keys = read_keys(file)

    @property
    def guards(self) -> bool:
        """Whether any key is asked for."""
        return self._fixed is not None or self._file is not None

    def find(self, given: str) -> Caller | None:
        """The caller who holds the key `given`. Every key is compared, each in constant time."""
        self._look_again()
        try:
            digest = digest_of(given)
        except UnicodeEncodeError:  # half a character, which is in no key
            return None
        found = None
        if self._fixed is not None and hmac.compare_digest(digest, self._fixed):
            found = Caller("default", ("admin",))
        for key in self._keys:
            if hmac.compare_digest(digest, key.digest) and not key.expired:
                found = Caller(key.name, key.scopes)
        return found

    def _look_again(self) -> None:
        """Read the file again when it has changed, at most once a second. A faulty one changes nothing; it is tried
        again, and told once a minute, until it can be read, for nothing that we see of it may change before it can."""
        now_s = time.monotonic()
        if self._file is None or now_s - self._looked_s < _LOOK_AGAIN_S:
            return
        self._looked_s = now_s
        stamp = _stamp(self._file)
        if stamp == self._stamp:
            return
        try:
            self._keys = read_keys(self._file)
        except StartError as error:
            if now_s >= self._tell_s:
                self._tell_s = now_s + _TELL_AGAIN_S
                _log.error("the keys stay as they were, revoked ones too: %s", error)
        else:
            self._stamp, self._tell_s = stamp, now_s
            _log.info("%d keys read from %s", len(self._keys), self._file)


def digest_of(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def read_keys(file: Path) -> tuple[Key, ...]:
    """The keys in `file`, none if it is not there. Raises StartError for one that cannot be read."""
    try:
        text = file.read_text("utf-8")
    except FileNotFoundError:
        return ()
    except (OSError, UnicodeDecodeError) as error:
        raise StartError(f"the key file {file} cannot be read: {error}") from None
    try:
        return _File.model_validate_json(text).keys
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise StartError(f"the key file {file} is not as `onsight keys` writes it: {place}: {first['msg']}") from None


def write_keys(file: Path, keys: Sequence[Key]) -> None:
    """Replace `file` in one step; it keeps its owner and mode, and a new one is readable for its owner alone.

    Raises StartError, and then `file` is as it was.
    """
    text = json.dumps(_File(keys=tuple(keys)).model_dump(mode="json"), indent=2) + "\n"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as made:
                made.write(text)
                _take_after(file, handle)
            os.replace(name, file)
        except (OSError, StartError):
            os.unlink(name)
            raise
    except OSError as error:
        raise StartError(f"the key file {file} cannot be written: {error.strerror}") from None


def _take_after(file: Path, handle: int) -> None:
    """Give the open file `handle` the owner and mode of `file`, if it is there, so that who reads it still can."""
    try:
        facts = file.stat()
    except FileNotFoundError:
        return
    try:
        os.fchown(handle, facts.st_uid, facts.st_gid)
    except PermissionError:
        raise StartError(
            f"the key file {file} is user {facts.st_uid}'s and group {facts.st_gid}'s, and you may not write it so that"
            " they can still read it: run this as that user or as root"
        ) from None
    os.fchmod(handle, stat.S_IMODE(facts.st_mode))


def new_key(name: str, scopes: Sequence[Scope], expires: datetime | None = None) -> tuple[str, Key]:
    """A key's text, which is shown once and stored nowhere, and what the file keeps of it."""
    text = PREFIX + secrets.token_urlsafe(32)
    created = datetime.now(UTC).replace(microsecond=0)
    return text, Key(name=name, digest=digest_of(text), scopes=tuple(scopes), created=created, expires=expires)


def _stamp(file: Path) -> tuple[int, int, int] | None:
    """What changes when the file does; None while it is not there or cannot be looked at."""
    try:
        facts = file.stat()
    except OSError:
        return None
    return facts.st_mtime_ns, facts.st_size, facts.st_ino
