"""Arithmetic on one mask or probability map: components, distances, figures, sizes, how sure an outline is, what
label values mean."""
