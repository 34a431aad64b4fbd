"""A token gate in front of a server that knows no passwords.

viser has no access control. When the viewer must be reachable from other machines, it still listens on loopback
only, and this gate listens outside: the first visit must carry the secret token in its address, which the gate
exchanges for a cookie; every later request and web socket must carry that cookie. The traffic is not encrypted.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
import threading
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlsplit

from relief3d.core.errors import RunError

_log = logging.getLogger(__name__)
_COOKIE = "relief3d_token"
_MAX_HEAD = 32 * 1024
_HEAD_SECONDS = 10.0


class TokenGate:
    """Forwards TCP connections of visitors who know the token; runs in its own thread.

    Args:
        host, port: where to listen; port 0 lets the system choose.
        inner_port: port of the protected server on 127.0.0.1.
        token: the secret; a fresh one of 256 bits when None.
    """

    def __init__(self, host: str, port: int, inner_port: int, token: str | None = None) -> None:
        self.token = token or secrets.token_urlsafe(32)
        self._inner_port = inner_port
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._failure: OSError | None = None
        self.port = port
        self._thread = threading.Thread(
            target=self._run, args=(host, port), daemon=True, name="relief3d-gate"
        )
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            raise RunError(f"cannot listen on {host}:{port} ({self._failure.strerror})")

    def close(self) -> None:
        """Stop listening and drop all connections."""
        if self._loop.is_running():
            self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5)

    def _run(self, host: str, port: int) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            server = self._loop.run_until_complete(
                asyncio.start_server(self._serve, host, port, limit=_MAX_HEAD)
            )
        except OSError as exc:
            self._failure = exc
            self._ready.set()
            return
        self.port = int(server.sockets[0].getsockname()[1])
        self._ready.set()
        try:
            self._loop.run_forever()
        finally:
            server.close()
            tasks = asyncio.all_tasks(self._loop)
            for task in tasks:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), _HEAD_SECONDS)
            answer, forwarded = self._judge(head)
            if forwarded is None:
                writer.write(answer)
                await writer.drain()
            else:
                await self._forward(forwarded, reader, writer)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as exc:
            _log.debug("gate: connection ended early: %s", exc)
        finally:
            writer.close()

    def _judge(self, head: bytes) -> tuple[bytes, bytes | None]:
        """(answer, None) to refuse or redirect, (b"", request head to forward) to let pass."""
        lines = head.decode("latin-1").split("\r\n")
        parts = lines[0].split(" ")
        if len(parts) != 3:
            return _answer("400 Bad Request", "This is not a request."), None
        headers = [
            (k.strip().lower(), v.strip()) for k, _, v in (line.partition(":") for line in lines[1:] if line)
        ]
        if self._right(parse_qs(urlsplit(parts[1]).query).get("token", [""])[0]):
            cookie = f"Set-Cookie: {_COOKIE}={self.token}; HttpOnly; SameSite=Strict; Path=/\r\n"
            return _answer("303 See Other", "", f"Location: /\r\n{cookie}"), None
        if not self._right(_cookie(headers)):
            return _answer("403 Forbidden", "This viewer needs the complete address with its token."), None
        upgrade = any(k == "upgrade" for k, _ in headers)
        # One request per connection: otherwise a shared proxy could mix other people's requests into this one.
        kept = lines[:1] + [
            line for line in lines[1:] if line and (upgrade or not line.lower().startswith("connection:"))
        ]
        if not upgrade:
            kept.append("Connection: close")
        return b"", ("\r\n".join(kept) + "\r\n\r\n").encode("latin-1")

    def _right(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self.token.encode())

    async def _forward(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self._inner_port)
        try:
            inner_writer.write(head)
            await inner_writer.drain()
            copies = [
                asyncio.create_task(_copy(reader, inner_writer)),
                asyncio.create_task(_copy(inner_reader, writer)),
            ]
            _, running = await asyncio.wait(copies, return_when=asyncio.FIRST_COMPLETED)
            for task in running:
                task.cancel()
            await asyncio.gather(*copies, return_exceptions=True)
        finally:
            inner_writer.close()


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    while data := await source.read(65536):
        target.write(data)
        await target.drain()


def _cookie(headers: list[tuple[str, str]]) -> str:
    jar: SimpleCookie = SimpleCookie()
    for name, value in headers:
        if name == "cookie":
            try:
                jar.load(value)
            except CookieError:
                continue
    return jar[_COOKIE].value if _COOKIE in jar else ""


def _answer(status: str, body: str, extra: str = "") -> bytes:
    data = body.encode()
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {len(data)}\r\n"
        f"Cache-Control: no-store\r\nConnection: close\r\n{extra}\r\n"
    )
    return head.encode("latin-1") + data
