"""Launchers: TPU queued resources, GKE, Slurm, and a rehearsal of many hosts on one machine."""

if __name__ != "gptjax.launch":  # in a checkout Python would load a second copy of each module
    raise ImportError("import gptjax.launch instead of launch; run python -m gptjax.launch.PROGRAM")
