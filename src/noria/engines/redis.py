"""Counters in Redis 6+ (or Valkey): several nodes share them. URL `redis://[user:password@]host[:port][/database]`, `rediss://`
for TLS, with `prefix=name` for the keys' first word (default `noria`).

One hash a counter, changed by one script each, so every method is atomic. Redis counts in doubles, exact to 2^53 only:
the scripts calculate in two halves of 31 bits. When a counter ends is the caller's word; Redis' own clock only clears away
what has been over for a while.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from noria.contracts.error import ConfigError, StoreError
from noria.contracts.port import CacheStore, Counter, Engine
from noria.kit.redis_cache import RedisCacheKeys

if TYPE_CHECKING:
    from redis.asyncio import Redis
    from redis.commands.core import AsyncScript

CONNECTIONS = 16
WAIT_S = 2.0
"""Seconds for a free connection, for a new one, and for an answer. Callers who need one sooner stop waiting by themselves."""
CLEAR_MS = 600_000
"""How long a counter that is over stays: clocks of nodes may differ by less than this."""
HALF = 1 << 31

_COMMON = """
local function pair(i) return {tonumber(ARGV[i]), tonumber(ARGV[i + 1])} end
local function less(a, b) return a[1] < b[1] or (a[1] == b[1] and a[2] < b[2]) end
local function sum(a, b, sign)
  local h, l = a[1] + sign * b[1], a[2] + sign * b[2]
  if l < 0 then h, l = h - 1, l + 2147483648 elseif l >= 2147483648 then h, l = h + 1, l - 2147483648 end
  return {h, l}
end
local function put(...) redis.call('HSET', KEYS[1], ...) end
local function whole(n) return string.format('%.0f', n) end
local zero = {0, 0}
local s = redis.call('HMGET', KEYS[1], 'h', 'l', 'eh', 'el')
local live = false
local now = pair(1)
if s[1] then
  local ends = {tonumber(s[3]), tonumber(s[4])}
  live = not less(zero, ends) or less(now, ends)
end
local amount = live and {tonumber(s[1]), tonumber(s[2])} or zero
"""
TAKE = (
    _COMMON
    + """
local want, least, room, ends = pair(3), pair(5), sum(pair(7), amount, -1), pair(9)
local grant = zero
if not less(room, least) then
  grant = less(room, want) and room or want
  if less(grant, zero) then grant = zero end
end
local fresh = sum(amount, grant, 1)
put('h', whole(fresh[1]), 'l', whole(fresh[2]))
if not live then
  put('eh', whole(ends[1]), 'el', whole(ends[2]))
  if less(zero, ends) then redis.call('PEXPIRE', KEYS[1], ARGV[11]) else redis.call('PERSIST', KEYS[1]) end
end
return {whole(grant[1]), whole(grant[2])}
"""
)
GIVE = (
    _COMMON
    + """
if live then
  local left = sum(amount, pair(3), -1)
  if less(left, zero) then left = zero end
  put('h', whole(left[1]), 'l', whole(left[2]))
end
return 0
"""
)


def split_url(url: str) -> tuple[str, str]:
    """The URL as redis-py takes it, and the prefix. Raises `ConfigError`, which never repeats the URL: it holds a password."""
    parts = urlsplit(url)
    example = "Write redis://user:password@host:6379/0, special letters as %XX."
    try:
        good = parts.scheme in {"redis", "rediss"} and parts.hostname and parts.port != 0 and not parts.fragment
    except ValueError:
        good = False
    if not good or not re.fullmatch(r"(/\d*)?", parts.path):
        raise ConfigError("The Redis URL cannot be read.", where="stores.counters", hint=example)
    params = dict(parse_qsl(parts.query, keep_blank_values=True))
    prefix = params.pop("prefix", "noria")
    if params:
        raise ConfigError(
            f"A Redis URL has no parameter {next(iter(params))!r}.", where="stores.counters", hint="It may have `prefix`."
        )
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", prefix):
        raise ConfigError(
            f"{prefix!r} cannot be a prefix.",
            where="stores.counters",
            hint="Use letters, digits, `.`, `_` and `-`, at most 64.",
        )
    return urlunsplit(parts._replace(query="")), prefix


def halves(number: int) -> tuple[int, int]:
    """A number as the scripts take it.

    >>> halves(2**62), halves(-1)
    ((2147483648, 0), (-1, 2147483647))
    """
    return divmod(number, HALF)


class RedisCounter:
    """`Counter` in Redis. The take that finds no live counter sets its expiry; later ones leave it."""

    def __init__(self, url: str) -> None:
        from redis.asyncio import BlockingConnectionPool, Redis
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff

        server, self._prefix = split_url(url)
        self._where = urlsplit(server).netloc.rpartition("@")[2]
        pool = BlockingConnectionPool.from_url(
            server,
            max_connections=CONNECTIONS,
            timeout=WAIT_S,
            socket_timeout=WAIT_S,
            socket_connect_timeout=WAIT_S,
            retry=Retry(NoBackoff(), 0),  # a take that is sent twice counts twice
            protocol=2,
        )
        self._redis: Redis = Redis.from_pool(pool)
        self._take: AsyncScript = self._redis.register_script(TAKE)
        self._give: AsyncScript = self._redis.register_script(GIVE)

    async def take(self, tenant: str, key: str, *, want: int, least: int, ceiling: int, expires_ns: int, now_ns: int) -> int:
        """As `Counter.take`."""
        clear_ms = max(0, expires_ns - now_ns) // 1_000_000 + CLEAR_MS
        numbers = (n for value in (now_ns, want, least, ceiling, expires_ns) for n in halves(value))
        high, low = await self._run(self._take, tenant, key, [*numbers, clear_ms])
        return int(high) * HALF + int(low)

    async def give(self, tenant: str, key: str, amount: int, *, now_ns: int) -> None:
        """As `Counter.give`."""
        await self._run(self._give, tenant, key, [*halves(now_ns), *halves(amount)])

    async def read(self, tenant: str, key: str, *, now_ns: int) -> int:
        """As `Counter.read`."""
        from redis.exceptions import RedisError

        try:
            there = await self._redis.hmget(self._name(tenant, key), ["h", "l", "eh", "el"])
        except (RedisError, OSError) as e:
            raise self._away(e) from e
        if there[0] is None:
            return 0
        high, low, end_high, end_low = (int(part or 0) for part in there)
        ends = end_high * HALF + end_low
        return high * HALF + low if not ends or ends > now_ns else 0

    async def close(self) -> None:
        """Close the connections. Idempotent."""
        await self._redis.aclose()

    async def _run(self, script: AsyncScript, tenant: str, key: str, args: Sequence[int]) -> Any:
        from redis.exceptions import RedisError

        try:
            return await script(keys=[self._name(tenant, key)], args=list(args))
        except (RedisError, OSError) as e:
            raise self._away(e) from e

    def _away(self, e: Exception) -> StoreError:
        return StoreError(f"Redis at {self._where} does not count: {type(e).__name__}: {e}", code="counters_away")

    def _name(self, tenant: str, key: str) -> str:
        return f"{self._prefix}:{len(tenant)}:{tenant}:{key}"  # the length: no tenant's name runs into a key


class RedisCache(RedisCacheKeys):
    """`CacheStore` in Redis, for nodes that share their answers."""

    def __init__(self, url: str) -> None:
        super().__init__(*split_url(url))


ENGINE = Engine(serves={Counter: RedisCounter, CacheStore: RedisCache}, requires=("redis>=8.0",))
