"""Names of the files that a data set is divided into."""

import glob
import os
import re

from pipeline.sources.remote import Remote, shown

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def find_shards(key: str, pattern: str, *, remote: Remote | None = None) -> list[str]:
    """Returns the absolute paths that `pattern` of the configuration's `key` names, globs sorted, braces in order.

    URLs are those of `remote`; without a `*` they are not looked for here.

    Raises:
        ValueError: One of the names stands for no file.
    """
    shards: list[str] = []
    for name in expand_braces(pattern):
        if remote is not None:
            found = remote.glob(name) if "*" in name else [name]
            if not found:
                raise ValueError(f"{key}={shown(pattern)}: there is no file {shown(name)}")
            shards.extend(found)
            continue
        found = sorted(glob.glob(name))
        if not found:
            raise ValueError(f"{key}={pattern}: there is no file {name}")
        shards.extend(map(os.path.abspath, found))
    return shards


def expand_braces(pattern: str) -> list[str]:
    """Returns every name that `pattern` stands for: `{08..10}` counts and keeps the width, `{a,b}` lists."""
    match = _BRACES.search(pattern)
    if match is None:
        return [pattern]
    bounds = _RANGE.fullmatch(match[1])
    if bounds is None:
        choices = match[1].split(",")
    else:
        choices = [f"{number:0{len(bounds[1])}d}" for number in range(int(bounds[1]), int(bounds[2]) + 1)]
    return [
        name for choice in choices for name in expand_braces(pattern[: match.start()] + choice + pattern[match.end() :])
    ]
