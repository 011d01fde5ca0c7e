"""Corpora: one module per embedded corpus, files, the hub, splits, and the tokenizer.

Imports ``params`` and ``process`` only, beside the core.
"""
