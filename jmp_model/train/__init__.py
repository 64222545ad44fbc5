"""Pre-training: targets, loss, optimiser step, loop, validation, checkpoints and logs."""
