"""From corrections to a better model: final labels as a data folder, retraining, the registry of models."""
