"""`python -m jobledger up`: everything on this machine, with one command, and nothing left behind at its end.

    plan        what it is asked to do
    system      what is started, in which order, until when
    supervisor  starts again what ended
    servers     Redis and Postgres, given or embedded
    program     a child process that leaves nothing behind
    output      one stream of lines from all of them
    signals     Ctrl-C and the like
    addresses   where all of it is
    directory   one `up` in each; where other shells find the URLs
    ports       which ones, and what if they are taken
    checks      whether it is ready

All of it is one thread: the kernel ends a child when the *thread* that started it ends, and a fork beside running
threads may inherit a lock that nobody will ever release.
"""

from jobledger.up.system import Plan, up

__all__ = ["Plan", "up"]
