"""`/drainz`: an operator's wish that load balancers look elsewhere. Requests are served on; `/readyz` says no."""

from __future__ import annotations

import time

import msgspec

from noria.app.worker import Worker
from noria.contracts.error import RequestError, Unauthorized
from noria.kit.atomic import write_whole
from noria.kit.http_request import Request

METHODS = "GET, POST, DELETE"
_FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip", "via")
"""Signs of a proxy on this machine: its callers are not."""


def drain(worker: Worker, request: Request, token: str) -> bytes:
    """Begin (POST), end (DELETE) or tell (GET) a drain of the whole service; the body of the answer.

    Raises `Unauthorized` for callers from elsewhere without the admin token, `RequestError` for other methods.
    """
    peer = request.peer
    local = (peer in ("", "::1") or peer.startswith(("127.", "::ffff:127."))) and not any(
        h in request.headers for h in _FORWARDED
    )
    if not local and not worker.sessions.is_admin(token):
        raise Unauthorized("Draining needs the admin token, or a call from this machine.", code="admin_required")
    mark = worker.drain_mark
    if request.method == "POST":
        write_whole(mark, msgspec.json.encode({"since_ns": time.time_ns(), "by": peer or "this machine"}), durable=False)
    elif request.method == "DELETE":
        mark.unlink(missing_ok=True)
    elif request.method not in ("GET", "HEAD"):
        raise RequestError(f"/drainz takes {METHODS}, not {request.method}.", code="method_not_allowed", status=405)
    in_flight = worker.in_flight()
    routes = {path: n for path, n in in_flight.items() if path != "/drainz"}
    return msgspec.json.encode(
        {
            "draining": worker.draining or worker.drain_asked,
            "in_flight": sum(routes.values()),
            "by_route": routes,
            "worker": worker.name,
        }
    )
