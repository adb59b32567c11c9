"""Image files of all formats to frames with geometry; masks to and from files."""
