"""Deterministic simulation of the production code.

One seed is one run: the event loop picks the order of everything that could run, the clock is virtual, the stores
delay, fail and forget answers, processes crash and freeze. Parts to build a run from:

* `sim.loop`: the event loop with domains (one per simulated process) that can be frozen or killed.
* `sim.world`: processes, trace, counters of rare paths, failures.
* `sim.stores`, `sim.pubsub`: what lies between processes.
* `sim.checkers`: what is asserted about histories.
* `sim.persist`, `sim.endless`: the runs. ``python -m sim`` is their command line.
"""
