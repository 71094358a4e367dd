"""Where people open a service, and where it listens on this machine."""

import socket
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator


def _web_address(url: str) -> str:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port out of range, or a bracket without its other half
        usable = False
    if not usable:
        raise ValueError(f"must be http:// or https://, a host, and a port from 1 to 65535 or none; got '{url}'")
    return url.rstrip("/")


WebAddress = Annotated[str, AfterValidator(_web_address)]


def listens_at(url: str, usual_port: int) -> str:
    """Where a service listens that people open at `url`.

    There, if it is `http` with a port at a host of this machine. Anything else is the address of a proxy, and the
    service behind it listens on 127.0.0.1 and its usual port.
    """
    parts = urlsplit(url)
    if parts.scheme == "http" and parts.hostname and parts.port and _is_here(parts.hostname):
        return f"http://{parts.netloc}"
    return f"http://127.0.0.1:{usual_port}"


def bound(host: str, port: int) -> socket.socket:
    """A socket that is bound to a host of this machine and a port; OSError or UnicodeError where it cannot be."""
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
    except BaseException:
        made.close()
        raise
    return made


def _is_here(host: str) -> bool:
    try:
        bound(host, 0).close()
    except (OSError, UnicodeError):
        return False
    return True
