"""What a caller is told when policy says no, through the gateway of a real process."""

import json

import pytest
import requests


def test_every_401_is_the_same_but_for_the_id(gateway, upstream):
    proxy = gateway.proxy(upstream(lambda handler, body: handler.json({})).url)
    unknown = proxy.url.rsplit("/", 1)[0] + "/nobody"
    for url, headers in [
        (unknown, proxy.auth),
        (proxy.url, {}),
        (proxy.url, {"Authorization": "Bearer rr_live_wrong"}),
        (proxy.url, {"x-other": proxy.key}),
        (proxy.url, {"x-api-key": proxy.key, "api-key": gateway.demo["api_key"]}),
    ]:
        answer = requests.get(url, headers=headers)
        assert answer.status_code == 401, (url, headers)
        assert answer.headers["www-authenticate"] == 'Bearer realm="requestrocket"'
        assert answer.json()["code"] == "proxy-access-denied"


def test_an_inactive_proxy_is_told_only_to_a_right_key(gateway, upstream):
    proxy = gateway.proxy(upstream(lambda handler, body: handler.json({})).url)
    gateway.call("PATCH", f"/proxies/{proxy.id}", {"active": False})
    assert requests.get(proxy.url, headers=proxy.auth).json()["code"] == "proxy-inactive"
    assert requests.get(proxy.url, headers={"x-api-key": "rr_live_x"}).status_code == 401


@pytest.mark.parametrize("path", [
    "/admin", "/%61dmin", "//admin", "/admin;a=1", "/x/..%2Fadmin", "/%5Cadmin",
])
def test_no_spelling_gets_past_a_deny(gateway, upstream, path):
    server = upstream(lambda handler, body: handler.json({}))
    proxy = gateway.proxy(server.url)
    gateway.call("POST", f"/proxies/{proxy.id}/rules", {
        "effect": "deny", "path": {"pattern": "^/admin"},
        "message": "admins only", "notes": "never shown",
    })
    connection_url = proxy.url + path
    request = requests.Request("GET", connection_url, headers=proxy.auth).prepare()
    request.url = connection_url
    answer = requests.Session().send(request)
    assert answer.status_code == 400
    assert "never shown" not in answer.text
    assert server.seen == []


def test_two_scopes_deny_and_both_are_listed(gateway, upstream):
    server = upstream(lambda handler, body: handler.json({}))
    proxy = gateway.proxy(server.url)
    target = gateway.call("GET", f"/proxies/{proxy.id}")["target_id"]
    for scope in [f"/proxies/{proxy.id}", f"/targets/{target}"]:
        gateway.call("POST", f"{scope}/rules", {"effect": "deny", "methods": ["DELETE"]})
    answer = requests.delete(f"{proxy.url}/x", headers=proxy.auth)
    assert answer.status_code == 400
    assert sorted(denial["scope"] for denial in answer.json()["denials"]) == ["proxy", "target"]
    assert requests.get(f"{proxy.url}/x", headers=proxy.auth).status_code == 200


def test_a_limit_lets_exactly_its_number_through(gateway, upstream):
    server = upstream(lambda handler, body: handler.json({}))
    proxy = gateway.proxy(server.url, limits={"per_minute": 5})
    answers = [requests.get(proxy.url, headers=proxy.auth) for _ in range(8)]
    assert [answer.status_code for answer in answers] == [200] * 5 + [429] * 3
    assert len(server.seen) == 5
    refused = answers[-1]
    assert refused.json()["code"] == "rate-limited"
    assert refused.json()["meters"][0]["limit"] == 5
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.headers["ratelimit"] and refused.headers["ratelimit-policy"]


def test_filters_keep_order_and_number_text_and_leak_nothing(gateway, upstream):
    body = b'{"b": 1.00, "secret": "s3cret", "a": 1e400, "id": 12345678901234567890}'
    kinds = {
        "/ok": ("application/json", 200, body),
        "/broken": ("application/json", 200, body[:-1]),
        "/text": ("text/plain", 200, body),
        "/error": ("application/json", 409, body),
    }

    def answer(handler, _):
        kind, status, text = kinds[handler.path]
        handler.send_response(status)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(text)))
        handler.end_headers()
        handler.wfile.write(text)

    proxy = gateway.proxy(upstream(answer).url)
    gateway.call("POST", f"/proxies/{proxy.id}/filters",
                 {"op": "retain", "paths": ["$.b", "$.a", "$.id"]})
    good = requests.get(f"{proxy.url}/ok", headers=proxy.auth)
    assert good.status_code == 200
    assert good.text.replace(" ", "") == '{"b":1.00,"a":1e400,"id":12345678901234567890}'
    for path, status in [("/broken", 422), ("/text", 422), ("/error", 409)]:
        answer = requests.get(proxy.url + path, headers=proxy.auth)
        assert answer.status_code == status
        assert "s3cret" not in answer.text


def test_our_own_ports_are_never_dialled(gateway):
    proxy = gateway.proxy(gateway.control, auth="none")
    answer = requests.get(f"{proxy.url}/healthz", headers=proxy.auth)
    assert (answer.status_code, answer.json()["code"]) == (502, "upstream-blocked")


def test_a_refusing_target_is_unreachable(gateway):
    import socket
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    proxy = gateway.proxy(url)
    answer = requests.get(proxy.url, headers=proxy.auth)
    assert (answer.status_code, answer.json()["code"]) == (502, "upstream-unreachable")


def test_a_bound_credential_cannot_be_pointed_elsewhere(gateway, upstream):
    proxy = gateway.proxy(upstream(lambda handler, body: handler.json({})).url)
    target = gateway.call("GET", f"/proxies/{proxy.id}")["target_id"]
    answer = requests.patch(
        f"{gateway.control}/api/v1/orgs/default/targets/{target}",
        json={"base_url": "https://m.example"},
        headers={"Authorization": f"Bearer {gateway.token}"},
    )
    assert answer.status_code == 422, answer.text
    assert json.loads(answer.text)["errors"]
