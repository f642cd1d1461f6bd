"""Numbers computed from masks and boxes; nothing here knows a model."""
