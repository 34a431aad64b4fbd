"""Where the viewer listens: loopback unless told otherwise, and never on a port somebody else has."""

from __future__ import annotations

import ipaddress
import socket

from relief3d.core.errors import InputError

_TRIES = 20


def is_loopback(host: str) -> bool:
    """True when every address that ``host`` stands for is a loopback address.

    Raises:
        InputError: when the name cannot be resolved.
    """
    try:
        found = {info[4][0] for info in socket.getaddrinfo(host or "0.0.0.0", None, type=socket.SOCK_STREAM)}  # noqa: S104
    except OSError as exc:
        raise InputError(f"the host '{host}' cannot be resolved", remedy="use 127.0.0.1") from exc
    return all(ipaddress.ip_address(str(address).partition("%")[0]).is_loopback for address in found)


def is_free(host: str, port: int) -> bool:
    """True when a server could listen on ``host:port`` now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As servers do: a port in TIME_WAIT is free, one with a listener is not.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def choose_port(host: str, port: int) -> int:
    """``port`` when it is free, else the next free one of the following 20; 0 lets the system choose.

    Raises:
        InputError: when the number is impossible or none of these ports is free.
    """
    if not 0 <= port <= 65535:
        raise InputError(f"port {port} does not exist", remedy="use a number from 1024 to 65535")
    if port == 0:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.bind((host, 0))
            return int(probe.getsockname()[1])
    last = min(port + _TRIES, 65535)
    for candidate in range(port, last + 1):
        if is_free(host, candidate):
            return candidate
    raise InputError(
        f"no port from {port} to {last} is free on {host}", remedy="close another viewer or give --port"
    )
