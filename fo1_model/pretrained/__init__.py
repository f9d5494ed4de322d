"""What makes our model one of transformers': others' tools work on it.

config   FO1Config: config.json as transformers sees it
inputs   tensors by name: what the processor gives and forward takes
methods  FO1PreTrainedModel: forward with tensors by name, generate, embeddings
loading  from_pretrained and save_pretrained: types, devices, repositories
"""
