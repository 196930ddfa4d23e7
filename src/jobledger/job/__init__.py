"""What users subclass and call: the job class, its dispatches, the handle of a dispatched job."""
