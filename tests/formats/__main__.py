"""Write the generated sample of every dataset, or of some.

python -m tests.formats OUT [DATASET ...]
"""

import sys
from pathlib import Path

from tests.formats import FORMATS, write_format


def main() -> None:
    if len(sys.argv) < 2:
        print(__doc__)
        raise SystemExit(2)
    known = [name for item in FORMATS for name in item.datasets]
    names = sys.argv[2:] or known
    if unknown := sorted(set(names) - set(known)):
        raise SystemExit(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
    for name in names:
        write_format(Path(sys.argv[1]) / name, name)
    example = f"fo1 run data mix={names[0]} --data {sys.argv[1]}/{names[0]}"
    print(f"{sys.argv[1]}: {len(names)} data roots; try  {example}")


if __name__ == "__main__":
    main()
