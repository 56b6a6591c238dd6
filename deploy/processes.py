"""What both forms of `local-cluster` start: processes with a log each, ended in the reverse order."""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]


def binary():
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    given = os.environ.get("REQUESTROCKET_BIN")
    for path in [given] if given else [target / "release/requestrocket", target / "debug/requestrocket"]:
        if pathlib.Path(path).is_file():
            return str(path)
    sys.exit("the binary is not built: cargo build, or set REQUESTROCKET_BIN")


def need(program, package):
    """Where a program is; servers may be where only root looks."""
    found = shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    return found or sys.exit(f"{program} is missing: apt-get install {package}")


class Processes:
    """Processes whose logs are in one folder."""

    def __init__(self, folder):
        self.dir = pathlib.Path(folder).resolve()
        self.dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.binary = binary()
        self.processes = []
        self.environment = {
            name: value for name, value in os.environ.items()
            if not name.startswith("REQUESTROCKET_") or name == "REQUESTROCKET_ADMIN_TOKEN"
        }

    def start(self, name, *command):
        with open(self.dir / f"{name}.log", "ab") as log:
            process = subprocess.Popen(
                list(map(str, command)), stdout=subprocess.PIPE, stderr=log,
                start_new_session=True, env=self.environment,
            )
        self.processes.append((name, process))
        return process

    def run(self, *command):
        subprocess.run([self.binary, *map(str, command)], check=True, env=self.environment)

    def role(self, role, name, config, *inside):
        """Starts a process of ours and gives the line that it prints when it is ready."""
        process = self.start(name, *inside, self.binary, role, "--config", config, "--output", "json")
        line = process.stdout.readline()
        process.stdout.close()
        if not line:
            raise RuntimeError(f"{name} did not start; see {self.dir / (name + '.log')}")
        return json.loads(line)

    def admin_token(self, ready):
        """The admin token of a process: told when it is made, then in a file; or the given one."""
        if ready["admin_token"]:
            return ready["admin_token"]
        if "admin_token_file" in ready:
            return pathlib.Path(ready["admin_token_file"]).read_text().strip()
        return self.environment.get("REQUESTROCKET_ADMIN_TOKEN")

    def accepts(self, name, process, port):
        """Waits until a program that says nothing itself listens."""
        until = time.monotonic() + 10
        while process.poll() is None and time.monotonic() < until:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                return
            except OSError:
                time.sleep(0.05)
        raise RuntimeError(f"{name} did not start; see {self.dir / (name + '.log')}")

    def ended(self):
        return [name for name, process in self.processes if process.poll() is not None]

    def down(self):
        # Nodes first, then control, then etcd: each can still say goodbye to the next.
        for _, process in reversed(self.processes):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(timeout=40)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
