"""A VLM that answers with regions, its proposal network, and detectors; usable without the pipeline."""
