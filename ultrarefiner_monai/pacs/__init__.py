"""DICOMweb: the archive whose series are studies, and what is sent to it and taken from it."""
