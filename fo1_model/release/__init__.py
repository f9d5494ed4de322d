"""The released checkpoint in and out, no tensor and no file of text lost.

Its hub name is omlab/VLM-FO1-3B-v01; it was published as omlab/VLM-FO1_Qwen2.5-VL-3B-v01.

- folders: a released folder, read and written: `load_release`, `export_release`
- configs: from the release's flat config to ours
- flat_config: from ours to the release's
- names: names of the release's tensors
- kept_files: files of a released folder that go through ours unread, for the way back
- generation_settings: how a released checkpoint is decoded
- folder_names: the hub names, and what the released loader asks of a folder's name
- parity: ``python -m fo1_model.release.parity``: recorded runs of the released code, and ours
- intended: where ours differs from the released code on purpose, one rule each
"""

from fo1_model.release.folders import export_release, load_release, load_release_processor

__all__ = ["export_release", "load_release", "load_release_processor"]
