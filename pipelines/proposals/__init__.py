"""From images to cached proposals."""
