"""An idle connection moves to a successor with whatever its client is sending; a drain never closes it in a race."""

import asyncio
import functools
import socket

import uvloop

from noria.kit.handover import Giver, Taker
from noria.kit.http_server import HttpServer

ASK = b"GET /%d HTTP/1.1\r\nhost: x\r\n\r\n"


def on_uvloop(test):
    @functools.wraps(test)
    def run(*args, **kwargs):
        uvloop.run(asyncio.wait_for(test(*args, **kwargs), 10))

    return run


def server(name):
    def handle(request):
        request.response.send(200, [("x-server", name)], request.path.encode())

    return HttpServer(handle)


async def started(name):
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    made = server(name)
    port = listener.getsockname()[1]
    await made.start(listener)
    return made, port


async def ask(reader, writer, n):
    writer.write(ASK % n)
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    assert await reader.readexactly(len(str(n)) + 1) == b"/%d" % n
    return head


@on_uvloop
async def test_idle_connections_are_served_on_by_the_successor(tmp_path):
    old, port = await started("old")
    new, _ = await started("new")
    tasks = set()
    taker = Taker(tmp_path / "h", lambda s: tasks.add(asyncio.ensure_future(new.adopt(s))))
    taker.start()
    clients = [await asyncio.open_connection("127.0.0.1", port) for _ in range(50)]
    for n, client in enumerate(clients):
        assert "x-server: old" in await ask(*client, n)
    giver = Giver(tmp_path / "h")
    draining = asyncio.ensure_future(old.drain(5.0, giver))
    # they go on asking, in the very moment in which their connections move
    answers = await asyncio.gather(*(ask(*client, n) for n, client in enumerate(clients)))
    closing = [a for a in answers if "connection: close" in a]
    assert await draining == 0
    assert giver.given == 50 - len(closing)
    assert taker.taken == giver.given
    for n, (client, said) in enumerate(zip(clients, answers, strict=True)):
        if said not in closing:
            assert "x-server: new" in await ask(*client, n)
        client[1].close()
    giver.close()
    taker.close()
    await new.drain(0.1)
    assert not (tmp_path / "h").exists()


@on_uvloop
async def test_without_a_successor_an_idle_connection_is_answered_once_more_before_it_closes(tmp_path):
    old, port = await started("old")
    client = await asyncio.open_connection("127.0.0.1", port)
    await ask(*client, 1)
    draining = asyncio.ensure_future(old.drain(2.0))
    await asyncio.sleep(0.1)
    assert "connection: close" in await ask(*client, 2)
    assert await client[0].read() == b""
    assert await draining == 0
    client[1].close()


@on_uvloop
async def test_a_giver_without_a_taker_keeps_the_connection(tmp_path):
    a, b = socket.socketpair()
    assert not Giver(tmp_path / "nobody")(a.fileno())
    a.close()
    b.close()


@on_uvloop
async def test_the_newest_taker_is_the_successor_and_an_older_one_leaves_its_path_alone(tmp_path):
    first, second = (Taker(tmp_path / "h", lambda s: s.close()) for _ in range(2))
    first.start()
    second.start()
    first.close()
    assert (tmp_path / "h").exists()
    second.close()
    assert not (tmp_path / "h").exists()
