"""Multi-process runs: rendezvous, collectives, preemption."""
