"""Errors of the command that are neither a wrong setting nor a defect."""


class ClusterError(Exception):
    """The cluster cannot be reached, or refuses: one line, exit status 1."""
