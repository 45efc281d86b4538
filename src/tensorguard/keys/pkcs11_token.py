"""One logged-in session per token and process, behind one lock per module, opened anew after a loss.

PKCS#11 keeps its state per process: a module is initialised once, and a login holds for every session
of its token. So the modules are known process-wide here. Two facts rule the code: a session per thread
crashes modules that were initialised without OS locking, and once a token is logged in, a wrong PIN is
not looked at by the token any more; it is compared here.
"""

from __future__ import annotations

import hmac
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import pkcs11
from pkcs11 import exceptions as raised
from pydantic import SecretStr

from tensorguard.keys.pkcs11_uri import TokenUri
from tensorguard.keys.provider import (
    KeyCustodyDenied,
    KeyCustodyDown,
    KeyProviderUnusable,
    WrongKeyUse,
)

T = TypeVar("T")
REOPEN: Final = 1.0  # seconds between two attempts to find a lost token

GONE: Final = (
    raised.DeviceError,
    raised.DeviceRemoved,
    raised.FunctionFailed,
    raised.GeneralError,
    raised.KeyHandleInvalid,
    raised.NoSuchToken,
    raised.ObjectHandleInvalid,
    raised.SessionClosed,
    raised.SessionHandleInvalid,
    raised.SlotIDInvalid,
    raised.TokenNotPresent,
    raised.TokenNotRecognised,
    raised.UserNotLoggedIn,
)
DENIED: Final = (
    raised.PinExpired,
    raised.PinIncorrect,
    raised.PinInvalid,
    raised.PinLenRange,
    raised.PinLocked,
    raised.AnotherUserAlreadyLoggedIn,
    raised.UserAlreadyLoggedIn,
    raised.UserPinNotInitialized,
    raised.UserTooManyTypes,
)
NOT_OFFERED: Final = (
    raised.AttributeTypeInvalid,
    raised.DomainParamsInvalid,
    raised.FunctionNotSupported,
    raised.MechanismInvalid,
    raised.MechanismParamInvalid,
)


class _Module:
    """A loaded PKCS#11 library. `lock` guards it whole; `life` counts its initialisations."""

    def __init__(self, path: Path) -> None:
        try:
            self.library = pkcs11.lib(str(path))
        except (raised.PKCS11Error, RuntimeError, OSError) as error:
            raise KeyProviderUnusable(f"the PKCS#11 module {path} does not load") from error
        self.lock = threading.RLock()
        self.life = 0
        self.tokens: dict[tuple[str | None, str | None], Token] = {}
        self._next = 0.0

    def find(self, uri: TokenUri) -> pkcs11.Token:
        """Return the token; a module that does not see it is initialised anew, now and then."""
        try:
            return self._get(uri)
        except raised.PKCS11Error as error:
            if time.monotonic() < self._next:
                raise KeyCustodyDown("the token is not there") from error
        self._next = time.monotonic() + REOPEN
        try:
            self.life += 1
            self.library.reinitialize()
            return self._get(uri)
        except raised.PKCS11Error as error:
            raise KeyCustodyDown("the token is not there") from error

    def _get(self, uri: TokenUri) -> pkcs11.Token:
        wanted: dict[str, Any] = {}
        if uri.label is not None:
            wanted["token_label"] = uri.label
        if uri.serial is not None:
            wanted["token_serial"] = uri.serial.encode()
        return self.library.get_token(**wanted)

    def check(self, uri: TokenUri) -> None:
        """Raise a PKCS#11 error if the token cannot be seen."""
        self._get(uri)


_modules: dict[Path, _Module] = {}
_modules_lock = threading.Lock()
_pin_key = secrets.token_bytes(32)  # digests of PINs are compared, and worthless elsewhere


def _digest(pin: SecretStr) -> bytes:
    return hmac.digest(_pin_key, pin.get_secret_value().encode(), "sha256")


def open_token(uri: TokenUri) -> Token:
    """Return the process's one view of the token. Raises `KeyCustodyDenied` for a wrong PIN."""
    with _modules_lock:
        module = _modules.get(uri.module)
        if module is None:
            module = _modules[uri.module] = _Module(uri.module)
    with module.lock:
        name = (uri.label, uri.serial)
        token = module.tokens.get(name)
        if token is None:
            token = module.tokens[name] = Token(module, uri)
        token.admit(uri)
        return token


class Token:
    """A token and its session; `use` is the only way to it."""

    def __init__(self, module: _Module, uri: TokenUri) -> None:
        self._module, self._uri = module, uri
        self._session: pkcs11.Session | None = None
        self._life = -1
        self._accepted: bytes | None = None
        self._refused: bytes | None = None
        self.handles: dict[tuple[pkcs11.ObjectClass, str], pkcs11.Object] = {}

    @property
    def lock(self) -> threading.RLock:
        """The lock of the module, for whoever needs several uses in a row."""
        return self._module.lock

    def admit(self, uri: TokenUri) -> None:
        """Log in with the PIN of `uri`, or, when logged in, insist that it is the same PIN."""
        with self.lock:
            pin = uri.pin()
            if self._accepted is not None:
                if not hmac.compare_digest(self._accepted, _digest(pin)):
                    raise KeyCustodyDenied("this is not the PIN with which the token was opened")
                return
            self._uri = uri
            self._opened()

    def use(self, work: Callable[[pkcs11.Session], T]) -> T:
        """Run `work` on the session. After a loss the token is opened anew and `work` runs again."""
        with self.lock:
            try:
                return work(self._opened())
            except GONE:
                self._drop()
            except raised.PKCS11Error as error:
                raise _translated(error) from error
            try:
                return work(self._opened())
            except GONE as error:
                self._drop()
                raise KeyCustodyDown("the token does not answer") from error
            except raised.PKCS11Error as error:
                raise _translated(error) from error

    def check(self) -> None:
        """Raise a PKCS#11 error if the token is gone; a lost one answers searches with nothing."""
        self._module.check(self._uri)

    def _opened(self) -> pkcs11.Session:
        if self._session is not None and self._life == self._module.life:
            return self._session
        self._session = None
        self.handles = {}
        pin = self._uri.pin()
        if self._refused is not None and hmac.compare_digest(self._refused, _digest(pin)):
            raise KeyCustodyDenied("the token refused this PIN; it is not tried again")
        token = self._module.find(self._uri)
        try:
            session = token.open(rw=True, user_pin=pin.get_secret_value())
        except DENIED as error:
            if isinstance(error, raised.PinIncorrect):  # a few more would lock the token
                self._refused = _digest(pin)
            raise KeyCustodyDenied("the token refused the PIN") from error
        except raised.PKCS11Error as error:
            raise KeyCustodyDown("the token does not open a session") from error
        self._session, self._life, self._accepted = session, self._module.life, _digest(pin)
        return session

    def _drop(self) -> None:
        session, self._session, self.handles = self._session, None, {}
        if session is not None and self._life == self._module.life:
            try:
                session.close()
            except raised.PKCS11Error:  # it went with the token
                self._module.life += 1


def _translated(error: raised.PKCS11Error) -> Exception:
    if isinstance(error, DENIED):
        return KeyCustodyDenied("the token refused the login")
    if isinstance(error, NOT_OFFERED):
        return WrongKeyUse("the token does not offer this operation")
    return KeyCustodyDown(f"the token failed: {type(error).__name__}")
