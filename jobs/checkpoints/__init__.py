"""Checkpoints: finished runs of ours, model folders, and the released layout, all under one word.

find           a checkpoint by the name, folder, URI or hub name that a person gives
lineage        what a run was made from: its detector and how its questions were built
evaluate       a checkpoint's answers to a benchmark
predict        one question about one image
import_export  model folders in and out
"""
