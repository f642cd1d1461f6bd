"""Uses a trained model: predictors, stored embeddings, the automatic mask generator."""
