"""The error of a wrong setting, and the types under which the packages below raise theirs."""

import dataset_builders.errors
import fo1_model.errors


class SettingError(ValueError):
    """A setting or an input that cannot be used as it is.

    The message names the field, its value, and what to write instead. Any other exception, apart
    from a `LedgerError` (`pipelines.row_accounting`), is a defect of the program.
    """


SETTING_ERRORS = (SettingError, dataset_builders.errors.SettingError, fo1_model.errors.SettingError)
"""What a person can mend by writing something else.

The packages below know nothing of each other, so each has a type of its own.
"""
