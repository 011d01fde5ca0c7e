"""``python -m dqlib.study COMMAND``: all that the pipeline runs, and what a person runs by hand.

Commands import what they need when they run, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from dqlib.study.params.paths import project_root
from dqlib.study.process.exit_codes import exit_code

Options = argparse.Namespace


def profile(options: Options) -> None:
    """make a profile the params.yaml that the pipeline reads, and run the study under it if that is wanted"""
    from dqlib.study.params.profiles import choose_profile
    from dqlib.study.params.settings import load_settings

    back = " written to params.yaml; `git checkout params.yaml dvc.lock` goes back to those of the commit"
    print(f"profile {options.profile}{back if choose_profile(options.profile) else ''}", flush=True)
    if options.run:
        from dqlib.study.pipeline.reproduce import reproduce
        from dqlib.study.report.pages import print_summary, studies_of

        reproduce(options.profile)
        params = "params.yaml" if load_settings(options.profile).in_pipeline else options.profile
        if studies_of(params):  # tasks that are compared with each other
            print_summary(params)


def make(options: Options) -> None:
    """make one part of the study, with what it needs"""
    from dqlib.study.pipeline.benchmark import run_benchmark
    from dqlib.study.pipeline.students import run_students
    from dqlib.study.pipeline.study import Study

    _check_used(options, "part", {**dict.fromkeys(_STUDENT, ("student",)), "--if-asked": _ASKED})
    study = Study(options.params, options.task)
    makers: dict[str, Callable[[], Path | None]] = {
        "corpus": study.corpus,
        "pretrained": study.asked_pretrained if options.if_asked else study.pretrained,
        "teacher": study.teacher,
        "pseudo-labels": study.asked_pseudo_labels if options.if_asked else study.pseudo_labels,
        "student": lambda: study.student(options.config or study.task.headline, options.preset, options.seed),
        "students": lambda: run_students(study),
        "benchmark": lambda: run_benchmark(study),
    }
    folder = makers[options.part]()
    print(f"{options.part}: {_shown(folder) if folder else 'none; the teacher starts from random weights'}")


def job(options: Options) -> None:
    """run one training, under torchrun or accelerate launch on several processes"""
    import torch

    from dqlib.config import Config
    from dqlib.study.params.settings import load_settings
    from dqlib.study.pipeline.jobs import check_inputs, run_job

    _check_used(options, "job", dict.fromkeys(_STUDENT, ("distill",)))
    settings = load_settings(options.params)
    check_inputs(settings, options.job, options.task, options.params)
    config = None if options.config is None else Config.parse(options.config)
    try:
        run_job(settings, options.job, options.task, config, options.preset, options.seed)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def notebook(options: Options) -> None:
    """execute a notebook, as a stage of the pipeline"""
    from dqlib.study.pipeline.notebook import run_notebook

    target = run_notebook(options.notebook, options.params, options.config, options.task)
    print(f"{options.notebook}: {_shown(target)}")


def plan(options: Options) -> None:
    """time two steps of every training of a profile, and say how long all will take"""
    from dqlib.study.params.settings import load_settings
    from dqlib.study.pipeline.plan import plan

    print(plan(load_settings(options.params), only=options.task, devices=options.devices))


def publish(options: Options) -> None:
    """write tables and page of all finished runs of the benchmark, and train none"""
    from dqlib.study.pipeline.study import Study
    from dqlib.study.report.benchmark_page import write_benchmark

    print(f"methods: {_shown(write_benchmark(Study(options.params, options.task), run=False))}")


def redraw(options: Options) -> None:
    """draw tables, figures and pages of finished results again from their rows and scores, and train none"""
    from dqlib.study.report import pages

    print(f"results: {_shown(pages.redraw(options.params))}")


def models(options: Options) -> None:
    """write models/: the teacher of summarization in fp16 and the headline student of each task, packed"""
    from dqlib.study.report.models import write_models

    folder, missing, stale = write_models(options.params)
    left_out = [f"no student is here of {', '.join(missing)}"] if missing else []
    left_out += [f"students of other code or parameters are here of {', '.join(stale)}"] if stale else []
    print("; ".join([f"models: {_shown(folder)}", *left_out]))


def report(options: Options) -> None:
    """print the short tables of finished results"""
    from dqlib.study.report.pages import print_summary

    print_summary(options.params)


def claims(options: Options) -> None:
    """compute scores, retention, p-values and claims of the results again from the scores of documents alone"""
    from dqlib.study.params.settings import load_settings
    from dqlib.study.process.exit_codes import JobError
    from dqlib.study.report.recompute import recomputed

    folder = project_root() / load_settings(options.params).results
    table, differences = recomputed(folder)
    print("\n".join(f"{row.claim} | {row.task} | {row.measured} | {row.verdict}" for row in table.itertuples()))
    if differences:
        raise JobError("\n".join([f"{_shown(folder)}/tables are not what the scores give:", *differences]))
    print(f"\n{_shown(folder)}/tables: scores, retention, p-values and claims are those that the scores give.")


def read(options: Options) -> None:
    """open the executed notebooks as pages in a browser"""
    from dqlib.study.report.read import open_pages

    open_pages(options.params, options.page)


def readme(options: Options) -> None:
    """fill the tables of README.md and docs/ from results/"""
    from dqlib.study.report.readme import fill_readme

    fill_readme()


def code(options: Options) -> None:
    """write SHA-256 of the code that corpora, trainings and scores depend on"""
    from dqlib.study.params.identity import write_hashes

    write_hashes(project_root() / options.folder)


_PARAMS = {"--params": {"default": "params.yaml", "help": "parameter file, or name of a profile"}}
_TASK = {"--task": {"default": "summarization", "help": "name of the task (default: %(default)s)"}}
_ONE_TASK = {"--task": {"help": "name of one task; when left out, a notebook shows one that fits, and plan counts all"}}
_CONFIG = {"--config": {"help": "of a student, such as '2-2-8 2-1'"}}
_STUDENT: dict[str, dict] = {
    **_CONFIG,
    "--preset": {"help": "of a student, by name or YAML file; the task's own, when left out"},
    "--seed": {"type": int, "help": "of a student; the task's own, when left out"},
}
_ASKED = ("pretrained", "pseudo-labels")
_IF_ASKED = {
    "action": "store_true",
    "default": None,
    "help": f"{', '.join(_ASKED)}: a folder without any where none are asked for",
}
_PARTS = ("corpus", "pretrained", "teacher", "pseudo-labels", "student", "students", "benchmark")

#: Commands, which have the names of their functions, and the arguments of each as ``add_argument`` takes them.
COMMANDS: dict[Callable[[Options], None], dict[str, dict]] = {
    profile: {"profile": {}, "--run": {"action": "store_true", "help": "run the study under it, and print its tables"}},
    make: {"part": {"choices": _PARTS}, **_PARAMS, **_TASK, **_STUDENT, "--if-asked": _IF_ASKED},
    job: {"job": {"choices": ("pretrain", "finetune", "distill")}, **_PARAMS, **_TASK, **_STUDENT},
    notebook: {"notebook": {}, **_PARAMS, **_ONE_TASK, **_CONFIG},
    plan: {**_PARAMS, **_ONE_TASK, "--devices": {"type": int, "help": "accelerators (default: this machine's)"}},
    publish: {**_PARAMS, **_TASK},
    redraw: _PARAMS,
    models: _PARAMS,
    report: _PARAMS,
    claims: _PARAMS,
    read: {"page": {"nargs": "?", "help": "such as translation (default: the comparison)"}, **_PARAMS},
    readme: {},
    code: {"folder": {}},
}


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    whole = argparse.ArgumentParser(prog="python -m dqlib.study", description="The study, part by part.")
    commands = whole.add_subparsers(required=True, metavar="COMMAND")
    for run, arguments in COMMANDS.items():
        part = commands.add_parser(run.__name__, help=run.__doc__)
        part.set_defaults(command=run)
        for argument, options in arguments.items():
            part.add_argument(argument, **options)
    return whole


def main(arguments: list[str] | None = None) -> int:
    """Run a command; errors of the user's making are one sentence on standard error."""
    options = parser().parse_args(arguments)
    # Threads of torch that wait in a loop take the cores from whoever has work: beside other programs, small models run
    # many times slower. OpenMP reads this when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return exit_code(lambda: options.command(options))


def _check_used(options: Options, argument: str, users: Mapping[str, Sequence[str]]) -> None:
    """Raise an ``InputError`` of an option that the value of an argument makes nothing of.

    ``users`` has the values that make something of an option, by its flag.
    """
    from dqlib.errors import InputError

    chosen = getattr(options, argument)
    for flag, values in users.items():
        given = getattr(options, flag.lstrip("-").replace("-", "_"))
        if given is not None and chosen not in values:
            raise InputError(flag, given, f"left out with the {argument} {chosen}; it is for {' and '.join(values)}")


def _shown(path: object) -> str:
    """A path as seen from the project's folder."""
    return str(path).removeprefix(f"{project_root()}/")


if __name__ == "__main__":
    sys.exit(main())
