"""Learning from a reward by sampling: PPO, PPO-ptx, GRPO and RLOO."""
