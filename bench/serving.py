"""What a local model gives through Noria with everything on, beside llama.cpp's own server alone: tokens a second, CPU a token.

    python bench/serving.py                       MODELS = .noria/models of the working directory
    python bench/serving.py --models DIR --rounds 7 --even-if-loaded

Everything on: key, rate limits, budget, price, system prompt, window, `pii` masking, `secrets` and `denylist` on both sides, every
exchange recorded with its bodies, encrypted. The floor is `xllamacpp.Server` in a bare process with the same model, slots, window and
threads, asked the same over HTTP: with OMP_WAIT_POLICY=PASSIVE, as Noria runs it, and on a quiet machine once more as it comes
(`spinning`: where others want the cores too, its threads wait for each other at a hundredth of the pace). The faster of the two counts.

Interleaved: in each round every cell is asked of every target, one right after the other, in an order drawn anew; ratios are taken
within a round. The others idle meanwhile, with their models loaded (0.6 GB each).
"""

from __future__ import annotations

import argparse
import datetime as dt
import http.client
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import machine
import modes
from service import START_S, Service, role
from tools import Failed

HERE = Path(__file__).resolve().parent
OUT = HERE / "out"
MODEL, APP = "smollm2-135m", "local"
SLOTS, CONTEXT, THREADS = 4, 8192, len(os.sched_getaffinity(0))
"""As Noria starts its model server (`app.model_process`)."""
TOKENS = 64
"""Of an answer, at most."""
SYSTEM = "You are the help desk of a small shop. Answer in plain words, in a few sentences."
SAID = (
    "How do I send a pair of shoes back?", "Where does my parcel stand right now?", "Can I pay by invoice as a new customer?",
    "Tell me how to clean a leather bag.", "What is the difference between wool and cotton?", "Why was my voucher refused?",
    "How long do you keep lost property?", "Give me three ideas for a birthday present.",
)  # fmt: skip
GOAL = 0.95
TRIES = 20
"""Of a request that gets 503: on a loaded machine the keeper may be too late to say what a budget has left."""


@dataclass(frozen=True)
class Cell:
    """One way of asking."""

    name: str
    clients: int
    stream: bool
    requests: int


CELLS = (Cell("whole-1", 1, False, 4), Cell("stream-1", 1, True, 4), Cell("stream-4", 4, True, 8))


@dataclass
class Target:
    """Something that answers; `root` is the process whose tree counts."""

    name: str
    port: int
    root: int
    headers: dict[str, str] = field(default_factory=dict)
    model: str = MODEL
    system: bool = True
    """Whether the system prompt is sent; where a release has it, it is not."""
    sent: int = 0
    refused: int = 0
    """Answers of 503: asked again, within the time that is measured; told in the result."""


class Said(NamedTuple):
    """One answer."""

    usage: dict[str, Any]
    text: str


class Local(Service):
    """`noria up` with one local model and everything on."""

    def __init__(self, folder: Path, models: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "noria.yaml").write_text(config())
        (folder / "denied.txt").write_text("forbidden phrase\nunwanted\n")
        self.home = folder / "home"
        self.home.mkdir()
        (self.home / "models").symlink_to(models.absolute())
        kept = {k: v for k, v in os.environ.items() if not k.startswith("NORIA_") and k != "PYTHONDONTWRITEBYTECODE"}
        self.env = {**kept, "NORIA_HOME": str(self.home)}
        self._enter, self._log = None, folder / "up.log"
        self.start()


def config() -> str:
    """`noria.yaml` with everything on."""
    made = f"""models:
  small: {{provider: local, model: {MODEL}{modes.PRICE}}}
prompts:
  desk: {{text: "{SYSTEM}"}}
apps:
  {APP}: {{model: small, prompt: desk, guard: all}}
"""
    return made + modes.GOVERNED + modes.GUARDS


def bare(weights: Path) -> None:
    """The floor: llama.cpp's server and nothing else, until its parent closes stdin."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(weights)
    params.model_alias = {MODEL}
    params.hostnames, params.port = ["127.0.0.1"], 0
    params.n_parallel, params.kv_unified = SLOTS, True
    params.n_ctx = CONTEXT * 2
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = THREADS
    params.use_jinja, params.ui, params.verbosity = True, False, 1
    server = xllamacpp.Server(params)
    print(f"listening {str(server.listening_address).rpartition(':')[2]}", flush=True)
    sys.stdin.read()


def floor(name: str, weights: Path, stack: ExitStack, policy: str) -> Target:
    """Start a bare server. Raises `Failed`."""
    env = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"} | ({"OMP_WAIT_POLICY": policy} if policy else {})
    argv = [sys.executable, __file__, "--bare", str(weights)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(argv, env=env, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
    stack.callback(ended, process)
    for line in process.stdout:
        if line.startswith("listening "):
            return Target(name, int(line.split()[1]), process.pid)
    raise Failed(f"The bare server ended with {process.wait()}.")


def ended(process: subprocess.Popen[str]) -> None:
    """End what was started here."""
    process.stdin.close()
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def ask(target: Target, cell: Cell, text: str) -> Said:
    """One answer. Raises `Failed` unless it is a whole one."""
    system = [{"role": "system", "content": SYSTEM}] if target.system else []
    body: dict[str, Any] = {
        "model": target.model, "messages": [*system, {"role": "user", "content": text}], "temperature": 0, "max_tokens": TOKENS,
    }  # fmt: skip
    if cell.stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    for _ in range(TRIES):
        status, data = posted(target, json.dumps(body))
        if status != 503:
            break
        target.refused += 1
        time.sleep(0.2)
    if status != 200:
        raise Failed(f"{target.name} answers {status}: {data[:300]!r}")
    return streamed(data) if cell.stream else whole(data)


def posted(target: Target, body: str) -> tuple[int, bytes]:
    """One request: status and body."""
    connection = http.client.HTTPConnection("127.0.0.1", target.port, timeout=300)
    try:
        connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json", **target.headers})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def whole(data: bytes) -> Said:
    """An answer that came as one."""
    told = json.loads(data)
    return Said(told["usage"], told["choices"][0]["message"]["content"])


def streamed(data: bytes) -> Said:
    """An answer that came as a stream. Raises `Failed` where its end or its usage is missing."""
    frames = [line[6:] for line in data.split(b"\n") if line.startswith(b"data: ")]
    if not frames or frames[-1].strip() != b"[DONE]":
        raise Failed(f"A stream has no end: {data[-200:]!r}")
    told = [json.loads(frame) for frame in frames[:-1]]
    usage = next((t["usage"] for t in reversed(told) if t.get("usage")), None)
    if usage is None:
        raise Failed("A stream tells no usage.")
    said = "".join(t["choices"][0]["delta"].get("content") or "" for t in told if t["choices"])
    return Said(usage, said)


def cpu_ms(root: int) -> dict[str, float]:
    """Of a process and all below it, since they began, by what they are."""
    used: dict[str, float] = {}
    for stat in machine.tree(root, machine.processes()):
        name = "model" if "noria.app.model_server" in (argv := machine.command(stat.pid)) else role(argv)
        used[name] = used.get(name, 0.0) + stat.ticks * machine.TICK
    return used


def fire(target: Target, cell: Cell, texts: list[str]) -> dict[str, Any]:
    """Ask all of `texts`, `cell.clients` at once."""
    left, found, trouble = list(texts), {}, []
    lock = threading.Lock()

    def client() -> None:
        while True:
            with lock:
                if not left or trouble:
                    return
                text = left.pop()
            try:
                found[text] = ask(target, cell, text)
            except (Failed, OSError, http.client.HTTPException) as e:
                trouble.append(e)

    before, began = cpu_ms(target.root), time.perf_counter()
    threads = [threading.Thread(target=client) for _ in range(cell.clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began
    if trouble:
        raise Failed(str(trouble[0]))
    target.sent += len(texts)
    tokens, asked = (sum(said.usage[f"{kind}_tokens"] for said in found.values()) for kind in ("completion", "prompt"))
    used = {name: (ms - before.get(name, 0.0)) / tokens for name, ms in cpu_ms(target.root).items()}
    return {
        "tokens": tokens, "prompt_tokens": asked, "seconds": round(seconds, 4), "tokens_per_s": round(tokens / seconds, 3),
        "cpu_ms_per_token": round(sum(used.values()), 3), "cpu_ms_by_role": {k: round(v, 3) for k, v in used.items()},
        "texts": [found[text].text for text in texts],
    }  # fmt: skip


def rounds(targets: list[Target], count: int, seed: int) -> list[dict[str, Any]]:
    """Every cell of every target, `count` times, in an order drawn anew."""
    chance, rows = random.Random(seed), []
    for number in range(count + 1):
        for cell in CELLS:
            # each round has texts of its own: nothing but the system prompt is in a prompt cache
            texts = [f"{SAID[n % len(SAID)]} ({number}{cell.name}{n})" for n in range(cell.requests)]
            for target in chance.sample(targets, len(targets)):
                row = {"round": number, "cell": cell.name, "target": target.name, **fire(target, cell, texts)}
                rows.append(row)
                shown = f"{row['tokens_per_s']:.1f} tokens/s, {row['cpu_ms_per_token']:.1f} CPU ms a token"
                print(f"{number or 'warm-up'} {cell.name} {target.name}: {shown}", file=sys.stderr, flush=True)
    return [row for row in rows if row["round"]]


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By cell: medians, and Noria's share of the faster floor, within each round. Shares of CPU the other way round: above 1 is cheaper."""
    found = []
    for cell in dict.fromkeys(row["cell"] for row in rows):
        at = {(row["round"], row["target"]): row for row in rows if row["cell"] == cell}
        numbers, names = sorted({n for n, _ in at}), sorted({t for _, t in at})
        floors = [name for name in names if name != "noria"]
        pace = [at[n, "noria"]["tokens_per_s"] / max(at[n, f]["tokens_per_s"] for f in floors) for n in numbers]
        cost = [min(at[n, f]["cpu_ms_per_token"] for f in floors) / at[n, "noria"]["cpu_ms_per_token"] for n in numbers]
        same = [a == b for n in numbers for a, b in zip(at[n, "noria"]["texts"], at[n, floors[0]]["texts"], strict=True)]
        row = {"cell": cell, "ratio": statistics.median(pace), "ratio_least": min(pace), "ratio_most": max(pace)}
        row |= {"cpu_ratio": statistics.median(cost), "same_texts": sum(same) / len(same)}
        for name in names:
            for figure in ("tokens_per_s", "cpu_ms_per_token"):
                row[f"{name} {figure}"] = statistics.median(at[n, name][figure] for n in numbers)
        found.append(row)
    return found


def run(options: argparse.Namespace, why: list[str]) -> dict[str, Any]:
    """Start all, measure, stop all. Raises `Failed`."""
    weights = options.models / MODEL / "model.gguf"
    if not weights.exists():
        raise Failed(f"{weights} is not there: run `noria models add {MODEL}`, or name another folder with --models.")
    about, began = machine.description(), time.perf_counter()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nb-")))
        floors = [floor("bare", weights, stack, "PASSIVE")]
        if not why:
            floors.append(floor("spinning", weights, stack, ""))
        service = Local(folder / "noria", options.models)
        stack.callback(service.stop)
        key = {"authorization": f"Bearer {service.new_key(*modes.KEY)}"}
        noria = Target("noria", service.port, service.process.pid, key, APP, system=False)
        ready(noria)
        rows = rounds([noria, *floors], options.rounds, options.seed)
        stored = service.recorded(noria.sent)
    refused = {t.name: t.refused for t in (noria, *floors)}
    invalid = [f"{noria.sent} were answered and {stored} are recorded."] if stored < noria.sent else []
    asked = {t.name: sum(row["prompt_tokens"] for row in rows if row["target"] == t.name) for t in (noria, *floors)}
    if len(set(asked.values())) > 1:
        invalid.append(f"The targets were not asked the same: {asked} tokens of prompts.")
    return {
        "format": 1, "machine": about, "load_after": [round(x, 2) for x in os.getloadavg()], "loaded": bool(why), "why_loaded": why,
        "model": MODEL, "threads": THREADS, "slots": SLOTS, "tokens": TOKENS, "seed": options.seed,
        "seconds": round(time.perf_counter() - began, 1), "summary": summary(rows), "invalid": invalid, "refused": refused,
        "rounds": rows,
    }  # fmt: skip


def ready(target: Target) -> None:
    """Wait until the model behind a target answers; not counted. Raises `Failed`."""
    end = time.monotonic() + START_S
    while True:
        try:
            ask(target, CELLS[0], "hello")
        except (Failed, OSError):
            if time.monotonic() > end:
                raise
            time.sleep(0.2)
        else:
            target.sent, target.refused = 1, 0
            return


def report(result: dict[str, Any]) -> str:
    """The table in Markdown, and what to keep in mind."""
    names = [n for n in ("noria", "bare", "spinning") if f"{n} tokens_per_s" in result["summary"][0]]
    heads = [*(f"{n} tokens/s" for n in names), "ratio (least to most)", *(f"{n} CPU ms/token" for n in names), "same texts"]
    lines = ["| cell | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
    for row in result["summary"]:
        paces, costs = ([f"{row[f'{n} {figure}']:.1f}" for n in names] for figure in ("tokens_per_s", "cpu_ms_per_token"))
        ratio = f"{row['ratio']:.3f} ({row['ratio_least']:.3f} to {row['ratio_most']:.3f})"
        lines.append(" | ".join([f"| {row['cell']}", *paces, ratio, *costs, f"{row['same_texts']:.0%} |"]))
    lines += [f"{name}: {count} answers of 503, asked again." for name, count in result["refused"].items() if count]
    lines.append(f"The goal is a ratio of {GOAL}. {result['machine']['cores']} cores, {result['seconds']} s.")
    if result["loaded"]:
        lines.append("THE MACHINE WAS LOADED: " + " ".join(result["why_loaded"]))
    return "\n".join([*lines, *result["invalid"]])


def arguments(argv: list[str]) -> argparse.Namespace:
    """What is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path(".noria/models"), help="folder of installed models")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1, help="of the order of the targets")
    parser.add_argument("--even-if-loaded", action="store_true", help="measure on a loaded machine; the result says so")
    parser.add_argument("--out", type=Path, help="default: bench/out/serving-<time>.json")
    parser.add_argument("--bare", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """0 = measured; 1 = a result that must not be trusted; 2 = refused: the machine is loaded."""
    options = arguments(argv)
    if options.bare:
        bare(options.bare)
        return 0
    why = machine.look()
    if why and not options.even_if_loaded:
        told = "This machine is not quiet, so nothing is measured (--even-if-loaded does it all the same):"
        print(told, *why, sep="\n", file=sys.stderr)
        return 2
    try:
        result = run(options, why)
    except Failed as e:
        print(e, file=sys.stderr)
        return 1
    path = options.out or OUT / f"serving-{dt.datetime.now(dt.UTC):%Y%m%dT%H%M%SZ}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    print(report(result))
    print(f"Raw: {path}")
    return 1 if result["invalid"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
