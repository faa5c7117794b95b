"""The server itself; see the package's docstring for what it promises and how to script it."""

from __future__ import annotations

import json
import re
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from uuid import uuid4

_SCRIPT = re.compile(r"\[((?:\w+=[\w.]+ ?)+)\]\s*")
_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    529: "overloaded_error",
}


@dataclass(frozen=True)
class RecordedRequest:
    """One request that arrived; ``body`` is ``None`` when it was not JSON."""

    method: str
    path: str
    body: Any = None

    @property
    def user_texts(self) -> list[str]:
        """What the user said in each message of the conversation, oldest first."""
        messages = (self.body or {}).get("messages", [])
        return [_text_of(message) for message in messages if message["role"] == "user"]


@dataclass(frozen=True)
class _Script:
    text: str
    values: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> _Script:
        found = _SCRIPT.search(text)
        if found is None:
            return cls(text)
        values = dict(pair.split("=") for pair in found[1].split())
        return cls(_SCRIPT.sub("", text).strip(), values)

    def number(self, name: str, default: float) -> float:
        return float(self.values.get(name, default))


class ApiStub:
    """The server, running from ``with`` to the end of the block.

    Args:
        port: TCP port on 127.0.0.1, 0 picks a free one.
    """

    def __init__(self, *, port: int = 0) -> None:
        self._server = _Server(("127.0.0.1", port), _Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.stopping.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def port(self) -> int:
        """The TCP port that it listens on."""
        return int(self._server.server_address[1])

    @property
    def base_url(self) -> str:
        """What ``ANTHROPIC_BASE_URL`` must be."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def requests(self) -> list[RecordedRequest]:
        """Every request so far, oldest first."""
        return list(self._server.requests)

    @property
    def turns(self) -> list[RecordedRequest]:
        """Requests for an answer alone."""
        return [request for request in self.requests if request.path == "/v1/messages"]


class _Server(ThreadingHTTPServer):
    daemon_threads = False

    def __init__(self, address: tuple[str, int], handler: type[_Handler]) -> None:
        super().__init__(address, handler)
        self.requests: list[RecordedRequest] = []
        self.stopping = threading.Event()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up in mid-answer is an ordinary interrupt; all else is a defect."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 5
    server: _Server

    def do_GET(self) -> None:
        self._record(None)
        self._json(200, {"data": [], "has_more": False})

    def do_HEAD(self) -> None:
        self._record(None)
        self._json(200, {})

    def do_POST(self) -> None:
        body = self._body()
        path = self._record(body)
        if path == "/v1/messages/count_tokens":
            self._json(200, {"input_tokens": len(json.dumps(body)) // 4})
        elif path == "/v1/messages":
            self._answer(body)
        else:
            self._json(200, {})

    def log_message(self, *args: Any) -> None:
        """Keep standard error for what went wrong."""

    def _record(self, body: Any) -> str:
        path = self.path.split("?")[0]
        self.server.requests.append(RecordedRequest(self.command, path, body))
        return path

    def _body(self) -> Any:
        raw = self.rfile.read(int(self.headers.get("content-length", 0)))
        try:
            return json.loads(raw)
        except ValueError:
            return None

    def _answer(self, body: dict[str, Any]) -> None:
        said = [_text_of(message) for message in body["messages"] if message["role"] == "user"]
        script = _Script.parse(said[-1] if said else "")
        status = int(script.number("status", 200))
        if status != 200:
            self._error(status, script)
            return
        text = str(len(said)) if script.values.get("shape") == "count" else script.text
        block = _block(text, script.values.get("tool"))
        if body.get("stream"):
            self._stream(body["model"], block, script)
        else:
            self._json(200, _message(body["model"], [block]))

    def _error(self, status: int, script: _Script) -> None:
        headers = {"x-should-retry": "false"}
        if "retry_after" in script.values:
            headers["retry-after"] = script.values["retry_after"]
        kind = _ERROR_TYPES.get(status, "api_error")
        error = {"type": "error", "error": {"type": kind, "message": script.text or kind}}
        self._json(status, error, headers)

    def _json(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.send_header("request-id", "req_stub")
        self._end_connection()
        for name, header in (headers or {}).items():
            self.send_header(name, header)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _end_connection(self) -> None:
        """No connection is kept alive: an idle one would hold up the end of the server."""
        self.send_header("connection", "close")
        self.close_connection = True

    def _stream(self, model: str, block: dict[str, Any], script: _Script) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("request-id", "req_stub")
        self._end_connection()
        self.end_headers()
        pause_s = script.number("delay_s", 0)
        for event in _events(model, block, int(script.number("parts", 1))):
            is_piece = event["type"] == "content_block_delta"
            if is_piece and pause_s and self.server.stopping.wait(pause_s):
                return
            self.wfile.write(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())
            self.wfile.flush()


def _text_of(message: dict[str, Any]) -> str:
    """The user's own words; the CLI adds reminders of its own in blocks of their own."""
    content = message["content"]
    if isinstance(content, str):
        return content
    texts = [_text_of_block(block) for block in content]
    own = [text for text in texts if not text.lstrip().startswith("<system-reminder>")]
    return own[-1] if own else ""


def _text_of_block(block: dict[str, Any]) -> str:
    if block.get("type") == "tool_result":
        return _text_of({"content": block.get("content") or ""})
    return str(block.get("text", "<system-reminder>"))


def _block(text: str, tool: str | None) -> dict[str, Any]:
    if tool is None:
        return {"type": "text", "text": text}
    return {
        "type": "tool_use",
        "id": f"toolu_{uuid4().hex}",
        "name": tool,
        "input": json.loads(text),
    }


def _message(model: str, content: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": f"msg_{uuid4().hex}",  # the CLI takes two of one id for one message
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        "stop_reason": _stop_reason(content),
        "stop_sequence": None,
        "usage": {"input_tokens": 1, "output_tokens": 1},
    }


def _stop_reason(content: list[dict[str, Any]]) -> str:
    return "tool_use" if content and content[-1]["type"] == "tool_use" else "end_turn"


def _events(model: str, whole: dict[str, Any], parts: int) -> Iterator[dict[str, Any]]:
    start = {**_message(model, []), "stop_reason": None}
    yield {"type": "message_start", "message": start}
    is_tool = whole["type"] == "tool_use"
    block = {**whole, "input": {}} if is_tool else {**whole, "text": ""}
    text = json.dumps(whole["input"]) if is_tool else whole["text"]
    yield {"type": "content_block_start", "index": 0, "content_block": block}
    for i in range(parts):
        piece = text[len(text) * i // parts : len(text) * (i + 1) // parts]
        text_delta = {"type": "text_delta", "text": piece}
        delta = {"type": "input_json_delta", "partial_json": piece} if is_tool else text_delta
        yield {"type": "content_block_delta", "index": 0, "delta": delta}
    yield {"type": "content_block_stop", "index": 0}
    end = {"stop_reason": _stop_reason([whole]), "stop_sequence": None}
    yield {"type": "message_delta", "delta": end, "usage": {"output_tokens": 1}}
    yield {"type": "message_stop"}
