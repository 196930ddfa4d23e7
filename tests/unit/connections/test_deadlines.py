"""Deadlines must not be what a process waits for."""

import subprocess
import sys

SHORT_OF_MEMORY = """
import contextlib, resource, socket, threading
from jobledger.connections import deadlines

first = threading.Thread(target=int)  # its stack is kept for the next one, which so begins, and has no memory then
first.start()
first.join()
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used, resource.RLIM_INFINITY))
ours, theirs = socket.socketpair()
deadlines._watchdog().watch(ours.fileno(), 60)
print("it goes on", flush=True)

resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
theirs.settimeout(0.1)
while True:
    deadlines._watchdog().watch(ours.fileno(), 0.01)
    with contextlib.suppress(TimeoutError):
        assert theirs.recv(1) == b""
        break
print("and what is late is cut")
"""


def test_a_thread_that_dies_before_it_begins_hangs_nobody_and_another_follows() -> None:
    ended = subprocess.run([sys.executable, "-c", SHORT_OF_MEMORY], capture_output=True, text=True, timeout=20)

    assert ended.stdout == "it goes on\nand what is late is cut\n"
