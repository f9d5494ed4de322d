"""What a builder counts while it reads: nothing is lost without a reject."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from dataset_builders.errors import SettingError
from dataset_builders.records import BadRecord, Ledger, Reject, Sample
from dataset_builders.validation import validate

WRONG_FORM_RECORDS = 100
"""So many malformed records, with no good one among them, are not bad records but another
format."""


class RecordCounter:
    """Counts of records read, used and rejected, by unit.

    Its ledger is the last thing that a builder yields.
    """

    def __init__(self) -> None:
        self._read: Counter[str] = Counter()
        self._used: Counter[str] = Counter()
        self._malformed: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        """Rejects of all units by reason."""

    def use(self, unit: str = "record", count: int = 1) -> None:
        """Count records that were read and are used."""
        self._read[unit] += count
        self._used[unit] += count

    def reject(self, record_id: str, error: BadRecord, unit: str = "record") -> Reject:
        """Count a record that was read and cannot be used; return its reject, to be yielded.

        Args:
            record_id: Readable name of the record in its file.
            error: Why it cannot be used.
            unit: One of `records.UNITS`.

        Raises:
            SettingError: Nothing but malformed records came so far: the file is of another form.
        """
        self._read[unit] += 1
        self.reasons[error.reason] += 1
        self._malformed[unit] += error.reason == "malformed"
        if self._malformed[unit] == self._read[unit] == WRONG_FORM_RECORDS:
            raise SettingError(
                f"none of the first {WRONG_FORM_RECORDS} records of unit {unit!r} has the "
                f"documented form; the last, {record_id}: {error.detail}"
            )
        return Reject.of(record_id, error, unit)

    def record(
        self, record_id: str, make: Callable[[], Iterable[Sample]], unit: str = "record"
    ) -> Iterator[Sample | Reject]:
        """Yield the samples of one record, each validated, or the record's reject.

        A record of which one sample is bad gives none.

        Args:
            record_id: Readable name of the record in its file.
            make: Makes its samples; raises BadRecord when it cannot.
            unit: One of `records.UNITS`.
        """
        try:
            # all of them before the first is yielded: a bad one takes the others with it
            samples = list(make())
            for sample in samples:
                validate(sample)
        except BadRecord as error:
            yield self.reject(record_id, error, unit)
        else:
            self.use(unit)
            yield from samples

    def add(self, other: "RecordCounter") -> None:
        """Add the counts of one file to those of the dataset."""
        self._read += other._read
        self._used += other._used
        self.reasons += other.reasons

    @property
    def num_read(self) -> int:
        """Number of records of all units read so far."""
        return self._read.total()

    def ledger(self) -> Ledger:
        """Return the counts so far."""
        return Ledger(read=dict(self._read), used=dict(self._used))
