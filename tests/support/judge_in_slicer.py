"""Runs in an environment of 3D Slicer's own code (PyPI: slicer-core), which has neither this package nor its needs.

read VOLUME MASK OUT.npz    both through Slicer's storage nodes: voxels, and where they lie
write VOLUME LABEL.npy OUT  a segmentation on the volume, as Slicer saves it: .seg.nrrd, or .nii.gz as a labelmap
"""

from __future__ import annotations

import sys

import numpy as np
import slicer
import vtk
from slicer.util import arrayFromVolume, updateVolumeFromArray
from vtk.util.numpy_support import vtk_to_numpy

SCENE = slicer.vtkMRMLScene()


def volume(path: str, label: bool = False):
    """A volume node, read from a file."""
    node = SCENE.AddNewNodeByClass(f"vtkMRML{'LabelMap' if label else 'Scalar'}VolumeNode")
    storage = SCENE.AddNewNodeByClass("vtkMRMLVolumeArchetypeStorageNode")
    storage.SetFileName(path)
    storage.SetSingleFile(True)
    if not storage.ReadData(node):
        raise SystemExit(f"Slicer cannot read {path}")
    return node


def place(node) -> np.ndarray:
    """(4, 4): indices (i, j, k) to millimetres (R, A, S)."""
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    return np.array([[matrix.GetElement(i, j) for j in range(4)] for i in range(4)])


def read(image: str, mask: str, out: str) -> None:
    shown = volume(image)
    found = {"volume": arrayFromVolume(shown), "volume_place": place(shown)}
    if mask.endswith(".seg.nrrd"):
        node = SCENE.AddNewNodeByClass("vtkMRMLSegmentationNode")
        storage = SCENE.AddNewNodeByClass("vtkMRMLSegmentationStorageNode")
        storage.SetFileName(mask)
        if not storage.ReadData(node):
            raise SystemExit(f"Slicer cannot read {mask}")
        segments = node.GetSegmentation()
        ids = [segments.GetNthSegmentID(k) for k in range(segments.GetNumberOfSegments())]
        node.GetBinaryLabelmapRepresentation(ids[0], labelmap := slicer.vtkOrientedImageData())
        x, y, z = labelmap.GetDimensions()
        matrix = vtk.vtkMatrix4x4()
        labelmap.GetImageToWorldMatrix(matrix)
        found["mask"] = vtk_to_numpy(labelmap.GetPointData().GetScalars()).reshape(z, y, x)
        found["mask_place"] = np.array([[matrix.GetElement(i, j) for j in range(4)] for i in range(4)])
        found["extent"] = np.array(labelmap.GetExtent())
    else:
        node = volume(mask, label=True)
        found |= {"mask": arrayFromVolume(node), "mask_place": place(node)}
    np.savez(out, **found)


def write(image: str, label: str, out: str) -> None:
    shown, values = volume(image), np.load(label)
    drawn = SCENE.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode")
    logic = slicer.vtkSlicerVolumesLogic()
    logic.SetMRMLScene(SCENE)
    logic.CreateLabelVolumeFromVolume(SCENE, drawn, shown)
    updateVolumeFromArray(drawn, values)
    if not out.endswith(".seg.nrrd"):
        storage = SCENE.AddNewNodeByClass("vtkMRMLVolumeArchetypeStorageNode")
        storage.SetFileName(out)
        assert storage.WriteData(drawn)
        return
    node = SCENE.AddNewNodeByClass("vtkMRMLSegmentationNode")
    node.SetReferenceImageGeometryParameterFromVolumeNode(shown)
    if not slicer.vtkSlicerSegmentationsModuleLogic.ImportLabelmapToSegmentationNode(drawn, node):
        raise SystemExit("Slicer cannot make a segmentation of the labelmap")
    storage = SCENE.AddNewNodeByClass("vtkMRMLSegmentationStorageNode")
    storage.SetFileName(out)
    assert storage.WriteData(node)


if __name__ == "__main__":
    {"read": read, "write": write}[sys.argv[1]](*sys.argv[2:])
