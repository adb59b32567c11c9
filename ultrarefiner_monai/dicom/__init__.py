"""DICOM files, with or without a PACS: pixels, geometry, ultrasound regions, series; SEG and SR out, SEG in."""
