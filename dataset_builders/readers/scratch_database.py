"""A temporary database, for what must be brought together and does not fit into memory."""

import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def scratch_database(tables: str) -> Iterator[sqlite3.Connection]:
    """Open a database in a file that goes away at the end of the `with` block.

    One transaction is open. The file lies in the folder for temporary files (TMPDIR).

    Args:
        tables: SQL that makes its tables.
    """
    with tempfile.TemporaryDirectory(prefix="fo1-scratch-") as place:
        database = sqlite3.connect(f"{place}/records.sqlite", isolation_level=None)
        try:
            # not written safely, which is several times faster: nobody reads it after a crash
            pragmas = "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA temp_store=FILE;"
            database.executescript(pragmas + tables)
            database.execute("BEGIN")
            yield database
        finally:
            database.close()
