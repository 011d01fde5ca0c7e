"""The command ``dqlib``: pack a student, look into the packed model, check it, let it write.

Commands import what they need when they run, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from dqlib.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers import PreTrainedTokenizerBase as Tokenizer

#: Tokens that are written at most, where nothing else is said.
NEW_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Command:
    """A subcommand.

    Args:
        help: one line.
        example: how it is called, and what comes out.
        arguments: adds its arguments to a parser.
        run: does it, and gives the exit code.
    """

    help: str
    example: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def _pack_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("student", metavar="STUDENT_FOLDER", help="folder of a trained student, with its tokenizer")
    parser.add_argument("out", metavar="OUT", help="folder to write: new, empty, or a packed model, which is replaced")
    parser.add_argument(
        "--round",
        action="store_true",
        help="round a student to fp16 that was not rounded before its evaluation; its score may then differ a little",
    )


def _pack(options: argparse.Namespace) -> int:
    from transformers import AutoTokenizer

    from dqlib.packed import packed_size_bytes, save_packed
    from dqlib.student import load_student, round_for_storage

    student, tokenizer = load_student(options.student), None
    if any(Path(options.student).glob("tokenizer*")):
        tokenizer = AutoTokenizer.from_pretrained(options.student, trust_remote_code=False, local_files_only=True)
    if options.round:
        round_for_storage(student)
    save_packed(student, options.out, tokenizer)
    print(f"{options.out}: {packed_size_bytes(options.out):,} bytes")
    return 0


def _inspect_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="folder of a packed model")
    parser.add_argument(
        "--teacher",
        metavar="FOLDER",
        help="tell ratios against this model in fp32 (default: the packed model's own shape)",
    )


def _inspect(options: argparse.Namespace) -> int:
    from dqlib.account import account, fp32_bytes_of
    from dqlib.packed import packed_manifest

    student = packed_manifest(options.folder).student
    teacher_bytes = None if options.teacher is None else fp32_bytes_of(options.teacher)
    print(f"{student.get('class')}, {student.get('config')}, preset {student.get('preset')}\n")
    print(account(options.folder, teacher_bytes))
    return 0


def _verify_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="folder of a packed model")


def _verify(options: argparse.Namespace) -> int:
    from dqlib.packed import verify_packed

    faults = verify_packed(options.folder)
    for fault in faults:
        print(fault, file=sys.stderr)
    if not faults:
        print(f"{options.folder}: sound")
    return 1 if faults else 0


def _generate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="folder of a packed model, with a tokenizer")
    parser.add_argument("--input", metavar="FILE", default="-", help="file with one text a line; - for standard input")
    parser.add_argument("--beams", type=_at_least_one, default=4, help="beams of the search (default: %(default)s)")
    parser.add_argument(
        "--max-new-tokens",
        type=_at_least_one,
        help=f"tokens written at most (default: {NEW_TOKENS}, or what the model has positions for)",
    )
    parser.add_argument("--batch-size", type=_at_least_one, default=8, help="texts at a time (default: %(default)s)")


def _generate(options: argparse.Namespace) -> int:
    from dqlib.packed import load_packed, load_tokenizer

    tokenizer, model = load_tokenizer(options.folder), load_packed(options.folder)
    if not model.can_generate():
        raise InputError("folder", options.folder, f"a model that writes, which no {type(model).__name__} does")
    with ExitStack() as stack:
        lines: TextIO = sys.stdin
        if options.input != "-":
            lines = stack.enter_context(Path(options.input).open(encoding="utf-8"))
        texts = (line.rstrip("\r\n") for line in lines)
        for text, output in _answers(model, tokenizer, texts, options):
            print(json.dumps({"input": text, "output": output}, ensure_ascii=False), flush=True)
    return 0


def _answers(
    model: PreTrainedModel, tokenizer: Tokenizer, texts: Iterable[str], options: argparse.Namespace
) -> Iterator[tuple[str, str]]:
    """Each text with what the model makes of it, in order."""
    from dqlib.generation import OneSourceCache

    continues = not model.config.is_encoder_decoder  # its answer goes on after the text, in the same positions
    positions = getattr(model.config, "max_position_embeddings", None)
    new_tokens = options.max_new_tokens or min(NEW_TOKENS, (positions or 2 * NEW_TOKENS) // (2 if continues else 1) - 1)
    longest = tokenizer.model_max_length
    if positions is not None:
        if new_tokens >= positions:
            raise InputError("--max-new-tokens", new_tokens, f"at most {positions - 1}, the model's positions less one")
        longest = min(longest, positions - (new_tokens if continues else 0))
    if continues:
        tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    texts = iter(texts)
    while batch := list(islice(texts, options.batch_size)):
        inputs = tokenizer(batch, return_tensors="pt", padding=True, truncation=longest < 10**9, max_length=longest)
        output = model.generate(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"],
            num_beams=options.beams, max_new_tokens=new_tokens, do_sample=False,
            past_key_values=None if continues else OneSourceCache(),
        )  # fmt: skip
        output = output[:, inputs["input_ids"].size(1) :] if continues else output
        yield from zip(batch, tokenizer.batch_decode(output, skip_special_tokens=True), strict=True)


def _at_least_one(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; it must be a whole number of at least 1")
    return value


#: All subcommands, by name.
COMMANDS = {
    "pack": Command(
        "write a trained student as a packed model",
        "dqlib pack runs/laptop/summarization/students/2-2-8_2-2 packed",
        _pack_arguments,
        _pack,
    ),
    "inspect": Command(
        "show where the bytes of a packed model are",
        "dqlib inspect packed --teacher runs/laptop/summarization/teacher",
        _inspect_arguments,
        _inspect,
    ),
    "verify": Command(
        "check all checksums of a packed model; exit code 1 if one is wrong",
        "dqlib verify packed",
        _verify_arguments,
        _verify,
    ),
    "generate": Command(
        "read one text a line, write JSON Lines",
        "echo 'Return the sum of a list of numbers.' | dqlib generate packed --beams 4 --max-new-tokens 32",
        _generate_arguments,
        _generate,
    ),
}


def parser() -> argparse.ArgumentParser:
    """The parser of all subcommands."""
    whole = argparse.ArgumentParser(prog="dqlib", description="Small sequence-to-sequence models, packed.")
    subcommands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        part = subcommands.add_parser(
            name,
            help=command.help,
            description=f"{command.help[0].upper()}{command.help[1:]}.",
            epilog=f"example:\n  {command.example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.arguments(part)
    return whole


def main(arguments: list[str] | None = None) -> int:
    """Run a subcommand; what is wrong with its input is told in one sentence, with exit code 2."""
    options = parser().parse_args(arguments)
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        return COMMANDS[options.command].run(options)
    except BrokenPipeError:  # the reader of our output has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (InputError, OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        print(f"dqlib {options.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
