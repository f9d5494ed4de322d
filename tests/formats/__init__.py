"""Small seeded samples of every dataset in its official layout, over drawn scenes, with the traps of its sheet.

Each module here writes the files of some datasets and lists them in ``FORMATS``.
"""
