"""UltraRefiner: lesion outlines on breast ultrasound. A coarse network (TransUNet, or the compact one that ships) proposes, SAM
refines, clinicians correct."""

__version__ = "0.1.0"
