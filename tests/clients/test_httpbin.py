"""httpbin as the upstream: what travels, what does not, and that bytes stay bytes."""

import hashlib
import os
import time

import pytest
import requests

SECRET = "target-secret-7f3a"


@pytest.fixture(scope="module")
def proxy(gateway, httpbin):
    return gateway.proxy(httpbin)


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
def test_every_method(proxy, method):
    answer = requests.request(method, f"{proxy.url}/anything/x", headers=proxy.auth)
    assert answer.status_code == 200
    assert answer.json()["method"] == method
    assert answer.headers["requestrocket-proxy-code"] == "proxy-access-granted"


def test_head_and_options(proxy):
    head = requests.head(f"{proxy.url}/get", headers=proxy.auth)
    assert head.status_code == 200
    assert int(head.headers["content-length"]) > 0
    assert "GET" in requests.options(f"{proxy.url}/get", headers=proxy.auth).headers["allow"]


@pytest.mark.parametrize("status", [200, 201, 204, 301, 304, 400, 401, 404, 418, 500, 503])
def test_every_status_passes(proxy, status):
    answer = requests.get(
        f"{proxy.url}/status/{status}", headers=proxy.auth, allow_redirects=False
    )
    assert answer.status_code == status
    assert answer.headers["requestrocket-proxy-code"] == "proxy-access-granted"


@pytest.mark.parametrize("path", ["gzip", "deflate", "brotli"])
def test_coded_bodies_pass_byte_for_byte(gateway, httpbin, upstream, path):
    coded = requests.get(f"{httpbin}/{path}", stream=True,
                         headers={"Accept-Encoding": "gzip, deflate, br"})
    coding, body = coded.headers["content-encoding"], coded.raw.read(decode_content=False)

    def answer(handler, _):
        assert handler.headers["Accept-Encoding"] == "gzip, deflate, br"
        handler.send_response(200)
        handler.send_header("Content-Encoding", coding)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    proxy = gateway.proxy(upstream(answer).url)
    through = requests.get(f"{proxy.url}/{path}", stream=True,
                           headers={**proxy.auth, "Accept-Encoding": "gzip, deflate, br"})
    assert through.headers["content-encoding"] == coding
    assert through.raw.read(decode_content=False) == body
    # And from httpbin itself, decoded by the client.
    direct = gateway.proxy(httpbin)
    assert requests.get(f"{direct.url}/{path}", headers=direct.auth).json()


def test_streamed_bytes(proxy, httpbin):
    path = "/stream-bytes/50000?seed=7&chunk_size=1000"
    direct = requests.get(httpbin + path).content
    assert requests.get(proxy.url + path, headers=proxy.auth).content == direct


def test_drip_arrives_as_it_drips(proxy):
    start = time.monotonic()
    answer = requests.get(
        f"{proxy.url}/drip?numbytes=4&duration=2&delay=0", headers=proxy.auth, stream=True
    )
    times = [time.monotonic() - start for _ in answer.iter_content(1)]
    assert len(times) == 4
    assert times[0] < times[-1] - 1, "the first byte did not wait for the last"


def test_redirects_are_not_followed_by_us(proxy):
    answer = requests.get(f"{proxy.url}/redirect/3", headers=proxy.auth, allow_redirects=False)
    assert answer.status_code == 302
    assert answer.headers["location"].startswith("/api/")
    followed = requests.get(f"{proxy.url}/redirect/3", headers=proxy.auth)
    assert followed.status_code == 200 and len(followed.history) == 3


def test_cookies_are_dropped_by_default(proxy):
    answer = requests.get(
        f"{proxy.url}/cookies/set?a=b", headers=proxy.auth, allow_redirects=False
    )
    assert "set-cookie" not in answer.headers
    sent = requests.get(f"{proxy.url}/cookies", headers={**proxy.auth, "Cookie": "c=d"})
    assert sent.json()["cookies"] == {}


def test_cookies_pass_both_ways_when_told(gateway, httpbin):
    proxy = gateway.proxy(httpbin, cookies="pass")
    session = requests.Session()
    session.headers.update(proxy.auth)
    answer = session.get(f"{proxy.url}/cookies/set?a=b")
    assert answer.status_code == 200
    assert answer.json()["cookies"] == {"a": "b"}


def test_the_callers_secret_goes_and_the_targets_comes(proxy):
    text = requests.get(f"{proxy.url}/headers", headers=proxy.auth).text
    assert proxy.key not in text
    # The target saw the injected secret and echoes it; the caller sees how long it is.
    assert SECRET not in text
    assert f"Bearer {'*' * len(SECRET)}" in text


@pytest.mark.parametrize("place", ["Authorization", "x-api-key", "api-key", "x-goog-api-key"])
def test_the_key_is_found_and_taken_out(gateway, httpbin, place):
    proxy = gateway.proxy(httpbin, auth="none")
    answer = requests.get(f"{proxy.url}/headers", headers={place: proxy.key})
    assert answer.status_code == 200
    assert proxy.key not in answer.text


def test_ten_mebibytes_up_and_down(proxy, httpbin):
    body = os.urandom(10 * 1024 * 1024)
    answer = requests.post(f"{proxy.url}/anything", data=body, headers={
        **proxy.auth, "Content-Type": "application/octet-stream",
    })
    import base64
    sent = base64.b64decode(answer.json()["data"].split(",", 1)[1])
    assert hashlib.sha256(sent).digest() == hashlib.sha256(body).digest()
    path = "/stream-bytes/10485760?seed=3&chunk_size=65536"
    digest = lambda url, headers: hashlib.sha256(requests.get(url, headers=headers).content)
    assert digest(proxy.url + path, proxy.auth).digest() == digest(httpbin + path, {}).digest()


def test_paths_and_queries_stay_as_sent(gateway, upstream):
    server = upstream(lambda handler, body: handler.json({}))
    proxy = gateway.proxy(server.url)
    import http.client
    host = proxy.url.split("/")[2]
    prefix = "/" + proxy.url.split("/", 3)[3]
    for path in ["/a%2Fb", "/a%20b//c", "/x?a=1&a=2&b=%20+&&c", "/%E2%82%AC", "/x?", "/a;b=c/d"]:
        connection = http.client.HTTPConnection(host)
        connection.request("GET", prefix + path, headers=proxy.auth)
        assert connection.getresponse().status == 200, path
        assert server.seen[-1][1] == path
        connection.close()
