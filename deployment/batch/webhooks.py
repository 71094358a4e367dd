"""A message to somebody's address: which addresses are allowed, how it is signed, and how it is sent.

Signed as the Standard Webhooks say (https://www.standardwebhooks.com, version 1), which libraries in many languages
check: `webhook-signature` holds `v1,` and the base64 of HMAC-SHA256 over `<webhook-id>.<webhook-timestamp>.<body>`, one
for each secret, with spaces between. A receiver refuses a timestamp that is minutes old, and takes an id once.

Whoever names an address has this machine send something to it. So an address in a private network is refused unless a
setting allows it, both when it is named and when it is sent to: the connection goes to the very address that was
looked at, whatever the name means a moment later. Nothing is followed elsewhere, and no answer is read.
"""

import asyncio
import base64
import hashlib
import hmac
import ipaddress
import socket
import ssl
from collections.abc import Sequence
from datetime import datetime
from functools import cache
from typing import Any
from urllib.parse import SplitResult, urlsplit

SECRET_PREFIX = "whsec_"
SECRET_BYTES = 24  # fewer are no secret, says the standard
LONGEST_URL = 2_048
ANSWER_S = 10.0  # from the look-up of the name to the answer's status, however slowly it comes
NAT64 = ipaddress.ip_network("64:ff9b::/96")
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class WebhookRefused(ValueError):
    """Nothing is sent to that address; the message says why and what to do."""


class NotDelivered(Exception):
    """It was not taken; `for_good`: and never will be."""

    def __init__(self, why: str, for_good: bool = False) -> None:
        super().__init__(why)
        self.for_good = for_good


def keys_of(secrets: str) -> tuple[bytes, ...]:
    """The keys of secrets that stand with spaces between, the newest first: `whsec_` and base64.

    Raises:
        ValueError: one is none, or is too short.
    """
    keys = []
    for secret in secrets.split():
        try:
            key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
        except ValueError:
            key = b""
        if not secret.startswith(SECRET_PREFIX) or len(key) < SECRET_BYTES:
            raise ValueError(f"must be {SECRET_PREFIX} and the base64 of at least {SECRET_BYTES} random bytes")
        keys.append(key)
    return tuple(keys)


def signed(keys: Sequence[bytes], name: str, body: bytes, now: datetime) -> dict[str, str]:
    """The headers of a message of that id."""
    moment = str(int(now.timestamp()))
    content = b".".join((name.encode(), moment.encode(), body))
    signatures = (base64.b64encode(hmac.digest(key, content, hashlib.sha256)).decode() for key in keys)
    return {
        "webhook-id": name,
        "webhook-timestamp": moment,
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
        "content-type": "application/json",
        "user-agent": "Soundstage",
    }


def checked(url: str, *, http: bool, private: bool) -> str:
    """The address, if messages may go there now.

    Args:
        url: the address.
        http: whether one that is not encrypted is allowed.
        private: whether one in a private network is.

    Raises:
        WebhookRefused: they may not.
    """
    parts = _parts(url, http)
    try:
        found = socket.getaddrinfo(parts.hostname, parts.port or 443, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise WebhookRefused(f"the host of the webhook, '{parts.hostname}', is not known ({error})") from None
    _allowed(parts, found, private)
    return url


async def post(
    url: str, body: bytes, headers: dict[str, str], *, http: bool, private: bool, answer_s: float = ANSWER_S
) -> None:
    """Send a message.

    Raises:
        NotDelivered: it was not taken, within `answer_s` seconds.
    """
    import httpx

    try:
        async with asyncio.timeout(answer_s):
            status = await _answer(_parts(url, http), url, body, headers, private)
    except WebhookRefused as refused:
        raise NotDelivered(str(refused)) from refused
    except TimeoutError as error:
        raise NotDelivered(f"no answer came within {answer_s:g} s") from error
    except (OSError, UnicodeError, ValueError, httpx.HTTPError, httpx.InvalidURL) as error:
        raise NotDelivered(f"{type(error).__name__}: {error}") from error
    if not 200 <= status < 300:
        raise NotDelivered(f"the answer was {status}", for_good=status == 410)


async def _answer(parts: SplitResult, url: str, body: bytes, headers: dict[str, str], private: bool) -> int:
    """The status of the answer of the first of the host's addresses that takes a connection."""
    import httpx

    port = parts.port or (443 if parts.scheme == "https" else 80)
    found = await asyncio.get_running_loop().getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    named = httpx.URL(url)
    headers = {**headers, "host": named.netloc.decode()}
    extensions = {"sni_hostname": named.raw_host.decode()}  # whose certificate is asked for
    refused: Exception = NotDelivered("its host has no address")
    # `trust_env`: a proxy of the environment would look the name up again
    async with httpx.AsyncClient(verify=_trusted(), trust_env=False, timeout=None, follow_redirects=False) as client:
        for address in _allowed(parts, found, private):
            there = named.copy_with(host=f"[{address}]" if address.version == 6 else str(address), port=port)
            request = client.build_request("POST", there, content=body, headers=headers, extensions=extensions)
            try:
                answer = await client.send(request, stream=True)
            except httpx.ConnectError as error:
                refused = error
            else:
                await answer.aclose()
                return answer.status_code
    raise refused


@cache
def _trusted() -> ssl.SSLContext:
    """The certificates that are believed; reading them takes longer than sending."""
    import httpx

    return httpx.create_ssl_context(trust_env=False)


def _parts(url: str, http: bool) -> SplitResult:
    try:
        parts = urlsplit(url)
        usable = bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or len(url) > LONGEST_URL or not url.isprintable() or " " in url:
        raise WebhookRefused(
            f"a webhook must be https:// and a host, up to {LONGEST_URL:,} characters; got '{url[:80]}'"
        )
    if parts.scheme != "https" and not (http and parts.scheme == "http"):
        raise WebhookRefused(f"a webhook must begin with https://; got '{url[:80]}'")
    if parts.username is not None or parts.password is not None:
        raise WebhookRefused("a webhook must not hold a user or password: check its signature instead")
    return parts


def _allowed(parts: SplitResult, found: Sequence[Any], private: bool) -> list[Address]:
    """The addresses to connect to. WebhookRefused where one is in a private network, and that is not allowed."""
    addresses = [ipaddress.ip_address(str(each[4][0]).partition("%")[0]) for each in found]
    if not private and (inside := next((each for each in addresses if not _is_public(each)), None)) is not None:
        raise WebhookRefused(
            f"the host of the webhook, '{parts.hostname}', is in a private network ({inside}), which "
            "`webhook_private` of [inference.jobs] does not allow"
        )
    return addresses


def _is_public(address: Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return _is_public(inner)
    return address.is_global and not address.is_multicast
