"""Whether a file that is served is the model that was trained: by what is written in it, then by what it answers.

The trainer left a fingerprint (template, tokenizer, end of turn, LoRA scale, tensors in llama.cpp's order) and the trained
model's own greedy answers to held-out rows. A served file must carry the first and repeat the second, asked by llama.cpp's own
server with the template that is inside of it. What is written is looked at first, because it can name the fault.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from noria.adapt import gguf_file
from noria.adapt.gguf_file import GgufFile
from noria.adapt.trainer.workplace import Line, sha256_of
from noria.contracts.artifact import FINGERPRINT
from noria.contracts.error import MissingDependency, NoriaError
from noria.contracts.training import Answered, Checked, Fingerprint, TrainingJob, TrainingResult
from noria.kit.atomic import write_whole

THRESHOLD = 0.95
"""Least share of answers that the served file has in common with the trained model. bf16 training, F16 or 8-bit serving and
another order of summation flip a row now and then; each of the known faults costs far more (docs/how-to/training.md)."""
TOLERANCE = 0.03
"""Most accuracy that the served file may lose."""
MIN_ROWS = 20
"""With fewer rows nothing is said."""
Ask = Callable[[Sequence[Line]], list[str]]
"""Greedy answers of a served model to rows, stripped."""


class Fault(NoriaError):
    """A served file is not the trained model; `code` names the fault."""


class Verdict(msgspec.Struct, frozen=True):
    """How a served file compares. `equivalent` is None where there are too few rows to tell."""

    file: str
    sha256: str
    rows: int
    agreement: float
    trained_accuracy: float
    served_accuracy: float
    threshold: float
    tolerance: float
    equivalent: bool | None
    differences: tuple[tuple[str, str, str], ...] = ()
    """(row id, the trained model's answer, the served one's), the first ten."""


class Served(msgspec.Struct, frozen=True):
    """What would be served: a model file, with an adapter on top where `adapter` is given."""

    model: Path
    adapter: Path | None = None
    scale: float = 1.0

    @property
    def told(self) -> Path:
        """The file that the job made."""
        return self.adapter or self.model


def inspect(served: Served, expected: Fingerprint, result: TrainingResult | None = None) -> None:
    """Look at what is written in the files. Raises `Fault` or `NoriaError` whose message names what is wrong."""
    model = gguf_file.read(served.model)
    _check_text(model, expected)
    if served.adapter is None:
        _check_order(model, expected, "merged:")
    else:
        _check_adapter(served, gguf_file.read(served.adapter), expected)
    if result is not None:
        _check_hash(served.told, result)


def _check_text(model: GgufFile, expected: Fingerprint) -> None:
    metadata = model.metadata
    if gguf_file.template_digest(metadata) != expected.template_sha256:
        raise Fault(
            f"{model.path} has another chat template than the one that was trained with.", code="wrong_template",
            hint="Export it again with the base's template.",
        )  # fmt: skip
    if expected.tokenizer_sha256 and gguf_file.tokenizer_digest(metadata) != expected.tokenizer_sha256:
        raise Fault(
            f"{model.path} has another tokenizer (vocabulary, merges or pre-tokenizer) than the one that was trained with.",
            code="wrong_tokenizer", hint="Export it again from the base that was trained.",
        )  # fmt: skip
    eos = metadata.get("tokenizer.ggml.eos_token_id")
    if eos != expected.eos:
        raise Fault(
            f"{model.path} ends answers at token {eos} (EOS); the model was trained to end them with {expected.eos}.",
            code="wrong_eos", hint="Set tokenizer.ggml.eos_token_id, or export it again.",
        )  # fmt: skip
    if bool(metadata.get("tokenizer.ggml.add_bos_token", False)) != expected.bos_added:
        raise Fault(f"{model.path} and the trained model differ in whether a BOS token is put first.", code="wrong_bos")


def _check_adapter(served: Served, adapter: GgufFile, expected: Fingerprint) -> None:
    alpha = adapter.metadata.get("adapter.lora.alpha")
    if alpha is None or abs(float(alpha) - expected.lora.alpha) > 1e-6:
        raise Fault(
            f"{adapter.path} has LoRA alpha {alpha}, it was trained with {expected.lora.alpha}: its scale would be wrong.",
            code="wrong_lora_scale",
        )  # fmt: skip
    ranks = {t.shape[-1] for name, t in adapter.tensors.items() if name.endswith(".lora_a")}
    if ranks != {expected.lora.r}:
        raise Fault(f"{adapter.path} has LoRA rank {sorted(ranks)}, not {expected.lora.r}.", code="wrong_lora_scale")
    if abs(served.scale - 1.0) > 1e-6:
        raise Fault(
            f"{adapter.path} would be served with the LoRA scale {served.scale:g}; it was trained for 1.",
            code="wrong_lora_scale",
        )
    base = adapter.metadata.get("noria.base.sha256", expected.base_sha256)
    found = sha256_of(served.model)
    if found != expected.base_sha256 or base != expected.base_sha256:
        raise Fault(
            f"{adapter.path} belongs on the base {expected.base_sha256[:12]}…, not on {found[:12]}….", code="wrong_base"
        )
    _check_order(adapter, expected, "")


def _check_order(file: GgufFile, expected: Fingerprint, prefix: str) -> None:
    """Whether the tensors of q and k stand in llama.cpp's order; only in types that the export wrote itself."""
    plain = (gguf_file.F32, gguf_file.F16)
    for key, right in expected.right.items():
        name = key.removeprefix("merged:")
        if key.startswith("merged:") != bool(prefix) or name not in file.tensors or file.tensors[name].type not in plain:
            continue
        found = hashlib.sha256(file.data(name)).hexdigest()
        if found == right:
            continue
        if found == expected.unpermuted.get(key):
            raise Fault(
                f"{file.path}: the rows of {name} are in transformers' order; llama.cpp's permutation of q and k is missing.",
                code="qk_permutation_missing", hint="Export it again.",
            )  # fmt: skip
        raise Fault(f"{file.path}: the tensor {name} is not the one that was trained.", code="wrong_weights")


def _check_hash(path: Path, result: TrainingResult) -> None:
    known = {made.name: made.sha256 for made in result.made}
    if path.name in known and sha256_of(path) != known[path.name]:
        raise Fault(f"{path} is not the file that the job {result.job} made (its SHA-256 differs).", code="tampered")


def compare(served: Served, answers: Sequence[Answered], said: Sequence[str]) -> Verdict:
    """Same rows, same scorer (the exact text, stripped), two ways of computing. Raises nothing: see `demand`."""
    pairs = list(zip(answers, said, strict=True))
    rows = len(pairs) or 1
    agreement = sum(a.answer == text for a, text in pairs) / rows
    trained = sum(a.answer == a.expected.strip() for a, _ in pairs) / rows
    now = sum(text == a.expected.strip() for a, text in pairs) / rows
    good = agreement >= THRESHOLD and now >= trained - TOLERANCE
    return Verdict(
        file=served.told.name, sha256=sha256_of(served.told), rows=len(pairs), agreement=agreement, trained_accuracy=trained,
        served_accuracy=now, threshold=THRESHOLD, tolerance=TOLERANCE, equivalent=good if len(pairs) >= MIN_ROWS else None,
        differences=tuple((a.id, a.answer, text) for a, text in pairs if a.answer != text)[:10],
    )  # fmt: skip


def demand(verdict: Verdict) -> None:
    """Raises `Fault` (`not_equivalent`, `too_few_rows`) unless the verdict is that they are equivalent."""
    if verdict.equivalent is None:
        raise Fault(f"{verdict.rows} held-out rows are too few to compare with; {MIN_ROWS} are needed.", code="too_few_rows")
    if not verdict.equivalent:
        raise Fault(
            f"{verdict.file} answers {verdict.agreement:.0%} of {verdict.rows} rows as the trained model does ({verdict.threshold:.0%} is "
            f"demanded); accuracy {verdict.served_accuracy:.1%} against {verdict.trained_accuracy:.1%}.",
            code="not_equivalent",
            hint="What is written in the file is right, so look at the weights: their quantisation, LoRA scale or order of q and k.",
        )


def check(folder: Path, served: Served, *, threads: int = 0, ask: Ask | None = None) -> Verdict:
    """All of it for one file of a finished job: what is written, then what is answered. Raises `Fault`, `NoriaError`.

    What came of it is kept in the job's folder (`Checked`).
    """
    verdict = None
    try:
        verdict = _measured(folder, served, threads, ask)
        demand(verdict)
    except NoriaError as e:
        _keep(folder, served, verdict, e)
        raise
    _keep(folder, served, verdict, None)
    return verdict


def _measured(folder: Path, served: Served, threads: int, ask: Ask | None) -> Verdict:
    job = msgspec.json.decode((folder / "job.json").read_bytes(), type=TrainingJob)
    result = msgspec.json.decode((folder / "result.json").read_bytes(), type=TrainingResult)
    inspect(served, msgspec.json.decode((folder / FINGERPRINT).read_bytes(), type=Fingerprint), result)
    answers = [msgspec.json.decode(line, type=Answered) for line in (folder / "answers.jsonl").read_bytes().splitlines()]
    lines = [msgspec.json.decode(line, type=Line) for line in (folder / job.validation).read_bytes().splitlines()]
    rows = {line.id: line for line in lines}
    picked = [rows[a.id] for a in answers]
    if ask is not None:
        said = ask(picked)
    else:
        with serving(served, job, threads=threads) as asks:
            said = asks(picked)
    return compare(served, answers, said)


def _keep(folder: Path, served: Served, verdict: Verdict | None, refused: NoriaError | None) -> None:
    kept = Checked(served.told.name, time.time_ns(), equivalent=False)
    if verdict is not None:
        kept = Checked(
            verdict.file, kept.at_ns, verdict.equivalent, verdict.rows, verdict.agreement, verdict.trained_accuracy,
            verdict.served_accuracy, verdict.threshold,
        )  # fmt: skip
    if refused is not None:
        kept = msgspec.structs.replace(kept, code=refused.code, says=refused.text)
    write_whole(folder / f"checked-{kept.file}.json", msgspec.json.encode(kept))


@contextmanager
def serving(served: Served, job: TrainingJob, *, threads: int = 0) -> Iterator[Ask]:
    """llama.cpp's own server, in this process, with the template that is in the file."""
    # spinning OpenMP threads starve each other where cores are shared; read once, when libgomp is loaded
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        import xllamacpp
    except ImportError as e:
        raise MissingDependency(f"xllamacpp cannot be loaded: {e}.", hint="Run: pip install xllamacpp") from e
    params = xllamacpp.CommonParams()
    params.model.path = str(served.model)
    params.n_ctx, params.n_parallel, params.port = 4 * (job.schedule.max_length + job.answer_tokens), 1, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads or job.threads or 2
    params.use_jinja, params.ui, params.verbosity = True, False, 1
    if served.adapter is not None:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(served.adapter), served.scale)]
    try:
        server: Any = xllamacpp.Server(params)
    except RuntimeError as e:
        raise Fault(f"llama.cpp cannot load {served.told}: {e}.", code="not_loadable") from e
    yield lambda rows: [_answer(server, job, row) for row in rows]


def _answer(server: Any, job: TrainingJob, row: Line) -> str:
    system = [{"role": "system", "content": job.system}] if job.system else []
    body = {"messages": [*system, *row.messages], "temperature": 0, "max_tokens": job.answer_tokens, "cache_prompt": True}
    answer = server.handle_chat_completions(body)
    if "choices" not in answer:
        raise Fault(f"llama.cpp answers the row {row.id} with {str(answer)[:200]}.", code="not_loadable")
    return str(answer["choices"][0]["message"]["content"] or "").strip()
