"""Generated examples: the same ones in every run, however busy the machine is."""

from hypothesis import settings

settings.register_profile("jobledger", derandomize=True, deadline=None, database=None, max_examples=200)
settings.load_profile("jobledger")
