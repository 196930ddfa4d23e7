"""`python -m jobledger`."""

from jobledger.cli import main

main()
