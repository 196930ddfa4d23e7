"""Deadlines must not be what a process waits for."""

import subprocess
import sys

SHORT_OF_MEMORY = """
import resource, threading
from jobledger import deadlines

first = threading.Thread(target=int)  # its stack is kept for the next one, which so begins, and has no memory then
first.start()
first.join()
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used, resource.RLIM_INFINITY))
deadlines._watchdog()
print("it goes on")
"""


def test_a_thread_that_dies_before_it_begins_hangs_nobody() -> None:
    ended = subprocess.run([sys.executable, "-c", SHORT_OF_MEMORY], capture_output=True, text=True, timeout=20)

    assert ended.stdout == "it goes on\n"
