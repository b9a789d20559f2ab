"""How do many processes act as one? Rendezvous, collectives, preemption."""
