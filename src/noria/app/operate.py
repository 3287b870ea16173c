"""What an operator asks of a running service: reload (SIGHUP), upgrade (SIGUSR2), stop (SIGTERM, SIGINT).

Operations run one after the other. How the latest one stands is in `run/operation.json`, for the command that asked.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Awaitable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NoReturn

import msgspec

from noria import __version__
from noria.app import inherit
from noria.app.link import OPERATION
from noria.app.supervisor import START_WITHIN, House, ask
from noria.contracts.error import ConfigError, NoriaError
from noria.kit.atomic import write_whole
from noria.kit.http_client import HttpCallError

PREFLIGHT_WITHIN = 30.0
APPLY_WITHIN = 60.0

Name = Literal["reload", "upgrade"]


class Operation(msgspec.Struct):
    """One operation as it stands."""

    name: Name
    state: Literal["running", "done", "failed"]
    began_ns: int
    pid: int
    said: list[str]
    """What has happened so far, for people."""


class Operator:
    """Carries out what signals ask for. `lock` is the descriptor of the home's lock."""

    def __init__(self, house: House, lock: int) -> None:
        self._house = house
        self._lock = lock
        self._wanted: asyncio.Queue[Name] = asyncio.Queue(maxsize=8)
        self._now: Operation | None = None
        self._terminal = has_terminal()

    def listen(self) -> None:
        """Install the handlers, then let the signals through that an upgrade held back."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._house.stopping.set)
        loop.add_signal_handler(signal.SIGHUP, self._hung_up)
        loop.add_signal_handler(signal.SIGUSR2, self._want, "upgrade")
        inherit.unblock()

    async def run(self, rolled_by: inherit.Inherited | None = None) -> None:
        """Do what is asked until the service stops; after an upgrade, first put every process on the new version."""
        if rolled_by is not None:
            await self._carry("upgrade", self._finish_upgrade(rolled_by))
        stopping = asyncio.ensure_future(self._house.stopping.wait())
        while not self._house.stopping.is_set():
            asked = asyncio.ensure_future(self._wanted.get())
            await asyncio.wait((asked, stopping), return_when=asyncio.FIRST_COMPLETED)
            if not asked.done():
                asked.cancel()
                break
            name = asked.result()
            doing = asyncio.ensure_future(self._carry(name, self._reload() if name == "reload" else self._upgrade()))
            await asyncio.wait((doing, stopping), return_when=asyncio.FIRST_COMPLETED)
            doing.cancel()
            await asyncio.gather(doing, return_exceptions=True)
        stopping.cancel()

    def _hung_up(self) -> None:
        """SIGHUP is the operator's wish to reload, unless it means that the terminal in front of us has closed."""
        if self._terminal and not has_terminal():
            self._house.stopping.set()
        else:
            self._want("reload")

    def _want(self, name: Name) -> None:
        with suppress(asyncio.QueueFull):
            self._wanted.put_nowait(name)

    # -- operations ----------------------------------------------------------------------------------

    async def _carry(self, name: Name, what: Awaitable[None]) -> None:
        self._now = Operation(name, "running", time.time_ns(), os.getpid(), [])
        self._write()
        try:
            await what
            self._now.state = "done"
        except NoriaError as e:
            self._now.state = "failed"
            self._say(str(e))
        finally:
            if self._now.state == "running":
                self._now.state = "failed"
            self._write()

    async def _reload(self) -> None:
        """Apply noria.yaml as it is now, then put a new worker into every slot, one at a time."""
        config = self._house.plan.config
        if config is not None:
            await self._apply()
        await self._roll()

    async def _apply(self) -> None:
        try:
            status, _, body = await ask(self._house.plan.home, "POST", "/api/apply", b"{}", within=APPLY_WITHIN)
            answer: dict[str, Any] = msgspec.json.decode(body)
        except (HttpCallError, msgspec.MsgspecError) as e:
            raise ConfigError(f"The keeper could not be asked to apply the configuration: {e}") from e
        if status != 200:
            raise ConfigError(str(answer.get("error", {}).get("message", answer)))
        for line in answer["lines"] or ["the configuration is the one in force"]:
            self._say(line)

    async def _roll(self) -> None:
        house = self._house
        for slot in range(house.slots):
            if not await house.roll(slot):
                state, detail = house.children.state(f"worker-{slot}")
                raise ConfigError(
                    f"A new worker-{slot} did not serve within {START_WITHIN:.0f} s; the old one stays ({state} {detail}).",
                    hint=f"See {house.plan.home / 'logs' / f'worker-{slot}.log'}.",
                )
            self._say(f"worker-{slot}: a new process serves, the old one finishes what it has begun")

    async def _upgrade(self) -> None:
        """Become the version that is installed now, after it has shown that it can start from here. Does not return."""
        house = self._house
        left = house.leave(self._lock)
        for pipe in left.children:
            os.set_inheritable(pipe.log, False)
        env = {**os.environ, "NORIA_HOME": str(house.plan.home), inherit.VARIABLE: msgspec.json.encode(left).decode()}
        config = ("--config", str(house.plan.config)) if house.plan.config else ()
        version = await preflight(config, env)
        self._say(f"version {version} is installed and reads this configuration; {__version__} hands over")
        self._write()
        self._exec(house.leave(self._lock))

    def _exec(self, left: inherit.Inherited) -> NoReturn:
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        try:
            inherit.become([sys.executable, "-m", "noria", *sys.argv[1:]], left)
        except OSError as e:
            raise ConfigError(f"{sys.executable} cannot be executed: {e.strerror}.") from e
        raise AssertionError("execve returns by an error only")

    async def _finish_upgrade(self, inherited: inherit.Inherited) -> None:
        """Every process on this version: the keeper, then the workers, then the models; the old ones finish their work."""
        house = self._house
        self._say(f"version {__version__} took over from {inherited.version} in process {os.getpid()}")
        if not await house.children.restart(house.keeper(), START_WITHIN):
            raise ConfigError("The keeper did not start.", hint=f"See {house.plan.home / 'logs' / 'keeper.log'}.")
        self._say("keeper: started again")
        await self._roll()
        for name in [n for n in house.children.names() if n.startswith("model-")]:
            child = house.children.child(name)
            if child is not None:
                done = await house.children.replace(child, 4 * START_WITHIN, wait=False)
                self._say(f"{name}: {'a new process serves' if done else 'the old process stays, the new one did not start'}")

    # -- word for who asked --------------------------------------------------------------------------

    def _say(self, line: str) -> None:
        if self._now is not None:
            self._now.said.append(line)
            self._house.tell(f"{self._now.name}: {line}")
            self._write()

    def _write(self) -> None:
        with suppress(OSError):
            data = msgspec.json.encode(self._now)
            write_whole(self._house.plan.home / "run" / OPERATION, data, mode=0o600, durable=False)


async def preflight(config: Iterable[str], env: dict[str, str]) -> str:
    """The version that is installed now, if it reads this configuration and what it would inherit. Raises `ConfigError`."""
    argv = (sys.executable, "-m", "noria", "process", "preflight", *config)
    process = await asyncio.create_subprocess_exec(
        *argv, env=env, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        said, _ = await asyncio.wait_for(process.communicate(), PREFLIGHT_WITHIN)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise ConfigError(
            f"The installed version did not start within {PREFLIGHT_WITHIN:.0f} s; nothing was changed."
        ) from None
    words = said.decode("utf-8", "replace").strip()
    if process.returncode != 0:
        raise ConfigError(f"The installed version cannot take over, nothing was changed: {words[-2000:]}")
    return words.splitlines()[-1]


def read_operation(home: Path) -> Operation | None:
    """How the latest operation stands."""
    try:
        return msgspec.json.decode((home / "run" / OPERATION).read_bytes(), type=Operation)
    except (OSError, msgspec.MsgspecError):
        return None


def has_terminal() -> bool:
    """Whether this process has a controlling terminal that is still there."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True
