"""curl, and clients that follow what an answer says."""

import os
import subprocess

import requests

from conftest import BINARY, ENVIRONMENT, stop


def curl(*arguments, **options):
    done = subprocess.run(
        ["curl", "-sS", "--max-time", "60", *arguments], capture_output=True, **options
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def test_follows_redirects_through_the_gateway(gateway, httpbin):
    proxy = gateway.proxy(httpbin)
    status = curl("-L", "-o", os.devnull, "-w", "%{http_code} %{num_redirects}",
                  "-H", f"Authorization: {proxy.key}", f"{proxy.url}/redirect/3")
    assert status == b"200 3"


def test_a_link_paging_client_keeps_its_key_here(gateway, upstream):
    def answer(handler, body):
        page = int(handler.path.rpartition("=")[2]) if "page=" in handler.path else 1
        link = f'<{server.url}/items?page={page + 1}>; rel="next"'
        handler.json([page], headers=[("Link", link)] if page < 3 else [])

    server = upstream(answer)
    proxy = gateway.proxy(server.url)
    url, pages = f"{proxy.url}/items", []
    while url:
        answer = requests.get(url, headers={"x-api-key": proxy.key})
        pages += answer.json()
        link = answer.links.get("next", {}).get("url")
        url = link and requests.compat.urljoin(url, link)
        assert url is None or url.startswith(proxy.url)
    assert pages == [1, 2, 3]
    assert not any(proxy.key in str(headers) for _, _, headers, _ in server.seen)


def test_expect_100_continue(gateway, upstream):
    server = upstream(lambda handler, body: handler.json({"length": len(body)}))
    proxy = gateway.proxy(server.url)
    body = b"x" * 2_000_000
    out = curl("-H", "Expect: 100-continue", "-H", f"x-api-key: {proxy.key}",
               "--data-binary", "@-", f"{proxy.url}/up", input=body)
    assert out == b'{"length": 2000000}'
    assert server.seen[-1][2]["Expect"] is None
    assert server.seen[-1][3] == body


def test_head_and_binary(gateway, httpbin):
    proxy = gateway.proxy(httpbin)
    auth = f"Authorization: Bearer {proxy.key}"
    head = curl("-I", "-H", auth, f"{proxy.url}/bytes/1234").decode().lower()
    assert "content-length: 1234" in head
    body = bytes(range(256))
    out = curl("-H", auth, "-H", "Content-Type: application/octet-stream",
               "--data-binary", "@-", f"{proxy.url}/anything", input=body)
    assert b"data:application/octet-stream;base64,AAEC" in out


def test_a_hundred_requests_on_one_connection(gateway, httpbin):
    proxy = gateway.proxy(httpbin)
    out = curl("-H", f"x-api-key: {proxy.key}", "-o", os.devnull,
               "-w", "%{http_code} %{num_connects}\n",
               f"{proxy.url}/status/[200-200]?n=[1-100]")
    lines = out.decode().split("\n")[:-1]
    assert len(lines) == 100
    assert lines[0] == "200 1" and set(lines[1:]) == {"200 0"}


def test_the_curl_line_of_the_demo_works(gateway):
    out = curl("-H", f"Authorization: Bearer {gateway.demo['api_key']}",
               f"{gateway.demo['url']}/hello?x=1")
    assert b"/hello" in out
    assert gateway.demo["api_key"].encode() not in out


def test_the_curl_line_that_is_printed_works_when_pasted(tmp_path):
    """As a person sees it: `dev` with its text output, and a line of it pasted into a shell."""
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen(
            [BINARY, "dev", "--gateway", "127.0.0.1:0", "--control", "127.0.0.1:0"],
            cwd=tmp_path, stdout=subprocess.PIPE, stderr=log, text=True,
            env=ENVIRONMENT,
        )
    try:
        line = next((line for line in process.stdout if line.strip().startswith("curl ")), None)
        assert line, (tmp_path / "log").read_text()
        out = subprocess.run(["sh", "-c", line.strip()], capture_output=True, timeout=60)
        assert b"/hello" in out.stdout, out.stderr.decode()
    finally:
        stop(process)
    assert process.returncode == 0, (tmp_path / "log").read_text()
