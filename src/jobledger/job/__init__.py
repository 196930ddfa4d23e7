"""The users' interface: the base class of jobs, its dispatches, the handle of a dispatched job."""
