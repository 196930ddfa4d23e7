"""What every look for what holds jobs has in common: it begins with `HOLDERS`, whose rows have a `held_by` each."""

from typing import Final

HOLDERS: Final = """
WITH RECURSIVE holders AS (  -- one step along the index from each to the next, however many jobs each holds
    (SELECT held_by FROM job_statuses WHERE held_by IS NOT NULL ORDER BY held_by LIMIT 1)
    UNION ALL
    SELECT (SELECT j.held_by FROM job_statuses j WHERE j.held_by > h.held_by ORDER BY j.held_by LIMIT 1)
      FROM holders h WHERE h.held_by IS NOT NULL
)"""
