"""Metrics: pure functions from questions, answers and truth to numbers.

cases         the records that metrics are computed from: `Case`, `Scene`, `Target`, `Answer`
matching      IoU of boxes and one-to-one pairing by it
regions       how well regions are chosen: exact sets, F1, refusals, readable answers
detection     COCO average precision of the answers
counting      the number in the answer against the true number
proposals     recall of a detector's boxes, and the AP of a perfect reader
comparison    two detectors beside each other: agreement, calibration, images that differ
summary       all metrics of an evaluated benchmark as one flat table
"""
