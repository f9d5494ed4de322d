"""From shards and a mix to the batches of a rank."""
