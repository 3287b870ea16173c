"""What the contract suite does not ask of the Redis engine: its URL, and a server that is not there."""

from __future__ import annotations

import pytest

from noria.contracts.error import ConfigError, StoreError
from noria.engines.redis import RedisCounter, split_url


def test_the_prefix_is_taken_from_the_url() -> None:
    assert split_url("redis://u:p%40w@host:7000/2?prefix=shop") == ("redis://u:p%40w@host:7000/2", "shop")
    assert split_url("rediss://host") == ("rediss://host", "noria")


@pytest.mark.parametrize(
    "url",
    [
        "redis://",
        "redis://host:port",
        "redis://:secret@host/name",
        "redis://:secret@host?db=1",
        "redis://:secret@host?prefix=a b",
        "http://:secret@host",
    ],
)
def test_a_wrong_url_is_an_error_that_keeps_the_password(url) -> None:
    with pytest.raises(ConfigError) as e:
        split_url(url)
    assert "secret" not in str(e.value)
    assert "stores.counters" in str(e.value)


async def test_a_server_that_is_not_there_is_a_store_error_without_the_password() -> None:
    counter = RedisCounter("redis://:secret@127.0.0.1:1/0")
    with pytest.raises(StoreError) as e:
        await counter.take("a", "k", want=1, least=1, ceiling=1, expires_ns=0, now_ns=1)
    assert "127.0.0.1:1" in e.value.message
    assert "secret" not in e.value.message
    with pytest.raises(StoreError):
        await counter.read("a", "k", now_ns=1)
    await counter.close()
