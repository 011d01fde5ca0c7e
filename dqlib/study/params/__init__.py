"""Parameters: the schema, blocks of a task, profiles, paths, and the identity of the code.

May import the core.
"""
