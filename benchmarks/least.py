"""A configuration for bare workers that keeps a prepared connection for the work-horses of `sketch`.

One work-horse lives at a time, and what a killed one leaves of the connection is not looked after here.
"""

import gc

import sketch

sketch.kept = sketch.connect()
with sketch.kept.cursor() as cursor:
    cursor.execute("PREPARE claim AS " + sketch.CLAIM.format("$1"))
    cursor.execute("PREPARE finish AS " + sketch.FINISH.format("$1", "$2"))
gc.collect()
gc.freeze()
