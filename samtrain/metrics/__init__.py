"""Metrics that are computed from masks and boxes alone; nothing here knows a model."""
