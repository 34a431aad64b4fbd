"""``relief3d view OUT``: an output folder in the browser, through viser."""

from __future__ import annotations

import contextlib
import io
import logging
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from relief3d.core.errors import InputError, RunError
from relief3d.core.optional import require
from relief3d.core.progress import ConsoleProgress, Progress
from relief3d.viewer.gate import TokenGate
from relief3d.viewer.listening import choose_port, is_loopback
from relief3d.viewer.loading import LoadedOutput, load_output
from relief3d.viewer.stage import Stage

_log = logging.getLogger(__name__)
_REMOTE = (
    "the viewer can be reached from other machines; everyone with the address below can look at your data, and the "
    "traffic is not encrypted"
)


@dataclass
class RunningViewer:
    """A viewer that is listening.

    Attributes:
        address: what to open in a browser (with the token when remote access is allowed).
        port: the port visitors use.
        server: the viser server, always on 127.0.0.1.
        stage: the scene and its controls.
        gate: the token gate, when remote access is allowed.
    """

    address: str
    port: int
    server: Any
    stage: Stage
    gate: TokenGate | None = None

    def close(self) -> None:
        """Stop listening."""
        if self.gate is not None:
            self.gate.close()
        with contextlib.redirect_stdout(io.StringIO()):
            self.server.stop()


def open_viewer(
    out_dir: str | Path,
    host: str = "127.0.0.1",
    port: int = 8080,
    *,
    allow_remote: bool = False,
    progress: Progress | None = None,
) -> None:
    """Show an output folder until interrupted.

    Args:
        out_dir: folder written by ``relief3d reconstruct``.
        host: where to listen. Anything but a loopback address needs ``allow_remote``.
        port: wished port; when it is taken the next free one is used and named.
        allow_remote: listen on a non-loopback ``host`` behind a secret token in the address.
        progress: where the address is told; the console by default.

    Raises:
        InputError: folder missing or incomplete, no free port, remote host without ``allow_remote``.
        MissingExtraError: when viser is not installed.
    """
    told = progress or ConsoleProgress()
    viewer = start_viewer(out_dir, host, port, allow_remote=allow_remote, progress=told)
    told.message(f"viewer: {viewer.address}  (Ctrl-C ends it)")
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        told.message("viewer closed")
    finally:
        viewer.close()


def start_viewer(
    out_dir: str | Path,
    host: str = "127.0.0.1",
    port: int = 8080,
    *,
    allow_remote: bool = False,
    progress: Progress | None = None,
) -> RunningViewer:
    """Like :func:`open_viewer`, but returns at once with the running viewer."""
    told = progress or ConsoleProgress()
    remote = not is_loopback(host)
    if remote and not allow_remote:
        raise InputError(
            f"'{host}' can be reached from other machines, so the viewer does not listen there",
            remedy="use 127.0.0.1, forward the port with ssh -L, or allow remote access with a token",
        )
    output = load_output(out_dir)
    viser = require("viser", extra="viewer", purpose="the viewer")
    outer = choose_port(host, port)
    if port not in (0, outer):
        told.message(f"port {port} is taken, using {outer}")
    if output.missing:
        told.message(f"not in this folder, so not shown: {', '.join(output.missing)}")
    inner_host = "127.0.0.1" if remote else host
    server = _serve(viser, inner_host, choose_port(inner_host, 0) if remote else outer, output)
    try:
        stage = Stage(server, output)
        if not remote:
            return RunningViewer(f"http://{_in_address(host)}:{outer}", outer, server, stage)
        told.message(f"warning: {_REMOTE}")
        gate = TokenGate(host, outer, server.get_port(), secrets.token_urlsafe(32))
        return RunningViewer(
            f"http://{_in_address(host)}:{gate.port}/?token={gate.token}", gate.port, server, stage, gate
        )
    except BaseException:
        with contextlib.redirect_stdout(io.StringIO()):
            server.stop()
        raise


def _serve(viser: ModuleType, host: str, port: int, output: LoadedOutput) -> Any:
    """A viser server on exactly this host and port, without its public tunnel and without its banner."""

    class LocalServer(viser.ViserServer):  # type: ignore[name-defined]
        def request_share_url(self, verbose: bool = True) -> None:
            """A visitor could otherwise publish the scene through viser's public relay."""
            _log.warning("a visitor asked for a public tunnel; refused")

    with _quiet():
        server = LocalServer(host=host, port=port, label=f"relief3d · {output.folder.name}", verbose=False)
    if server.get_port() != port:
        got = server.get_port()
        server.stop()
        raise RunError(
            f"port {port} was taken by another program just now (viser got {got})", remedy="try again"
        )
    return server


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Swallow viser's banner: it names viser's own address, the wrong one behind a gate."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def _in_address(host: str) -> str:
    return f"[{host}]" if ":" in host else host
