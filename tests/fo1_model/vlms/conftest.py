import pytest

from fo1_model.vlms import VLM_FAMILIES
from tests.fo1_model.small_families import small_model

_MODELS: dict[str, tuple] = {}


@pytest.fixture(params=sorted(VLM_FAMILIES))
def family(request) -> str:
    return request.param


@pytest.fixture
def small(family):
    """Model and processor; the model is not to be changed."""
    if family not in _MODELS:
        _MODELS[family] = small_model(family)
    return _MODELS[family]
