"""Opening the executed notebooks as pages."""

from __future__ import annotations

import webbrowser

from dqlib.errors import InputError
from dqlib.study.params.paths import project_root
from dqlib.study.params.settings import TASKS, load_settings

#: Pages in the order of the story; others follow.
ORDER = ("compare", *TASKS)


def open_pages(params: str, page: str | None = None) -> None:
    """Open a page of a profile in a browser, the comparison when it has no name, and print where all of them are.

    Raises:
        InputError: there are no pages yet, or none of that name.
    """
    folder = load_settings(params).runs / "notebooks"
    pages = {path.stem: path for path in sorted(folder.rglob("*.html"))}
    if not pages:
        raise InputError("runs", str(folder.relative_to(project_root())), "a folder of pages: run `make repro` first")
    names = [name for name in ORDER if name in pages] + sorted(pages.keys() - set(ORDER))
    page = page or names[0]
    if page not in pages:
        raise InputError("page", page, f"one of {', '.join(pages)}")
    for name in names:
        print(pages[name].relative_to(project_root()))
    webbrowser.open(pages[page].as_uri())
