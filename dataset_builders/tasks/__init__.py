"""From facts about an image to the samples of a task."""
