"""Who works on what, for several processes and machines that share a disk.

A run holds ``runs/<token>.json``: it keeps an operating-system lock on it and touches it as a heartbeat. A claim is
the file ``claims/<id>.json`` that names a run; creating a file exclusively succeeds once. A claim is void when its run
is dead: on the same machine as soon as the lock is free, on another one when the heartbeat is older than the lease.

Claims only save double work. That every item is published once does not depend on them (nor on clocks), but on the
exclusive rename in :meth:`LabelStore.publish`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import tempfile
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from relief3d.io.atomic import write_error

DEFAULT_LEASE = 120.0
"""Seconds without a heartbeat after which a run on another machine counts as dead."""


@dataclass(frozen=True)
class RunIdentity:
    """A run as its workers know it.

    Attributes:
        token: random name.
        folder: of the run files.
        lease: seconds.
    """

    token: str
    folder: Path
    lease: float = DEFAULT_LEASE

    @property
    def path(self) -> Path:
        """The run's file."""
        return self.folder / f"{self.token}.json"


def machine_key() -> str:
    """A hash that is the same for all processes of one boot of one machine; it names nobody."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    facts = boot.read_text() if boot.is_file() else f"{platform.node()}{uuid.getnode()}"
    return hashlib.sha256(facts.encode()).hexdigest()[:16]


def _lock(stream: IO[bytes], *, shared: bool) -> bool:
    """Take the lock without waiting; True where the system has no locks (then heartbeats alone decide)."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(stream.fileno(), (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _has_locks() -> bool:
    try:
        import fcntl  # noqa: F401
    except ImportError:
        return False
    return True


@contextlib.contextmanager
def registered_run(folder: Path, lease: float = DEFAULT_LEASE) -> Iterator[RunIdentity]:
    """Register a run, keep its heartbeat, and remove it at the end (an interruption included)."""
    run = RunIdentity(uuid.uuid4().hex[:16], folder, lease)
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(max(0.05, lease / 4)):
            with contextlib.suppress(OSError):
                os.utime(run.path)

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with run.path.open("xb") as stream:
            _lock(stream, shared=False)
            stream.write(json.dumps({"machine": machine_key()}).encode())
            stream.flush()
            thread = threading.Thread(target=beat, daemon=True, name="label heartbeat")
            thread.start()
            try:
                yield run
            finally:
                stop.set()
                thread.join()
                _forget(run)
    except OSError as exc:
        raise write_error(exc.filename or run.path, exc) from exc


def _forget(run: RunIdentity) -> None:
    """Remove the files of a run."""
    starts = run.folder / run.token
    if starts.is_dir():
        for path in starts.iterdir():
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            starts.rmdir()
    for path in Path(tempfile.gettempdir()).glob(f"{scratch_prefix(run.token)}*"):
        shutil.rmtree(path, ignore_errors=True)
    run.path.unlink(missing_ok=True)


def scratch_prefix(token: str) -> str:
    """How the temporary folders of a run's workers are called."""
    return f"relief3d-label-{token}-"


def disk_time(run: RunIdentity) -> float:
    """The time of the shared disk, so that clocks of different machines are never compared."""
    os.utime(run.path)
    return run.path.stat().st_mtime


def is_alive(token: str, me: RunIdentity) -> bool:
    """Whether another run still works."""
    path = me.folder / f"{token}.json"
    try:
        with path.open("rb") as stream:
            if _machine(stream.read()) == machine_key() and _has_locks():
                return not _lock(stream, shared=True)
            return disk_time(me) - path.stat().st_mtime <= me.lease
    except FileNotFoundError:
        return False
    except OSError:
        return True


def _machine(content: bytes) -> str | None:
    """What a run's file says; None where it says nothing yet, or a crash of the machine has cut it off."""
    try:
        value = json.loads(content)
    except ValueError:
        return None
    return value.get("machine") if isinstance(value, dict) else None


def other_runs(me: RunIdentity) -> tuple[list[str], list[str]]:
    """Tokens of the other runs in the folder: (alive, dead)."""
    # A folder without its file: an orphaned worker has counted on after its run was cleared away.
    names = {p.name if p.is_dir() else p.stem for p in me.folder.iterdir()}
    tokens = sorted(names - {me.token})
    alive = [t for t in tokens if is_alive(t, me)]
    return alive, [t for t in tokens if t not in alive]


def forget_dead_run(token: str, me: RunIdentity) -> None:
    """Remove what a killed run left in the folder of the runs."""
    _forget(RunIdentity(token, me.folder))


class Claim:
    """An item held by this process until :meth:`release`."""

    def __init__(self, path: Path, owner: str) -> None:
        self._path, self._owner = path, owner

    def held(self) -> bool:
        """Whether nobody has taken it over, as happens to a worker whose run was killed."""
        found = _read(self._path)
        return found is not None and found.get("owner") == self._owner

    def release(self) -> None:
        """Give the item back."""
        if self.held():
            self._path.unlink(missing_ok=True)


def take_claim(folder: Path, item_id: str, run: RunIdentity) -> Claim | None:
    """Claim an item for a run, or None while another living run holds it.

    A claim of this very run is taken over: its worker died, else the item would not have been handed out again.
    """
    path = folder / f"{item_id}.json"
    owner = uuid.uuid4().hex
    content = json.dumps({"run": run.token, "owner": owner}).encode()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for _ in range(16):
            if _create(path, content):
                return Claim(path, owner)
            held = _read(path)
            if held is None:
                continue
            token = held.get("run", "")
            if token != run.token and is_alive(token, run):
                return None
            _bury(path, held)
    except OSError as exc:
        raise write_error(path, exc) from exc
    return None


def _create(path: Path, content: bytes) -> bool:
    """Create a file with content exclusively: complete under another name, then linked (never seen half written)."""
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex}")
    try:
        temporary.write_bytes(content)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError:  # a disk without hard links
            try:
                with path.open("xb") as stream:
                    stream.write(content)
            except FileExistsError:
                return False
        return True
    finally:
        temporary.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, str] | None:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        return {"run": "", "owner": ""}  # cut off by a crash of the machine
    return value if isinstance(value, dict) else {"run": "", "owner": ""}


def _bury(path: Path, seen: dict[str, str]) -> None:
    """Remove a void claim; one that was renewed in between is put back."""
    grave = path.with_name(f".{path.stem}.{uuid.uuid4().hex}")
    try:
        path.rename(grave)
    except FileNotFoundError:
        return
    found = _read(grave)
    if found is not None and found.get("owner") != seen.get("owner"):
        _create(path, json.dumps(found).encode())
    grave.unlink(missing_ok=True)


def remove_void_claims(folder: Path, run: RunIdentity) -> int:
    """Delete claims of dead runs; return their number."""
    count = 0
    for path in folder.glob("*.json") if folder.is_dir() else ():
        held = _read(path)
        if held is not None and held.get("run") != run.token and not is_alive(held.get("run", ""), run):
            _bury(path, held)
            count += 1
    return count


def remove_claim_leftovers(folder: Path, before: float) -> int:
    """Delete half-made claims older than ``before`` (file-system time); call it while no other run is alive."""
    count = 0
    for path in folder.glob(".*") if folder.is_dir() else ():
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime < before:
                path.unlink()
                count += 1
    return count
