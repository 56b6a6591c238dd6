"""The official OpenAI client, with nothing changed but base URL and key."""

import json
import threading

import openai

CHUNKS = ["Hel", "lo", " wor", "ld"]


def test_completion_and_stream(gateway, upstream):
    go_on = threading.Event()

    def answer(handler, body):
        request = json.loads(body)
        assert handler.headers["Authorization"] == "Bearer sk-target"
        if not request.get("stream"):
            return handler.json({
                "id": "c1", "object": "chat.completion", "created": 1, "model": "m",
                "choices": [{"index": 0, "finish_reason": "stop",
                             "message": {"role": "assistant", "content": "Hello"}}],
                "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
            })
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()

        def chunk(text):
            data = text.encode()
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            handler.wfile.flush()

        for at, text in enumerate(CHUNKS):
            if at == 1:
                # The rest comes only after the client has seen the first token.
                assert go_on.wait(20)
            chunk("data: " + json.dumps({
                "id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m",
                "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}],
            }) + "\n\n")
        chunk("data: [DONE]\n\n")
        chunk("")

    server = upstream(answer)
    proxy = gateway.proxy(server.url + "/v1", secret={"token": "sk-target"})
    client = openai.OpenAI(base_url=proxy.url, api_key=proxy.key)
    messages = [{"role": "user", "content": "hi"}]
    whole = client.chat.completions.create(model="m", messages=messages)
    assert whole.choices[0].message.content == "Hello"

    seen = []
    for event in client.chat.completions.create(model="m", messages=messages, stream=True):
        seen.append(event.choices[0].delta.content)
        go_on.set()
    assert seen == CHUNKS
    assert all(path == "/v1/chat/completions" for _, path, _, _ in server.seen)


def test_a_wrong_key_is_an_authentication_error(gateway, upstream):
    server = upstream(lambda handler, body: handler.json({}))
    proxy = gateway.proxy(server.url)
    client = openai.OpenAI(base_url=proxy.url, api_key="rr_live_wrong", max_retries=0)
    try:
        client.models.list()
        raise AssertionError("let through")
    except openai.AuthenticationError as error:
        assert error.status_code == 401
    assert server.seen == []
