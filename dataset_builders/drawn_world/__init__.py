"""The drawn world: coloured shapes with exact boxes, in official formats, for tests and demo.

`python -m dataset_builders.drawn_world DIR` draws it. Modules:

    drawing    a scene: its shapes, their boxes and the image
    write      all scenes of a world, and its annotation files
    datasets   the world as datasets: detection, referring expressions, counting
"""
