"""The rooms of the package, and which may import which."""

from pathlib import Path

#: Rooms whose code decides a number.
DECIDING = {"core", "corpora", "training", "evaluation"}
#: And those that decide what a teacher writes for its students, beside them.
LABELLING = {"engines", "labelling"}

#: What each room may import, beside itself. The method's modules and ``storage`` are the two floors of the core.
ARROWS: dict[str, set[str]] = {
    "core": set(),
    "engines": {"core"},
    "cli": {"core", "engines", "distill"},  # which is its window on the study
    "params": {"core"},
    "process": {"core", "params"},
    "corpora": {"core", "params", "process"},
    "training": {"core", "params", "process", "corpora"},
    "evaluation": {"core", "params", "process", "corpora", "training"},
}
ARROWS["labelling"] = ARROWS["evaluation"] | {"engines", "evaluation"}
ARROWS["pipeline"] = ARROWS["labelling"] | {"labelling"}
ARROWS["report"] = ARROWS["pipeline"] | {"pipeline"}
ARROWS["distill"] = ARROWS["report"] | {"report"}
ARROWS["notebooks"] = ARROWS["report"] | {"report"}
ARROWS["study"] = ARROWS["notebooks"] | {"notebooks"}  # the one main


def room_of(path: Path) -> str:
    """The room of a module, whose path is as seen from the package."""
    parts = path.with_suffix("").parts
    if parts[0] == "study":
        return parts[1] if parts[1] in ARROWS else "study"
    return parts[0] if parts[0] in ARROWS else "core"
