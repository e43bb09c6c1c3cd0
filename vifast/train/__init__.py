"""Training: configuration, the loop, checkpoints, logs and evaluation of any `vifast.systems.System`."""
