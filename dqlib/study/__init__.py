"""The study: what notebooks and the pipeline call, one room per part; ``python -m dqlib.study`` is its command line.

May import the core and the engines. Of its rooms ``distill`` alone is imported from outside, by ``dqlib.cli`` and the
name ``dqlib.distill``.
"""
