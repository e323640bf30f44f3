"""What no rule can surpass, not even one that knows the arrivals to come."""

from __future__ import annotations

import math

from simulation.engine import warm_up
from simulation.workloads import TABLES, Workload, trace


def most_on_time(workload: Workload) -> float:
    """An upper bound of the share that is answered in time, without jitter, of one shape.

    A batch gives each of its n rows t(n) / n of an executor, at least p, the least of the sizes
    that fit the deadline at all. So the executors are taken for one machine, as fast as all of them
    together, that serves row after row in p, without waiting for company. All jobs being equally
    long and equally patient, to take each that can still be in time, in order of arrival, serves
    the most of them. It starts idle with the first request that is counted.
    """
    if workload.shapes != 1 or workload.callers:
        raise ValueError(f"{workload.name}: expected open arrivals of one shape")
    times, patience = TABLES[workload.table], workload.patience
    fit = [times[n] / n for n in range(1, len(times)) if times[n] <= patience]
    row = min(fit, default=math.inf) / workload.executors
    counted = trace(workload).arrivals[warm_up(workload.requests) :]
    free, served = 0.0, 0
    for arrival in counted:
        end = max(free, arrival) + row
        if end <= arrival + patience:
            free = end
            served += 1
    return served / len(counted)
