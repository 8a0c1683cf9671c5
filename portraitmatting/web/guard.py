"""An ASGI layer in front of Gradio that lets in only what the page needs.

By itself, Gradio's server fetches images from addresses that a request names, and has routes for
proxies, recordings and more.
"""

import json
import os
import tempfile
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import IO, Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})

_API = "/gradio_api/"
_READ = (
    "/assets/", "/static/", "/config", "/theme.css", "/favicon.ico", "/manifest.json",
    *(_API + name for name in (
        "app_id", "call/", "heartbeat/", "info", "openapi.json", "queue/data", "startup-events",
        "theme.css", "upload_progress",
    )),
)  # fmt: skip
_FILE = _API + "file="
_UPLOADS = (_API + "upload", "/api/matte")
_PAGES = ("/", "/api", "/api/openapi.json")
_WRITE = tuple(_API + name for name in ("call/", "cancel", "queue/join", "reset", "run/"))
_CALL_BYTES = 1 << 20  # of a request without an image; the page's have about a thousand
_PIECE_BYTES = 1 << 20
_FORM_BYTES = 1 << 16  # what a form adds to the file in it

# For the browser: the page may load nothing from, and send nothing to, other servers.
_POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; "
    "frame-ancestors 'none'; form-action 'self'; base-uri 'self'"
)


class Refused(Exception):
    """A request that is not let in: the HTTP status and the line of text to answer with."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Guard:
    """`app`, reached only by requests that keep the rules.

    Args:
        app: what answers the requests that are let in.
        folder: only files below it are given out, or accepted when a call names them.
        max_bytes: of an image that is uploaded.
        hosts: host names to answer to, so that no other site can reach the page through a name of
            its own (DNS rebinding); None for any.
    """

    def __init__(
        self, app: App, folder: Path, max_bytes: int, hosts: frozenset[str] | None
    ) -> None:
        self.app, self.max_bytes, self.hosts = app, max_bytes, hosts
        self.folder = folder
        self.inside = str(folder) + os.sep

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        if scope["type"] != "http":
            return
        try:
            self._check_address(scope)
        except Refused as refusal:
            await _drain(receive, 4 * self.max_bytes)
            await _answer(send, refusal)
            return
        try:
            if scope["method"] != "POST":
                await self.app(scope, receive, _with_policy(send))
            elif scope["path"] not in _UPLOADS:
                call = await self._call(receive)
                await self.app(scope, _again(call, receive), _with_policy(send))
            else:
                # An upload is passed on once it is whole: if it breaks off, nothing is left.
                with tempfile.TemporaryFile(dir=self.folder) as body:
                    await _collect(receive, body)
                    await self.app(scope, _pieces(body, receive), _with_policy(send))
        except Refused as refusal:
            await _answer(send, refusal)

    def _check_address(self, scope: Scope) -> None:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get(b"host", "")
        name = host.rpartition(":")[0] if host[-1:].isdigit() and ":" in host else host
        if self.hosts is not None and name.lower() not in self.hosts:
            raise Refused(421, f"this page is not for {host!r}: --allowed-host {name} allows it")
        method, path = scope["method"], scope["path"]
        if method == "POST" and path in _UPLOADS:
            length = headers.get(b"content-length", "")
            if not length.isdigit():
                raise Refused(411, "an upload must say its length")
            files = 2 if path == "/api/matte" else 1  # a background may come along
            if int(length) > files * self.max_bytes + _FORM_BYTES:
                raise Refused(413, f"images may have up to {self.max_bytes / 1e6:g} MB")
        elif path.startswith(_FILE) and method in ("GET", "HEAD"):
            self._check_file(path.removeprefix(_FILE))
        elif path not in _PAGES and not path.startswith(_WRITE if method == "POST" else _READ):
            raise Refused(404, "there is no such thing here")

    async def _call(self, receive: Receive) -> bytes:
        """The body of a call, if it names no other files than ours."""
        body, more = b"", True
        while more:
            event = await receive()
            if event["type"] == "http.disconnect":
                raise Refused(400, "the call broke off")
            body += event.get("body", b"")
            more = event.get("more_body", False)
            if len(body) > _CALL_BYTES:
                raise Refused(413, "the call is too long: upload images first")
        try:
            # The hook sees every pair of every object, those of repeated keys too.
            json.loads(body or b"{}", object_pairs_hook=self._check_pairs)
        except (ValueError, RecursionError):
            raise Refused(400, "the call is not JSON") from None
        return body

    def _check_pairs(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        for key, value in pairs:
            if key == "path" and value is not None:
                self._check_file(value)
        return dict(pairs)

    def _check_file(self, path: Any) -> None:
        inside = isinstance(path, str) and os.path.normpath(path).startswith(self.inside)
        if not inside:
            raise Refused(400, "images must be uploaded: no other file or address is opened")


async def _collect(receive: Receive, body: IO[bytes]) -> None:
    """Write a request's body to a file."""
    more = True
    while more:
        event = await receive()
        if event["type"] == "http.disconnect":
            raise Refused(400, "the upload broke off")
        body.write(event.get("body", b""))
        more = event.get("more_body", False)
    body.seek(0)


def _pieces(body: IO[bytes], receive: Receive) -> Receive:
    """`receive` for a body that is in a file."""
    ended = False

    async def pieces() -> MutableMapping[str, Any]:
        nonlocal ended
        if ended:
            return await receive()
        piece = body.read(_PIECE_BYTES)
        ended = not piece
        return {"type": "http.request", "body": piece, "more_body": not ended}

    return pieces


def _again(body: bytes, receive: Receive) -> Receive:
    """`receive` as it was before the body was taken from it."""
    bodies = [body]

    async def again() -> MutableMapping[str, Any]:
        if bodies:
            return {"type": "http.request", "body": bodies.pop(), "more_body": False}
        return await receive()

    return again


def _with_policy(send: Send) -> Send:
    async def sending(event: MutableMapping[str, Any]) -> None:
        if event["type"] == "http.response.start":
            policy = (b"content-security-policy", _POLICY.encode())
            event = {**event, "headers": [*event.get("headers", ()), policy]}
        await send(event)

    return sending


async def _drain(receive: Receive, most: int) -> None:
    """Receive the rest of a request, up to `most` bytes: browsers read no answer if the connection
    is closed while they still send."""
    more = True
    while more and most > 0:
        event = await receive()
        most -= len(event.get("body", b""))
        more = event.get("more_body", False)


async def _answer(send: Send, refusal: Refused) -> None:
    body = json.dumps({"detail": str(refusal)}).encode()
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    start = {"type": "http.response.start", "status": refusal.status, "headers": headers}
    await send(start)
    await send({"type": "http.response.body", "body": body})
