"""One studies folder: its work folder, the journal of proposals and corrections, which files are images."""
