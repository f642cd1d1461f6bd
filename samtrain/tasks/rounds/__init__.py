"""`task=rounds`: the data engine's rounds, from the config to the report."""
