"""Parameters: read from YAML, checked, and the paths that follow from them.

Imports nothing else of the study, only the core.
"""
