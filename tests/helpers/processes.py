"""Jobs of a study without a process for each, which would take seconds to import PyTorch, and jobs of no study."""

import os
import pickle


def in_this_process(title, jobs):
    """In place of ``run_all``, where it is not what is tested; a job is what a worker would be sent."""
    for job in pickle.loads(pickle.dumps(jobs)):
        job.call(*job.arguments)


def write_environment(path, *names):
    """Write the number of the process and variables of its environment."""
    path.write_text(" ".join([str(os.getpid()), *(os.environ[name] for name in names)]))


def fail(message):
    raise ValueError(message)
