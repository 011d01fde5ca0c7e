"""Processes: exit codes, locks, progress, workers, and starting a job on several processes.

May import the core and params; every room above params may import it.
"""
