"""Tests, mirroring the packages. `SHARED` holds real files where they are at hand; nothing of it is needed."""

import os
from pathlib import Path

ROOT = Path(__file__).parent.parent
"""The checkout."""
SHARED = Path(os.environ.get("FO1_SHARED", ROOT.parent / "shared"))
"""Real photos, annotations and recorded runs; tests that want them are skipped where it is missing."""
