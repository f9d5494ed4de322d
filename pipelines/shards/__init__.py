"""From samples and proposals to WebDataset shards."""
