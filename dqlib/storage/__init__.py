"""The core's second floor: codes as bytes, packed models, manifests, reading models, accounts of size.

May import the core alone.
"""
