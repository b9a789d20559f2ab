"""How does a model improve? Loss, schedule, optimizer, step, checkpoints."""
