"""Tests, mirroring the packages. Nothing of `SHARED` is needed; what is there is used."""

import os
from pathlib import Path

ROOT = Path(__file__).parent.parent
"""The checkout."""
SHARED = Path(os.environ.get("FO1_SHARED", ROOT.parent / "shared"))
"""Real photos, annotations and recorded runs. Tests of them are skipped where it is missing."""
