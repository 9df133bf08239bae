"""How large a pixel of a slide is, by what its file says."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from typing import Any, Final

from nuclora.errors import NucloraError

_PLAUSIBLE: Final = (0.05, 10.0)
# Microns per pixel times power: scanners are built so that this holds to about a tenth.
_AT_POWER_ONE: Final = 10.0
_OF_UNIT: Final = {"inch": 25_400.0, "centimeter": 10_000.0, "millimeter": 1_000.0, "micrometer": 1.0}
# By the numbers of the TIFF tag; millimeter and micrometer are tifffile's own extension.
_UNITS: Final = {2: "inch", 3: "centimeter", 4: "millimeter", 5: "micrometer"}
_OME_UNITS: Final = {"µm": 1.0, "μm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6}


def require_plausible(microns: float | None, name: str = "--mpp") -> None:
    """See that what a user says is a size that a pixel of a microscope's image can have.

    Args:
        microns: Microns per pixel; None where nothing is said.
        name: What the user calls it.

    Raises:
        NucloraError: Not 0.05 to 10.
    """
    if microns is not None and not _plausible(microns):
        least, most = _PLAUSIBLE
        raise NucloraError(
            f"{name} {microns:g}: not a plausible size of a pixel",
            mend=f"give {least:g} to {most:g} microns per pixel: 0.25 is 40x, 0.5 is 20x",
        )


def of_openslide(properties: Mapping[str, str]) -> float | None:
    """Microns per pixel by OpenSlide's properties.

    In this order: what the maker says (``openslide.mpp-x`` and ``-y``); 10 over the objective's power; the TIFF's
    resolution.

    Returns:
        The mean of both axes; None where the file does not say, or nothing plausible (0.05 to 10).
    """
    axes = [_number(properties.get(f"openslide.mpp-{axis}")) for axis in "xy"]
    power = _number(properties.get("openslide.objective-power"))
    unit = properties.get("tiff.ResolutionUnit", "")
    densities = [_number(properties.get(f"tiff.{axis}Resolution")) for axis in "XY"]
    return _mean(axes) or (_plausible(_AT_POWER_ONE / power) if power else None) or _by_density(densities, unit)


def of_tiff(tiff: Any) -> float | None:
    """Microns per pixel of an open TIFF (`tifffile.TiffFile`): its resolution, else what its OME-XML says.

    Returns:
        The mean of both axes; None where the file does not say, or nothing plausible (0.05 to 10).
    """
    tags = tiff.series[0].levels[0].keyframe.tags
    densities = [_ratio(tags.valueof(name)) for name in ("XResolution", "YResolution")]
    unit = _UNITS.get(int(tags.valueof("ResolutionUnit", 2)), "")
    return _by_density(densities, unit) or (_by_ome(tiff.ome_metadata) if tiff.is_ome else None)


def _by_density(densities: list[float | None], unit: str) -> float | None:
    if unit not in _OF_UNIT:
        return None
    return _mean([_OF_UNIT[unit] / density if density else None for density in densities])


def _by_ome(xml: str) -> float | None:
    try:
        pixels = next(element for element in ElementTree.fromstring(xml).iter() if element.tag.endswith("}Pixels"))
    except (ElementTree.ParseError, StopIteration):
        return None
    axes = []
    for axis in "XY":
        size, unit = _number(pixels.get(f"PhysicalSize{axis}")), pixels.get(f"PhysicalSize{axis}Unit", "µm")
        axes.append(size * _OME_UNITS[unit] if size and unit in _OME_UNITS else None)
    return _mean(axes)


def _mean(axes: list[float | None]) -> float | None:
    known = [axis for axis in axes if axis]
    return _plausible(sum(known) / len(known)) if known else None


def _plausible(microns: float) -> float | None:
    return microns if _PLAUSIBLE[0] <= microns <= _PLAUSIBLE[1] else None


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None


def _ratio(value: Any) -> float | None:
    if not isinstance(value, tuple) or len(value) != 2 or not value[1]:
        return None
    return float(value[0]) / float(value[1])
