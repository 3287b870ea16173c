"""Every error Noria raises on purpose, and the one place where foreign errors are classified.

    NoriaError                      has a code, an HTTP status and a hint: what to do next
    ├── ConfigError                 the configuration is wrong (exit code 2)
    │   └── MissingDependency       an optional library is not installed; carries the pip line
    ├── RequestError                the caller's request is wrong (4xx)
    │   ├── Unauthorized            no key, or a wrong one (401)
    │   ├── NotFound                no such app, model, record (404)
    │   └── Blocked                 a guard refused it (400, `content_filter`)
    ├── LimitExceeded               a rate limit or a budget (429)
    ├── UpstreamError               the model endpoint failed (502, 504, or its own 4xx)
    ├── Unavailable                 our own outage (503 + Retry-After), never the caller's fault
    └── StoreError                  an engine failed
        └── Conflict                an optimistic write lost its race (409)

Parts raise plain Python errors inside; `boundary` types them once, at the seam. Mechanism after
verifiers v1 `errors.py` (vocabulary, classification, surfacing, capture, each in one place).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import ClassVar


class NoriaError(Exception):
    """Base of the tree. `message` says what is wrong, `hint` what to do; both are safe to show."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        hint: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.hint = hint
        self.param = param
        self.retry_after = retry_after

    @property
    def text(self) -> str:
        """The message with its hint."""
        return f"{self.message} {self.hint}" if self.hint else self.message


class ConfigError(NoriaError):
    """Something in a configuration. `where` is `file:line` and the key path when they are known."""

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(message, code="config_error", hint=hint)
        self.where = where

    def __str__(self) -> str:
        return f"{self.where}: {self.text}" if self.where else self.text


class MissingDependency(ConfigError):
    """An optional library is needed and absent; the hint is the `pip install` line."""


class RequestError(NoriaError):
    """The caller's request cannot be served as it is."""

    status = 400
    type = "invalid_request_error"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        hint: str | None = None,
        status: int | None = None,
    ) -> None:
        super().__init__(message, code=code, param=param, hint=hint)
        if status is not None:
            self.status = status  # type: ignore[misc]  # an instance may narrow the class default (405, 413, 431)


class Unauthorized(RequestError):
    """No key, a wrong key, or a key that may not do this (then with status 403)."""

    status = 401


class NotFound(RequestError):
    """A name that does not exist here. Build it with `nearest` so that it helps."""

    status = 404

    @classmethod
    def nearest(cls, what: str, name: str, known: list[str], *, code: str | None = None) -> NotFound:
        """An error that names the closest known names.

        >>> NotFound.nearest("model", "suport", ["support", "small"]).text
        "The model 'suport' does not exist. Did you mean 'support'?"
        """
        close = get_close_matches(name, known, n=3, cutoff=0.6)
        if close:
            hint = "Did you mean " + " or ".join(repr(c) for c in close) + "?"
        elif known:
            hint = "Known: " + ", ".join(sorted(known)[:10]) + ("…" if len(known) > 10 else ".")
        else:
            hint = f"No {what} is configured."
        return cls(f"The {what} {name!r} does not exist.", code=code, param=what, hint=hint)


class Blocked(RequestError):
    """A guard refused the prompt or the answer. The reason names the check, never the matched text."""

    status = 400
    type = "invalid_request_error"

    def __init__(self, message: str, *, check: str, side: str) -> None:
        super().__init__(message, code="content_filter")
        self.check = check
        self.side = side


class LimitExceeded(NoriaError):
    """A local rate limit (`rate_limit_exceeded`) or a spent budget (`insufficient_quota`).

    `details` says which one, in the body of the answer: scope, limit, what is used, when it begins anew. `lasting`: the same
    request will be refused again however long its caller waits.
    """

    status = 429
    type = "rate_limit_error"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        hint: str | None = None,
        retry_after: float | None = None,
        details: dict[str, object] | None = None,
        lasting: bool = False,
    ) -> None:
        super().__init__(message, code=code, hint=hint, retry_after=retry_after)
        self.details = details
        self.lasting = lasting


class UpstreamError(NoriaError):
    """The model endpoint failed. `started` is true once the caller has received content of it.

    `upstream_status` is the endpoint's own status, or None where there was no answer; `body` is its
    error body. A client error (400, 404, 413, 422, …) is passed through as it came and not retried.
    """

    status = 502
    type = "upstream_error"

    def __init__(
        self,
        message: str,
        *,
        code: str,
        upstream_status: int | None = None,
        body: bytes = b"",
        retry_after: float | None = None,
        started: bool = False,
    ) -> None:
        super().__init__(message, code=code, retry_after=retry_after)
        self.upstream_status = upstream_status
        self.body = body
        self.started = started
        self.retried = False
        """Whether Noria has asked more than once: the caller's SDK must not multiply that by its own retries."""
        if code == "upstream_timeout":
            self.status = 504  # type: ignore[misc]  # an instance may narrow the class default

    @property
    def callers_fault(self) -> bool:
        """Whether another endpoint would refuse the same request too."""
        status = self.upstream_status
        return status is not None and 400 <= status < 500 and status not in (401, 402, 403, 407, 408, 409, 425, 429)


class Unavailable(NoriaError):
    """Our own outage: starting, draining, store away. Always 503 with Retry-After, never 401."""

    status = 503
    type = "service_unavailable"

    def __init__(self, message: str, *, code: str = "unavailable", retry_after: float = 1.0, hint: str | None = None) -> None:
        super().__init__(message, code=code, retry_after=retry_after, hint=hint)


class StoreError(NoriaError):
    """An engine behind a port failed; the message names the engine and the operation."""


class Conflict(StoreError):
    """The record has changed since it was read, or exists already."""

    status = 409


@contextmanager
def boundary(kind: type[NoriaError], what: str) -> Iterator[None]:
    """Turn any foreign exception into `kind`, once, at a seam. Errors of ours pass through unchanged.

    >>> with boundary(StoreError, "reading"):
    ...     raise OSError("disk gone")
    Traceback (most recent call last):
    noria.contracts.error.StoreError: reading: OSError: disk gone
    """
    try:
        yield
    except NoriaError:
        raise
    except Exception as e:
        raise kind(f"{what}: {type(e).__name__}: {e}") from e
