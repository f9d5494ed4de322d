"""The released checkpoint (omlab/VLM-FO1_Qwen2.5-VL-3B-v01), in and out, no tensor lost.

folders      a released folder, read and written: `load_release`, `export_release` configs
from the release's flat config to ours flat_config  from ours to the release's names
names of the release's tensors parity       ``python -m fo1_model.release.parity``: recorded
runs of the released code, and ours
"""

from fo1_model.release.folders import export_release, load_release, load_release_processor

__all__ = ["export_release", "load_release", "load_release_processor"]
