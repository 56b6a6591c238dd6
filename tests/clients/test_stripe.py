"""The official Stripe client, with nothing changed but base URL and key."""

import stripe


def test_form_body_idempotency_and_paging(gateway, upstream):
    pages = {"": ["cus_1", "cus_2"], "cus_2": ["cus_3"]}

    def answer(handler, body):
        assert handler.headers["Authorization"] == "Bearer sk_live_target"
        if handler.command == "POST":
            return handler.json({"id": "cus_9", "object": "customer", "email": "a@example.com"})
        after = handler.path.partition("starting_after=")[2].partition("&")[0]
        items = [{"id": id, "object": "customer"} for id in pages[after]]
        handler.json({
            "object": "list", "url": "/v1/customers", "has_more": after == "", "data": items,
        })

    server = upstream(answer)
    proxy = gateway.proxy(server.url, secret={"token": "sk_live_target"})
    client = stripe.StripeClient(proxy.key, base_addresses={"api": proxy.url})
    made = client.v1.customers.create(
        {"email": "a@example.com", "metadata": {"k": "v w"}}, {"idempotency_key": "once-1"}
    )
    assert made.id == "cus_9"
    method, path, headers, body = server.seen[-1]
    assert (method, path) == ("POST", "/v1/customers")
    assert headers["Idempotency-Key"] == "once-1"
    assert headers["Content-Type"] == "application/x-www-form-urlencoded"
    assert b"email=a" in body and b"metadata[k]=v" in body
    listed = client.v1.customers.list({"limit": 2})
    assert [customer.id for customer in listed.auto_paging_iter()] == ["cus_1", "cus_2", "cus_3"]
    assert not any(proxy.key in str(headers) for _, _, headers, _ in server.seen)
