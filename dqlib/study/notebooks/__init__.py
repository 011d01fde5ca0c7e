"""Notebooks: pictures and small tables that only notebooks show.

Nothing imports this room. It may import all others.
"""
