"""`nuclora demo`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the tiles, the run and the report.")] = Path(
        "demo"
    ),
) -> None:
    """Find nuclei with the adapter that nuclora carries, then train adapters and write their report.

    The nuclei are in a real image, scikit-image's immunohistochemistry sample, and in a synthetic one. The training
    is a short cross-validation on synthetic H&E tiles; zero-shot and fine-tuned scores stand in one table. Started
    again it goes on from what is there.
    """
    from rich.console import Console
    from rich.markup import escape

    from nuclora.cli.runs import cross_validate_and_print
    from nuclora.data import open_tiles
    from nuclora.data.folds import make_folds
    from nuclora.data.synthetic import write_dataset
    from nuclora.recipe import load_recipe
    from nuclora.report.html import write_report
    from nuclora.training.crossval import CrossValidation

    console = Console()
    started = time.monotonic()
    data = out / "data"
    if not data.exists():
        console.print(f"[bold]1[/] synthetic H&E tiles, in NuInsSeg's layout: {escape(str(data))}", highlight=False)
        write_dataset(data, tiles=24, size=256, organs=3, seed=0)
    _find_nuclei(console, out, data)
    recipe = load_recipe("smoke")
    tiles = open_tiles(data)
    console.print(
        f"[bold]3[/] {recipe.base} as it came, then fine-tuned in 3 folds of {len(tiles)} tiles", highlight=False
    )
    run = cross_validate_and_print(CrossValidation(tiles, recipe, out / "run", make_folds(tiles, 3, recipe.seed)))
    if run is None:
        return
    page = write_report(run)
    console.print(f"[bold]4[/] report with pictures: {escape(str(page.resolve()))}", highlight=False, soft_wrap=True)
    console.print(f"done in {(time.monotonic() - started) / 60:.1f} minutes", highlight=False)


def _find_nuclei(console: Console, out: Path, data: Path) -> None:
    """Predict two images with the adapter that comes with the package."""
    import shutil

    import skimage
    from PIL import Image
    from rich.markup import escape

    from nuclora.cli.predict import predict
    from nuclora.data import open_tiles

    images, found = out / "images", out / "nuclei"
    images.mkdir(exist_ok=True)
    sample = Image.open(Path(skimage.__file__).parent / "data" / "ihc.png").convert("RGB")
    # Its nuclei are some 10 pixels wide; the adapter knows nuclei of 12 to 60.
    sample.resize((3 * sample.width, 3 * sample.height), Image.Resampling.BICUBIC).save(images / "ihc-3x.png")
    tile = open_tiles(data)[0]
    shutil.copyfile(tile.image, images / f"synthetic{tile.image.suffix}")
    console.print(
        f"[bold]2[/] nuclei in two images: {escape(str(found))}\n"
        "  (ihc-3x has a brown stain that the adapter was never shown: it finds the nuclei of the tissue between the "
        "glands, and few in them)",
        highlight=False,
    )
    predict([str(images)], out=found, views=1)
