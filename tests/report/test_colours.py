from __future__ import annotations

from nuclora.report.colours import ERROR_STYLES, LABEL_COLOURS, line_style, palette


def test_the_palette_goes_on_past_its_fixed_colours() -> None:
    assert len(set(palette(12))) == 12 > len(LABEL_COLOURS)


def test_nothing_is_told_by_colour_alone() -> None:
    folds = [line_style(index) for index in range(5)]
    assert len({style.marker for style in folds}) == len({style.dashes for style in folds}) == 5
    errors = ERROR_STYLES.values()
    assert len({(style.dashes, style.hatch) for style in errors}) == len(errors) == 5
