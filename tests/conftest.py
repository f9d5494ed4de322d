"""What every test stands on: one thread a process, our own Ray clusters, a drawn world."""

import os

for _name, _value in {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
}.items():
    os.environ.setdefault(_name, _value)

import pytest  # noqa: E402


@pytest.fixture(scope="session")
def drawn_world(tmp_path_factory):
    """Data root with a drawn data set of 24 training and 12 validation scenes. Never written to."""
    from dataset_builders.drawn_world.write import WorldSettings, write_world

    data = tmp_path_factory.mktemp("data")
    write_world(data / "drawn", WorldSettings(train=24, val=12))
    return data
