"""From a data folder and a configuration to a checkpoint."""
