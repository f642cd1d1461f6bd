"""The data engine: rounds of annotation with the current model and retraining on what was drawn."""
