"""Processes: exit codes, locks, provenance, progress, workers, and starting a job on several processes.

May import the core and params; every room above params may import it.
"""
