"""The official Anthropic client, with nothing changed but base URL and key."""

import json
import threading

import anthropic

TEXTS = ["Hel", "lo", "!"]


def test_message_and_stream(gateway, upstream):
    message = {
        "id": "msg_1", "type": "message", "role": "assistant", "model": "m",
        "content": [{"type": "text", "text": "Hello!"}], "stop_reason": "end_turn",
        "stop_sequence": None, "usage": {"input_tokens": 1, "output_tokens": 1},
    }

    go_on = threading.Event()

    def answer(handler, body):
        assert handler.headers["x-api-key"] == "sk-ant-target"
        assert handler.headers["Authorization"] is None
        if not json.loads(body).get("stream"):
            return handler.json(message)
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()

        def chunk(text):
            data = text.encode()
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            handler.wfile.flush()

        def send(event):
            chunk(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n")

        send({"type": "message_start", "message": {**message, "content": []}})
        send({"type": "content_block_start", "index": 0,
              "content_block": {"type": "text", "text": ""}})
        for at, text in enumerate(TEXTS):
            if at == 1:
                # The rest comes only after the client has seen the first text.
                assert go_on.wait(20)
            send({"type": "content_block_delta", "index": 0,
                  "delta": {"type": "text_delta", "text": text}})
        send({"type": "content_block_stop", "index": 0})
        send({"type": "message_delta", "usage": {"output_tokens": 1},
              "delta": {"stop_reason": "end_turn", "stop_sequence": None}})
        send({"type": "message_stop"})
        chunk("")

    server = upstream(answer)
    proxy = gateway.proxy(server.url, auth="api_key", secret={"key": "sk-ant-target"})
    for options in [{"api_key": proxy.key}, {"auth_token": proxy.key, "api_key": None}]:
        client = anthropic.Anthropic(base_url=proxy.url, **options)
        wanted = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}
        assert client.messages.create(**wanted).content[0].text == "Hello!"
        go_on.clear()
        seen = []
        with client.messages.stream(**wanted) as stream:
            for text in stream.text_stream:
                seen.append(text)
                go_on.set()
        assert seen == TEXTS
    assert not any(proxy.key in str(headers) for _, _, headers, _ in server.seen)
