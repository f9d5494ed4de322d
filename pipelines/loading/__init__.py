"""From shards and a mix to the batches of a rank.

- `sample_plan`: which example of which source stands at which position of a run
- `loader`: reads, encodes and collates the examples of each step, ahead of the model
- `worker_processes`: the same in processes of their own
- `micro_batches`: how a rank's examples are cut into forward passes
- `collators`: what a learner does with examples on the CPU
- `mix_budget`: what a mix amounts to before anything is trained
"""
