"""The released checkpoint (omlab/VLM-FO1_Qwen2.5-VL-3B-v01), in and out, no tensor lost or left over."""

from fo1_model.release.folders import export_release, load_release

__all__ = ["export_release", "load_release"]
