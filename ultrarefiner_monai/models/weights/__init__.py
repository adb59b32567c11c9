"""Pretrained weights by name: which there are, fetched on request, checked."""
