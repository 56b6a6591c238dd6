"""The HTTP interface of ClickHouse over its real engine, in this process.

    clickhouse.py DATA_DIR PORT USER PASSWORD

`chdb-core` is the engine as a Python module; it has no server, so this takes what a client sends (a
query in the body; or an INSERT in the URL with rows in the body, compressed in ClickHouse's own
blocks) and answers as a server does. It prints its port, and ends when its standard input does.

For tests, `PUT /lose/N` lets the next N inserts be carried out and breaks the connection instead of
answering, and `PUT /slow/MS` makes each insert take so much longer.
"""

import os
import struct
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

import lz4.block
import lz4.frame
from chdb import session

DATA, PORT, USER, PASSWORD = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
# Parameters of the interface; all others are settings.
OWN = {"query", "database", "default_format", "decompress", "compress", "query_id"}

engine = session.Session(DATA)
one_at_a_time = threading.Lock()
faults = {"lose": 0, "slow": 0}


def unpacked(data):
    """ClickHouse's compressed blocks: checksum (16), method, sizes with and without this head."""
    out, at = [], 0
    while at < len(data):
        method, packed, whole = struct.unpack_from("<BII", data, at + 16)
        assert method == 0x82, "only LZ4"
        out.append(lz4.block.decompress(data[at + 25 : at + 16 + packed], uncompressed_size=whole))
        at += 16 + packed
    return b"".join(out)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def body(self):
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        out = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            out.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(out)

    def answer(self, status, data):
        self.send_response(status)
        if status == 200 and "lz4" in self.headers.get("Accept-Encoding", ""):
            data = lz4.frame.compress(data)
            self.send_header("Content-Encoding", "lz4")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_PUT(self):
        fault, number = self.path.strip("/").split("/")
        faults[fault] = int(number)
        self.answer(200, b"")

    def do_POST(self):
        parameters = dict(parse_qsl(urlsplit(self.path).query, keep_blank_values=True))
        body = self.body()
        given = (self.headers.get("X-ClickHouse-User"), self.headers.get("X-ClickHouse-Key"))
        if given != (USER, PASSWORD):
            text = f"Code: 516. DB::Exception: {given[0]}: Authentication failed. (AUTHENTICATION_FAILED)"
            self.answer(403, text.encode())
            return
        insert = "query" in parameters
        if insert:
            if parameters.get("decompress") == "1":
                body = unpacked(body)
            time.sleep(faults["slow"] / 1000)
        try:
            with one_at_a_time:
                result = self.run(parameters, body, insert)
        except Exception as error:  # the engine's own, as a server shows it
            self.answer(500, str(error).encode())
            return
        if insert and faults["lose"] > 0:
            faults["lose"] -= 1
            self.close_connection = True
            return
        self.answer(200, result)

    def run(self, parameters, body, insert):
        for name, value in parameters.items():
            if name not in OWN:
                engine.query(f"SET {name} = '{value}'")
        engine.query(f"USE {parameters.get('database', 'default')}")
        if not insert:
            text = body.decode()
            return engine.query(text, parameters.get("default_format", "TabSeparated")).bytes()
        with tempfile.NamedTemporaryFile(dir=DATA) as file:
            file.write(body)
            file.flush()
            statement, form = parameters["query"].rsplit(" FORMAT ", 1)
            engine.query(f"{statement} FROM INFILE '{file.name}' FORMAT {form}")
        return b""


ThreadingHTTPServer.allow_reuse_address = True
server = ThreadingHTTPServer(("127.0.0.1", PORT), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(server.server_address[1], flush=True)
sys.stdin.read()
# Nothing is flushed in an orderly way: the tests' servers die like one that is killed.
os._exit(0)
