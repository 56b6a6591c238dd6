"""A network of regions on one machine: a network namespace each, and links between them that delay
and lose packets.

Where the kernel has netem (`tc`) that does it. Where it has not, every packet between two regions
goes through a program that holds it for as long and loses as many (/dev/net/tun).

In each namespace `wan0` leads to the other regions and `host0` to this machine, without a delay;
`void0` leads nowhere, for whoever wants to cut a way.
"""

import ctypes
import fcntl
import heapq
import os
import random
import re
import select
import signal
import struct
import subprocess
import sys
import time

# What the names of all namespaces begin with; the id of the process that made them follows.
PREFIX = "rr-regions-"
# This machine's ends of the links to regions: the same id, and the region's number.
END = re.compile(r"rr(\d+)r\d+")
TUNSETIFF = 0x400454CA
IFF_TUN_NO_PI = 0x0001 | 0x1000
CLONE_NEWNET = 0x40000000
PACKET_BYTES_MAX = 65_536


def ip(namespace, *commands):
    """Runs `ip` with these commands; says why it cannot."""
    for command in commands:
        inside = ["-n", namespace] if namespace else []
        done = subprocess.run(["ip", *inside, *command.split()], capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"`ip {command}` cannot be done here: {done.stderr.strip()}\n"
                     "Regions need root, who may make network namespaces, and iproute2.")
    return done.stdout


def has_netem():
    """Whether the kernel delays packets itself, and what it says if not."""
    name = f"{PREFIX}{os.getpid()}-probe"
    ip("", f"netns add {name}")
    try:
        command = ["tc", "-n", name, "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"]
        done = subprocess.run(command, capture_output=True, text=True)
        return done.returncode == 0, done.stderr.strip()
    except FileNotFoundError:
        return False, "there is no `tc`; install iproute2"
    finally:
        remove(name)


def remove(namespace):
    pids = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True).stdout
    for pid in pids.split():
        try:
            os.kill(int(pid), signal.SIGKILL)
        except ProcessLookupError:
            pass
    subprocess.run(["ip", "netns", "del", namespace], capture_output=True)


def sweep():
    """Takes away what a cluster left that was killed itself."""
    for line in ip("", "netns list").splitlines():
        name = line.split(" ")[0]
        maker = name.removeprefix(PREFIX).split("-")[0]
        if name.startswith(PREFIX) and not os.path.exists(f"/proc/{maker}"):
            remove(name)
    for end in os.listdir("/sys/class/net"):
        made = END.fullmatch(end)
        if made and not os.path.exists(f"/proc/{made[1]}"):
            ip("", f"link del {end}")


class WideArea:
    """Regions with addresses `10.{number}.0.1` and up."""

    def __init__(self, names, number, args):
        sweep()
        self.names, self.number = names, number
        self.jitter_ms, self.loss_percent = args.jitter_ms, args.loss_percent
        far = dict(each.split("=", 1) for each in args.far)
        if unknown := far.keys() - set(names):
            sys.exit(f"--far names {', '.join(unknown)}; there are {', '.join(names)}")
        # Of packets that leave a region.
        self.delays_ms = [args.delay_ms + float(far.get(name, 0)) for name in names]
        self.emulator = None
        self.how = args.link or self.choose()

    def choose(self):
        if not self.impaired():
            return "netem"
        able, why = has_netem()
        if able:
            return "netem"
        if not os.path.exists("/dev/net/tun"):
            sys.exit(f"this kernel has no netem ({why}) and there is no /dev/net/tun to do without; "
                     "regions without delays can be had with --delay-ms 0 --jitter-ms 0 "
                     "--loss-percent 0")
        print(f"this kernel has no netem ({why}): a program delays the packets instead",
              file=sys.stderr)
        return "tun"

    def impaired(self):
        return any(self.delays_ms) or self.loss_percent > 0

    def namespace(self, name):
        return f"{PREFIX}{os.getpid()}-{name}"

    def address(self, at):
        """A region's address for the other regions, and for this machine too."""
        return f"10.{self.number}.0.{at + 1}"

    def near(self, at):
        """A region's address that this machine alone reaches, and this machine's beside it."""
        return f"10.{self.number}.{at + 101}.1", f"10.{self.number}.{at + 101}.254"

    def end(self, at):
        return f"rr{os.getpid()}r{at + 1}"

    def up(self):
        if ip("", f"route show root 10.{self.number}.0.0/16").strip():
            sys.exit(f"10.{self.number}.0.0/16 is in use; stop the other cluster, or use another --dir")
        hub = self.namespace("hub")
        if self.how == "netem":
            ip("", f"netns add {hub}")
            ip(hub, "link add hub type bridge", "link set hub up")
        tunnels = []
        for at, name in enumerate(self.names):
            inside, address = self.namespace(name), self.address(at)
            (near, host), end = self.near(at), self.end(at)
            ip("", f"netns add {inside}",
               f"link add {end} type veth peer name host0 netns {inside}",
               f"address add {host}/24 dev {end}", f"link set {end} up")
            ip(inside, "link set lo up", f"address add {near}/24 dev host0", "link set host0 up",
               f"route add default via {host}", "link add void0 type veth peer name void1",
               "link set void0 arp off up", "link set void1 up")
            if self.how == "netem":
                ip(inside, f"link add wan0 type veth peer name port{at} netns {hub}")
                ip(hub, f"link set port{at} master hub", f"link set port{at} up")
            else:
                tunnels.append(tunnel(inside))
            ip(inside, f"address add {address}/24 dev wan0", "link set wan0 up")
            ip("", f"route add {address}/32 via {near}")
            if self.how == "netem" and self.impaired():
                netem = (f"tc -n {inside} qdisc add dev wan0 root netem limit 100000 delay "
                         f"{self.delays_ms[at]}ms {self.jitter_ms}ms loss {self.loss_percent}%")
                done = subprocess.run(netem.split(), capture_output=True, text=True)
                if done.returncode:
                    sys.exit(f"`{netem}`: {done.stderr.strip()}; without --link netem a program "
                             "delays the packets where the kernel cannot")
        if tunnels:
            self.emulate(tunnels)

    def emulate(self, tunnels):
        self.emulator = os.fork()
        if self.emulator == 0:
            try:
                delays = [ms / 1e3 for ms in self.delays_ms]
                carry(tunnels, delays, self.jitter_ms / 1e3, self.loss_percent / 100)
            finally:
                os._exit(1)
        for each in tunnels:
            os.close(each)

    def down(self):
        for at, name in enumerate(self.names):
            remove(self.namespace(name))
            # A namespace lives on for as long as a connection of it is being closed.
            subprocess.run(["ip", "link", "del", self.end(at)], capture_output=True)
        remove(self.namespace("hub"))
        if self.emulator:
            os.kill(self.emulator, signal.SIGKILL)
            os.waitpid(self.emulator, 0)


def tunnel(namespace):
    """Makes `wan0` in a namespace; what is sent there is read here."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/self/ns/net") as own, open(f"/run/netns/{namespace}") as other:
        if libc.setns(other.fileno(), CLONE_NEWNET):
            sys.exit(f"entering {namespace}: {os.strerror(ctypes.get_errno())}")
        try:
            end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            fcntl.ioctl(end, TUNSETIFF, struct.pack("16sH22x", b"wan0", IFF_TUN_NO_PI))
        except OSError as error:
            sys.exit(f"/dev/net/tun: {error}; regions with delays need netem or this")
        finally:
            libc.setns(own.fileno(), CLONE_NEWNET)
    return end


def carry(tunnels, delays, jitter, loss):
    """Carries packets between the ends, as netem would: each is held for the delay of where it comes
    from ± `jitter`, and lost with a probability of `loss`. Ends with whoever started it."""
    parent = os.getppid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    poll = select.epoll()
    for end in tunnels:
        poll.register(end, select.EPOLLIN)
    delay_from = dict(zip(tunnels, delays))
    held, number = [], 0
    while os.getppid() == parent:
        wait = held[0][0] - time.monotonic() if held else 1.0
        ready = poll.poll(min(max(wait, 0), 1.0))
        for end, _ in ready:
            for _ in range(64):
                try:
                    packet = os.read(end, PACKET_BYTES_MAX)
                except OSError:
                    break
                # IPv4 only; the last byte of an address is the region's number.
                to = packet[19] - 1 if packet[0] >> 4 == 4 else -1
                if not 0 <= to < len(tunnels) or random.random() < loss:
                    continue
                due = time.monotonic() + max(delay_from[end] + random.uniform(-jitter, jitter), 0)
                number += 1
                heapq.heappush(held, (due, number, tunnels[to], packet))
        now = time.monotonic()
        while held and held[0][0] <= now:
            _, _, end, packet = heapq.heappop(held)
            try:
                os.write(end, packet)
            except OSError:
                # Nobody takes it there: lost.
                pass


def free_number():
    """A number whose addresses nobody uses."""
    used = ip("", "route show")
    free = [number for number in range(200, 250) if f"10.{number}." not in used]
    return free[os.getpid() % len(free)] if free else sys.exit("no network 10.200 to 10.249 is free")
