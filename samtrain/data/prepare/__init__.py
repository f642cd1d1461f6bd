"""Imports other formats: reads them, checks their records, holds images back, and writes shards."""
