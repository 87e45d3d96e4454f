"""Carries out a Dockerfile's own steps without Docker: each stage is a folder, RUN is a chroot, COPY a copy.

The base image is made from the distribution's packages by debootstrap and kept in the cache. Knows the instructions
that our Dockerfile uses and refuses others. Needs root. What a registry of packages needs on this machine (name server,
certificates, pip's configuration) is lent to each stage while its steps run, and is no part of it.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

LENT = (Path("/etc/resolv.conf"), Path("/etc/ssl/certs/ca-certificates.crt"), Path("/etc/pip.conf"))
BASE = "debian:bookworm-slim"
SUITE = "bookworm"
CHROOT = shutil.which("chroot", path="/usr/sbin:/usr/bin:/sbin") or "chroot"
USUAL_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Refused(Exception):
    """The Dockerfile asks for what this cannot do, or a step failed."""


@dataclass(frozen=True, slots=True)
class Step:
    """One instruction; `words` is all that follows its name, with continued lines joined."""

    instruction: str
    words: str


@dataclass(slots=True)
class Stage:
    """A stage as far as it is built: its root folder, and what containers started from it are given."""

    root: Path
    environ: dict[str, str] = field(default_factory=lambda: {"PATH": USUAL_PATH})
    folder: str = "/"
    user: str = "0:0"
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)


def steps_of(text: str) -> Iterator[Step]:
    """The instructions of a Dockerfile in their order, comments left out."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        if line.strip():
            instruction, _, words = line.strip().partition(" ")
            yield Step(instruction.upper(), words.strip())


def build(dockerfile: Path, context: Path, base: Path, workshop: Path) -> Stage:
    """The last stage, built in `workshop` over copies of the root `base`. Raises Refused, with a step's output."""
    arguments: dict[str, str] = {}
    stages: dict[str, Stage] = {}
    stage: Stage | None = None
    for step in steps_of(dockerfile.read_text()):
        words = _filled(step.words, arguments if stage is None or step.instruction == "FROM" else stage.environ)
        if step.instruction == "ARG":
            name, _, value = words.partition("=")
            arguments[name] = value
        elif step.instruction == "FROM":
            origin, _, name = words.partition(" AS ")
            stage = _started(stages.get(origin), origin, base, workshop / f"stage-{len(stages)}")
            stages[name or str(len(stages))] = stage
        elif stage is None:
            raise Refused(f"{step.instruction} before the first FROM")
        else:
            _carry_out(Step(step.instruction, words), stage, stages, context)
    if stage is None:
        raise Refused(f"{dockerfile} has no FROM")
    return stage


def _started(origin: Stage | None, name: str, base: Path, root: Path) -> Stage:
    if origin is None and name != BASE:
        raise Refused(f"FROM {name}: neither a stage nor {BASE}")
    _copy_tree(base if origin is None else origin.root, root)
    return Stage(root=root) if origin is None else Stage(root=root, environ=dict(origin.environ), folder=origin.folder)


def _carry_out(step: Step, stage: Stage, stages: Mapping[str, Stage], context: Path) -> None:
    match step.instruction:
        case "RUN":
            with lent(stage.root):
                run_in(stage, ["/bin/sh", "-c", step.words], env=_registry_settings())
        case "COPY":
            _copy(step.words, stage, stages, context)
        case "ENV":
            stage.environ.update(word.split("=", 1) for word in shlex.split(step.words))
        case "WORKDIR":
            stage.folder = step.words
            _inside(stage, step.words).mkdir(parents=True, exist_ok=True)
        case "USER":
            stage.user = step.words
        case "ENTRYPOINT":
            stage.entrypoint = json.loads(step.words)
        case "CMD":
            stage.command = json.loads(step.words)
        case "EXPOSE":
            pass
        case other:
            raise Refused(f"{other} is not known here; teach it to {__name__}")


def _copy(words: str, stage: Stage, stages: Mapping[str, Stage], context: Path) -> None:
    """`COPY [--from=STAGE] SOURCE... TARGET`: a folder's content, or files into a target that ends with a slash."""
    *sources, target = shlex.split(words)
    root = context
    if sources[0].startswith("--from="):
        root = stages[sources.pop(0).removeprefix("--from=")].root
    for source in sources:
        found = root / source.lstrip("/")
        place = _inside(stage, target)
        if found.is_dir():
            _copy_tree(found, place)
        else:
            place = place / found.name if target.endswith("/") else place
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(found, place)


def _inside(stage: Stage, path: str) -> Path:
    return stage.root / os.path.normpath(os.path.join(stage.folder, path)).lstrip("/")


def _copy_tree(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cp", "--archive", f"{source}/.", str(target)], check=True)


def _filled(words: str, values: Mapping[str, str]) -> str:
    return re.sub(r"\$\{(\w+)\}", lambda found: values.get(found[1], found[0]), words)


def _registry_settings() -> dict[str, str]:
    """How this machine's pip reaches its registry; folders of wheels are not to be seen from inside."""
    return {name: value for name, value in os.environ.items() if name.startswith("PIP_") and name != "PIP_FIND_LINKS"}


@contextmanager
def lent(root: Path) -> Iterator[None]:
    """Files of this machine in the stage while its steps run; what was there before comes back."""
    places = [(source, root / str(source).lstrip("/")) for source in LENT if source.exists()]
    before = {place: place.read_bytes() if place.exists() else None for _, place in places}
    for source, place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        shutil.copy(source, place)
    try:
        yield
    finally:
        for place, content in before.items():
            place.unlink(missing_ok=True)
            if content is not None:
                place.write_bytes(content)


def run_in(stage: Stage, command: Sequence[str], *, env: Mapping[str, str]) -> str:
    """What `command` prints in the stage, run as root. Raises Refused with its last lines if it fails."""
    done = subprocess.run(
        [CHROOT, str(stage.root), "/usr/bin/env", f"--chdir={stage.folder}", *command],
        env={**stage.environ, **env, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8", "HOME": "/root"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise Refused(f"{' '.join(command)} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-2000:]}")
    return done.stdout


def base_root(cache: Path) -> Path:
    """A root folder of the distribution's own packages, as its slim image is. Made once (half a minute)."""
    ready = cache / f"{SUITE}-root"
    if not ready.exists():
        partial = cache / f"{SUITE}-root.part"
        shutil.rmtree(partial, ignore_errors=True)
        cache.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            ["debootstrap", "--variant=minbase", SUITE, str(partial)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise Refused(f"debootstrap ended with {done.returncode}:\n{(done.stdout + done.stderr)[-2000:]}")
        shutil.rmtree(partial / "var" / "cache" / "apt" / "archives", ignore_errors=True)
        partial.rename(ready)
    return ready


def size_bytes(root: Path) -> int:
    """Of all files, each counted once however many names it has."""
    seen = {}
    for folder, _, names in os.walk(root):
        for name in names:
            about = (Path(folder) / name).lstat()
            seen[about.st_dev, about.st_ino] = about.st_size
    return sum(seen.values())
