"""Traces as the official package for OTLP in Python reads them: the file of one request, and what
a collector is sent."""

import base64
import json
import re
import subprocess
import time

import pytest
import requests
from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status, TracesData

from conftest import BINARY, ENVIRONMENT, started

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"
STAGES = ["receive", "authenticate", "authorize", "limit", "prepare", "inject", "forward", "filter",
          "respond"]
# Fields that hold bytes: "OTLP/JSON" has them in hex, where JSON of protobuf has base64.
IDS = {"traceId": 32, "spanId": 16, "parentSpanId": 16}


def with_base64(value):
    """A document of OTLP/JSON as one of protobuf's JSON."""
    if isinstance(value, list):
        return [with_base64(one) for one in value]
    if not isinstance(value, dict):
        return value
    out = {}
    for name, inner in value.items():
        if name in IDS and inner:
            assert re.fullmatch(f"[0-9a-f]{{{IDS[name]}}}", inner), (name, inner)
            inner = base64.b64encode(bytes.fromhex(inner)).decode()
        out[name] = with_base64(inner)
    return out


def attributes(of):
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in of.attributes}


def spans_of(data):
    """The spans of all resources, the SERVER span first."""
    spans = [span for one in data.resource_spans for scope in one.scope_spans
             for span in scope.spans]
    return sorted(spans, key=lambda span: span.kind != Span.SPAN_KIND_SERVER)


def check(spans, request_id, trace_id, parent, failed):
    """Ids, parents and times of a request that was sent once."""
    server, *others = spans
    assert server.kind == Span.SPAN_KIND_SERVER and server.name == "GET"
    assert attributes(server)["requestrocket.request.id"] == request_id
    assert server.parent_span_id.hex() == parent
    assert {span.trace_id.hex() for span in spans} == {trace_id}
    ids = [span.span_id for span in spans]
    assert len(set(ids)) == len(ids) and all(len(id) == 8 and any(id) for id in ids)
    stages = [span for span in others if span.kind == Span.SPAN_KIND_INTERNAL]
    clients = [span for span in others if span.kind == Span.SPAN_KIND_CLIENT]
    assert [span.name for span in stages] == STAGES and len(clients) == 1
    assert len(stages) + len(clients) == len(others)
    assert {span.parent_span_id for span in stages} == {server.span_id}
    # One stage after the other, from the request's start to its end.
    at = server.start_time_unix_nano
    for span in stages:
        assert span.start_time_unix_nano == at
        at = span.end_time_unix_nano
    assert at == server.end_time_unix_nano
    assert abs(server.start_time_unix_nano / 1e9 - time.time()) < 600
    forward = next(span for span in stages if span.name == "forward")
    [client] = clients
    assert client.parent_span_id == forward.span_id
    assert forward.start_time_unix_nano <= client.start_time_unix_nano
    assert client.end_time_unix_nano <= forward.end_time_unix_nano
    for span in spans:
        is_error = span.status.code == Status.STATUS_CODE_ERROR
        assert is_error == (failed and span in (server, client)), span
        for event in span.events:
            assert span.start_time_unix_nano <= event.time_unix_nano <= span.end_time_unix_nano
    return client


def call(gateway, upstream, status, **fields):
    """A request that its target answers so: its id and what the target saw."""
    server = upstream(lambda handler, body: handler.json({}, status))
    proxy = gateway.proxy(server.url, **fields)
    traceparent = f"00-{TRACE_ID}-{CALLER}-01"
    answer = requests.get(f"{proxy.url}/v1?a=1", headers={**proxy.auth, "traceparent": traceparent})
    assert answer.status_code == status
    return answer.headers["requestrocket-request-id"], server.seen[-1][2]["traceparent"]


def file_of(gateway, id):
    """The file of a request, as the package reads it."""
    deadline = time.monotonic() + 30
    while True:
        done = subprocess.run(
            [BINARY, "trace", id, "--output", "otlp", "--control", gateway.control],
            capture_output=True, env={**ENVIRONMENT, "REQUESTROCKET_TOKEN": gateway.token},
        )
        # Its record is there a moment after its answer.
        if done.returncode == 0:
            break
        assert time.monotonic() < deadline, done.stderr.decode()
        time.sleep(0.05)
    return json_format.ParseDict(with_base64(json.loads(done.stdout)), TracesData())


@pytest.mark.parametrize("status", [200, 503])
def test_the_file_of_a_request(gateway, upstream, status):
    id, seen = call(gateway, upstream, status)
    data = file_of(gateway, id)
    # Without a collector the request is in its caller's trace, and the file has no caller's span.
    client = check(spans_of(data), id, TRACE_ID, "", status == 503)
    assert attributes(client)["http.response.status_code"] == status
    assert attributes(client)["url.full"].endswith("/v1?a=REDACTED")
    [resource] = data.resource_spans
    assert attributes(resource.resource)["service.name"] == "requestrocket"
    # Nothing of it is lost on the way there and back.
    again = json_format.MessageToDict(data)
    assert json_format.ParseDict(again, TracesData()) == data
    assert seen.split("-")[1] == TRACE_ID


def test_what_happens_inside_a_stage(gateway, upstream):
    server = upstream(lambda handler, body: handler.json({"gone": 1, "kept": 2}))
    proxy = gateway.proxy(server.url)
    filter = gateway.call("POST", f"/proxies/{proxy.id}/filters",
                          {"op": "destroy", "paths": ["$.gone"]})
    deadline = time.monotonic() + 30
    while True:
        answer = requests.get(f"{proxy.url}/v1", headers=proxy.auth)
        if answer.json() == {"kept": 2}:
            break
        assert time.monotonic() < deadline, "the filter was never in effect"
        time.sleep(0.05)
    spans = spans_of(file_of(gateway, answer.headers["requestrocket-request-id"]))
    [(span, event)] = [(span, event) for span in spans for event in span.events]
    assert (span.name, event.name) == ("filter", "requestrocket.filter.changed")
    assert attributes(event) == {"requestrocket.filter.id": filter["id"]}
    assert span.start_time_unix_nano <= event.time_unix_nano <= span.end_time_unix_nano


def test_what_a_collector_is_sent(tmp_path, upstream):
    def take(handler, body):
        handler.send_response(200)
        handler.send_header("Content-Type", "application/x-protobuf")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    collector = upstream(take)
    variables = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{collector.url}/v1/traces",
                 "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
                 "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
    with started(tmp_path, variables) as gateway:
        id, seen = call(gateway, upstream, 200)
        deadline = time.monotonic() + 30
        while True:
            exports = [ExportTraceServiceRequest.FromString(body)
                       for _, path, _, body in collector.seen if path == "/v1/traces"]
            if exports:
                break
            assert time.monotonic() < deadline, "no export came"
            time.sleep(0.05)
        [export] = exports
        assert export.ByteSize() == len(export.SerializeToString())
        client = check(spans_of(export), id, TRACE_ID, CALLER, False)
        # The target was told of the attempt's span.
        assert seen == f"00-{TRACE_ID}-{client.span_id.hex()}-01"
        [resource] = export.resource_spans
        assert "requestrocket" in attributes(resource.resource)["service.name"]
        assert not any(field for field in unknown(export))


def unknown(message):
    """Fields of a message, and of those in it, that the package does not know."""
    from google.protobuf import unknown_fields

    yield from unknown_fields.UnknownFieldSet(message)
    for field, value in message.ListFields():
        if field.message_type is not None:
            repeated = value if field.is_repeated else [value]
            for inner in repeated:
                yield from unknown(inner)
