"""Opening every file of a data set and saying, file by file, what is wrong with it.

A *fault* would spoil training or its evaluation: a file that is missing, doubled, damaged or of the wrong
kind, shapes that differ, a binary mask in place of a label map, the same image twice (folds would leak). A
*note* is worth knowing and harmless: tiles without nuclei, ids of several components, gaps in the ids, ignore
masks, annotations that are taken for regions, an id that covers most of a tile.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from nuclora.data import list_tiles
from nuclora.data.ids import renumber_far
from nuclora.data.tiles import Sample, Tile, counted
from nuclora.errors import NucloraError

PERCENTILES = (5, 50, 95)

# A nucleus cut in two by an overlying one has two or three parts; a binary mask has as many as nuclei.
_BINARY_MASK_COMPONENTS = 6
_EIGHT_CONNECTED = np.ones((3, 3), dtype=bool)


@dataclass(frozen=True)
class Fault:
    """What is wrong with a file: the reason, the mend, and whether it would spoil training."""

    path: str
    reason: str
    mend: str | None
    spoils: bool = True


@dataclass(frozen=True)
class Note:
    """What is worth knowing: a sentence, and the tiles that it is about."""

    text: str
    tiles: tuple[str, ...]


@dataclass(frozen=True)
class GroupStatistics:
    """Figures of one organ, or of all.

    Attributes:
        group: The organ, or "total".
        tiles: Tiles that could be read.
        nuclei: Distinct ids over these tiles.
        sizes: Tile sizes (height, width) with the number of tiles, the most frequent first.
        area: Percentiles `PERCENTILES` of the nucleus area in square pixels; None without nuclei.
        diameter: Diameters in pixels of the circles of these areas.
    """

    group: str
    tiles: int
    nuclei: int
    sizes: tuple[tuple[int, int, int], ...]
    area: tuple[float, ...] | None
    diameter: tuple[float, ...] | None


@dataclass(frozen=True)
class CheckReport:
    """Everything that a check found; fit for training if no fault spoils it."""

    root: str
    format: str
    groups: tuple[GroupStatistics, ...]
    total: GroupStatistics
    faults: tuple[Fault, ...]
    notes: tuple[Note, ...]


@dataclass
class _Findings:
    """What accumulates over the tiles, by group or by kind of note.

    Of `shared` files, which hold several tiles, a fault names the tile as well.
    """

    shared: frozenset[Path] = frozenset()

    areas: defaultdict[str, list[NDArray[np.int64]]] = field(default_factory=lambda: defaultdict(list))
    sizes: defaultdict[str, Counter[tuple[int, int]]] = field(default_factory=lambda: defaultdict(Counter))
    digests: defaultdict[str, list[Tile]] = field(default_factory=lambda: defaultdict(list))
    gaps: list[str] = field(default_factory=list)
    dominated: list[str] = field(default_factory=list)
    ignoring: list[str] = field(default_factory=list)
    ignored_pixels: int = 0
    with_regions: list[str] = field(default_factory=list)
    regions: int = 0
    scales: Counter[float] = field(default_factory=Counter)
    scaled: list[str] = field(default_factory=list)
    split: list[str] = field(default_factory=list)
    split_ids: int = 0

    def told(self, tile: Tile, path: Path, reason: str) -> str:
        """The reason, with the tile's name where the file's does not tell it."""
        return f"tile {tile.name}: {reason}" if path in self.shared else reason


def check_data(
    root: str | Path, format: str | None = None, progress: Callable[[int, int], None] | None = None
) -> CheckReport:
    """Open every file of a data set.

    Args:
        root: Folder of the data set.
        format: Name of its format; by default the one that it looks like.
        progress: Called after each tile with the number done and the number of all.

    Raises:
        NucloraError: There is no data set to check. What is wrong inside one is reported, not raised.
    """
    listing = list_tiles(root, format)
    tiles = listing.sorted_tiles()
    if not tiles and not listing.faults:
        raise NucloraError(f"no tiles in this folder of format {listing.format}", path=listing.root)
    faults = [_fault(error) for error in listing.faults]
    counts = Counter(path for tile in tiles for path in {tile.image, tile.labels})
    findings = _Findings(shared=frozenset(path for path, count in counts.items() if count > 1))
    for done, tile in enumerate(tiles, start=1):
        try:
            faults += _examine(tile, tile.read(), findings)
        except NucloraError as error:
            faults.append(_fault(error))
        if progress is not None:
            progress(done, len(tiles))
    faults += _duplicates(findings)
    groups = sorted(findings.sizes)
    return CheckReport(
        root=str(listing.root),
        format=listing.format,
        groups=tuple(_statistics(group, [group], findings) for group in groups),
        total=_statistics("total", groups, findings),
        faults=tuple(faults),
        notes=tuple(_notes(findings)),
    )


def _fault(error: NucloraError) -> Fault:
    return Fault(str(error.path), error.reason, error.mend)


def _examine(tile: Tile, sample: Sample, findings: _Findings) -> list[Fault]:
    height, width = sample.labels.shape
    if tile.microns_per_pixel is not None:
        findings.scales[tile.microns_per_pixel] += 1
        findings.scaled.append(tile.name)
    findings.sizes[tile.group][height, width] += 1
    # Empty glass is the same everywhere, and shares nothing between folds.
    if np.ptp(sample.image, axis=(0, 1)).any():
        digest = hashlib.sha256(f"{height}x{width}".encode() + sample.image.tobytes()).hexdigest()
        findings.digests[digest].append(tile)
    if sample.ignore.any():
        findings.ignoring.append(tile.name)
        findings.ignored_pixels += int(sample.ignore.sum())
    if sample.regions:
        findings.with_regions.append(tile.name)
        findings.regions += sample.regions
    labels, far = renumber_far(sample.labels)
    areas = np.bincount(labels.ravel())[1:]
    present = areas > 0
    findings.areas[tile.group].append(areas[present])
    lost = 0 if sample.drawn is None else sample.drawn - int(present.sum())
    faults = []
    if lost:
        # Nothing else tells of them, and of the file of another image they may be all.
        reason = f"{lost:,} of {sample.drawn:,} nuclei left no pixel: outside the image, under others, or too small"
        mend = "if they are many: is it the file of another image, or of a slide?"
        faults.append(Fault(str(tile.labels), findings.told(tile, tile.labels, reason), mend, spoils=False))
    elif not present.any():
        mend = "label its nuclei, or leave it as it is if the tile has none"
        reason = findings.told(tile, tile.labels, "all-zero labels: no nucleus")
        faults.append(Fault(str(tile.labels), reason, mend, spoils=False))
    if not present.any():
        return faults
    if far is not None or not present.all():
        findings.gaps.append(tile.name)
    if areas.max() > labels.size // 2:
        findings.dominated.append(tile.name)
    components = count_components(labels)
    split = int((components > 1).sum())
    if split:
        findings.split.append(tile.name)
        findings.split_ids += split
    if present.sum() == 1 and components.max() >= _BINARY_MASK_COMPONENTS:
        reason = f"all {components.max()} nuclei have one id: a binary mask, not a label map"
        faults.append(Fault(str(tile.labels), findings.told(tile, tile.labels, reason), "give each nucleus its own id"))
    return faults


def count_components(labels: NDArray[np.integer]) -> NDArray[np.int64]:
    """Connected components (8 neighbours) of each id.

    Args:
        labels: Ids, (H, W), 0 background.

    Returns:
        Counts for the ids 1 to the largest, (largest id,); 0 where an id is absent.
    """
    boxes = ndimage.find_objects(labels)
    counts = [
        0 if box is None else ndimage.label(labels[box] == identity, structure=_EIGHT_CONNECTED)[1]
        for identity, box in enumerate(boxes, start=1)
    ]
    return np.array(counts, dtype=np.int64)


def _duplicates(findings: _Findings) -> list[Fault]:
    faults = []
    for first, *others in findings.digests.values():
        for tile in others:
            across = "" if tile.group == first.group else f", of another group ({first.group})"
            reason = f"the same pixels as {first.name}{across}: folds would share it between training and test"
            reason = findings.told(tile, tile.image, reason)
            faults.append(Fault(str(tile.image), reason, "remove one of the two tiles"))
    return faults


def _statistics(name: str, groups: Sequence[str], findings: _Findings) -> GroupStatistics:
    sizes: Counter[tuple[int, int]] = Counter()
    for group in groups:
        sizes += findings.sizes[group]
    areas = np.concatenate([np.zeros(0, np.int64), *(a for group in groups for a in findings.areas[group])])
    area = tuple(np.percentile(areas, PERCENTILES).tolist()) if areas.size else None
    return GroupStatistics(
        group=name,
        tiles=sizes.total(),
        nuclei=int(areas.size),
        sizes=tuple((height, width, count) for (height, width), count in sizes.most_common()),
        area=area,
        diameter=None if area is None else tuple((4 * value / np.pi) ** 0.5 for value in area),
    )


def _notes(findings: _Findings) -> list[Note]:
    scales = ", ".join(f"{scale:g}" for scale in sorted(findings.scales))
    texts = (
        (findings.scaled, f"with a known size of a pixel ({scales} microns)"),
        (findings.split, f"with ids of several components ({counted(findings.split_ids, 'id')})"),
        (findings.gaps, "with gaps in the ids"),
        (findings.dominated, "where one id covers over half the tile: is the background 0?"),
        (
            findings.with_regions,
            f"with annotations that are taken for regions, not for nuclei ({findings.regions:,} in all)",
        ),
        (findings.ignoring, f"with an ignore mask ({findings.ignored_pixels:,} pixels in all)"),
    )
    return [Note(f"{counted(len(names), 'tile')} {text}", tuple(names)) for names, text in texts if names]
