"""What gets through the gate: the addresses of the page, and events of the known form; nothing else reaches gradio."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tarflow.play.gate import JOIN, MOST_BODY, MOST_TEXT, Gate

EVENT: dict[str, Any] = {"data": [1, "paper", None], "fn_index": 0, "session_hash": "abc", "trigger_id": 3}


def ask(path: str, body: bytes | None = None, *, method: str = "", **headers: str) -> tuple[int, str, bytes | None]:
    """The status and text of an answer, and the body that came through, if the request did."""
    through: list[bytes] = []
    answer: list[Any] = []

    async def behind(scope: Any, receive: Any, send: Any) -> None:
        through.append((await receive())["body"] if scope["method"] == "POST" else b"")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    parts = [] if body is None else [body[k : k + 1_000_000] for k in range(0, len(body), 1_000_000)] or [b""]

    async def receive() -> Any:
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    async def send(message: Any) -> None:
        answer.append(message)

    scope = {"type": "http", "method": method or ("GET" if body is None else "POST"), "path": path}
    scope["headers"] = [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()]
    asyncio.run(Gate(behind, {0: 3})(scope, receive, send))
    names = dict(answer[0]["headers"])
    assert b"default-src 'self'" in names[b"content-security-policy"], "also of what is refused"
    return answer[0]["status"], answer[1]["body"].decode(), through[0] if through else None


@pytest.mark.parametrize(
    "path",
    ["/", "/config", "/theme.css", "/assets/index-a_B.js", "/static/js/x.min.js", "/gradio_api/queue/data"],
)
def test_the_page_gets_through(path: str) -> None:
    assert ask(path) == (200, "{}", b"")


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=config.json",
        "/file=/etc/passwd",
        "/gradio_api/proxy=https://example.org/",
        "/assets/../../../etc/passwd",
        "/static/..%2f..",
        "/gradio_api/upload_progress",
        "/monitoring",
        "/gradio_api/runs",
        "/custom_component/x/client/component/y",
        "/gradio_api/stream/a/b/c/playlist-file",
        "/gradio_api/deep_link",
        "/login_check",
        "/docs",
        "/config\n",
    ],
)
def test_nothing_else_does(path: str) -> None:
    status, text, through = ask(path)
    assert (status, through) == (404, None) and json.loads(text) == {"detail": "there is nothing at this address"}


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/upload",
        "/gradio_api/call/draw",
        "/gradio_api/run/draw",
        "/gradio_api/component_server",
        "/",
        "/login",
    ],
)
def test_nothing_can_be_sent_elsewhere(path: str) -> None:
    assert ask(path, b"{}")[0::2] == (404, None)
    assert ask(path, b"{}", method="PUT")[0::2] == (404, None)


def test_an_event_gets_through_as_it_is() -> None:
    body = json.dumps(EVENT | {"event_data": None}).encode()
    assert ask(JOIN, body) == (200, "{}", body)
    assert ask("/gradio_api/cancel", b'{"session_hash": "abc", "fn_index": 0, "event_id": "e"}')[0] == 200


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"fn_index": 1}, "fn_index"),
        ({"fn_index": True}, "fn_index"),
        ({"fn_index": "0"}, "fn_index"),
        ({"fn_index": None}, "fn_index"),
        ({"session_hash": "../x"}, "session_hash"),
        ({"session_hash": None}, "session_hash"),
        ({"session_hash": "a" * 41}, "session_hash"),
        ({"data": [1, 2]}, "data"),
        ({"data": None}, "data"),
        ({"data": [1, 2, {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}]}, "data"),
        ({"data": [[], 1, 2]}, "data"),
        ({"data": ["x" * (MOST_TEXT + 1), 1, 2]}, "data"),
        ({"data": [10**40, 1, 2]}, "data"),
        ({"event_data": {"a": 1}}, "event_data"),
        ({"trigger_id": "x"}, "trigger_id"),
        ({"batched": True}, "batched"),
        ({"simple_format": True}, "simple_format"),
    ],
)
def test_an_event_of_another_form_is_one_line_that_names_it(change: dict[str, Any], name: str) -> None:
    status, text, through = ask(JOIN, json.dumps(EVENT | change).encode())
    detail = json.loads(text)["detail"]
    assert (status, through) == (422, None) and detail.startswith(f"{name}: ") and len(detail) < 200


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"{", b"\xff", b"[" * 100_000, b'{"data": NaN'])
def test_what_is_no_object_is_one_line(body: bytes) -> None:
    status, text, through = ask(JOIN, body)
    assert (status, through) == (422, None) and "expected a JSON object" in json.loads(text)["detail"]


def test_a_request_is_of_a_bounded_size_whatever_it_says() -> None:
    status, text, through = ask(JOIN, b"x" * (MOST_BODY + 1))
    assert (status, through) == (413, None) and "16.0 MB or more at once: expected at most 16" in text
    assert ask(JOIN, b"x" * (MOST_BODY + 1), content_length="3")[0] == 413
    assert ask("/gradio_api/cancel", b"x" * 10_000)[0] == 413
