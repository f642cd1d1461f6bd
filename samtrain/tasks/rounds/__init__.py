"""`task=rounds`: the rounds of the data engine, from the config to the report."""
