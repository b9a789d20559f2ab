"""How does it improve? Loss, schedule, optimizer, step, checkpoints."""
