"""The error of a wrong setting."""


class SettingError(ValueError):
    """A setting or a file that cannot be used as it is.

    The message names the field or file, what it holds, and what to write instead. Anything else
    that is raised is a defect of the program.
    """
