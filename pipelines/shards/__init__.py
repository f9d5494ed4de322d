"""From samples and proposals to the examples of a model, as WebDataset tars with an index.

- `write`: the step: its inputs, its buckets, what its ledger counts.
- `config`: how samples become examples; all of it is hashed.
- `worker`: the examples of one bucket.
- `matching`: proposals and objects of one image, matched one to one.
- `assign`: the regions of one example, where region indices are born.
- `rejection`: samples that ask for what is known to be absent.
- `interleave`: the conversation of a sample with region tokens.
- `bucket_writer`: what one bucket is collected into, and its counters.
- `tar_format`: one shard, writer and reader.
"""
