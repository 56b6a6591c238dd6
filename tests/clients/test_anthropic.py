"""The official Anthropic client, with nothing changed but base URL and key."""

import json

import anthropic


def test_message_and_stream(gateway, upstream):
    message = {
        "id": "msg_1", "type": "message", "role": "assistant", "model": "m",
        "content": [{"type": "text", "text": "Hello"}], "stop_reason": "end_turn",
        "stop_sequence": None, "usage": {"input_tokens": 1, "output_tokens": 1},
    }

    def answer(handler, body):
        assert handler.headers["x-api-key"] == "sk-ant-target"
        assert handler.headers["Authorization"] is None
        if not json.loads(body).get("stream"):
            return handler.json(message)
        events = [
            {"type": "message_start", "message": {**message, "content": []}},
            {"type": "content_block_start", "index": 0,
             "content_block": {"type": "text", "text": ""}},
            {"type": "content_block_delta", "index": 0,
             "delta": {"type": "text_delta", "text": "Hello"}},
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None},
             "usage": {"output_tokens": 1}},
            {"type": "message_stop"},
        ]
        text = "".join(f"event: {e['type']}\ndata: {json.dumps(e)}\n\n" for e in events).encode()
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.send_header("Content-Length", str(len(text)))
        handler.end_headers()
        handler.wfile.write(text)

    server = upstream(answer)
    proxy = gateway.proxy(server.url, auth="api_key", secret={"key": "sk-ant-target"})
    for options in [{"api_key": proxy.key}, {"auth_token": proxy.key, "api_key": None}]:
        client = anthropic.Anthropic(base_url=proxy.url, **options)
        wanted = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}
        assert client.messages.create(**wanted).content[0].text == "Hello"
        with client.messages.stream(**wanted) as stream:
            assert "".join(stream.text_stream) == "Hello"
    assert not any(proxy.key in str(headers) for _, _, headers, _ in server.seen)
