"""A proxy between operator and API server that can do what a broken network or server does.

It speaks TLS on both sides (as the API server to the operator, with its certificate), passes
everything on unchanged, remembers what went by, and asks a rule about each request. Only faults
that a healthy API server cannot be made to show are played here; stopping the real one is not
among them.
"""

from __future__ import annotations

import http.client
import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

PATH = re.compile(
    r"^/(?:api/v1|apis/(?P<group>[^/]+)/[^/]+)(?:/namespaces/(?P<namespace>[^/]+))?"
    r"/(?P<resource>[a-z]+)(?:/(?P<name>[^/]+))?(?:/(?P<subresource>[a-z]+))?$"
)


@dataclass
class Request:
    number: int
    at: float
    method: str
    path: str
    query: dict[str, list[str]]
    body: bytes
    status: int = 0  # what the operator was answered; 0: nothing
    lines: int = 0  # of a watch
    ended: float = 0.0
    parts: dict[str, str] = field(default_factory=dict)

    @property
    def watch(self) -> bool:
        return "watch" in self.query

    @property
    def resource(self) -> str:
        return self.parts.get("resource", "")

    @property
    def report(self) -> bool:
        """What an agent said, written down on its pod."""
        return self.query.get("fieldManager") == ["rouse-agent-report"]

    @property
    def write(self) -> bool:
        """A change of the cluster that the operator decided on; leases, events and reports are none."""
        if self.report:
            return False
        return self.method != "GET" and self.resource not in ("leases", "events", "")

    def __str__(self) -> str:
        kind = "watch" if self.watch else self.method
        return f"#{self.number} {kind} {self.path} -> {self.status}"


# ---- what a rule may answer


@dataclass
class Answer:
    """This, and the API server never hears of it."""

    status: int
    reason: str = ""
    message: str = "the fake proxy says so"
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Stream:
    """A watch that opens, says `lines`, and then: ends in order, breaks, or is silent for ever."""

    lines: list[bytes] = field(default_factory=list)
    then: str = "end"  # "end" | "break" | "silence"


@dataclass
class Cut:
    """A real watch that breaks in the middle of its n-th line."""

    after_lines: int


@dataclass
class Hook:
    """The real thing, with something done just before it is passed on or just before the answer."""

    before: Callable[[], None] | None = None
    swallow: bool = False  # the API server never hears of it, the connection breaks
    after: Callable[[], None] | None = None
    drop: bool = False  # the API server did it, but the connection breaks before the answer


Rule = Callable[[Request], Answer | Stream | Cut | Hook | None]


class FakeFaultyProxy:
    def __init__(self, server: str, pki: Path) -> None:
        """`server` is https://host:port; `pki` holds ca.crt and the API server's certificate."""
        self.upstream = urlsplit(server)
        self.client_tls = ssl.create_default_context(cafile=str(pki / "ca.crt"))
        server_tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        server_tls.load_cert_chain(pki / "kube-apiserver.crt", pki / "kube-apiserver.key")
        self.lock = threading.Lock()
        self.requests: list[Request] = []
        self.rule: Rule = lambda request: None
        self.closing = threading.Event()
        self.connections: set[socket.socket] = set()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 600

            def setup(self) -> None:
                # The handshake is here and not at accept, so that one slow client stops no other.
                self.request = server_tls.wrap_socket(self.request, server_side=True)
                self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with proxy.lock:
                    proxy.connections.add(self.request)
                super().setup()

            def finish(self) -> None:
                with proxy.lock:
                    proxy.connections.discard(self.request)
                super().finish()

            def handle_any(self) -> None:
                proxy.handle(self)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any

            def log_message(self, *arguments) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, request, client_address) -> None:
                pass  # a connection that breaks is what this is for

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"https://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()
        self.break_connections()

    def __enter__(self) -> FakeFaultyProxy:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def break_connections(self) -> None:
        """As a rebooting router: everything that is open breaks."""
        with self.lock:
            for each in self.connections:
                try:
                    # Not SSLSocket's own: that is no call for a second thread.
                    socket.socket.shutdown(each, socket.SHUT_RDWR)
                except OSError:
                    pass

    # ---- what went by

    def seen(self, wanted: Callable[[Request], bool] = lambda request: True) -> list[Request]:
        with self.lock:
            return [x for x in self.requests if wanted(x)]

    def writes(self) -> list[Request]:
        return self.seen(lambda request: request.write)

    # ---- one request

    def handle(self, handler: BaseHTTPRequestHandler) -> None:
        length = int(handler.headers.get("Content-Length") or 0)
        body = handler.rfile.read(length) if length else b""
        target = urlsplit(handler.path)
        query = parse_qs(target.query, keep_blank_values=True)
        request = Request(0, time.time(), handler.command, target.path, query, body)
        match = PATH.match(target.path)
        if match:
            request.parts = {key: value or "" for key, value in match.groupdict().items()}
        with self.lock:
            request.number = len(self.requests)
            self.requests.append(request)
        try:
            action = self.rule(request)
            if isinstance(action, Answer):
                self.send_status(handler, request, action)
            elif isinstance(action, Stream):
                self.send_stream(handler, request, action)
            else:
                self.forward(handler, request, action)
        except (OSError, http.client.HTTPException):
            handler.close_connection = True
        finally:
            request.ended = time.time()

    def send_status(self, handler, request: Request, answer: Answer) -> None:
        status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": answer.status}
        status |= {"reason": answer.reason, "message": answer.message}
        self.send(handler, request, answer.status, answer.headers, json.dumps(status).encode())

    def send(self, handler, request, status: int, headers: dict[str, str], body: bytes) -> None:
        request.status = status
        handler.send_response(status)
        for key, value in {"Content-Type": "application/json", **headers}.items():
            handler.send_header(key, value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    def begin_stream(self, handler, request: Request) -> None:
        request.status = 200
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.wfile.flush()

    @staticmethod
    def chunk(handler, data: bytes) -> None:
        handler.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        handler.wfile.flush()

    def send_stream(self, handler, request: Request, stream: Stream) -> None:
        self.begin_stream(handler, request)
        for line in stream.lines:
            self.chunk(handler, line)
            request.lines += 1
        if stream.then == "end":
            handler.wfile.write(b"0\r\n\r\n")
        elif stream.then == "silence":
            handler.connection.settimeout(None)
            handler.connection.recv(1)  # until the operator gives up, or close()
            handler.close_connection = True
        else:
            self.break_off(handler)

    @staticmethod
    def break_off(handler) -> None:
        handler.close_connection = True
        socket.socket.shutdown(handler.connection, socket.SHUT_RDWR)

    def forward(self, handler, request: Request, action: Cut | Hook | None) -> None:
        if isinstance(action, Hook):
            if action.before:
                action.before()
            if action.swallow:
                self.break_off(handler)
                return
        upstream = http.client.HTTPSConnection(
            self.upstream.hostname, self.upstream.port, context=self.client_tls, timeout=600
        )
        try:
            headers = {
                key: value
                for key, value in handler.headers.items()
                if key.lower() not in ("host", "connection", "content-length", "accept-encoding")
            }
            upstream.request(handler.command, handler.path, request.body or None, headers)
            upstream.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            answer = upstream.getresponse()
            if request.watch and answer.status == 200:
                self.pump(handler, request, upstream, answer, action)
                return
            body = answer.read()
            if isinstance(action, Hook):
                if action.after:
                    action.after()
                if action.drop:
                    self.break_off(handler)
                    return
            kept = {
                key: value
                for key, value in answer.getheaders()
                if key.lower() in ("content-type", "retry-after", "warning")
            }
            self.send(handler, request, answer.status, kept, body)
        finally:
            upstream.close()

    def pump(self, handler, request: Request, upstream, answer, action) -> None:
        self.begin_stream(handler, request)
        # When the operator leaves, the next line finds out.
        while line := answer.readline():
            if isinstance(action, Cut) and request.lines >= action.after_lines:
                self.chunk(handler, line[: len(line) // 2])
                self.break_off(handler)
                return
            self.chunk(handler, line)
            request.lines += 1
        handler.wfile.write(b"0\r\n\r\n")
