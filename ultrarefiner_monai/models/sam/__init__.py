"""SAM: as published, leaner, and with a compact image encoder; its state files."""
