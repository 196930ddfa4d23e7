"""The terms of the job system, without I/O: statuses, options, payloads, retries, limits, records."""
