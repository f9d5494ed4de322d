"""The command that draws the world: ``python -m dataset_builders.drawn_world DIR``."""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from dataset_builders.drawn_world.write import WorldSettings, write_world
from dataset_builders.errors import SettingError

DESCRIPTION = """\
Draw the world of tests and demo: images of coloured shapes with exact boxes, and annotation files
in official formats (COCO instances, REFER expressions, TallyQA questions).

The same settings give the same bytes. A folder that holds them already is left alone; one that
holds a world of other settings is refused, never overwritten."""

EXAMPLES = """\
examples:
  python -m dataset_builders.drawn_world fo1_data/datasets/drawn
  python -m dataset_builders.drawn_world fo1_data/datasets/drawn --train 2400 --val 200 --seed 0

Datasets over it: drawn_train, drawn_val, drawn_refs_train, drawn_tally_train and others, see
fo1 list datasets. They look for the folder "drawn" below the data root (--data)."""


def main(arguments: list[str] | None = None) -> int:
    """Draw the world that the command line asks for; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m dataset_builders.drawn_world",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    defaults = WorldSettings()
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder to write, made if needed")
    for name, meaning in (
        ("train", "scenes of split train"),
        ("val", "scenes of split val"),
        ("seed", "seed of all scenes: another seed, other scenes"),
    ):
        default = getattr(defaults, name)
        parser.add_argument(
            f"--{name}",
            type=int,
            default=default,
            metavar="N",
            help=f"{meaning} (default {default})",
        )
    options = parser.parse_args(arguments)
    try:
        settings = WorldSettings(train=options.train, val=options.val, seed=options.seed)
        written = write_world(options.folder, settings, progress=_progress())
    except SettingError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    print(f"{options.folder}: {'written' if written else 'already there'}")
    return 0


def _progress() -> Callable[[int, int], None]:
    """Return a function that prints scenes done and to do, at most once a second."""
    started = shown = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal shown
        now = time.monotonic()
        if now - shown > 1 or done == total:
            shown, rate = now, done / max(now - started, 1e-6)
            print(
                f"drawn {done}/{total} scenes, {rate:.0f}/s, {(total - done) / rate:.0f} s left",
                file=sys.stderr,
            )

    return show


if __name__ == "__main__":
    raise SystemExit(main())
