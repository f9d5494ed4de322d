"""The ``fo1`` command."""
