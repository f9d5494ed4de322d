"""From a trained model to predictions, and from predictions to metrics.

predict           the graph: evaluation shards -> model workers -> predictions by bucket
score             the entry points: metrics of predictions, of some questions, of a detector
joined_cases      each question joined with its stored answer and with its truth
stored_inputs     what scoring and pages read from artifacts: samples, scenes, proposals, examples
metrics           the metrics themselves: pure functions, one file a topic
"""
