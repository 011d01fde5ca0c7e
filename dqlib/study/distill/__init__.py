"""Any checkpoint, one command: ``dqlib distill`` and ``dqlib evaluate``, made of the study's parts.

May import every other room of the study but notebooks; ``dqlib.cli`` alone imports it.
"""
