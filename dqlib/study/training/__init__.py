"""Training: examples, batches, the loop, checkpoints, objectives, and the trainings of a task.

Imports ``corpora``, ``params`` and ``process`` only, beside the core.
"""
