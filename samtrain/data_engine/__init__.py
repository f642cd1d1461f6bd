"""The data engine: rounds of annotation with the current model, each followed by training on the masks collected so far."""
