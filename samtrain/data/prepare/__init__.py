"""Importing other formats: reading them, checking their records, holding images back, writing shards."""
