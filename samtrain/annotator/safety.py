"""Stands between the network and the routes: who may ask, from which page, how much, and what an answer may reveal.

The attacks and what stops them:
  another site's page, through DNS rebinding     the Host header must name this server
  another site's page, through a form or fetch   Origin and Sec-Fetch-Site; writes take JSON, which a form cannot send
  another site's page, through <img> or <iframe> Cross-Origin-Resource-Policy, frame-ancestors
  a person without a token                       401, once annotators are registered
  large bodies                                   413, before they are in memory
  text that becomes HTML or script               a content security policy without inline script; names travel as JSON
  errors that reveal the machine                 500 with a sentence and an id; the traceback is in the log
"""

from __future__ import annotations

import ipaddress
import json
import logging
import secrets
import socket
import time
from collections.abc import Awaitable, Callable
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import urlsplit

from starlette.concurrency import run_in_threadpool

from samtrain.annotator.config import LOOPBACK, AnnotateConfig, is_loopback
from samtrain.annotator.errors import Refused
from samtrain.annotator.store import Store

log = logging.getLogger(__name__)

COOKIE = "samtrain_annotator"
WRITES = ("POST", "PUT", "PATCH", "DELETE")
OPEN = ("/api/health", "/api/login", "/api/logout")  # served without a token, like the page itself
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "worker-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}
Scope = dict[str, Any]
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Safety:
    """The outermost layer of the server: an ASGI application around another one.

    The name of the annotator is in `scope["state"]["annotator"]` for the routes behind it.
    """

    def __init__(self, app: Any, *, settings: AnnotateConfig, store: Store, read_only: bool = False) -> None:
        self.app, self.settings, self.store, self.read_only = app, settings, store, read_only
        self.hosts = allowed_hosts(settings)
        self.max_bytes = int(settings.max_upload_mb * 1e6)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":  # there are none
                await send({"type": "websocket.close", "code": 1008})
                return
            await self.app(scope, receive, send)
            return
        answer = _Answer(scope, send)
        try:
            await self._serve(scope, receive, answer)
        except Refused as refused:
            await answer.refuse(refused.status, {"error": refused.sentence, **refused.extra})
        except Exception as error:
            if _is_gone(error):
                return
            await answer.fail()
        finally:
            answer.log()

    async def _serve(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        headers = _headers(scope)
        host = self._check_host(headers)
        self._check_site(scope, headers, host)
        name = await self._annotator(scope, headers)
        scope.setdefault("state", {})["annotator"] = name
        writes = scope["method"] in WRITES
        if writes and self.read_only and scope["path"] not in OPEN:
            raise Refused(403, "this server only shows what was done: nothing can be changed")
        await self.app(scope, self._bounded(headers, receive) if writes else receive, answer)

    # ---- which name, which site

    def _check_host(self, headers: dict[str, str]) -> str:
        """Returns the Host header; raises Refused unless it names this server, so that no other name can stand for it."""
        given = headers.get("host", "")
        name = _host_name(given)
        if name is None or not (name in self.hosts or ("*" in self.hosts and _is_address(name))):
            raise Refused(
                403,
                f"this server does not answer to the host {given[:80]!r}: open it by the address that it printed, or name the "
                "host in annotate.allowed_hosts",
            )
        return given.lower()

    def _check_site(self, scope: Scope, headers: dict[str, str], host: str) -> None:
        """Raises Refused for a request that another site's page has made."""
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        opens_page = scope["method"] == "GET" and not scope["path"].startswith("/api/")
        if site not in (None, "same-origin", "none") and not opens_page:
            raise Refused(403, "another site's page has sent this request, and this server serves its own page alone")
        if origin is not None and urlsplit(origin).netloc.lower() != host:
            raise Refused(403, f"the page of {origin[:80]} may not use this server: open the address that it printed")
        # a form can send neither JSON nor a method other than POST; a page elsewhere that asks to is refused beforehand
        is_json = headers.get("content-type", "").split(";")[0].strip().lower() == "application/json"
        has_body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
        if scope["method"] in WRITES and not is_json and (scope["method"] == "POST" or has_body):
            raise Refused(415, "a write takes JSON: send the header Content-Type: application/json")

    # ---- who

    async def _annotator(self, scope: Scope, headers: dict[str, str]) -> str | None:
        """Returns the name of who asks; raises Refused if nobody known does."""
        if not scope["path"].startswith("/api/"):
            return None  # the page and its files are the same for everybody
        token = token_of(headers)
        name = await run_in_threadpool(self.who, token)
        if name is None and scope["path"] not in OPEN:
            raise Refused(401, "open the link that was printed for you, or send the header Authorization: Bearer TOKEN")
        return name

    def who(self, token: str | None) -> str | None:
        """Returns the annotator with this token; without registered annotators, the one annotator of this machine."""
        if not self.store.annotators():
            return self.settings.local_annotator if is_loopback(self.settings.host) else None
        return self.store.annotator_of(token) if token else None

    # ---- how much

    def _bounded(self, headers: dict[str, str], receive: Receive) -> Receive:
        """Returns `receive` with an end: raises Refused for a body that is larger than allowed."""
        too_large = Refused(
            413, f"the request is larger than {self.settings.max_upload_mb:g} MB: send less, or set annotate.max_upload_mb"
        )
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > self.max_bytes:
            raise too_large
        received = 0

        async def bounded() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_bytes:
                raise too_large
            return message

        return bounded


class _Answer:
    """Sends an answer with the headers that every answer has, and notes its status for the log."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.scope, self._send = scope, send
        self.status: int | None = None
        self.begin = time.monotonic()

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            given = list(message.get("headers", []))
            names = {name.lower() for name, _ in given}
            own = {**HEADERS, "cache-control": "no-store"}
            given += [(name.encode(), value.encode()) for name, value in own.items() if name.encode() not in names]
            message = {**message, "headers": [pair for pair in given if pair[0].lower() != b"server"]}
        await self._send(message)

    async def refuse(self, status: int, content: dict[str, Any]) -> None:
        """Answers with an error, unless an answer has begun."""
        if self.status is not None:
            return
        body = json.dumps(content).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        if status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        if status == 413:
            headers.append((b"connection", b"close"))  # what is left of the body is not read
        await self({"type": "http.response.start", "status": status, "headers": headers})
        await self({"type": "http.response.body", "body": body})

    async def fail(self) -> None:
        """Answers with an error of ours: the log has the traceback, the client an id to ask about."""
        number = secrets.token_hex(4)
        log.exception("Error %s while serving %s %s.", number, self.scope["method"], _printable(self.scope["path"]))
        sentence = f"the server failed at this request; its log names the cause under {number}. Nothing was saved"
        await self.refuse(500, {"error": sentence, "id": number})

    def log(self) -> None:
        """Logs the request, without its query and headers, which may hold secrets."""
        took = 1e3 * (time.monotonic() - self.begin)
        level = logging.WARNING if (self.status or 0) >= 500 else logging.DEBUG
        log.log(level, "%s %s: %s, %.0f ms", self.scope["method"], _printable(self.scope["path"]), self.status, took)


def token_of(headers: dict[str, str]) -> str | None:
    """Returns the token in the Authorization header, or else in the cookie."""
    kind, _, token = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer" and token.strip():
        return token.strip()
    try:
        cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return None
    return cookie.value if cookie is not None and cookie.value else None


def allowed_hosts(settings: AnnotateConfig) -> set[str]:
    """Returns the names in a Host header that mean this server; "*" stands for any IP address, which no name can rebind."""
    hosts = {*LOOPBACK, settings.host.lower(), *(name.lower() for name in settings.allowed_hosts)}
    if settings.host in ("0.0.0.0", "::"):
        hosts |= {"*", socket.gethostname().lower(), socket.getfqdn().lower()}
    return hosts


def _headers(scope: Scope) -> dict[str, str]:
    """Returns the headers by lower-case name; raises Refused if one that decides is there twice."""
    found: dict[str, str] = {}
    for name, value in scope["headers"]:
        key = name.decode("latin-1").lower()
        if key in found and key in ("host", "origin", "authorization", "content-type", "content-length", "sec-fetch-site"):
            raise Refused(400, f"the header {key} stands twice in the request")
        found[key] = f"{found[key]}; {value.decode('latin-1')}" if key in found else value.decode("latin-1")
    return found


def _host_name(host: str) -> str | None:
    """Returns the name in a Host header without its port; None if it is not one."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port  # raises ValueError for one that is no number
    except ValueError:
        return None
    if parts.username is not None or parts.path or parts.query or parts.fragment:
        return None
    return parts.hostname


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_gone(error: Exception) -> bool:
    """Returns whether the client has left before its request was read."""
    return type(error).__name__ == "ClientDisconnect"


def _printable(path: str) -> str:
    """Returns a path as one line of a log."""
    return "".join(sign if sign.isprintable() else "?" for sign in path[:200])
