"""From a recipe to its chain of artifacts, known whole before anything runs.

- `chain`: `Step`, `Evaluated` and `Chain`, what a chain is made of.
- `recipe_chain`: the chain of a recipe, what `fo1 plan` prints and the other verbs walk along.
- `checks`: names that a recipe gives, looked up before any file is read.
- `data_steps`: steps that make samples, proposals and shards.
- `training_steps`: steps that make runs.
- `evaluation_steps`: steps that make answers to benchmarks.
"""
