"""A VLM that answers with regions, its proposal network, and detectors; usable without the pipeline.

Importing it makes our model folders known to transformers' auto classes, without importing transformers: each
auto class is told when its module is, which is at once where that has happened already.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType

_AUTO = "transformers.models.auto."
_MODULES = tuple(
    _AUTO + name for name in ("configuration_auto", "modeling_auto", "processing_auto")
)


class _RegisteringLoader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        _register(module)


class _AutoFinder(MetaPathFinder):
    """Finds the modules of the auto classes as ever, and has them registered with once they are there."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _MODULES:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _RegisteringLoader(spec.loader.name, spec.loader.path)
        return spec


def _register(module: ModuleType) -> None:
    from fo1_model import hub

    hub.register(module)


if not any(isinstance(finder, _AutoFinder) for finder in sys.meta_path):
    sys.meta_path.insert(0, _AutoFinder())
for _name in _MODULES:
    if _name in sys.modules:
        _register(sys.modules[_name])
