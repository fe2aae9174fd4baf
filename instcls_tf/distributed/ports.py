"""Where processes listen for connections, from the system's own tables (Linux). No TensorFlow."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
from pathlib import Path

_LISTENS = "0A"


def listening(pid: int) -> list[str]:
    """`ADDRESS:PORT` of what a process listens on over TCP, sorted; empty where the system does not tell."""
    own = _sockets(pid)
    found = []
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            found += _listening_in(Path(f"/proc/{pid}/net/{table}").read_text(), own)
    return sorted(found)


def is_open_to_others(place: str) -> bool:
    """Whether machines other than this one can reach an `ADDRESS:PORT`."""
    return not ipaddress.ip_address(place.rpartition(":")[0].strip("[]")).is_loopback


def _listening_in(table: str, own: set[str]) -> list[str]:
    """`ADDRESS:PORT` of the sockets with these inodes that listen, from the text of a table of the system's."""
    found = []
    for line in table.splitlines()[1:]:
        _, local, _, state, *others = line.split()
        if state == _LISTENS and others[5] in own:
            found.append(_shown(local))
    return found


def _sockets(pid: int) -> set[str]:
    found = set()
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                number = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(f"/proc/{pid}/fd/{name}"))
                found |= {number[1]} if number else set()
    return found


def _shown(local: str) -> str:
    """`0100007F:1F90` as `127.0.0.1:8080`: words of four bytes, each in the processor's order."""
    address, port = local.split(":")
    words = [bytes.fromhex(address[place : place + 8])[::-1] for place in range(0, len(address), 8)]
    ip = ipaddress.ip_address(b"".join(words))
    ip = getattr(ip, "ipv4_mapped", None) or ip
    return f"[{ip}]:{int(port, 16)}" if ip.version == 6 else f"{ip}:{int(port, 16)}"
