"""The training loop, its driver, and what they keep of a run.

What a run is:

- `job`: everything a run is made from, and its fingerprint
- `learners`: what is trained: OPN, and the stages of the region-token model
- `trainees`: the modules of the learners in training: groups, loss, export

What drives it, on the driver's machine:

- `driver`: runs a job to its end, on Ray or without
- `ray_workers`: the workers of a run on Ray, and how they hear the driver
- `run_monitor`: takes the workers' reports, shows progress, passes a stop on
- `tracking_queue`: calls to the tracking server, made by a thread of their own
- `mlflow_tracking`: the run in MLflow
- `validation`: has candidates evaluated beside the training, and chooses the export
- `candidates`: model folders that wait to be evaluated, and their metrics
- `evaluators`: exported models under evaluation
- `lineage`: what a run was made from, all the way up, and the code

What every worker does:

- `loop`: restore, step by step, report, export
- `worker`: one rank as the loop sees it, and the notice to stop
- `train_step`: one optimizer step over all ranks
- `deepspeed_engine`: DeepSpeed's engine, its steps and sharded checkpoints
- `run_state`: what a run remembers: records, skipped steps, recent losses
- `ema`: moving average of the weights
- `throughput`: samples, tokens and FLOPs a second, waiting, memory
- `flops`: FLOPs of a forward and backward pass
- `export`: model folders of a run, written and read from any storage
"""
