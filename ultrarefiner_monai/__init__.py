"""UltraRefiner: breast-ultrasound lesion outlines, proposed by TransUNet, sharpened by SAM, corrected by clinicians."""

__version__ = "0.1.0"
