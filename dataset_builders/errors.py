"""The error of a wrong setting, apart from those that are defects of the program."""


class SettingError(ValueError):
    """A setting or a file that cannot be used as it is.

    The message names the field or file, what it holds, and what to write instead. The command shows
    it as one line; anything else that is raised, a plain ValueError too, is a defect of the program
    and shows its traceback.
    """
