"""Networks, and the checkpoints that hold them. They know torch and segment_anything, nothing of MONAI."""
