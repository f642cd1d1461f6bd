"""What the tasks share: building objects from the config, the run directory, training one model."""
