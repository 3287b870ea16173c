"""A bounded cache in Redis 6+ (or Valkey), which several nodes share.

A tenant's keys begin with one word (`B` below): `e:<key>` the entry, `m:<key>` whose it is, `a:<app>` and `s:<subject>` which
there are, `x` when they end, `h` bytes by app, `p` purges by scope. Each change is one script, so a client that is killed
leaves nothing half done. Redis' own clock and expiry are not used: times come from the caller.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from noria.contracts.error import StoreError
from noria.contracts.port import CacheEntry, CachePurge, CachePurges, CacheTotal

if TYPE_CHECKING:
    from redis.asyncio import Redis

OVERHEAD = 1280
"""Bytes that an entry takes besides its data (measured on Redis 7.0: 1,230)."""
CONNECTIONS = 16
WAIT_S = 2.0
"""Seconds for a connection and for an answer; who needs it sooner stops waiting by itself."""
REMEMBERED_MS = 3_600_000
"""How long a purge is remembered."""

_COMMON = """
local B = KEYS[1]
local function scope(app, subject) return #app .. ':' .. app .. ':' .. subject end
local function drop(k)
  local m = redis.call('HMGET', B .. 'm:' .. k, 'a', 's', 'z')
  redis.call('DEL', B .. 'e:' .. k, B .. 'm:' .. k)
  redis.call('ZREM', B .. 'x', k)
  if m[1] then
    redis.call('ZREM', B .. 'a:' .. m[1], k)
    if redis.call('HINCRBY', B .. 'h', m[1], -tonumber(m[3])) <= 0 then redis.call('HDEL', B .. 'h', m[1]) end
    if m[2] ~= '' then redis.call('SREM', B .. 's:' .. m[2], k) end
  end
end
local function expire(now_ms, now, most)
  local n = 0
  for _, k in ipairs(redis.call('ZRANGEBYSCORE', B .. 'x', '-inf', now_ms, 'LIMIT', 0, most)) do
    if redis.call('HGET', B .. 'm:' .. k, 'e') <= now then drop(k); n = n + 1 end
  end
  return n
end
"""
_PUT = (
    _COMMON
    + """
local kept, at, count = 0, 3, tonumber(ARGV[3])
local function gone(app, subject, seen)
  for _, a in ipairs({'', app}) do
    for _, s in ipairs({'', subject}) do
      local seq = redis.call('ZSCORE', B .. 'p', scope(a, s))
      if seq and tonumber(seq) > seen then return true end
    end
  end
  return false
end
for _ = 1, count do
  local k, app, subject, size, room = ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], tonumber(ARGV[at + 4]), tonumber(ARGV[at + 5])
  if size <= room and not gone(app, subject, tonumber(ARGV[at + 6])) then
    drop(k)
    redis.call('SET', B .. 'e:' .. k, ARGV[at + 10])
    redis.call('HSET', B .. 'm:' .. k, 'a', app, 's', subject, 'z', size, 't', ARGV[at + 7], 'e', ARGV[at + 8])
    redis.call('ZADD', B .. 'x', ARGV[at + 9], k)
    redis.call('ZADD', B .. 'a:' .. app, redis.call('INCR', B .. 'n'), k)
    redis.call('HINCRBY', B .. 'h', app, size)
    if subject ~= '' then redis.call('SADD', B .. 's:' .. subject, k) end
    kept = kept + 1
  end
  at = at + 10
end
expire(ARGV[1], ARGV[2], 500)
while at < #ARGV do
  while tonumber(redis.call('HGET', B .. 'h', ARGV[at + 1]) or '0') > tonumber(ARGV[at + 2]) do
    drop(redis.call('ZRANGE', B .. 'a:' .. ARGV[at + 1], 0, 0)[1])
  end
  at = at + 2
end
return kept
"""
)
_PURGE = (
    _COMMON
    + """
local app, subject, n, keys = ARGV[2], ARGV[3], 0, nil
local seq = math.max(tonumber(redis.call('GET', B .. 'q') or '0') + 1, tonumber(ARGV[1]))
redis.call('SET', B .. 'q', string.format('%.0f', seq))
redis.call('ZADD', B .. 'p', string.format('%.0f', seq), scope(app, subject))
redis.call('ZADD', B .. 'pt', math.floor(tonumber(ARGV[1]) / 1000), scope(app, subject))
if subject ~= '' then keys = redis.call('SMEMBERS', B .. 's:' .. subject)
elseif app ~= '' then keys = redis.call('ZRANGE', B .. 'a:' .. app, 0, -1)
else keys = redis.call('ZRANGE', B .. 'x', 0, -1) end
for _, k in ipairs(keys) do
  if app == '' or redis.call('HGET', B .. 'm:' .. k, 'a') == app then drop(k); n = n + 1 end
end
return {string.format('%.0f', seq), n}
"""
)
_EXPIRE = (
    _COMMON
    + """
local n, more = 0, 1
while more > 0 do more = expire(ARGV[1], ARGV[2], 1000); n = n + more end
local old = redis.call('ZRANGEBYSCORE', B .. 'pt', '-inf', '(' .. ARGV[3])
for _, s in ipairs(old) do
  local seq = tonumber(redis.call('ZSCORE', B .. 'p', s))
  if seq > tonumber(redis.call('GET', B .. 'f') or '0') then redis.call('SET', B .. 'f', string.format('%.0f', seq)) end
  redis.call('ZREM', B .. 'p', s)
  redis.call('ZREM', B .. 'pt', s)
end
return n
"""
)
_TOTALS = (
    _COMMON
    + """
local more, found = 1, {}
while more > 0 do more = expire(ARGV[1], ARGV[2], 1000) end
local held = redis.call('HGETALL', B .. 'h')
for i = 1, #held, 2 do
  local all = B .. 'a:' .. held[i]
  local first, last = redis.call('ZRANGE', all, 0, 0)[1], redis.call('ZRANGE', all, -1, -1)[1]
  found[#found + 1] = {held[i], redis.call('ZCARD', all), tonumber(held[i + 1]),
    redis.call('HGET', B .. 'm:' .. first, 't'), redis.call('HGET', B .. 'm:' .. last, 't')}
end
return found
"""
)


class RedisCacheKeys:
    """`contracts.port.CacheStore` in a Redis database, under a prefix."""

    def __init__(self, server: str, prefix: str) -> None:
        from redis.asyncio import BlockingConnectionPool, Redis
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff

        self._prefix = prefix
        self._where = urlsplit(server).netloc.rpartition("@")[2]
        pool = BlockingConnectionPool.from_url(
            server,
            max_connections=CONNECTIONS,
            timeout=WAIT_S,
            socket_timeout=WAIT_S,
            socket_connect_timeout=WAIT_S,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
        )
        self._redis: Redis = Redis.from_pool(pool)
        self._scripts = {s: self._redis.register_script(s) for s in (_PUT, _PURGE, _EXPIRE, _TOTALS)}

    async def get(self, tenant: str, key: bytes, *, now_ns: int) -> CacheEntry | None:
        """As `CacheStore.get`."""
        data = await self._do(self._redis.get(f"{self._base(tenant)}e:{key.hex()}"))
        if data is None:
            return None
        entry = msgspec.msgpack.decode(data, type=CacheEntry)
        return entry if entry.expires_ns > now_ns else None

    async def put(self, tenant: str, entries: Sequence[CacheEntry], *, room: Mapping[str, int], now_ns: int) -> int:
        """As `CacheStore.put`."""
        args: list[Any] = [*_now(now_ns), len(entries)]
        for e in entries:
            size = len(e.data) + OVERHEAD
            value = msgspec.msgpack.encode(msgspec.structs.replace(e, seen=0))
            times = (_digits(e.stored_ns), _digits(e.expires_ns), -(-e.expires_ns // 1_000_000))
            args += [e.key.hex(), e.app, e.subject, size, room.get(e.app, size), e.seen, *times, value]
        args += [part for item in room.items() for part in item]
        await self._do(self._redis.sadd(f"{self._prefix}:cache", tenant.encode("utf-8", "surrogatepass")))
        return int(await self._run(_PUT, tenant, args))

    async def purge(self, tenant: str, *, app: str = "", subject: str = "", now_ns: int) -> tuple[int, int]:
        """As `CacheStore.purge`. Redis overwrites nothing; what it has written to disk goes with its next rewrite."""
        await self._do(self._redis.sadd(f"{self._prefix}:cache", tenant.encode("utf-8", "surrogatepass")))
        seq, n = await self._run(_PURGE, tenant, [now_ns // 1000, app, subject])
        return int(seq), int(n)

    async def purges(self, tenant: str, after: int) -> CachePurges:
        """As `CacheStore.purges`."""
        base = self._base(tenant)
        both = self._redis.pipeline(transaction=True)
        both.mget(f"{base}q", f"{base}f")
        both.zrangebyscore(f"{base}p", f"({after}", "+inf", withscores=True)
        (seq, floor), found = await self._do(both.execute())
        seq, floor = int(seq or 0), int(floor or 0)
        purges = tuple(CachePurge(int(score), *_scope(name)) for name, score in found)
        return CachePurges(seq, purges, complete=floor <= after <= seq)

    async def totals(self, tenant: str, *, now_ns: int) -> list[CacheTotal]:
        """As `CacheStore.totals`."""
        rows = await self._run(_TOTALS, tenant, list(_now(now_ns)))
        return sorted((CacheTotal(app.decode(), *map(int, rest)) for app, *rest in rows), key=lambda t: t.app)

    async def expire(self, *, now_ns: int) -> int:
        """As `CacheStore.expire`."""
        old = now_ns // 1_000_000 - REMEMBERED_MS
        tenants = await self._do(self._redis.smembers(f"{self._prefix}:cache"))
        return sum([int(await self._run(_EXPIRE, t.decode("utf-8", "surrogatepass"), [*_now(now_ns), old])) for t in tenants])

    async def close(self) -> None:
        """As `CacheStore.close`."""
        await self._redis.aclose()

    async def _run(self, script: str, tenant: str, args: list[Any]) -> Any:
        return await self._do(self._scripts[script](keys=[self._base(tenant)], args=args))

    async def _do(self, asked: Any) -> Any:
        from redis.exceptions import RedisError

        try:
            return await asked
        except (RedisError, OSError) as e:
            raise StoreError(f"Redis at {self._where} does not keep answers: {type(e).__name__}: {e}") from e

    def _base(self, tenant: str) -> str:
        return f"{self._prefix}:cache:{len(tenant)}:{tenant}:"  # the length: no tenant's name runs into what follows


def _now(now_ns: int) -> tuple[int, str]:
    """(milliseconds, rounded up; nanoseconds as text): Lua's numbers hold no nanoseconds."""
    return -(-now_ns // 1_000_000), _digits(now_ns)


def _digits(ns: int) -> str:
    """Text that compares as the number does."""
    return f"{ns:020d}"


def _scope(name: bytes) -> tuple[str, str]:
    length, _, rest = name.partition(b":")
    return rest[: int(length)].decode(), rest[int(length) + 1 :].decode()
