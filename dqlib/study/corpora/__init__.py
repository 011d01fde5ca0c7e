"""Corpora: one module per embedded corpus, files, the hub, rows, splits, the tokenizer.

May import the core, params and process. What lives here decides numbers.
"""
