"""What every provider that speaks HTTP begins with: a client for its endpoint, and a key that a header can carry."""

from __future__ import annotations

from noria.contracts.error import ConfigError
from noria.contracts.release import Endpoint
from noria.kit.http_client import HttpClient


def client_for(endpoint: Endpoint, url: str, max_connections: int) -> HttpClient:
    """A client of `url` with the endpoint's time limits. Raises `ConfigError` that names the setting."""
    times = endpoint.timeouts
    try:
        return HttpClient(
            url,
            connect_timeout=times.connect,
            first_timeout=times.first,
            idle_timeout=times.idle,
            total_timeout=times.total,
            max_connections=max_connections,
        )
    except ValueError as e:
        raise ConfigError(
            f"The url of the model {endpoint.name!r} cannot be used: {e}", where=f"models.{endpoint.name}.url"
        ) from None


def check_key(endpoint: Endpoint, secret: str, variable: str) -> None:
    """Whether `secret` can be sent. Raises `ConfigError` where it cannot, or where there is none though the vendor's own
    address wants one; `variable` is what its key is usually called, empty where it has none.
    """
    where = f"models.{endpoint.name}.key"
    if not secret and variable and not endpoint.url:
        raise ConfigError(f"The model {endpoint.name!r} has no key.", where=where, hint=f"Give one: key: env:{variable}")
    if secret and not (secret.isascii() and secret.isprintable()):
        raise ConfigError(f"The key of the model {endpoint.name!r} holds characters that no header can carry.", where=where)
