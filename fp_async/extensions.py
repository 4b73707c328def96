"""Hamilton's extensions for data libraries, each loaded when somebody can need it.

Imported as it stands, Hamilton imports every data library that is installed (3 to 5 s, 300 MB). We
import it without, and put registries in the place of its own that load what belongs to the
libraries that the process has imported by then, whenever they are looked into, and all the rest
where something is not found. So pipelines and the program's own code find what they would find.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from fp_async.errors import FlowerPowerError

try:
    from hamilton import registry
except ImportError as error:
    raise FlowerPowerError(
        f"Hamilton is broken or missing ({error}). Upgrading from sf-hamilton deletes files that "
        "both packages share; mend it with: pip install --force-reinstall --no-deps "
        '"apache-hamilton>=1.90,<2"'
    ) from error

EXTENSIONS = {
    "yaml": ("yaml",),  # first: its types need no import in a pipeline
    "pandas": ("pandas",),
    "polars": ("polars", "polars_lazyframe"),
    "numpy": ("numpy",),
    "dask": ("dask",),
    "geopandas": ("geopandas",),
    "pyspark": ("pyspark_pandas", "spark"),
    "vaex": ("vaex",),
    "ibis": ("ibis",),
    "matplotlib": ("matplotlib",),
    "plotly": ("plotly",),
    "xgboost": ("xgboost",),
    "lightgbm": ("lightgbm",),
    "sklearn": ("sklearn_plot",),
    "datasets": ("huggingface",),
    "pydantic": ("pydantic",),
    "mlflow": ("mlflow",),
    "kedro": ("kedro",),
    "dlt": ("dlt",),
}


def load_extensions(libraries: Iterable[str]) -> None:
    """Load the extensions for those of the `libraries` (import names) that have one."""
    for library in EXTENSIONS.keys() & set(libraries):
        for extension in EXTENSIONS[library]:
            _load(extension)


def load_all_extensions() -> None:
    """Load the extensions of every library that this process has imported, by whatever way."""
    if "hamilton.driver" in sys.modules:  # which looks through the registries when it is imported
        load_extensions([library for library in EXTENSIONS if library in sys.modules])


def _load(name: str) -> None:
    if name not in _loading:  # an extension registers what it has while it is loaded
        _loading.add(name)
        _load_once(name)


_loading: set[str] = set()


@functools.cache
def _load_once(name: str) -> None:
    try:
        registry.load_extension(name)
    except (ImportError, NotImplementedError, Warning):
        logging.getLogger("fp_async").debug("no Hamilton extension %s", name, exc_info=True)


def _all_names() -> Iterator[str]:
    """Every extension, unless Hamilton was told to load none."""
    if os.environ.get(registry.HAMILTON_AUTOLOAD_ENV) != "0":
        yield from (name for names in EXTENSIONS.values() for name in names)


class _Complete(dict[str, Any]):
    """The names that extensions register: complete for the libraries that are imported."""

    def __contains__(self, name: object) -> bool:
        load_all_extensions()
        waiting = _all_names()
        while not super().__contains__(name):
            extension = next(waiting, None)
            if extension is None:
                return False
            _load(extension)
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def keys(self) -> Any:
        load_all_extensions()
        return super().keys()

    def values(self) -> Any:
        load_all_extensions()
        return super().values()

    def items(self) -> Any:
        load_all_extensions()
        return super().items()


class _Adapters(_Complete):
    """Loaders or savers by name."""

    def __missing__(self, name: str) -> list[Any]:
        found: list[Any] = []
        self[name] = found
        return found


def prepare() -> None:
    """Have Hamilton find its extensions here, unless it has loaded them already."""
    if registry.INITIALIZED:
        return
    registry.INITIALIZED = True
    registry.DF_TYPE_AND_COLUMN_TYPES = _Complete(registry.DF_TYPE_AND_COLUMN_TYPES)
    for name in ("LOADER_REGISTRY", "SAVER_REGISTRY"):
        setattr(registry, name, _Adapters(getattr(registry, name)))
