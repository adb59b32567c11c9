"""Coarse networks: TransUNet and the compact one, with their weights."""
