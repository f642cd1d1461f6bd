"""Training: the Lightning module, the optimiser, callbacks, loggers, several devices, the memory planner."""
