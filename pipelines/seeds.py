"""Seeds from names: the same number in every process, on every machine, for the same names."""

from __future__ import annotations

import hashlib


def seed_of(*parts: object) -> int:
    """Return a 63-bit seed from a hash of the parts.

    Args:
        *parts: Names and numbers, told apart by their text and their order.
    """
    digest = hashlib.sha256("|".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
