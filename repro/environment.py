"""One list of versions: constraints.txt is read off an installed environment, environment.yml is derived from it.

`python -m repro.environment` rewrites environment.yml; with `--renew` it first rewrites constraints.txt from the
versions installed beside this interpreter (all extras have to be installed). With `--lowest` it only prints the oldest
versions that the package says it supports, for `pip install`.
"""

import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import distribution
from pathlib import Path

HEADER = """\
# The one list of versions: `make` installs with it, environment.yml derives from it. Linux, macOS; Python 3.11 to 3.13.
# Packages that only another system needs (colorama, appnope, torch's CUDA libraries) follow from the ones pinned here.
# To renew: a fresh environment of Python 3.11, `pip install -e ".[book,test,peers,cluster]"` without constraints,
# `python -m repro.environment --renew`, `make test`, and look at what changed before committing.
"""


def direct(pyproject: dict) -> dict[str, list[str]]:
    """Requirements as pyproject.toml states them, by group: `core` and then each extra."""
    return {"core": pyproject["project"]["dependencies"], **pyproject["project"]["optional-dependencies"]}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def sections(constraints: str) -> dict[str, list[str]]:
    """The pins of a constraints file by group; a line `# [group]` opens a group."""
    groups: dict[str, list[str]] = {}
    for line in constraints.splitlines():
        if opened := re.fullmatch(r"# \[(\w+)\]", line):
            pins = groups.setdefault(opened[1], [])
        elif line and not line.startswith("#"):
            pins.append(line)
    return groups


def render_environment(constraints: str, extras: Iterable[str]) -> str:
    """The text of environment.yml: Python 3.11 and every pin of the core and of `extras`, then reprolib itself."""
    groups = sections(constraints)
    pins = sorted({pin for extra in ("core", *extras) for pin in groups[extra]})
    lines = [
        "# Derived from constraints.txt by `python -m repro.environment`; a test says so. For conda and Binder.",
        "name: reprolib",
        "channels: [conda-forge, nodefaults]",
        "dependencies:",
        "  - python=3.11",
        "  - pip",
        "  - pip:",
        *(f"    - {pin}" for pin in pins),
        "    - -e .",
    ]
    return "\n".join(lines) + "\n"


def lowest(requirements: Iterable[str]) -> list[str]:
    """The oldest version that each of some requirements (``name>=version``) allows, as pins."""
    return [requirement.replace(">=", "==") for requirement in requirements]


def needed(requirements: Iterable[str], seen: set[tuple[str, str]]) -> Iterator[str]:
    """Pins of everything installed that `requirements` lead to on this machine, dependencies of dependencies too."""
    from packaging.requirements import Requirement

    for requirement in map(Requirement, requirements):
        for extra in ("", *requirement.extras):
            if (canonical(requirement.name), extra) in seen:
                continue
            seen.add((canonical(requirement.name), extra))
            found = distribution(requirement.name)
            yield f"{canonical(requirement.name)}=={found.version.partition('+')[0]}"
            wanted = [
                r for r in found.requires or () if (m := Requirement(r).marker) is None or m.evaluate({"extra": extra})
            ]
            yield from needed(wanted, seen)


def renewed_constraints(pyproject: dict) -> str:
    """The text of constraints.txt from what is installed; a package stands in the first group that needs it."""
    text, listed = HEADER, set[str]()
    for group, requirements in direct(pyproject).items():
        pins = sorted(set(needed(requirements, set())) - listed)
        listed.update(pins)
        text += "\n".join(["", f"# [{group}]", *pins, ""])
    return text


def main() -> None:
    pyproject = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))
    if "--lowest" in sys.argv[1:]:
        print("\n".join(lowest(direct(pyproject)["core"])))
        return
    if "--renew" in sys.argv[1:]:
        Path("constraints.txt").write_text(renewed_constraints(pyproject), encoding="utf-8")
    constraints = Path("constraints.txt").read_text(encoding="utf-8")
    Path("environment.yml").write_text(render_environment(constraints, ["book"]), encoding="utf-8")


if __name__ == "__main__":
    main()
