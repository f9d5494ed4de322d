"""What people run: recipes, mixes, benchmarks, and the command. Wiring only.

- `command`: the ``fo1`` command: verbs, flags, help, lists, the plan.
- `recipes`: what can be run, and with which arguments.
- `chain`: from a recipe to its artifacts: steps with inputs and fingerprints.
- `execution`: what the verbs that make artifacts do, step by step.
- `mixes`: mixes in words, ``stage2-osprey*vcr=2``, and their grammar.
- `named_mixes`: the mixes that have a name, with their weights.
- `benchmarks`: named benchmarks and the paper's numbers.
- `benchmark_exclusion`: which benchmarks' images training shards leave out.
- `detector_arguments`: detectors in words, ``detector=NAME:SOURCE,setting=value``.
- `plan_budget`: what the mixes of a recipe amount to, in examples and tokens.
- `checkpoints`: runs and model folders: found, evaluated, asked, taken in and out.
- `find_artifacts`: finished artifacts by the names that people give them.
- `proposal_caches`: ``fo1 proposals``: list caches, compare two, make one from a file.
- `experiment`: ``fo1 experiment``: a recipe in several settings, in one table.
- `reports`: pages and tables from artifacts that are done.
- `submit`: ``fo1 submit``: the same words on a Ray cluster.
- `tiny_base`: ``fo1 train tiny_base``: the small pre-trained base.
- `errors`: errors of the command that are neither a wrong setting nor a defect.
"""
