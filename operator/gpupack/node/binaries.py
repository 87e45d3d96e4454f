"""The real programs that tests and the demo run (control plane, Helm): found, downloaded or built, and kept in a cache.

A *module folder* holds `go.mod` and `go.sum` (which versions), `programs.toml` (how each program is built and where its
release lies) and `SHA256SUMS` (which releases may be downloaded). Each program comes from the first of these that has
it: the folder `KUBEBUILDER_ASSETS`; the cache; the official release, if its digest is pinned; a build with Go. What is
downloaded or built enters the cache by a rename, under a lock, so a reader never sees half a program and two processes
never build the same one.

This module does not know how the programs are started (controlplane.py). The cache is the user's own and is trusted.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from gpupack.errors import Invalid, Unavailable

Progress = Callable[[str], None]
"""Is told, in one line without a newline, what is being done."""

CONNECT_SECONDS = 3.0
"""How long a release server may take to answer before the build starts: many build machines have no way out."""
READ_SECONDS = 30.0
HEARTBEAT_SECONDS = 20.0
"""A build says at least this often that it is alive."""


def to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """Operating system and processor by Go's names."""

    os: str
    arch: str

    def __str__(self) -> str:
        return f"{self.os}-{self.arch}"


def this_platform() -> Platform:
    machine = platform.machine().lower()
    return Platform(os=platform.system().lower(), arch={"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine))


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """One program of a module folder. `url` and `checksums` are templates, see programs.toml."""

    name: str
    module: str
    version: str
    package: str
    variables: Mapping[str, str]
    url: str
    checksums: str

    def fill(self, template: str, target: Platform) -> str:
        major, minor = self.version.removeprefix("v").split(".")[:2]
        return template.format(version=self.version, major=major, minor=minor, os=target.os, arch=target.arch)

    def linker_flags(self, target: Platform) -> str:
        assignments = (f"-X {name}={self.fill(value, target)}" for name, value in self.variables.items())
        return " ".join(("-s -w", *assignments))


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleFolder:
    """What a module folder says. `digests` maps a release's URL to its SHA-256 in hexadecimal."""

    name: str
    path: Path
    programs: tuple[Program, ...]
    digests: Mapping[str, str]

    def cache(self, target: Platform, environ: Mapping[str, str]) -> Path:
        """The folder that holds exactly these versions for this platform."""
        versions = {program.module: program.version for program in self.programs}
        parts = (f"{_short_name(module)}-{version}" for module, version in versions.items())
        return cache_home(environ) / "gpupack" / self.name / "-".join((*parts, str(target)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Binaries:
    """Paths of programs that are there and can be run, by name."""

    paths: Mapping[str, Path]

    def __getitem__(self, name: str) -> Path:
        return self.paths[name]


def _short_name(module: str) -> str:
    """`go.etcd.io/etcd/server/v3` -> `etcd`, `k8s.io/kubernetes` -> `kubernetes`: the first part after the host."""
    return module.split("/")[1]


def cache_home(environ: Mapping[str, str]) -> Path:
    """The user's cache folder: XDG_CACHE_HOME, else what the platform does."""
    given = environ.get("XDG_CACHE_HOME", "")
    if given.startswith("/"):  # the XDG rule: a relative path is to be ignored
        return Path(given)
    home = Path(environ.get("HOME") or Path.home())
    return home / "Library" / "Caches" if sys.platform == "darwin" else home / ".cache"


def module_folder(name: str) -> Path:
    """`e2e/<name>` of a checkout, or the copy of it that a wheel carries beside this module."""
    here = Path(__file__).resolve()
    candidates = (here.parents[3] / "e2e" / name, here.parent / f"{name}_module")
    for candidate in candidates:
        if (candidate / "programs.toml").is_file():
            return candidate
    raise Unavailable(f"the pinned modules of {name} are in neither of {', '.join(map(str, candidates))}")


def read_module_folder(path: Path, name: str) -> ModuleFolder:
    versions = dict(re.findall(r"^(?:require)?[ \t]*(\S+)[ \t]+(v\S+)", (path / "go.mod").read_text(), re.MULTILINE))
    described = tomllib.loads((path / "programs.toml").read_text())["program"]
    programs = tuple(
        Program(
            name=each["name"],
            module=each["module"],
            version=versions[each["module"]],
            package=each["package"],
            variables=each.get("variables", {}),
            url=each["url"],
            checksums=each["checksums"],
        )
        for each in described
    )
    pinned = re.findall(r"^([0-9a-f]{64})\s+(\S+)$", (path / "SHA256SUMS").read_text(), re.MULTILINE)
    return ModuleFolder(name=name, path=path, programs=programs, digests={url: digest for digest, url in pinned})


def control_plane() -> ModuleFolder:
    return read_module_folder(module_folder("controlplane"), "controlplane")


def helm() -> ModuleFolder:
    """Only a checkout has this one: Helm is for the chart's tests."""
    return read_module_folder(module_folder("helm"), "helm")


def obtain(
    wanted: ModuleFolder,
    *,
    environ: Mapping[str, str] = os.environ,
    progress: Progress = to_stderr,
    connect_seconds: float = CONNECT_SECONDS,
) -> Binaries:
    """Gets every program of the folder, from nearest to dearest; the docstring of the module names the order.

    The variable GPUPACK_RELEASE_MIRROR replaces scheme and host of the release URLs; the digests still decide.
    Raises Unavailable with all that was tried, and what would help, if a program cannot be had.
    """
    target = this_platform()
    cache = wanted.cache(target, environ)
    found = _present(wanted, cache) | _present(wanted, _assets(environ))
    missing = [program for program in wanted.programs if program.name not in found]
    if not missing:
        return Binaries(paths=found)

    with _only_builder(cache, progress):
        found = _present(wanted, cache) | found  # another process may have brought them while this one waited
        missing = [program for program in wanted.programs if program.name not in found]
        errand = _Errand(
            wanted=wanted, target=target, cache=cache, environ=environ, progress=progress,
            connect_seconds=connect_seconds,
        )  # fmt: skip
        with errand.workshop():
            for get in (errand.download, errand.build):
                found |= get(missing)
                missing = [program for program in missing if program.name not in found]
    if missing:
        raise Unavailable(_how_to_get(wanted, missing, cache, errand.refusals))
    return Binaries(paths=found)


def _assets(environ: Mapping[str, str]) -> Path | None:
    given = environ.get("KUBEBUILDER_ASSETS")
    if not given:
        return None
    folder = Path(given)
    if not folder.is_dir():
        raise Invalid("KUBEBUILDER_ASSETS", f"{given} is not a folder", "unset it, or name one with the programs in it")
    return folder


def _present(wanted: ModuleFolder, folder: Path | None) -> dict[str, Path]:
    if folder is None:
        return {}
    paths = {program.name: folder / program.name for program in wanted.programs}
    return {name: path for name, path in paths.items() if os.access(path, os.X_OK) and path.is_file()}


@contextmanager
def _only_builder(cache: Path, progress: Progress) -> Iterator[None]:
    """Holds the cache's lock; the kernel gives it back if this process dies."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise Unavailable(f"cannot keep programs in {cache}: {problem.strerror}") from problem
    with (cache.parent / f"{cache.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(f"another process is filling {cache}; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class _Silent(Unavailable):
    """The server did not answer at all."""


@dataclass(slots=True, kw_only=True)
class _Errand:
    """One filling of the cache: where to, whom to tell, and why what failed failed."""

    wanted: ModuleFolder
    target: Platform
    cache: Path
    environ: Mapping[str, str]
    progress: Progress
    connect_seconds: float
    refusals: list[str] = field(default_factory=list)

    @property
    def partial(self) -> Path:
        """Where programs are made, beside where they are kept, so that a rename moves them."""
        return self.cache / ".partial"

    @contextmanager
    def workshop(self) -> Iterator[None]:
        shutil.rmtree(self.partial, ignore_errors=True)  # of one that was killed; the lock is ours now
        self.partial.mkdir()
        try:
            yield
        finally:
            shutil.rmtree(self.partial, ignore_errors=True)

    def download(self, missing: list[Program]) -> dict[str, Path]:
        """The releases whose digests are pinned, and of those the ones that can be had: each fails alone.

        A server that does not answer is not asked again.
        """
        digests = {program.name: self.wanted.digests.get(self._url(program)) for program in missing}
        if unpinned := [name for name, digest in digests.items() if digest is None]:
            self._refuse(f"no pinned digest for the {self.target} release of {', '.join(unpinned)}: not downloaded")
        done: dict[str, Path] = {}
        silent: set[str] = set()
        for program in missing:
            url = _through(self.environ, self._url(program))
            digest, server = digests[program.name], urlsplit(url).netloc
            if digest is None or server in silent:
                continue
            try:
                self.progress(f"downloading {program.name} {program.version}")
                archive = self._fetch(url, digest)
                done[program.name] = self._keep(program, _unpacked(archive, program.name, url))
            except _Silent as problem:
                silent.add(server)
                self._refuse(str(problem))
            except Unavailable as problem:
                self._refuse(str(problem))
        return done

    def _url(self, program: Program) -> str:
        return program.fill(program.url, self.target)

    def _fetch(self, url: str, digest: str) -> Path:
        import httpx  # here, because a cache that is full must answer at once

        seen = hashlib.sha256()
        with tempfile.NamedTemporaryFile(dir=self.partial, delete=False) as into:
            try:
                timeout = httpx.Timeout(READ_SECONDS, connect=self.connect_seconds)
                with httpx.stream("GET", url, timeout=timeout, follow_redirects=True) as answer:
                    answer.raise_for_status()
                    for chunk in answer.iter_bytes():
                        seen.update(chunk)
                        into.write(chunk)
            except httpx.TransportError as problem:
                raise _Silent(f"{url}: {problem or type(problem).__name__}") from problem
            except httpx.HTTPError as problem:
                raise Unavailable(f"{url}: {problem or type(problem).__name__}") from problem
        if seen.hexdigest() != digest:
            raise Unavailable(f"{url}: SHA-256 is {seen.hexdigest()}, pinned is {digest}; thrown away")
        return Path(into.name)

    def build(self, missing: list[Program]) -> dict[str, Path]:
        """With Go, one program after another: Go itself uses all cores, and each that is done is kept."""
        done: dict[str, Path] = {}
        if not missing:
            return done
        go = shutil.which("go", path=self.environ.get("PATH"))
        if go is None:
            self._refuse("Go is not installed: not built")
            return done
        began = time.monotonic()
        for number, program in enumerate(missing, start=1):
            title = f"building {program.name} {program.version} ({number} of {len(missing)})"
            output = self.partial / program.name
            command = [go, "build", "-mod=readonly", "-trimpath", "-buildvcs=false"]
            command += ["-ldflags", program.linker_flags(self.target), "-o", str(output), program.package]
            problem = self._run(command, title, began)
            if problem:
                self._refuse(f"{title}: {problem}")
                break
            done[program.name] = self._keep(program, output)
        self.progress(f"built {len(done)} of {len(missing)} in {time.monotonic() - began:.0f} s")
        return done

    def _run(self, command: list[str], title: str, began: float) -> str:
        """The last lines that a failed build wrote; empty if it succeeded."""
        # The user's GOFLAGS or workspace could build something else than what go.sum pins.
        settings = {"CGO_ENABLED": "0", "GOFLAGS": "", "GOWORK": "off"}
        with tempfile.TemporaryFile("w+") as log:
            with subprocess.Popen(
                command, cwd=self.wanted.path, env={**self.environ, **settings}, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log,
            ) as go:  # fmt: skip
                try:
                    self._wait(go, title, began)
                except BaseException:
                    go.terminate()
                    raise
            return "" if go.returncode == 0 else _last_lines(log)

    def _wait(self, go: subprocess.Popen[bytes], title: str, began: float) -> None:
        while True:
            self.progress(f"{title}, {time.monotonic() - began:.0f} s so far")
            try:
                go.wait(HEARTBEAT_SECONDS)
                return
            except subprocess.TimeoutExpired:
                continue

    def _keep(self, program: Program, ready: Path) -> Path:
        ready.chmod(0o755)
        return ready.replace(self.cache / program.name)

    def _refuse(self, why: str) -> None:
        self.refusals.append(why)
        self.progress(why)


def _through(environ: Mapping[str, str], url: str) -> str:
    mirror = environ.get("GPUPACK_RELEASE_MIRROR", "").rstrip("/")
    return re.sub(r"^https?://[^/]+", mirror, url) if mirror else url


def _unpacked(archive: Path, name: str, url: str) -> Path:
    """The program itself: the file as it is, or the member of that name in a .tar.gz."""
    if not url.endswith(".tar.gz"):
        return archive
    program = archive.with_name(f"{archive.name}.{name}")
    with tarfile.open(archive) as tar:
        for member in tar:
            inside = tar.extractfile(member) if member.isfile() and Path(member.name).name == name else None
            if inside is not None:
                with program.open("wb") as into:
                    shutil.copyfileobj(inside, into)
                return program
    raise Unavailable(f"{url} holds no file named {name}")


def _last_lines(log: IO[str], count: int = 8) -> str:
    log.seek(0)
    return "\n".join(log.read().splitlines()[-count:])


def _how_to_get(wanted: ModuleFolder, missing: list[Program], cache: Path, refusals: list[str]) -> str:
    names = ", ".join(program.name for program in missing)
    return "\n".join((
        f"cannot get {names}.",
        "Tried:",
        *(f"  - {why}" for why in refusals),
        "Any one of these helps:",
        f"  - install Go (as new as {wanted.path / 'go.mod'} says) and let it reach its module proxy;",
        f"  - put the programs into {cache};",
        "  - set KUBEBUILDER_ASSETS to a folder that has them.",
    ))  # fmt: skip


def pin(wanted: ModuleFolder, *, targets: tuple[Platform, ...], environ: Mapping[str, str] = os.environ) -> str:
    """The text of SHA256SUMS that the publishers' own checksum files give today. For a maintainer, who reviews it.

    A publisher's file holds either the digest alone or lines of digest and file name. Raises Unavailable.
    """
    import httpx

    kept = [line for line in (wanted.path / "SHA256SUMS").read_text().splitlines() if line.startswith("#")]
    pins = []
    for program in wanted.programs:
        for target in targets:
            url, checksums = (program.fill(each, target) for each in (program.url, program.checksums))
            try:
                answer = httpx.get(_through(environ, checksums), timeout=READ_SECONDS, follow_redirects=True)
                answer.raise_for_status()
            except httpx.HTTPError as problem:
                raise Unavailable(f"{checksums}: {problem or type(problem).__name__}") from problem
            file = re.escape(url.rsplit("/", 1)[1])
            match = re.search(rf"^([0-9a-f]{{64}})(?:\s*\Z|\s+\*?(?:\./)?{file}$)", answer.text, re.MULTILINE)
            if match is None:
                raise Unavailable(f"{checksums} names no SHA-256 for {url}")
            pins.append(f"{match[1]}  {url}")
    return "\n".join((*kept, *pins, ""))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m gpupack.node.binaries", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("what", nargs="?", choices=("controlplane", "helm"), default="controlplane")
    parser.add_argument("--pin", action="store_true", help="rewrite SHA256SUMS from the publishers' checksum files")
    asked = parser.parse_args()
    try:
        wanted = helm() if asked.what == "helm" else control_plane()
        if asked.pin:
            targets = (Platform(os="linux", arch="amd64"), Platform(os="linux", arch="arm64"))
            (wanted.path / "SHA256SUMS").write_text(pin(wanted, targets=targets))
            return 0
        for path in obtain(wanted).paths.values():
            print(path)
    except Invalid as problem:
        print(problem, file=sys.stderr)
        return 2
    except Unavailable as problem:
        print(problem, file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
