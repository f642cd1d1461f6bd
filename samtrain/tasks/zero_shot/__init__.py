"""`task=zero_shot`: the paper's zero-shot experiments on any number of sets."""
