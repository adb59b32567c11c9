"""Figures of a checkpoint: tables, pictures, comparisons, cross-validation."""
