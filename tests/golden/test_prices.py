"""Prices that change, and prices of time, end to end: a midnight elsewhere, a batch over it, model time, alerts, the invoice."""

from __future__ import annotations

import asyncio
import datetime as dt
import http.client
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from tests.loopback import begin, end, frame, listening, put

from noria.kit.service import Service, publish

USAGE = {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100}
OLD, NEW = 1000 * 1000 + 100 * 2000, 1000 * 3000 + 100 * 4000
"""Nano-dollars of that usage by either price."""
SECRET = "T0KEN-0F-A-H00K"
HOUR_USD = 36.0
"""= 10,000 nano-dollars a millisecond."""


class Vendor:
    """Answers `USAGE`; `hold` waits until `turn` (Unix seconds); the path of the hook fails once, and then takes what it gets."""

    def __init__(self) -> None:
        self.port = 0
        self.turn = 0.0
        self.told: list[tuple[str, bytes]] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                length = int(head.lower().split("content-length: ")[1].split("\r\n")[0])
                body = await reader.readexactly(length)
                if head.startswith("POST /hook"):
                    self.told.append((head.split()[1], body))
                    _answer(writer, 500 if len(self.told) == 1 else 204, {})
                else:
                    await self._model(reader, writer, json.loads(body))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _model(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        said = body["messages"][-1]["content"]
        if said == "hold":
            await asyncio.sleep(max(0.0, self.turn - time.time() + 0.05))
        top = {"id": "c1", "object": "chat.completion", "created": 1, "model": body["model"]}
        if not body.get("stream"):
            choice = {"index": 0, "message": {"role": "assistant", "content": "ok"}, "finish_reason": "stop"}
            _answer(writer, 200, top | {"choices": [choice], "usage": USAGE})
            return
        begin(writer)
        put(writer, frame(top | {"choices": [{"index": 0, "delta": {"content": "ok"}, "finish_reason": None}]}))
        if said == "stay":
            await reader.read(1)
            raise ConnectionResetError
        put(writer, frame(top | {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}))
        end(writer)  # no usage: llama.cpp of old


def _answer(writer: asyncio.StreamWriter, status: int, value: dict[str, Any]) -> None:
    data = json.dumps(value).encode() if status == 200 else b""
    writer.write(b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (status, len(data), data))


@pytest.fixture(scope="module")
def vendor() -> Iterator[Vendor]:
    made = Vendor()
    with listening(made.serve) as made.port:
        yield made


def at(moment: float, hours: float) -> str:
    """A moment as a clock shows it that is so many hours ahead of UTC."""
    zone = dt.timezone(dt.timedelta(hours=hours))
    return dt.datetime.fromtimestamp(int(moment), zone).isoformat()


@pytest.fixture(scope="module")
def here(serve_once: Any, caller: Any, vendor: Vendor, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("prices")
    now = time.time()
    vendor.turn = float(int(now) + 8)
    old, new = {"input": 1, "output": 2}, {"input": 3, "output": 4}
    minute = dt.datetime.fromtimestamp(now, dt.UTC)
    around = "-".join((minute + dt.timedelta(minutes=m)).strftime("%H:%M") for m in (-60, 60))
    away = "-".join((minute + dt.timedelta(minutes=m)).strftime("%H:%M") for m in (120, 240))
    prices = {
        # an hour ago and in an hour, on clocks that read as if it were the other way round
        "begun": [old, new | {"since": at(now - 3600, 14)}],
        "coming": [old, new | {"since": at(now + 3600, -11)}],
        "turning": [old, new | {"since": at(vendor.turn, 5.75)}],
        "peak": [old, new | {"hours": around}],
        "night": [old, new | {"hours": away}],
    }
    (folder / "prices.json").write_text(json.dumps(prices))
    model = {"provider": "openai_compatible", "url": f"http://127.0.0.1:{vendor.port}/v1"}
    config = {
        "models": {name: model | {"model": name} for name in prices}
        | {"own": {"provider": "local", "model": "own-model", "price": {"compute_hour": HOUR_USD}}},
        "apps": {name: {"model": name} for name in (*prices, "own")},
        "price_file": str(folder / "prices.json"),
        "budgets": {
            "own": {"scope": "app:own", "usd": 100, "alerts": []},
            "told": {"scope": "app:begun", "usd": 0.002, "window": "day", "hard": False, "alerts": [0.5]},
        },
        "alerts": {"webhook": "env:GOLDEN_HOOK"},
        "batches": {"in_flight": 1},
    }
    hook = f"http://127.0.0.1:{vendor.port}/hook/{SECRET}"
    service = serve_once(json.dumps(config), "--workers", "1", env={"GOLDEN_HOOK": hook})
    server = Service("own-model", "ready", os.getpid(), time.time_ns(), port=vendor.port, facts={"tools": False})
    publish(Path(service.home) / "run" / "models" / "own-model.json", server)
    made = caller(service)
    made.key = made.new_key(name="golden")
    begin_batch(made)
    return made


def row_of(here: Any, app: str, text: str = "hello", **more: Any) -> dict[str, Any]:
    answer = here.chat(app, text, max_tokens=200, **more)
    assert answer.status == 200, answer.body
    return here.row(answer.id)


def nano(row: dict[str, Any]) -> int:
    return round(row["cost_usd"] * 1e9)


@pytest.mark.parametrize(("app", "cost"), [("begun", NEW), ("coming", OLD), ("peak", NEW), ("night", OLD)])
def test_the_price_in_force_is_paid_whatever_the_clocks_say(here: Any, app: str, cost: int) -> None:
    row = row_of(here, app)
    assert (nano(row), row["cost_status"]) == (cost, "exact")


def test_a_batch_over_the_turn_pays_each_line_by_its_own_beginning(here: Any, vendor: Vendor) -> None:
    """The first line begins before it and ends after it; the second begins after it. Nobody applies anything meanwhile."""
    rows = until(lambda: of_app(here, "turning", 2), 25.0)
    first, second = sorted(rows, key=lambda r: int(r["time_ns"]))[:2]
    turn = vendor.turn * 1e9
    if int(first["time_ns"]) > turn:
        pytest.skip("the machine took so long to start the service that the turn was over")
    assert turn <= int(second["time_ns"])
    assert (nano(first), nano(second)) == (OLD, NEW)
    assert nano(row_of(here, "turning")) == NEW


def begin_batch(here: Any) -> None:
    """Two lines, one at a time: the endpoint holds the first until the price has turned."""
    body = [{"model": "turning", "messages": [{"role": "user", "content": text}]} for text in ("hold", "after")]
    lines = [{"custom_id": f"l{i}", "method": "POST", "url": "/v1/chat/completions", "body": b} for i, b in enumerate(body)]
    data = "\n".join(json.dumps(line) for line in lines)
    head = '--m\r\ncontent-disposition: form-data; name="{}"{}\r\n\r\n{}\r\n'
    form = head.format("purpose", "", "batch") + head.format("file", '; filename="b.jsonl"', data) + "--m--\r\n"
    file = here.post("/v1/files", form.encode(), {"content-type": "multipart/form-data; boundary=m"})
    assert file.status == 200, file.body
    asked = {"input_file_id": file.json["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    assert here.post("/v1/batches", asked).status == 200


def of_app(here: Any, app: str, many: int) -> list[dict[str, Any]]:
    found = here.api("GET", f"/api/traces?filter=app%3D{app}&previews=false").json["rows"]
    return found if len(found) >= many else []


def until(what: Callable[[], Any], within: float) -> Any:
    last = time.monotonic() + within
    while not (found := what()):
        assert time.monotonic() < last, "it did not come to pass"
        time.sleep(0.05)
    return found


@pytest.mark.parametrize("stream", [False, True])
def test_model_time_is_paid_as_it_was_measured(here: Any, stream: bool) -> None:
    """Whether the engine tells its tokens (whole) or not (the stream): time is measured, so the cost is exact."""
    row = row_of(here, "own", stream=stream)
    assert row["cost_status"] == "exact"
    assert nano(row) == timed(row) > 0


def timed(row: dict[str, Any]) -> int:
    """What the row's attempts cost by the hour: HOUR_USD is 10 nano-dollars a microsecond."""
    took = sum(a["took_ns"] for a in row["attempts"])
    return (took * int(HOUR_USD * 10**9) + 1_800_000_000_000) // 3_600_000_000_000


def test_who_leaves_pays_the_time_that_was_used_and_not_what_was_reserved(here: Any) -> None:
    before = budget(here, "own")["used_usd"]
    connection = http.client.HTTPConnection(urlsplit(here.service.url).netloc, timeout=10)
    asked = {"model": "own", "messages": [{"role": "user", "content": "stay"}], "stream": True, "max_tokens": 200}
    bearer = {"authorization": f"Bearer {here.key}", "content-type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(asked), bearer)
    answer = connection.getresponse()
    id_ = answer.getheader("x-request-id")
    answer.close()
    connection.close()
    row = here.row(id_)
    assert (row["outcome"], row["cost_status"]) == ("cancelled", "exact")
    assert nano(row) == timed(row)
    paid = until(lambda: (b := budget(here, "own"))["reserved_usd"] == 0 and b["used_usd"] - before, 10.0)
    assert round(paid * 1e9) == nano(row)


def budget(here: Any, id: str) -> dict[str, Any]:
    return here.api("GET", f"/api/budgets/{id}").json


def test_the_webhook_is_told_once_with_a_second_try_and_its_secret_is_in_no_log(here: Any, vendor: Vendor) -> None:
    row_of(here, "begun")
    until(lambda: len(vendor.told) >= 2, 15.0)
    (path, first), (again, second) = vendor.told
    assert path == again == f"/hook/{SECRET}"
    assert first == second, "the same event, so that it can be told from another by its id"
    told = json.loads(first)
    assert (told["kind"], told["detail"]["budget"], told["detail"]["threshold"]) == ("budget.reached", "told", 0.5)
    assert told["detail"]["used_usd"] >= 0.001
    kept = "".join(p.read_text(errors="replace") for p in (here.service.home / "logs").glob("*")) + "\n".join(
        here.service.lines
    )
    assert "told" in kept
    assert SECRET not in kept


def test_an_invoice_of_all_of_it_agrees(here: Any, vendor: Vendor, tmp_path: Path) -> None:
    """As a vendor bills it: by model and day, each exchange at its own moment's price. Model time is on nobody's invoice."""
    row_of(here, "peak")
    until(lambda: of_app(here, "turning", 2), 25.0)
    rows = here.api("GET", "/api/traces?limit=1000&previews=false").json["rows"]
    always = {"begun": NEW, "coming": OLD, "peak": NEW, "night": OLD}
    lines = ["date,model,cost_usd,input_tokens,output_tokens"]
    for r in rows:
        began = int(r["time_ns"])
        billed = always.get(r["app"], NEW if began >= vendor.turn * 1e9 else OLD)
        day = dt.datetime.fromtimestamp(began // 10**9, dt.UTC).date()
        if r["app"] != "own":
            lines.append(f"{day},{r['served_model']},{billed / 1e9:.9f},1000,100")
    invoice = tmp_path / "invoice.csv"
    invoice.write_text("\n".join(lines) + "\n")
    done = here.service.cli("cost", "reconcile", str(invoice), "--json", check=False)
    found = {d["model"]: d for d in json.loads(done.stdout)["differences"]}
    own = [found.pop(name) for name in list(found) if name.startswith("own")]
    assert all("recorded but not billed" in d["causes"][0] for d in own)
    assert set(found) >= {"peak", "turning"}
    assert {(d["difference_usd"], tuple(d["causes"])) for d in found.values()} == {(0.0, ())}
