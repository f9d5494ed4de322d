"""``fo1 train tiny_base``: make the pre-trained base that the tiny recipes start from."""

from dataclasses import fields

from jobs.recipes.arguments import parse_arguments
from pipelines.cluster import RuntimeConfig
from pipelines.storage import check_writable, join


def train_base(words: list[str], runtime: RuntimeConfig) -> None:
    """Train the base into ``<root>/tiny_base``.

    The base is not an artifact of a chain: it stands for the checkpoint that a user would download,
    and ships with the package. To use a new one, put the file in place of ``fo1_model/assets``'s.

    Args:
        words: Fields of ``TinyBaseConfig`` as ``name=value`` words.
        runtime: Where the file is written.
    """
    from pipelines.tiny_base.build import FILE_NAME, TinyBaseConfig, train_tiny_base

    config = TinyBaseConfig(**parse_arguments(TinyBaseConfig, words))
    check_writable(runtime.root)
    for field in fields(config):
        print(f"{field.name}={getattr(config, field.name)}", end=" ")
    print()
    folder = join(runtime.root, "tiny_base")
    metrics = train_tiny_base(config, folder)
    print(", ".join(f"{name} {value:.3f}" for name, value in metrics.items()))
    print(f"{folder}/{FILE_NAME}; the tiny recipes start from fo1_model/assets/{FILE_NAME}")
