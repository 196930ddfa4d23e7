"""The configuration of stock workers: `rq worker -c jobledger.rq_config high default low etl`.

RQ imports this module in the worker's parent process and reads the names in capitals. This module also loads the job
modules, rehearses a run, and keeps a connection to Postgres ready. A work-horse, which is forked for each job, inherits
all of it.
"""

import gc

from jobledger.connections.default import configure
from jobledger.jobs.own import WarmUp
from jobledger.maintenance.ownership import take_queues
from jobledger.observe.log import logging_config, set_up_logging
from jobledger.registry import load_job_modules
from jobledger.settings import load_settings
from jobledger.worker.keeping import keep_leases
from jobledger.worker.redis import with_endurance
from jobledger.worker.spare import SpareConnection
from jobledger.worker.warm_up import warm_up

_settings = load_settings()
set_up_logging(_settings)
load_job_modules(_settings.job_modules)
_connections = configure(_settings)
take_queues(_connections)
keep_leases(_connections)
warm_up(_connections, WarmUp.job_type, {"number": 1})
SpareConnection(_connections).keep_ready()
gc.collect()
gc.freeze()  # a work-horse's garbage collections then neither touch nor copy the pages of loaded modules

REDIS_URL = with_endurance(_settings.require_redis_url())
QUEUES = [_settings.queue_in_redis(one) for one in _settings.queues]
DICT_CONFIG = logging_config(_settings)
