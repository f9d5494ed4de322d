"""The one way in which this package makes a seed of names: by a hash, the same on every machine.

Python's own `hash` of a text changes from process to process, and one generator for all draws would
make an image's samples depend on the images before it. A hash of names (the user's seed, dataset,
image id ...) does neither.
"""

import hashlib


def seed_of(*names: object) -> int:
    """Return a seed of 64 bits that depends on the given values alone, in every process.

    Args:
        *names: Whatever tells one draw from another; they are joined by "/" as `str` writes them.
    """
    return int(hashlib.sha256("/".join(map(str, names)).encode()).hexdigest()[:16], 16)
