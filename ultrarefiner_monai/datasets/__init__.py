"""Data sets: public layouts made one clean folder, grouped splits, what a checkpoint has seen, phantoms."""
