"""Labelling: the teacher writes targets for its students, by the fastest engine that agrees with it.

Decides what such students learn from. May import the core, the engines, params, process, corpora, training, evaluation.
"""
