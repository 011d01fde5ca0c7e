"""The command ``dqlib``: distil a checkpoint, and pack, check, export and score models, or let them write.

May import the core, the engines and ``dqlib.study.distill``; commands import what they need when they run, so that
``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

from dqlib.cli.classification import agree_on_classes, classify
from dqlib.cli.inputs import (
    COLUMNS,
    READING,
    SEARCH,
    UNDECODED,
    check_writable,
    compared,
    lines_of,
    of_option,
    outside,
    search_of,
)
from dqlib.engines import ENGINES
from dqlib.engines.base import Engine
from dqlib.errors import InputError
from dqlib.study.distill.arguments import DistillArguments, Test, options_named, options_of


@dataclass(frozen=True, slots=True)
class Command:
    """A subcommand.

    Args:
        run: does it, and gives the exit code; its docstring is the help.
        light: whether it does without torch and transformers, which take seconds to import.
    """

    run: Callable[[argparse.Namespace], int]
    example: str
    arguments: dict[str, dict[str, Any]]
    light: bool = False


def _pack(options: argparse.Namespace) -> int:
    """write a trained student as a packed model"""
    from dqlib.engines.kept import keep, kept
    from dqlib.storage.manifest import packed_size_bytes
    from dqlib.storage.packed import save_packed
    from dqlib.storage.reading import read_tokenizer
    from dqlib.storage.students import load_student
    from dqlib.student import round_for_storage

    student, tokenizer = load_student(options.student), read_tokenizer(options.student)
    outside(options.student, options.out)
    if options.round:
        round_for_storage(student)
    save_packed(student, options.out, tokenizer)
    keep(options.out, kept(options.student))
    print(f"{options.out}: {packed_size_bytes(options.out):,} bytes")
    return 0


def _inspect(options: argparse.Namespace) -> int:
    """show where the bytes of a packed model are"""
    from dqlib.storage.account import account, fp32_bytes_of
    from dqlib.storage.manifest import opened

    student = opened(options.folder, "packed").about
    with of_option("--teacher", options.teacher):
        teacher = None if options.teacher is None else fp32_bytes_of(options.teacher)
    found = account(options.folder, teacher)
    print(f"{student.get('class')}, {student.get('config')}, preset {student.get('preset')}\n\n{found}")
    return 0


def _verify(options: argparse.Namespace) -> int:
    """check all checksums of a packed, exported or saved model; exit code 1 if one is wrong"""
    from dqlib.storage.manifest import verify

    faults = verify(options.folder)
    for fault in faults:
        print(fault, file=sys.stderr)
    if not faults:
        print(f"{options.folder}: sound")
    return 1 if faults else 0


def _export(options: argparse.Namespace) -> int:
    """write a packed model, a student or a teacher for another engine"""
    from dqlib.engines import export_model
    from dqlib.engines.kept import keep, kept
    from dqlib.engines.torch_engine import load_model

    own = {"quantization": "ctranslate2", "bits": "onnxruntime", "encoder": "onnxruntime"}
    chosen = {name: getattr(options, name) for name in own if getattr(options, name) is not None}
    for name, value in chosen.items():
        if own[name] != options.engine:
            raise InputError(f"--{name}", value, f"left out with --engine {options.engine}: it is one of {own[name]}")
    model, tokenizer = load_model(options.model)
    outside(options.model, options.out)
    report = export_model(model, options.out, options.engine, tokenizer, **chosen)
    keep(options.out, kept(options.model))
    print(options.out if report is None else report)
    return 0


def _generate(options: argparse.Namespace) -> int:
    """read one text per line, write JSON Lines: an answer, or of a GPT-2 how the text goes on"""
    from dqlib.engines import load_engine

    with lines_of(options.input) as texts:
        engine = load_engine(options.folder, options.engine, options.threads)
        _new_tokens(engine, options)  # refuses what no batch could have
        while batch := list(islice(texts, options.batch_size)):
            outputs = engine.generate(
                batch, max_new_tokens=options.max_new_tokens, languages=options.language,
                batch_size=options.batch_size, **search_of(options),
            )  # fmt: skip
            for text, output in zip(batch, outputs, strict=True):
                print(json.dumps({"input": text, "output": output}, ensure_ascii=False), flush=True)
    return 0


def _new_tokens(engine: Engine, options: argparse.Namespace) -> int:
    """Tokens that are written at most, if the model has positions for so many and no more are wanted at least."""
    most = engine.new_tokens(options.max_new_tokens)
    if (options.min_new_tokens or 0) > most:
        raise InputError("--min-new-tokens", options.min_new_tokens, f"at most {most}, as many as are written at most")
    return most


def _agree(options: argparse.Namespace) -> int:
    """tell on how many tokens, or classes, two models or two engines agree"""
    from dqlib.engines import is_classifier, load_engine
    from dqlib.engines.agreement import agreement

    if is_classifier(options.reference):
        return agree_on_classes(options)
    for name in ("pairs", "text", "second"):
        if getattr(options, name):
            raise InputError(f"--{name}", getattr(options, name), "left out where models write: it is for classifiers")
    with lines_of(options.input) as lines:
        texts = list(lines)
        engines = compared(options, load_engine)
        first = engines[0]
        ids, new_tokens = first.encode(texts, options.max_new_tokens), _new_tokens(first, options)
        starts = first.starts(options.language, len(texts))
        written = []
        for engine in engines:
            batches = (slice(i, i + options.batch_size) for i in range(0, len(ids), options.batch_size))
            written.append([
                row for part in batches
                for row in engine.generate_ids(ids[part], max_new_tokens=new_tokens, **search_of(options),
                                               starts=None if starts is None else starts[part])
            ])  # fmt: skip
    print(agreement(*written))
    return 0


def _distill(options: argparse.Namespace) -> int:
    """distil and quantize a checkpoint on pairs of texts, test it, pack it and report"""
    # as the study does, for threads that wait in a loop take the cores from others; read when torch is imported
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with _study_installed():
        from dqlib.study.distill.run import distill_command
    return distill_command(options)


def _evaluate(options: argparse.Namespace) -> int:
    """score a model on pairs of texts, with intervals, and compare it with another"""
    with _study_installed():
        from dqlib.study.distill.evaluate import evaluate_command
    return evaluate_command(options)


@contextmanager
def _study_installed() -> Iterator[None]:
    """Say what to install where the study's dependencies are missing."""
    try:
        yield
    except ImportError as error:
        allowed = f"installed with the study, by pip install -e '.[notebooks]' in its folder ({error})"
        raise InputError("dqlib", "without the study", allowed) from None


def _named(metavar: str, text: str) -> dict[str, Any]:
    return {"metavar": metavar, "help": text}


_ENGINE = {"choices": ENGINES, "help": "that runs it (default: the one it was made for)"}

#: All subcommands, by name.
COMMANDS = {
    "distill": Command(
        _distill,
        "dqlib distill checkpoint out --train pairs.jsonl --source document --target summary --config '2-2-8 6-3'",
        options_of(DistillArguments),
    ),
    "evaluate": Command(
        _evaluate,
        "dqlib evaluate out/packed test.jsonl --source document --target summary --against checkpoint",
        options_of(Test),
    ),
    "pack": Command(
        _pack,
        "dqlib pack runs/laptop/summarization/students/2-2-8_2-2 packed",
        {
            "student": _named("STUDENT_FOLDER", "folder of a trained student, with its tokenizer"),
            "out": _named("OUT", "folder to write: new, empty, or a packed model, which is replaced"),
            "--round": {
                "action": "store_true",
                "help": "round a student to fp16 that was not rounded before its evaluation; its score may then differ "
                "a little",
            },
        },
    ),
    "inspect": Command(
        _inspect,
        "dqlib inspect packed --teacher runs/laptop/summarization/teacher",
        {
            "folder": _named("FOLDER", "folder of a packed model"),
            "--teacher": _named(
                "FOLDER", "tell ratios against this model in fp32 (default: the packed model's own shape)"
            ),
        },
        light=True,
    ),
    "verify": Command(
        _verify,
        "dqlib verify packed",
        {"folder": _named("FOLDER", "folder that dqlib wrote: a packed, exported or saved model")},
        light=True,
    ),
    "export": Command(
        _export,
        "dqlib export packed fast --engine ctranslate2",
        {
            "model": _named("MODEL", "folder of a packed model, of a student, or of a teacher"),
            "out": _named("OUT", "folder to write: new, empty, or an exported model, to be replaced"),
            "--engine": {"choices": ENGINES[1:], "required": True, "help": "program that is to run it"},
            "--quantization": {
                "help": "of ctranslate2: int8 or float32 (default: int8 for what has quantized weights, float32 for a "
                "teacher)"
            },
            "--bits": {
                "type": int,
                "choices": (2, 4, 8),
                "help": "of onnxruntime: bits of a weight (default: as few as hold the student's)",
            },
            "--encoder": {
                "help": "of onnxruntime: int8 for speed, packed for the least memory (default: int8 where the weights "
                "allow it)"
            },
        },
    ),
    "agree": Command(
        _agree,
        "echo 'Return the sum of a list of numbers.' | dqlib agree packed fast --beams 1",
        {
            "reference": _named("REFERENCE", "folder of a model, whose tokenizer is used for both"),
            "folder": _named("FOLDER", "folder of the model that is compared with it"),
            **(READING | SEARCH | COLUMNS),
        },
    ),
    "classify": Command(
        classify,
        "printf 'a summary\\ta text\\n' | dqlib classify packed --pairs",
        {
            "folder": _named("MODEL", "folder of a packed, exported or trained classifier, with a tokenizer"),
            "--engine": _ENGINE,
            **(READING | COLUMNS),
            "--format": {
                "choices": ("jsonl", "text"),
                "default": "jsonl",
                "help": "jsonl: an object per line with the text, its label and the probability of each class; text: "
                "label, its probability and the text with tabs between them (default: %(default)s)",
            },
        },
    ),
    "generate": Command(
        _generate,
        "echo 'Return the sum of a list of numbers.' | dqlib generate packed --beams 4 --max-new-tokens 32",
        {
            "folder": _named("FOLDER", "folder of a packed or exported model, with a tokenizer"),
            "--engine": _ENGINE,
            **(READING | SEARCH),
        },
    ),
}


def parser() -> argparse.ArgumentParser:
    """The parser of all subcommands."""
    whole = argparse.ArgumentParser(prog="dqlib", description="Small language models, packed.")
    subcommands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        text = command.run.__doc__ or ""
        part = subcommands.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            epilog=f"example:\n  {command.example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        for argument, how in command.arguments.items():
            part.add_argument(argument, **how)
    return whole


def main(arguments: list[str] | None = None) -> int:
    """Run a subcommand; what is wrong with its input is told in one sentence, with exit code 2."""
    options = parser().parse_args(arguments)
    command = COMMANDS[options.command]
    for stream in (sys.stdin, sys.stdout):  # texts are UTF-8, as in files, whatever the terminal's encoding is
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors=UNDECODED if stream is sys.stdin else "strict")
    try:
        if "out" in options:
            check_writable(options.out)
        if not command.light:
            from transformers.utils import logging

            logging.set_verbosity_error()
            logging.disable_progress_bar()
        with options_named(command.arguments):
            return command.run(options)
    except KeyboardInterrupt:
        print(f"dqlib {options.command}: stopped", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:  # the reader of our output has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (InputError, OSError, UnicodeError, json.JSONDecodeError) as error:
        print(f"dqlib {options.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
