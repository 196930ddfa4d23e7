"""`python -m jobledger up`: the whole system on this machine, with one command, and no process left at its end.

    system      the plan of an `up`; starts, checks and stops everything
    supervisor  restarts ended programs
    servers     Redis and Postgres, given or embedded
    program     a child process that leaves no processes behind
    output      one stream of lines from all programs
    signals     Ctrl-C and other stop signals
    addresses   URLs and ports of all parts
    directory   one `up` in each; where other shells find the URLs
    ports       choice of ports

`up` has one thread: the kernel ends a child when the *thread* that started it ends, and a fork beside running threads
may inherit a lock that is never released.
"""

from jobledger.up.system import Plan, up

__all__ = ["Plan", "up"]
