"""Open the executed notebooks as pages: ``python -m dqlib.study.report.read``."""

from __future__ import annotations

import argparse
import sys
import webbrowser

from dqlib.errors import InputError
from dqlib.study.params.paths import project_root
from dqlib.study.params.settings import load_settings

#: Pages in the order of the story; others follow.
ORDER = ("compare", "summarization", "eli5", "translation")


def main(arguments: list[str] | None = None) -> int:
    """Open the pages of the chosen profile in a browser, and print where they are."""
    parser = argparse.ArgumentParser(prog="python -m dqlib.study.report.read", description=main.__doc__)
    parser.add_argument("page", nargs="?", help="one page, such as 'translation'; the comparison, when left out")
    parser.add_argument("--params", default="params.yaml", help="parameter file, or name of a profile")
    options = parser.parse_args(arguments)
    try:
        folder = load_settings(options.params).runs / "notebooks"
        pages = {path.stem: path for path in sorted(folder.glob("*.html"))}
        if not pages:
            raise InputError(
                "runs", str(folder.relative_to(project_root())), "a folder of pages: run `make repro` first"
            )
        page = options.page or next((name for name in ORDER if name in pages), next(iter(pages)))
        if page not in pages:
            raise InputError("page", page, f"one of {', '.join(pages)}")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name in sorted(pages, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name)):
        print(pages[name].relative_to(project_root()))
    webbrowser.open(pages[page].as_uri())
    return 0


if __name__ == "__main__":
    sys.exit(main())
