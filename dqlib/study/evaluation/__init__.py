"""Evaluation: generation, ROUGE, BLEU, bootstrap, recall by position, similarity of tokens, and records of results.

Decides numbers. May import params, corpora, training and process.
"""
