"""Jobs of a study without a process for each, which would take seconds to import PyTorch."""


def in_this_process(title, jobs):
    """In place of ``run_all``, where it is not what is tested."""
    for job in jobs:
        job.call(*job.arguments)
