"""How a program gets onto machines: TPU queued resources, GKE, Slurm, and a rehearsal of many
hosts on one."""
