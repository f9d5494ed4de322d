"""Seeds from names: how every random draw of the package is tied to what it is drawn for."""

import hashlib


def seed_of(*names: object) -> int:
    """Return a seed in [0, 2**64) that follows from the names alone, on every machine.

    A draw for an image, say, is seeded with the run's seed and the image's id, never with the state
    of a generator that others use too: so batches, workers and restarts change no draw.

    Args:
        names: What the draw is for; they are joined by ":" as they print.
    """
    return int.from_bytes(hashlib.sha256(":".join(map(str, names)).encode()).digest()[:8], "big")
