"""Several regions on this machine: in each an etcd, a control plane and nodes, in a network namespace
of its own."""

import json
import secrets
import subprocess
import sys
import time

from processes import Processes, need
from wide_area import WideArea, free_number

NAMES = ["us", "eu", "ap", "sa", "au", "af", "me", "in"]


class Regional(Processes):
    """Regions of which the first is home at the beginning."""

    def __init__(self, args):
        super().__init__(args.dir)
        if not 2 <= args.regions <= len(NAMES):
            sys.exit(f"--regions must be 2 to {len(NAMES)}")
        need("etcd", "etcd-server")
        self.nodes, self.names = args.nodes, NAMES[:args.regions]
        self.network = WideArea(self.names, self.known_number(), args)

    def known_number(self):
        file = self.dir / "regions.json"
        if file.exists():
            known = json.loads(file.read_text())
            if (known["regions"], known["nodes"]) != (self.names, self.nodes):
                sys.exit(f"{self.dir} holds {len(known['regions'])} regions of {known['nodes']} nodes; "
                         "start it with these numbers, or choose another --dir")
            return known["number"]
        known = {"regions": self.names, "nodes": self.nodes, "number": free_number()}
        file.write_text(json.dumps(known))
        return known["number"]

    def inside(self, name):
        return ["ip", "netns", "exec", self.network.namespace(name)]

    def keys(self):
        link, first = self.dir / "link", self.names[0]
        for name in self.names:
            if not (self.dir / f"{name}.json").exists():
                join = [] if name == first else ["--join", self.dir / f"{first}.public.json"]
                self.run("keyring", "new", "--region", name, "--nodes", self.dir / f"{name}.json",
                         "--control", self.dir / f"{name}.public.json", *join)
                self.run("keyring", "signer", "--control", self.dir / f"{name}.public.json",
                         "--signing", self.dir / f"{name}.signing.json")
            token = self.dir / f"{name}.operator"
            if not token.exists():
                token.touch(mode=0o600)
                token.write_text(secrets.token_hex(24))
        if not (link / "ca.pem").exists():
            self.run("link", "authority", "--dir", link)
        for at, name in enumerate(self.names):
            nodes = [f"{name}-node-{node}" for node in range(self.nodes)]
            for proven in [self.network.address(at), *nodes]:
                if not (link / f"{proven}.pem").exists():
                    self.run("link", "issue", proven, "--dir", link)

    def etcd(self, at):
        name, near = self.names[at], self.network.near(at)[0]
        here, peer = "http://127.0.0.1:2379", "http://127.0.0.1:2380"
        process = self.start(
            f"{name}-etcd", *self.inside(name), "etcd", "--name", "etcd",
            "--data-dir", self.dir / f"{name}-etcd",
            "--listen-client-urls", f"{here},http://{near}:2379", "--advertise-client-urls", here,
            "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
            "--initial-cluster", f"etcd={peer}", "--auto-compaction-mode", "periodic",
            "--auto-compaction-retention", "5m",
        )
        process.stdout.close()

    def common(self, at, process, certificate):
        name, link, quoted = self.names[at], self.dir / "link", json.dumps
        return [
            f"region = {quoted(name)}", f"data_dir = {quoted(str(self.dir / process))}",
            "[store]", 'kind = "etcd"', 'endpoints = ["http://127.0.0.1:2379"]',
            "[policy]", "allow_http = true",
            "[[dial_guard.permit]]", 'network = "10.0.0.0/8"', 'ports = ["1-65535"]', 'orgs = ["*"]',
            "[keys]", f"ring_file = {quoted(str(self.dir / f'{name}.json'))}",
            f"public_file = {quoted(str(self.dir / f'{name}.public.json'))}",
            "[limits]", f"nodes = {self.nodes}",
            "[link]", f"ca_file = {quoted(str(link / 'ca.pem'))}",
            f"cert_file = {quoted(str(link / (certificate + '.pem')))}",
            f"key_file = {quoted(str(link / (certificate + '-key.pem')))}",
        ]

    def gateway(self, at):
        return f"http://{self.network.address(at)}:8080"

    def write(self, name, lines):
        file = self.dir / f"{name}.toml"
        file.write_text("\n".join(lines) + "\n")
        return file

    def control(self, at):
        name, address, quoted = self.names[at], self.network.address(at), json.dumps
        lines = self.common(at, f"{name}-control", address)
        signing = f"signing_file = {quoted(str(self.dir / f'{name}.signing.json'))}"
        lines.insert(lines.index("[limits]"), signing)
        lines += [
            f'listen = "{address}:8082"',
            "[control]", f'listen = "{address}:8081"', "insecure = true",
            f"operator_token_file = {quoted(str(self.dir / f'{name}.operator'))}",
            "[gateway]", f'public_url = "{self.gateway(at)}"',
            "[regions]", f'home = "{self.names[0]}"',
        ]
        for other, peer in enumerate(self.names):
            if other != at:
                there = self.network.address(other)
                lines += [
                    "[[regions.peers]]", f'name = "{peer}"', f'control = "http://{there}:8081"',
                    "insecure = true",
                    f'gateway = "{self.gateway(other)}"', f'replication = ["{there}:8082"]',
                    f"public_file = {quoted(str(self.dir / f'{peer}.public.json'))}",
                ]
        config, until = self.write(f"{name}-control", lines), time.monotonic() + 60
        while True:
            # etcd needs a moment.
            try:
                return self.role("control", f"{name}-control", config, *self.inside(name))
            except RuntimeError:
                self.processes.pop()[1].wait()
                if time.monotonic() > until:
                    raise

    def node(self, at, number):
        name, address = self.names[at], self.network.address(at)
        node = f"{name}-node-{number}"
        lines = [f'node_name = "{node}"', *self.common(at, node, node)]
        lines += [
            f'endpoints = ["{address}:8082"]',
            "[gateway]", f'listen = "{address}:{8080 + 100 * number}"',
            "[peers]", 'listen = "127.0.0.1:0"',
        ]
        return self.role("node", node, self.write(node, lines), *self.inside(name))["gateway"]

    def up(self):
        self.network.up()
        self.keys()
        for at, _ in enumerate(self.names):
            self.etcd(at)
        controls = [self.control(at) for at, _ in enumerate(self.names)]
        regions = []
        for at, name in enumerate(self.names):
            near, host = self.network.near(at)
            regions.append({
                "name": name, "namespace": self.network.namespace(name),
                "address": self.network.address(at), "control": controls[at]["control"],
                "nodes": [self.node(at, number) for number in range(self.nodes)],
                "etcd": f"http://{near}:2379", "host": host,
                "operator_token_file": str(self.dir / f"{name}.operator"),
            })
        network = self.network
        return {
            "home": self.names[0], "admin_token": self.admin_token(controls[0]), "link": network.how,
            "delays_ms": network.delays_ms, "jitter_ms": network.jitter_ms,
            "loss_percent": network.loss_percent, "regions": regions,
        }

    def told(self, ready):
        yield f"home         {ready['home']}"
        yield f"admin token  {ready['admin_token']}"
        yield (f"links        ± {ready['jitter_ms']} ms, {ready['loss_percent']} % lost "
               f"({ready['link']})")
        for region, delay in zip(ready["regions"], ready["delays_ms"]):
            yield (f"{region['name']:<12} {region['address']}, {delay} ms to the others, in namespace "
                   f"{region['namespace']}")
            yield f"  control    {region['control']}"
            yield f"  operator   {region['operator_token_file']}"
            for url in region["nodes"]:
                yield f"  node       {url}"
            yield f"  etcd       {region['etcd']}"

    def down(self):
        super().down()
        self.network.down()
