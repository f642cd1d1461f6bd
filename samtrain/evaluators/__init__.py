"""One zero-shot experiment of the paper a file."""
