"""Chaos test (`make chaos`): inject faults into servers and workflows while orders come in, then count.

The stack has one API, two workers, Temporal and three mongods. Clients place, cancel, approve and reject orders, change
their addresses, and repeat each request until it is answered (`orders.py`). Meanwhile, `faults.py` kills, stops and
freezes processes, loses unreplicated writes, resets and terminates workflows, interrupts compensations, deletes all of
Temporal's data, and adds a worker with older code. Afterwards, `evidence.py` reads every change of MongoDB, the
gateways' books among them, and every workflow history, and `audit.py` checks G1 to G7 on them.
"""
