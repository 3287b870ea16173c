"""Ten faults, each planted in an otherwise whole candidate: the gate of a release refuses every one of them by its name.

The way is that of a refresh (`app.refresh_work`) and of `noria release rollout`: files become artifacts, artifacts a release, its gate
is asked, and asked again by `POST /api/rollouts`. What is said of its answers is good throughout, so that only the fault can be what is
refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from msgspec.structs import replace
from tests.unit.adapt.conftest import PLAIN, Finished

from noria.api.manage import build
from noria.app import refresh_data
from noria.app.added import ADDED, place
from noria.app.datasets import Draft
from noria.app.definition import Definition
from noria.app.house import identify
from noria.app.keeper import Keeper, Stores
from noria.app.refresh_work import Steps
from noria.app.registry import put
from noria.contracts.dataset import Member, Row
from noria.contracts.evaluation import Comparison, Estimate, Suite
from noria.contracts.refresh import (
    Compared,
    Data,
    Exported,
    Gate,
    Leaked,
    Measured,
    Plan,
    Refresh,
    RefreshPolicy,
    Released,
    Trained,
    Training,
    Versioned,
)
from noria.contracts.release import App, Endpoint, Prompt, Release
from noria.contracts.rollout import Finding
from noria.contracts.training import TrainingJob
from noria.engines.memory import MemoryCounter, MemoryDatasets, MemoryRecords
from noria.govern.access import Sessions
from noria.kit.ids import digest
from noria.release import artifact, catalogue
from noria.release.registry import Added

ASKED = "Name the intent of the message."
GOOD = Estimate(0.0, -0.01, 0.01, 400, "newcombe")
SAME = Estimate(1.0, 0.93, 1.0, 40, "wilson")


class NoTraces:
    """A trace store of an installation that has answered nothing yet."""

    max_batch = 100

    async def positions(self) -> list[Any]:
        return []

    async def seal(self, tenant: str, before_day: str) -> int:
        return 0

    async def drop(self, tenant: str, before_day: str) -> int:
        return 0

    async def close(self) -> None:
        return


def row(text: str) -> Row:
    return Row(({"role": "user", "content": text},), answer="yes")


TRAIN = [row(f"where is the parcel number {n} that I sent last week to my aunt") for n in range(30)]
JUDGED = [row(f"how do I change the address of order {n} before it leaves the house") for n in range(30)]


class Client:
    """What the steps of a refresh reach the keeper by; `asked` is what the gate was asked last."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http
        self._loop = asyncio.get_running_loop()
        self.asked: dict[str, Any] = {}

    async def call(self, method: str, path: str, body: Any = None) -> Any:
        if path == "/api/releases/gate":
            self.asked = body
        return msgspec.json.decode(await self.send(method, path, b"" if body is None else msgspec.json.encode(body)))

    async def send(self, method: str, path: str, body: bytes) -> bytes:
        answer = await self._http.request(method, path, content=body, headers={"content-type": "application/json"})
        assert answer.status_code < 300, answer.text
        return answer.content

    def ask(self, method: str, path: str, body: bytes) -> bytes:
        return asyncio.run_coroutine_threadsafe(self.send(method, path, body), self._loop).result()


@dataclass
class World:
    """A keeper with a base model, a dataset, and what a training job has left: whole, until a test plants something."""

    keeper: Keeper
    client: Client
    finished: Finished
    main: Release
    system: str = ASKED
    """What was trained with."""
    dataset: str = ""
    """The version that was trained on."""
    current: str = ""
    """The version that the turn is about."""

    @property
    def plan(self) -> Plan:
        """A turn that rejects where rows of the suite are trained on, instead of leaving them out."""
        policy = RefreshPolicy(
            "intents", Data("desk", leak="refuse"), train=Training(base="llama"), gate=Gate(latency=None)
        )  # fmt: skip
        suite = Suite("intents", self.current, metrics=("label",))
        return Plan(policy, suite, "label", self.current, self.main.id, "main", self.system, "llama", 0, 1)

    @property
    def steps(self) -> Steps:
        turn = Refresh("refresh_1", "desk", "person", "ann", self.plan, 0)
        return Steps(self.client, turn, self.keeper.home, None)

    async def version(self, train: list[Row], judged: list[Row]) -> str:
        datasets, tenant = self.keeper.datasets, self.keeper.tenant
        members = []
        for split, rows in (("train", train), ("test", judged)):
            ids, _ = await datasets.add(tenant, rows)
            members += [Member(i, split) for i in ids]
        made, _ = await datasets.put(tenant, "desk", sorted(members, key=lambda m: m.row), [], Draft())
        return made.id

    async def leaked(self) -> Leaked:
        versioned = Versioned(self.current, {}, {}, self.plan.suite, "")
        return await asyncio.to_thread(refresh_data.unleaked, self.client, self.plan, versioned, lambda *_: None)

    async def exported(self, file: Path) -> Exported:
        role = "adapter_gguf" if file == self.finished.adapter else "merged_f16"
        plan = replace(self.plan, policy=replace(self.plan.policy, train=Training(base="llama", outputs=(role,))))
        trained = Trained("train_1", str(self.finished.folder), {role: file.name}, 30, 10, 1.0, 2.0, 1.0, "")
        return await self.steps.export(plan, replace(await self.leaked(), version=self.dataset), trained)

    async def tuned(self, file: Path, **other: Any) -> str:
        """The candidate: its artifact."""
        made = await self.exported(file)
        part = "adapter" if made.kind == "adapter_gguf" else "model"
        body = {"app": "desk", "parent": "main", "name": "tuned", part: made.served, **other}
        await self.client.call("POST", "/api/releases", body)
        return made.served

    async def judged(self) -> dict[str, Any]:
        """What a refresh's gate says; then what comes of a rollout with the same rules and evidence."""
        release = self.keeper.current().apps["desk"].releases["tuned"]
        compared = Comparison("label", "a", "b", GOOD, 0.5, "mcnemar", "not_worse")
        evidence = (
            await self.leaked(), Compared(SAME, 1.0, 1.0, "", ""), Released(release.id, "tuned", False, ""),
            Measured("eval_1", "eval_2", (compared,), {}, ""),
        )  # fmt: skip
        gate = await self.steps.gate(self.plan, evidence)
        begun = await self.client.call("POST", "/api/rollouts", self.client.asked)
        assert msgspec.convert(begun["findings"], tuple[Finding, ...]) == gate.findings
        assert (gate.verdict == "pass") is (begun["state"] == "running")
        return begun


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    finished = Finished(tmp_path)
    job = msgspec.json.decode((tmp_path / "job.json").read_bytes(), type=TrainingJob)
    finished.put("job.json", replace(job, weights_sha256=finished.fingerprint.base_sha256))
    home = tmp_path / "home"
    catalogue.add_file(home, "llama", finished.base)
    small = Endpoint("small", "local", "llama", digests=catalogue.digests(home, "llama"), context=512)
    bare = Release("", "main", "desk", (small,), prompt=Prompt("desk", ASKED, digest(ASKED.encode())))
    main = replace(bare, id=identify(bare))
    stores = Stores(
        MemoryRecords("memory://"), NoTraces(), MemoryCounter("memory://"), datasets=MemoryDatasets("memory://")
    )  # fmt: skip
    keeper = Keeper(home, stores, Sessions("na-token"))
    await keeper.start(Definition("s", {"desk": App("desk", {"main": main}, {"main": 1.0})}))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(build(keeper)), base_url="http://keeper") as client:
        made = World(keeper, Client(client), finished, main)
        made.current = made.dataset = await made.version(TRAIN, JUDGED)
        yield made
    await keeper.stop()


# -- the ten ---------------------------------------------------------------------------------------------


async def wrong_chat_template(world: World) -> None:
    await world.tuned(world.finished.write_merged(tokenizer__chat_template="{{ messages[0].content }}"))


async def wrong_eos(world: World) -> None:
    await world.tuned(world.finished.write_merged(tokenizer__ggml__eos_token_id=0))


async def swapped_tokenizer(world: World) -> None:
    await world.tuned(world.finished.write_merged(tokenizer__ggml__tokens=["<s>", "<unk>", "<|im_end|>", "a"]))


async def truncated_file(world: World) -> None:
    """The copy was cut short before it was signed: signature and hashes are right."""
    merged = world.finished.merged
    merged.write_bytes(merged.read_bytes()[:-16])
    await world.tuned(merged)


async def wrong_lora_scale(world: World) -> None:
    await world.tuned(world.finished.adapter, scale=0.5)


async def wrong_lora_alpha(world: World) -> None:
    """The same fault in the file instead of in the release."""
    await world.tuned(world.finished.write_adapter(alpha=16.0))


async def permutation_missing(world: World) -> None:
    await world.tuned(world.finished.write_merged(PLAIN))


async def permutation_missing_in_the_adapter(world: World) -> None:
    await world.tuned(world.finished.write_adapter(PLAIN))


async def stale_dataset_version(world: World) -> None:
    """The files are those of the turn before: since then rows came, which were checked and asked."""
    world.current = await world.version([*TRAIN, row("may I pay with two cards at once")], JUDGED)
    await world.tuned(world.finished.adapter)


async def leaked_rows(world: World) -> None:
    asked = JUDGED[7].messages[0]["content"]
    world.current = world.dataset = await world.version([*TRAIN, row(f"Please: {asked}")], JUDGED)
    await world.tuned(world.finished.adapter)


async def tampered_signature(world: World) -> None:
    made = await world.tuned(world.finished.adapter)
    manifest = artifact.folder(world.keeper.home, made) / "manifest.json"
    signed = artifact.manifest_of(world.keeper.home, made).signature
    manifest.write_bytes(manifest.read_bytes().replace(signed.encode(), b"00" * 64))


async def other_prompt(world: World) -> None:
    """Trained with one prompt, served with another."""
    await world.tuned(world.finished.adapter, prompt="Be brief.")


async def altered_prompt(world: World) -> None:
    """The text in the registry is not the one that the release pins."""
    await world.tuned(world.finished.adapter)
    keeper = world.keeper
    added, _ = await keeper.registry.get(ADDED, place("desk", "tuned"), Added)
    prompt = replace(added.release.prompt, text="Obey the customer.")
    changed = replace(added, release=replace(added.release, prompt=prompt))
    await keeper.records.commit(keeper.tenant, [put(ADDED, place("desk", "tuned"), changed)])
    await keeper.refresh()


FAULTS = [
    (wrong_chat_template, "files", "another chat template"),
    (wrong_eos, "files", "ends answers at token 0 (EOS)"),
    (swapped_tokenizer, "files", "another tokenizer"),
    (truncated_file, "files", "is truncated"),
    (wrong_lora_scale, "files", "LoRA scale 0.5"),
    (wrong_lora_alpha, "files", "its scale would be wrong"),
    (permutation_missing, "files", "permutation of q and k is missing"),
    (permutation_missing_in_the_adapter, "files", "permutation of q and k is missing"),
    (stale_dataset_version, "dataset", "dataset version is stale"),
    (leaked_rows, "leak", "1 of 30 evaluation rows were trained on"),
    (tampered_signature, "signature", "its signature is not its signer's"),
    (other_prompt, "pins", "The prompt is mis-pinned"),
    (altered_prompt, "pins", "The prompt desk of tuned is mis-pinned"),
]


@pytest.mark.parametrize(("plant", "kind", "says"), FAULTS, ids=lambda v: getattr(v, "__name__", ""))
async def test_a_planted_fault_is_refused_by_its_name(world: World, plant: Any, kind: str, says: str) -> None:
    await plant(world)
    told = await world.judged()
    refused = {f["rule"]["kind"]: f["says"] for f in told["findings"] if f["verdict"] != "pass"}
    assert told["state"] == "rejected"
    assert world.keeper.current().apps["desk"].weights["tuned"] == 0.0
    assert says in refused[kind]
    stale_too = {"leak"} if plant is stale_dataset_version else set()  # what was checked is not what was trained on, either
    assert refused.keys() == {kind} | stale_too


@pytest.mark.parametrize("part", ["adapter", "merged"])
async def test_without_a_fault_it_passes(world: World, part: str) -> None:
    await world.tuned(getattr(world.finished, part))
    told = await world.judged()
    assert told["state"] == "running", told["findings"]
    assert {f["rule"]["kind"]: f["verdict"] for f in told["findings"]} == dict.fromkeys(
        ("quality", "leak", "equivalence", "dataset", "signature", "files", "pins"), "pass"
    )


async def test_what_is_asked_of_every_candidate_needs_no_rule_and_heeds_no_callers_word(world: World) -> None:
    """As `noria release rollout` does it."""
    await world.tuned(world.finished.write_merged(PLAIN), prompt="Be brief.")
    claims = {"artifacts": {}, "files": {}, "pins": [], "trained": {}}
    asked = {"app": "desk", "candidate": "tuned", "evidence": claims}
    said = await world.client.call("POST", "/api/releases/gate", asked)
    told = await world.client.call("POST", "/api/rollouts", asked)
    assert (said["verdict"], told["state"]) == ("fail", "rejected")
    assert said["findings"] == told["findings"]
    assert {f["rule"]["kind"]: f["verdict"] for f in told["findings"]} == {"signature": "pass", "files": "fail", "pins": "fail"}
    waived = await world.client.call(
        "POST", "/api/rollouts", asked | {"waive": {"by": "ann", "why": "to see the canary stop it"}}
    )
    assert (waived["state"], waived["waived"]) == ("running", "ann: to see the canary stop it")
