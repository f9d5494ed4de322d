"""Small seeded samples of every dataset in its official layout, over drawn scenes, with the traps of its
sheet.

Each module here writes the files of some datasets and lists them in ``FORMATS``. ``python -m tests.formats
OUT`` writes them all: a data root that every dataset of ``fo1 list datasets`` can be tried on.
"""

from importlib import import_module
from pathlib import Path

from tests.formats.scenes import Format

MODULES = ("detection", "federated", "referring", "grounding", "region_text", "ocr", "general")
FORMATS: tuple[Format, ...] = tuple(
    item for name in MODULES for item in import_module(f"tests.formats.{name}").FORMATS
)
SEED = 7


def write_format(data: Path, dataset: str) -> None:
    """Write the files of a dataset below a data root of its own."""
    next(item for item in FORMATS if dataset in item.datasets).write(data, SEED)
