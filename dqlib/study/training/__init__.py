"""Training: examples, batches, objectives, the loop, checkpoints, and the trainings of a task.

May import the core, params, process and corpora. What lives here decides numbers.
"""
