"""Starts a real `requestrocket dev`, real upstreams, and makes proxies through the REST API."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = os.environ.get("REQUESTROCKET_BIN") or str(
    pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "debug/requestrocket"
)
# Variables of that beginning are settings, which would change what is tested.
ENVIRONMENT = {name: value for name, value in os.environ.items()
               if not name.startswith("REQUESTROCKET_")}


def stop(process):
    """Ends a process that we started, by its pid, and waits for it."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Gateway:
    """A running gateway and its REST API."""

    def __init__(self, ready):
        self.url = ready["gateway"]
        self.control = ready["control"]
        self.token = ready["admin_token"]
        self.demo = ready["demo"]

    def call(self, method, path, body=None, token=None):
        request = urllib.request.Request(
            f"{self.control}/api/v1/orgs/default{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "Authorization": f"Bearer {token or self.token}",
                "Content-Type": "application/json",
            },
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{method} {path}: {error.code} {error.read().decode()}") from None
        return json.loads(text) if text else None

    def proxy(self, base_url, auth="bearer", secret=None, credential=None, **fields):
        """The quick path: target, target credential, proxy credential, proxy."""
        target = self.call("POST", "/targets", {
            "base_url": base_url, "allow_http": True, "allow_networks": ["127.0.0.0/8"],
        })
        body = {"target_id": target["id"], **fields}
        if auth != "none":
            made = self.call("POST", "/credentials", {
                "kind": "target",
                "auth_type": auth,
                "secret": secret or {"token": "target-secret-7f3a"},
                "hosts": [base_url.split("/", 3)[0] + "//" + base_url.split("/", 3)[2]],
                **(credential or {}),
            })
            body["target_credential_id"] = made["id"]
        caller = self.call("POST", "/credentials", {"kind": "proxy", "auth_type": "api_key"})
        body["proxy_credential_ids"] = [caller["id"]]
        proxy = self.call("POST", "/proxies", body)
        return Proxy(proxy["url"], caller["secret"]["key"], proxy["id"])


class Proxy:
    """What a caller holds: a base URL and a key."""

    def __init__(self, url, key, id):
        self.url = url
        self.key = key
        self.id = id
        self.auth = {"Authorization": f"Bearer {key}"}


@contextlib.contextmanager
def started(data, variables=()):
    """A gateway in a folder, with further variables, until its caller is done with it."""
    log = open(data / "log", "wb")
    process = subprocess.Popen(
        [BINARY, "dev", "--gateway", "127.0.0.1:0", "--control", "127.0.0.1:0",
         "--data-dir", str(data / "rr"), "--output", "json"],
        stdout=subprocess.PIPE, stderr=log, env={**ENVIRONMENT, **dict(variables)},
    )
    line = process.stdout.readline()
    if not line:
        process.wait()
        pytest.fail(f"{BINARY} did not start:\n" + (data / "log").read_text())
    try:
        yield Gateway(json.loads(line))
    finally:
        stop(process)
    assert process.returncode == 0, (data / "log").read_text()


@pytest.fixture(scope="session")
def gateway(tmp_path_factory):
    with started(tmp_path_factory.mktemp("data")) as gateway:
        yield gateway


@pytest.fixture(scope="session")
def httpbin():
    """httpbin behind a WSGI server, on a socket that we bound."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(64)
    os.set_inheritable(listener.fileno(), True)
    process = subprocess.Popen(
        [sys.executable, "-m", "gunicorn", "--bind", f"fd://{listener.fileno()}",
         "--worker-class", "gthread", "--threads", "8", "--log-level", "error", "httpbin:app"],
        close_fds=False,
    )
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    stop(process)
    listener.close()


class Upstream(ThreadingHTTPServer):
    """A small upstream that keeps what it was sent."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, answer):
        self.seen = []
        self.answer = answer
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def handle_any(self):
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        self.server.seen.append((self.command, self.path, self.headers, body))
        self.server.answer(self, body)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = handle_any

    def json(self, value, status=200, headers=()):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, text in headers:
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def upstream():
    """Starts upstreams; give it a function of (handler, body)."""
    started = []

    def start(answer):
        server = Upstream(answer)
        started.append(server)
        return server

    yield start
    for server in started:
        server.shutdown()
        server.server_close()
