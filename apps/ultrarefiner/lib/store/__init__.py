"""Studies as MONAI Label sees them, a folder or a PACS: index, labels, sessions."""
