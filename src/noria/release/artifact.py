"""Artifacts: folders `NORIA_HOME/artifacts/<id>/` of files with a signed manifest, checked at every load (ADR 23).

The id names content: BLAKE3 of kind, files (name, size, SHA-256), inputs and facts, so that making the same thing twice gives
one artifact. The signature (Ed25519) is over the id, the time and the signer. A file's hash is remembered by what the kernel
says of the file (size, times, inode), as in `release.catalogue`, so that only the first load reads all of it.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from noria.contracts.artifact import FINGERPRINT, Artifact, File
from noria.contracts.error import NoriaError, NotFound, RequestError, StoreError, boundary
from noria.kit.atomic import STAGING, staged, sync_folder, write_whole
from noria.kit.fetch import hash_of
from noria.kit.ids import canonical, digest

MANIFEST, SEEN = "manifest.json", "verified.json"
ID = re.compile(r"a1:[0-9a-f]{64}")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_OWN = (MANIFEST, SEEN)
_BLOCK = 1 << 20


class _Seen(msgspec.Struct, frozen=True, array_like=True):
    """A file as the kernel described it when it was found whole."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    sha256: str


# -- keys ----------------------------------------------------------------------------------------------


def public_key(home: Path) -> str:
    """The installation's public key, hex: what others put among their trusted keys. Made on first use."""
    key: bytes = _signing_key(home).public_key().public_bytes_raw()
    return key.hex()


def trusted(home: Path) -> dict[str, str]:
    """Public key (hex) → whose it is: this installation's, and those in `NORIA_HOME/trusted_keys` (`HEX NAME` a line)."""
    found = {public_key(home): "this installation"}
    path = home / "trusted_keys"
    if not path.exists():
        return found
    with boundary(StoreError, f"trusted keys {path}"):
        lines = path.read_text().splitlines()
    for number, line in enumerate(lines, 1):
        key, _, name = line.partition("#")[0].strip().partition(" ")
        if key and not re.fullmatch(r"[0-9a-f]{64}", key):
            raise NoriaError(
                f"{path}:{number} is not `HEX NAME`, HEX being 64 hex digits.",
                code="bad_trusted_key",
                hint="Correct or remove the line.",
            )
        if key:
            found.setdefault(key, name.strip() or key[:12])
    return found


def trust(home: Path, key: str, name: str) -> None:
    """Believe in artifacts that the holder of this public key has signed."""
    key = key.strip().lower()
    if not re.fullmatch(r"[0-9a-f]{64}", key) or not re.fullmatch(r"[\w@. -]{1,64}", name):
        raise RequestError(
            "A trusted key is 64 hex digits with a plain name.", code="bad_trusted_key", param="key",
            hint="`noria release key` prints an installation's own.",
        )  # fmt: skip
    if key in trusted(home):
        return
    path = home / "trusted_keys"
    before = path.read_text() if path.exists() else ""
    write_whole(path, f"{before.rstrip()}\n{key} {name}\n".lstrip().encode(), mode=0o600)


def _signing_key(home: Path) -> Any:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    path = home / "signing.key"
    with boundary(StoreError, f"signing key {path}"):
        if not path.exists():
            home.mkdir(parents=True, exist_ok=True, mode=0o700)
            aside = path.with_name(f"{STAGING}{os.getpid()}-signing")
            write_whole(aside, Ed25519PrivateKey.generate().private_bytes_raw().hex().encode(), mode=0o600)
            with suppress(FileExistsError):  # another process was faster: its key it is
                os.link(aside, path)
            aside.unlink()
            sync_folder(home)
        return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(path.read_text().strip()))


# -- making --------------------------------------------------------------------------------------------


def folder(home: Path, id: str) -> Path:
    """Where an artifact lies. Raises `RequestError` for what is no artifact's id."""
    if not ID.fullmatch(id):
        raise RequestError(
            f"{id!r} is not the id of an artifact.", code="invalid_artifact", hint="It is a1: and 64 hex digits."
        )
    return home / "artifacts" / id


def id_of(artifact: Artifact) -> str:
    """The id that its content gives."""
    content = {
        "kind": artifact.kind,
        "files": sorted(([f.name, f.sha256, f.bytes] for f in artifact.files), key=str),
        "inputs": artifact.inputs,
        "facts": artifact.facts,
    }
    return "a1:" + digest(canonical(content))


def publish(
    home: Path,
    kind: str,
    files: Mapping[str, Path],
    *,
    inputs: Mapping[str, str] | None = None,
    facts: Mapping[str, str] | None = None,
    made_ns: int = 0,
) -> Artifact:
    """Copy files (name in the artifact → where it is now) into an artifact of this installation, signed; whole or not at all.

    The same content gives the artifact that is there already. Raises `RequestError` for names that are no plain file names.
    """
    wrong = [n for n in files if not NAME.fullmatch(n) or n in _OWN]
    if wrong or not files or not re.fullmatch(r"[a-z][a-z0-9_]{0,31}", kind):
        what = f"The file name {wrong[0]!r} cannot be one of an artifact." if wrong else "An artifact has a kind and files."
        raise RequestError(what, code="invalid_artifact", hint="Plain names of letters, digits, '.', '_', '-'.")
    with boundary(StoreError, "making an artifact"), _workshop(home) as work:
        copied = tuple(_copy(path, work / name) for name, path in sorted(files.items()))
        bare = Artifact("", kind, copied, dict(inputs or {}), dict(facts or {}), made_ns, public_key(home))
        named = replace(bare, id=id_of(bare))
        target = folder(home, named.id)
        if target.exists():
            with suppress(NoriaError):
                return verify(home, named.id)
        signed = replace(named, signature=_signing_key(home).sign(_message(named)).hex())
        with staged(target) as new:
            for file in copied:
                (work / file.name).rename(new / file.name)
            write_whole(new / MANIFEST, msgspec.json.format(msgspec.json.encode(signed)), mode=0o600)
    _remember(target, signed)
    return signed


@contextmanager
def _workshop(home: Path) -> Iterator[Path]:
    """A folder beside the artifacts, so that renames stay on one file system; gone afterwards."""
    base = home / "artifacts"
    base.mkdir(parents=True, exist_ok=True, mode=0o700)
    work = base / f"{STAGING}{os.getpid()}-{os.urandom(4).hex()}"
    work.mkdir(mode=0o700)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _copy(source: Path, target: Path) -> File:
    """Copy, hash and fsync in one pass."""
    sha, size = hashlib.sha256(), 0
    with source.open("rb") as old, target.open("xb") as new:
        while block := old.read(_BLOCK):
            sha.update(block)
            size += len(block)
            new.write(block)
        new.flush()
        os.fsync(new.fileno())
    target.chmod(0o600)
    return File(target.name, sha.hexdigest(), size)


def _message(artifact: Artifact) -> bytes:
    return canonical({"id": artifact.id, "made_ns": str(artifact.made_ns), "signer": artifact.signer})


# -- reading -------------------------------------------------------------------------------------------


def manifest_of(home: Path, id: str) -> Artifact:
    """The manifest as it lies there, unchecked. Raises `NotFound`, or `NoriaError` where it cannot be read."""
    path = folder(home, id) / MANIFEST
    try:
        return msgspec.json.decode(path.read_bytes(), type=Artifact)
    except FileNotFoundError:
        raise NotFound(
            f"There is no artifact {short(id)} here.", code="artifact_not_found", hint="See `noria release artifacts`."
        ) from None
    except (OSError, msgspec.MsgspecError) as e:
        raise _refused(id, f"its {MANIFEST} cannot be read ({e})") from e


def installed(home: Path) -> dict[str, Artifact]:
    """Every artifact whose manifest can be read, unchecked, newest first."""
    found = []
    for path in (home / "artifacts").glob("a1:*"):
        with suppress(NoriaError):
            found.append(manifest_of(home, path.name))
    return {a.id: a for a in sorted(found, key=lambda a: (-a.made_ns, a.id))}


def verify(home: Path, id: str, *, anew: bool = False) -> Artifact:
    """Check an artifact as a whole: its id, its signature, every file; the manifest.

    Raises `NoriaError` (`artifact_refused`) that names what is wrong: a manifest that was changed, a signature of nobody who is
    trusted, a file that is missing, changed, cut short, or not in the manifest. `anew` reads files that were found whole, too.
    """
    artifact, base = manifest_of(home, id), folder(home, id)
    if artifact.id != id or id_of(artifact) != id:
        raise _refused(id, "its manifest was changed: what it lists gives another id")
    _check_signature(home, artifact)
    _check_files(artifact, base, anew=anew)
    _remember(base, artifact)
    return artifact


def path_of(home: Path, id: str, *, kind: str = "") -> Path:
    """What is loaded of a checked artifact (`weights_of`), which must be of `kind` where that is given."""
    artifact = verify(home, id)
    if kind and artifact.kind != kind:
        raise RequestError(f"The artifact {short(id)} is of kind {artifact.kind}, not {kind}.", code="wrong_artifact")
    return folder(home, id) / weights_of(artifact).name


def weights_of(artifact: Artifact) -> File:
    """The file that is loaded: the first that is no fingerprint of another."""
    return next((f for f in artifact.files if f.name != FINGERPRINT), artifact.files[0])


def short(id: str) -> str:
    """The id for people."""
    return id[:15]


def _check_signature(home: Path, artifact: Artifact) -> None:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    if artifact.signer not in trusted(home):
        raise _refused(
            artifact.id,
            f"it was signed by {artifact.signer[:16] or 'nobody'}, whom this installation does not trust",
            "If you trust them: noria release trust KEY NAME",
        )
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(artifact.signer)).verify(
            bytes.fromhex(artifact.signature), _message(artifact)
        )
    except (InvalidSignature, ValueError) as e:
        raise _refused(artifact.id, "its signature is not its signer's") from e


def _check_files(artifact: Artifact, base: Path, *, anew: bool) -> None:
    listed, seen = {f.name for f in artifact.files}, {} if anew else _seen(base)
    extra = sorted(p.name for p in base.iterdir() if p.name not in listed and p.name not in _OWN)
    if extra:
        raise _refused(artifact.id, f"it holds {extra[0]}, which its manifest does not list")
    for file in artifact.files:
        path = base / file.name
        try:
            now = _look(path, file.sha256)
        except OSError as e:
            raise _refused(artifact.id, f"its file {file.name} is missing ({e.strerror})") from e
        if now is None:
            raise _refused(artifact.id, f"its file {file.name} is not a plain file")
        if now.size != file.bytes:
            raise _refused(artifact.id, f"its file {file.name} has {now.size} bytes, not {file.bytes}")
        if seen.get(file.name) == now:
            continue
        found = hash_of(path)
        if found != file.sha256:
            raise _refused(artifact.id, f"its file {file.name} was changed: sha256 {found[:16]}…, not {file.sha256[:16]}…")


def _refused(id: str, why: str, hint: str = "Make it anew, or take it from a backup.") -> NoriaError:
    return NoriaError(f"The artifact {short(id)} is refused: {why}.", code="artifact_refused", hint=hint)


def _look(path: Path, sha256: str) -> _Seen | None:
    """The file as it is; None where it is a link or something else than a file."""
    s = path.lstat()
    if not stat.S_ISREG(s.st_mode):
        return None
    return _Seen(s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino, sha256)


def _seen(base: Path) -> dict[str, _Seen]:
    try:
        return msgspec.json.decode((base / SEEN).read_bytes(), type=dict[str, _Seen])
    except (OSError, msgspec.MsgspecError):
        return {}


def _remember(base: Path, artifact: Artifact) -> None:
    now = {f.name: found for f in artifact.files if (found := _look(base / f.name, f.sha256)) is not None}
    if now != _seen(base):
        write_whole(base / SEEN, msgspec.json.encode(now))


# -- forgetting ----------------------------------------------------------------------------------------

SPARED_NS = 3600 * 1_000_000_000
"""Younger artifacts stay: whoever made one may be about to name it."""


def unreferenced(home: Path, named: Collection[str], *, now_ns: int) -> list[Artifact]:
    """Artifacts that none of `named` is, and that nothing named was made from; not those of the last hour."""
    here = installed(home)
    kept, todo = set(), [i for i in named if i in here]
    while todo:
        one = todo.pop()
        if one not in kept:
            kept.add(one)
            todo += [i for i in here[one].inputs.values() if i in here]
    return [a for i, a in here.items() if i not in kept and _touched_ns(home, i) < now_ns - SPARED_NS]


def remove(home: Path, id: str) -> None:
    """Delete an artifact; first its manifest, so that nobody loads a part of it."""
    base = folder(home, id)
    with boundary(StoreError, f"removing {base}"):
        (base / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(base)


def _touched_ns(home: Path, id: str) -> int:
    with suppress(OSError):
        return (folder(home, id) / MANIFEST).stat().st_mtime_ns
    return 0
