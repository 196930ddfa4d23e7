"""Where a job stands in line that had begun already."""

from typing import Final

KEEPS_ITS_PLACE: Final = """
CASE WHEN j.crashes + j.losses = 1
     THEN EXISTS (SELECT FROM job_attempts a
                   WHERE a.job_id = j.id AND a.number = j.attempt AND a.outcome IN ('crashed', 'lost'))
     ELSE false END"""
"""Whether the last attempt of `j` crashed or was lost, the first one that did. A job that always kills its process must
not keep others from theirs; nor may one that waits on its own account, by a snooze or after an error, ever go first.
"""
