"""Small seeded samples of every dataset in its official layout, with the traps of its sheet.

Each module here writes the files of some datasets, over drawn scenes, and lists them in
``FORMATS``. ``python -m tests.formats OUT`` writes them all, a data root for each dataset.

Modules:

    detection      Objects365, V3Det, VisDrone, CrowdHuman, DocLayNet
    federated      LVIS, PACO, VAW, Visual Genome: labels that are known of some images only
    referring      RefCOCO and its kin, C-REC, FineCops-Ref
    grounding      GoldG, Flickr30k Entities, GRIT, RexVerse, HumanRef
    region_text    Osprey, ShareGPT4V, Visual-CoT, VCR, MDVP
    ocr            MLT2019, ICDAR2015, CurvedSynText150k, WildReceipt
    general        TallyQA, LLaVA, Cauldron, CogVLM
    scenes         the images: whole, and broken in the ways that real files are
    mutate         annotation files changed at random
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
