"""Slides for tests, as tifffile writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tifffile


def halve(image: np.ndarray) -> np.ndarray:
    """Means of 2 x 2 pixels; a last odd row or column is left out."""
    height, width = (size // 2 * 2 for size in image.shape[:2])
    parts = image[:height, :width].reshape(height // 2, 2, width // 2, 2, -1)
    return np.rint(parts.mean(axis=(1, 3))).astype(image.dtype)


def write_slide(
    path: Path,
    image: np.ndarray,
    microns_per_pixel: float | None = None,
    *,
    levels: int = 2,
    tile: int = 64,
    ome: bool = False,
    **options: Any,
) -> Path:
    """A tiled pyramid: levels as reduced pages, which OpenSlide calls a generic TIFF, or an OME-TIFF with sub-IFDs."""
    options = {"photometric": "rgb", "tile": (tile, tile), "compression": "zlib"} | options
    if microns_per_pixel is not None and not ome:
        options |= {"resolution": (1e4 / microns_per_pixel,) * 2, "resolutionunit": "CENTIMETER"}
    metadata: dict[str, Any] | None = None
    if ome:
        metadata = {"axes": "YXS"}
        if microns_per_pixel is not None:
            metadata |= {f"PhysicalSize{axis}": microns_per_pixel * 1000 for axis in "XY"}
            metadata |= {f"PhysicalSize{axis}Unit": "nm" for axis in "XY"}
    with tifffile.TiffWriter(path, ome=ome) as tiff:
        tiff.write(image, subifds=levels - 1 if ome else None, metadata=metadata, **options)
        for _ in range(levels - 1):
            image = halve(image)
            tiff.write(image, subfiletype=1, metadata=None, **options)
    return path


def write_dicom(folder: Path, image: np.ndarray, microns_per_pixel: float, *, levels: int = 2, tile: int = 64) -> Path:
    """A slide in DICOM, a file a level, as little as OpenSlide asks for. Returns the coarsest level's file."""
    from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
    from pydicom.sequence import Sequence
    from pydicom.uid import ExplicitVRLittleEndian, VLWholeSlideMicroscopyImageStorage, generate_uid

    folder.mkdir()
    series = generate_uid()
    for level in range(levels):
        height, width = image.shape[:2]
        down, across = -(-height // tile), -(-width // tile)
        padded = np.pad(image, ((0, down * tile - height), (0, across * tile - width), (0, 0)))
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = VLWholeSlideMicroscopyImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        measures, shared, path = Dataset(), Dataset(), Dataset()
        measures.PixelSpacing = [microns_per_pixel * 2**level / 1000] * 2
        shared.PixelMeasuresSequence = Sequence([measures])
        path.OpticalPathIdentifier = "1"
        content = {
            "SOPClassUID": VLWholeSlideMicroscopyImageStorage,
            "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
            "SeriesInstanceUID": series,
            "Modality": "SM",
            "ImageType": ["ORIGINAL", "PRIMARY", "VOLUME", "RESAMPLED" if level else "NONE"],
            "DimensionOrganizationType": "TILED_FULL",
            "TotalPixelMatrixColumns": width,
            "TotalPixelMatrixRows": height,
            "TotalPixelMatrixFocalPlanes": 1,
            "NumberOfOpticalPaths": 1,
            "NumberOfFrames": down * across,
            "Rows": tile,
            "Columns": tile,
            "SamplesPerPixel": 3,
            "PhotometricInterpretation": "RGB",
            "PlanarConfiguration": 0,
            "BitsAllocated": 8,
            "BitsStored": 8,
            "HighBit": 7,
            "PixelRepresentation": 0,
            "SharedFunctionalGroupsSequence": Sequence([shared]),
            "OpticalPathSequence": Sequence([path]),
            "PixelData": padded.reshape(down, tile, across, tile, 3).swapaxes(1, 2).tobytes(),
        }
        file = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
        for name, value in content.items():
            setattr(file, name, value)
        file.save_as(folder / f"level-{level}.dcm", enforce_file_format=True)
        image = halve(image)
    return folder / f"level-{levels - 1}.dcm"
