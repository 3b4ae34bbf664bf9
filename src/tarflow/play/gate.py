"""What of the server can be reached: a list of addresses, requests of a bounded size and a known form, nothing else.

gradio serves much that this page has no use for: files, uploads, a proxy, an API. None of it is let through, so that no
path of this machine is read or written, whatever a request says. What the browser may load is the server's own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from tarflow.jsontext import to_json

Scope = Any
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]

MOST_BODY = 16_000_000  # bytes of a request: two pictures, or several small ones, in base64
MOST_DROPPED = 50_000_000  # bytes beyond it that are read for the sake of an answer
MOST_TEXT = 200  # characters of any value that is no list of pictures
OPEN = re.compile(
    r"/(|config/?|theme\.css|manifest\.json|favicon\.ico|robots\.txt|(assets|static)/[A-Za-z0-9_./-]+|"
    r"gradio_api/(queue/data|heartbeat/[a-z0-9]{1,40}|startup-events|theme\.css))"
)
JOIN, CANCEL = "/gradio_api/queue/join", ("/gradio_api/cancel", "/gradio_api/reset", "/gradio_api/reset/")
SESSION = re.compile(r"[a-z0-9]{1,40}")
HEADERS = [
    # gradio's own page needs inline scripts, and compiles its templates.
    (
        b"content-security-policy",
        b"default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
        b"img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; "
        b"object-src 'none'; base-uri 'self'; form-action 'self'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]


class Refused(Exception):
    """Why a request goes no further: a status and one line."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status, self.text = status, text


class Gate:
    """ASGI middleware around gradio's app.

    Args:
        app: what is behind the gate.
        events: how many values each event takes, by its number.
    """

    def __init__(self, app: Any, events: Mapping[int, int]) -> None:
        self.app, self.events = app, dict(events)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return None

        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = message | {"headers": [*message["headers"], *HEADERS]}
            await send(message)

        try:
            body = await self._checked(scope, receive)
        except Refused as refused:
            answer = to_json({"detail": refused.text}).encode()
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(answer)).encode())]
            headers.append((b"connection", b"close"))  # what is left of its body is not read
            await with_headers({"type": "http.response.start", "status": refused.status, "headers": headers})
            await with_headers({"type": "http.response.body", "body": answer})
            return None
        if body is None:
            return await self.app(scope, receive, with_headers)
        waiting = [{"type": "http.request", "body": body, "more_body": False}]

        async def once() -> Any:
            return waiting.pop() if waiting else await receive()

        return await self.app(scope, once, with_headers)

    async def _checked(self, scope: Scope, receive: Receive) -> bytes | None:
        """The body of a request that may have one, None of others. Raises `Refused`."""
        method, path = scope["method"], scope["path"]
        if method in ("GET", "HEAD") and OPEN.fullmatch(path) and ".." not in path:
            return None
        if method == "POST" and path in CANCEL:
            return self._small(await _body(receive, 10 * MOST_TEXT))
        if method == "POST" and path == JOIN:
            body = await _body(receive, MOST_BODY)
            self._check_event(_object(body))
            return body
        if method not in ("GET", "HEAD"):
            await _body(receive, MOST_BODY)  # who is still sending would not see the answer
        raise Refused(404, "there is nothing at this address")

    def _small(self, body: bytes) -> bytes:
        for name, value in _object(body).items():
            known = name in ("session_hash", "fn_index", "event_id")
            if not known or not isinstance(value, str | int | None) or len(str(value)) > MOST_TEXT:
                raise Refused(422, f"{name[:40]}: expected session_hash, fn_index and event_id")
        return body

    def _check_event(self, asked: dict[str, Any]) -> None:
        known = {"data", "event_data", "fn_index", "trigger_id", "session_hash"}
        for name in asked:
            if name not in known:
                raise Refused(422, f"{name[:40]}: no such field; known: {', '.join(sorted(known))}")
        event, data, session = asked.get("fn_index"), asked.get("data"), asked.get("session_hash")
        if type(event) is not int or event not in self.events:
            raise Refused(422, f"fn_index: expected one of {len(self.events)} events, got {_short(event)}")
        if not isinstance(session, str) or not SESSION.fullmatch(session):
            raise Refused(422, f"session_hash: expected 1 to 40 small letters and digits, got {_short(session)}")
        if asked.get("event_data") is not None:
            raise Refused(422, f"event_data: expected null, got {_short(asked['event_data'])}")
        if not (asked.get("trigger_id") is None or type(asked["trigger_id"]) is int):
            raise Refused(422, f"trigger_id: expected a whole number or null, got {_short(asked['trigger_id'])}")
        if not isinstance(data, list) or len(data) != self.events[event]:
            raise Refused(422, f"data: expected a list of {self.events[event]}, got {_short(data)}")
        for number, value in enumerate(data):
            if isinstance(value, dict | list):
                raise Refused(
                    422, f"data: expected numbers, words, true, false or null, got {_short(value)} at {number}"
                )
            if isinstance(value, str) and len(value) > MOST_TEXT and not value.startswith("["):
                raise Refused(422, f"data: expected at most {MOST_TEXT} characters, got {len(value)} at {number}")
            if isinstance(value, int) and abs(value) > 1 << 60:
                raise Refused(422, f"data: expected a smaller number at {number}")


async def _body(receive: Receive, most: int) -> bytes:
    """All of a request's body. Raises `Refused` where it is longer than `most`, whatever it says of its length.

    What is too much is read and dropped, within reason: who is still sending would not see the answer.
    """
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refused(400, "the connection was closed")
        part = message.get("body", b"")
        size += len(part)
        if size > most:
            parts.clear()
        else:
            parts.append(part)
        if not message.get("more_body") or size > most + MOST_DROPPED:
            break
    if size > most:
        raise Refused(413, f"{size / 1e6:.1f} MB or more at once: expected at most {most / 1e6:g}")
    return b"".join(parts)


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(422, "expected a JSON object") from None
    if not isinstance(found, dict):
        raise Refused(422, f"expected a JSON object, got {_short(found)}")
    return found


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
