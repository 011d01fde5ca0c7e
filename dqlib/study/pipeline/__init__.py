"""The study as stages: making what is missing, jobs, students, the benchmark, notebooks run, and the plan.

May import the core, the engines, params, process, corpora, training, evaluation and labelling.
"""
