"""Forms of annotation files, streamed."""
