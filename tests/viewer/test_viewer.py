"""The running viewer: where it listens, whom it lets in, what its controls do."""

from __future__ import annotations

import http.client
import json
import socket
import struct
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch

from relief3d.core.errors import InputError
from relief3d.core.progress import SilentProgress
from relief3d.viewer import open_viewer
from relief3d.viewer.app import RunningViewer, start_viewer
from relief3d.viewer.gate import TokenGate
from relief3d.viewer.listening import choose_port, is_loopback
from relief3d.viewer.surface import surface_glb
from report.ball_room import room_mesh

pytest.importorskip("viser", reason="the viewer needs the extra 'viewer'")


class Told(SilentProgress):
    """Keeps what the user is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def message(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module")
def running(output: Path) -> Iterator[RunningViewer]:
    viewer = start_viewer(output, port=0, progress=Told())
    yield viewer
    viewer.close()


def other_address() -> str | None:
    """An address of this machine that is not loopback, if it has one."""
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            return None
        address = str(probe.getsockname()[0])
    return None if address.startswith("127.") else address


def get(
    port: int, path: str = "/", cookie: str = "", host: str = "127.0.0.1"
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(host, port, timeout=20)
    with closing(connection):
        connection.request("GET", path, headers={"Cookie": cookie} if cookie else {})
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()


def test_listens_on_loopback_only(running: RunningViewer) -> None:
    assert running.address == f"http://127.0.0.1:{running.port}"
    status, _, body = get(running.port)
    assert status == 200 and b"<html" in body.lower()
    if Path("/proc/self/fd").is_dir():
        assert {s.getsockname()[0] for s in _listening(running)} == {"127.0.0.1"}
    other = other_address()
    if other is not None:
        with pytest.raises(OSError):
            socket.create_connection((other, running.port), timeout=3).close()


def _listening(running: RunningViewer) -> list[socket.socket]:
    """Listening sockets of this process on the viewer's port."""
    found = []
    for path in Path("/proc/self/fd").iterdir():
        try:
            if "socket:" not in str(path.readlink()):
                continue
            copy = socket.socket(fileno=int(path.name))
        except OSError:
            continue
        name = copy.getsockname() if copy.family == socket.AF_INET else ("", 0)
        listens = copy.family == socket.AF_INET and copy.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        if listens and name[1] == running.port:
            found.append(copy.dup())
        copy.detach()
    return found


def test_taken_port_gives_the_next_and_says_so(output: Path) -> None:
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        told = Told()
        viewer = start_viewer(output, port=port, progress=told)
        try:
            assert port < viewer.port <= port + 20
            assert any(f"port {port} is taken, using {viewer.port}" in line for line in told.lines)
        finally:
            viewer.close()


def test_impossible_ports_and_hosts() -> None:
    with pytest.raises(InputError, match="does not exist"):
        choose_port("127.0.0.1", 70_000)
    with pytest.raises(InputError, match="cannot be resolved"):
        is_loopback("no such host.invalid")
    assert is_loopback("127.0.0.1") and is_loopback("localhost")
    assert not is_loopback("0.0.0.0") and not is_loopback("") and not is_loopback("192.0.2.7")


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.7"])
def test_remote_host_needs_permission(output: Path, host: str) -> None:
    with pytest.raises(InputError, match="other machines"):
        open_viewer(output, host=host, port=0)


def test_missing_folder_opens_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        open_viewer(tmp_path / "nothing")


def test_remote_access_needs_the_token(output: Path) -> None:
    told = Told()
    viewer = start_viewer(output, host="0.0.0.0", port=0, allow_remote=True, progress=told)
    try:
        assert any("warning" in line and "not encrypted" in line for line in told.lines)
        assert viewer.gate is not None and len(viewer.gate.token) >= 40
        assert viewer.gate.token in viewer.address
        assert get(viewer.port)[0] == 403
        assert get(viewer.port, "/?token=wrong")[0] == 403
        status, headers, _ = get(viewer.port, f"/?token={viewer.gate.token}")
        assert status == 303 and headers["Location"] == "/" and "HttpOnly" in headers["Set-Cookie"]
        cookie = headers["Set-Cookie"].split(";")[0]
        status, headers, body = get(viewer.port, "/", cookie)
        assert status == 200 and b"<html" in body.lower()
        assert get(viewer.port, "/", "relief3d_token=wrong")[0] == 403
        assert _upgrade(viewer.port, "") == 403 and _upgrade(viewer.port, cookie) == 101
    finally:
        viewer.close()
    with pytest.raises(OSError):
        get(viewer.port)


def _upgrade(port: int, cookie: str) -> int:
    """Status of a web socket handshake."""
    lines = [
        "GET / HTTP/1.1", f"Host: 127.0.0.1:{port}", "Upgrade: websocket", "Connection: Upgrade",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13",
    ]  # fmt: skip
    if cookie:
        lines.append(f"Cookie: {cookie}")
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        client.sendall("\r\n".join([*lines, "", ""]).encode())
        return int(client.recv(64).split()[1])


def test_gate_survives_nonsense() -> None:
    gate = TokenGate("127.0.0.1", 0, inner_port=9, token="secret")
    try:
        for data in (
            b"\r\n\r\n",
            b"GET /\r\n\r\n",
            b"\xff\x00\r\n\r\n",
            b"A" * 70_000,
            b"GET / HTTP/1.1\r\nCookie: =;;\x01\r\n\r\n",
        ):
            with socket.create_connection(("127.0.0.1", gate.port), timeout=20) as client:
                try:
                    client.sendall(data)
                    answer = client.recv(64)
                except ConnectionError:
                    continue
                assert answer == b"" or answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 403"))
        assert get(gate.port)[0] == 403
    finally:
        gate.close()


def test_public_tunnel_is_refused(running: RunningViewer) -> None:
    assert running.server.request_share_url() is None


def test_controls(running: RunningViewer) -> None:
    stage = running.stage
    assert len(stage.frusta) == 3 and stage.mesh_node.visible and not stage.points_node.visible
    before = stage.points_node.points.shape[0]
    stage.least.value = 0.8
    stage._filter_points()
    assert 0 < stage.points_node.points.shape[0] < before
    stage.size.value = 2.0
    stage._resize_points()
    assert stage.points_node.point_size == pytest.approx(2 * stage._point_size)
    stage.with_depth.value = "this view"
    stage.show_depth()
    stage.with_depth.value = "off"
    stage.show_depth()


def test_measured_distance(running: RunningViewer) -> None:
    stage = running.stage
    a, b = torch.tensor([0.0, 0, 0]).double(), torch.tensor([0.3, 0.4, 1.2]).double()
    assert stage.mark(a) is None
    assert stage.mark(b) == pytest.approx(1.3)
    assert stage.distance.value == "1.3 m"
    assert stage.mark(a) is None  # a third click starts anew


def test_surface_is_one_sided_and_whole() -> None:
    mesh = room_mesh(12)
    data = surface_glb(mesh, 10**6)
    assert data[:4] == b"glTF" and struct.unpack_from("<I", data, 8)[0] == len(data)
    length = struct.unpack_from("<I", data, 12)[0]
    document = json.loads(data[20 : 20 + length])
    assert [m["doubleSided"] for m in document["materials"]] == [False]
    assert "rotation" not in document["nodes"][0]
    import io

    import trimesh

    loaded = trimesh.load(io.BytesIO(data), file_type="glb", force="mesh", process=False)
    assert loaded.faces.shape[0] == mesh.faces.shape[0]
