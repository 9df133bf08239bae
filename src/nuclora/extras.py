"""Packages that only some uses need, and the extras that bring them."""

from __future__ import annotations

import importlib
from typing import Any

from nuclora.errors import NucloraError

EXTRAS = {
    "openslide": "slides",
    "pyarrow": "parquet",
    "zarr": "zarr",
    "openvino": "openvino",
    "nncf": "int8",
    "ray": "scale",
    "tensorboard": "track",
}
"""Packages by the name that they are imported by, and the extra of nuclora that installs each."""


def require(package: str, use: str) -> Any:
    """Import an optional package.

    Args:
        package: One of :data:`EXTRAS`.
        use: What needs it, in the words of the one who asked for it, such as `--format zarr`.

    Raises:
        NucloraError: It is not installed, or it cannot be imported.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        reason = f"{use} needs the package {package}"
        if not isinstance(error, ModuleNotFoundError) or error.name != package:
            reason += f", which cannot be imported ({error})"
        raise NucloraError(reason, mend=f"pip install 'nuclora[{EXTRAS[package]}]'") from error
