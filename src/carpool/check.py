"""`carpool check`: whether a model's answers depend on their company, and how long its batches take.

A batched model must answer an input as if it were alone. Padding that is not masked, a norm over the batch or a
result in the wrong place break that, and show in no test that runs one input at a time. The model runs here in
this process, by the call that its worker would make; nothing is known of it but its results, as JSON.
"""

from __future__ import annotations

import io
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec

from carpool.backends.process import child, trace
from carpool.bench.curve import fit
from carpool.errors import CarpoolError, ConfigError, ModelError
from carpool.models.spec import LocalModel
from carpool.wire import payload
from carpool.wire.call import EMBED, INFER, Call

SIZES = (1, 2, 3, 4, 8, 16, 32)

# The most that answers may differ, as a part of their own length: a cosine of 0.9999. Engines add in another
# order for another shape, some in the 8 bits of bf16; padding that leaks makes more than that. Measured on
# MiniLM: 1.2e-6 at most, on torch, ONNX Runtime and OpenVINO.
TOLERANCE = 0.015

_INPUTS = 12  # enough for every size to have company of every length
_WORDS = (1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 4, 1)  # of the texts: what is padded is short beside long
_FREE_SIZES = (8, 16, 24, 40)  # for a tensor's size that may be any
_RUNS = 5
_SECONDS_A_SIZE = 3.0
_SUFFIXES = {".npy": payload.NPY, ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png"}

_FINITE = Call.of("infer", finite=True)  # NaN and infinity are to be errors, which JSON writes as null

Run = Callable[[Sequence[Any]], Sequence[bytes | Exception]]


@dataclass(frozen=True, slots=True)
class Company:
    """One way to be in a batch: the largest difference that it made, and to which input; or how it failed."""

    name: str
    difference: float = 0.0
    place: int = 0
    failure: str = ""


@dataclass(slots=True)
class Report:
    """What was found, by the inputs' places.

    `engine` is what ran the model, `times` are the seconds of a batch by its size.
    """

    tolerance: float
    engine: str = ""
    companies: list[Company] = field(default_factory=list)
    refused: dict[int, str] = field(default_factory=dict)
    not_finite: list[int] = field(default_factory=list)
    times: dict[int, float] = field(default_factory=dict)

    @property
    def faults(self) -> list[str]:
        """What is wrong, in words."""
        found = [f"{each.name}: {each.failure}" for each in self.companies if each.failure]
        found += [f"alone: the answer to input {place} has NaN or infinity in it" for place in self.not_finite]
        return found + [
            f"{each.name}: the answer to input {each.place} differs by {each.difference:.3g} of its length"
            for each in self.companies
            if not each.failure and not each.difference <= self.tolerance
        ]

    def lines(self) -> Iterator[str]:
        """The report as a person reads it."""
        yield f"{'engine':<32} {self.engine}"
        for place, reason in self.refused.items():
            yield f"input {place} is refused when it is alone, and was left out: {reason}"
        yield f"{'in company':<32} largest difference (allowed: {self.tolerance:g})"
        for each in self.companies:
            yield f"{each.name:<32} {each.failure or f'{each.difference:.2g}'}"
        yield f"{'batch of':<10} {'ms':>9} {'ms each':>9} {'gain':>6}"
        for size, seconds in self.times.items():
            gain = self.times[min(self.times)] / min(self.times) * size / seconds
            yield f"{size:<10} {seconds * 1e3:>9.2f} {seconds / size * 1e3:>9.2f} {gain:>6.2f}"
        if self.times:
            line = fit({size: seconds * 1e3 for size, seconds in self.times.items()})
            yield f"S(b) = {line.a:.2f} ms + {line.c:.2f} ms * b"


def check(
    local: LocalModel, files: Sequence[Path] = (), sizes: Sequence[int] = SIZES, tolerance: float = TOLERANCE
) -> Report:
    """Load the model and run it in every company. Raises `ConfigError` where there is nothing to run it on."""
    if not 0 <= tolerance < math.inf:
        raise ConfigError(f"tolerance {tolerance:g} is out of range", "allowed: 0 or more")
    model = _loaded(local)
    info = msgspec.to_builtins(model.info)
    can = ("embed",) if local.takes == "text" else info.get("can", ("infer",))
    takes_texts = "infer" not in can
    inputs = _given(files, takes_texts) if files else _made(info, takes_texts)
    call = INFER if not takes_texts else EMBED if "embed" in can else Call.of("rerank", query=str(inputs[0]))

    def run(items: Sequence[Any], call: Call = call) -> Sequence[bytes | Exception]:
        try:
            made = model.run(items) if call is EMBED else model.run(items, call)  # type: ignore[call-arg]
            return [_score(rank) for rank in made] if call.operation == "rerank" else made
        except SystemExit as error:  # which would end the check, too, and without a word
            raise RuntimeError(f"it called sys.exit({error.code!r})") from error

    report = Report(tolerance, info["engine"])
    compare(run, inputs, sizes, report)
    strictly = partial(run, call=_FINITE if call is INFER else call)
    alone = [_alone(strictly, item) for item in inputs]
    report.not_finite = [place for place, one in enumerate(alone) if isinstance(one, FloatingPointError)]
    measure(run, _alike([item for at, item in enumerate(inputs) if at not in report.refused]), sizes, report)
    return report


def _loaded(local: LocalModel) -> child.Model:
    """The model, or a word on why there is none, with the place in its code behind it."""
    try:
        return child.load(local.loader, local.arguments)
    except CarpoolError:
        raise
    except (Exception, SystemExit) as error:
        what = f"the model cannot be loaded: {type(error).__name__}"
        raise ModelError(what, str(error)) from trace.raised(error)


def compare(run: Run, inputs: Sequence[Any], sizes: Sequence[int], report: Report) -> None:
    """Run inputs alone, then in company, and write down what differs."""
    alone = [_alone(run, item) for item in inputs]
    refused = {place: one for place, one in enumerate(alone) if isinstance(one, Exception)}
    report.refused = {place: _said(error) for place, error in refused.items()}
    places = [place for place in range(len(inputs)) if place not in refused]
    if not places:
        first = refused[0]
        raise ConfigError("the model refuses every input", _said(first)) from trace.raised(first)
    expected = {place: numbers(msgspec.json.decode(_json(alone[place]))) for place in places}

    def company(name: str, batches: Sequence[Sequence[int]]) -> None:
        report.companies.append(_company(name, run, inputs, batches, expected))

    longest = max(places, key=lambda place: len(inputs[place]))
    shortest = min(places, key=lambda place: len(inputs[place]))
    company("alone again", [[place] for place in places])
    for size in sizes:
        if size > 1:
            around = [places[at % len(places)] for at in range(max(size, len(places)))]
            company(f"in a batch of {size}", [around[at : at + size] for at in range(0, len(around), size)])
    company("behind the longest", [[longest, place] for place in places])
    company("before the shortest", [[place, shortest] for place in places])
    company("all in another order", [random.Random(0).sample(places, len(places))])
    company("beside itself", [[place, place] for place in places])


def _score(rank: bytes | Exception) -> bytes | Exception:
    """That of a text for the query; beside it is its place in the batch, which may be any."""
    return rank if isinstance(rank, Exception) else msgspec.json.encode(msgspec.json.decode(rank)["score"])


def _alone(run: Run, item: Any) -> bytes | Exception:
    try:
        return run([item])[0]
    except Exception as error:
        return error


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, CarpoolError) else f"{type(error).__name__}: {error}"


def _company(
    name: str,
    run: Run,
    inputs: Sequence[Any],
    batches: Sequence[Sequence[int]],
    expected: dict[int, list[Any]],
) -> Company:
    worst = Company(name)
    for batch in batches:
        try:
            answers = run([inputs[place] for place in batch])
            if len(answers) != len(batch):
                return Company(name, failure=f"{len(answers)} results for {len(batch)} inputs")
            for place, answer in zip(batch, answers, strict=True):
                given = numbers(msgspec.json.decode(_json(answer)))
                worst = max(worst, Company(name, difference(expected[place], given), place), key=_size)
        except Exception as error:  # whatever a model raises is what this is to find
            return Company(name, failure=_said(error))
    return worst


def _size(company: Company) -> float:
    return company.difference


def _json(answer: bytes | Exception) -> bytes:
    if isinstance(answer, Exception):
        raise answer
    return answer


def numbers(value: Any) -> list[Any]:
    """The numbers in a JSON value, in order, with everything else between them."""
    if isinstance(value, dict):
        return [leaf for name, one in value.items() for leaf in (name, *numbers(one))]
    if isinstance(value, list):
        return [leaf for one in value for leaf in numbers(one)]
    return [value]


def difference(expected: Sequence[Any], given: Sequence[Any]) -> float:
    """How far the numbers are apart, as a part of the expected ones' length; all else must be equal."""
    if len(expected) != len(given):
        return math.inf
    pairs: list[tuple[float, float]] = []
    for one, other in zip(expected, given, strict=True):
        if _is_number(one) and _is_number(other):
            pairs.append((one, other))
        elif one != other:
            return math.inf
    apart = math.hypot(*[one - other for one, other in pairs])  # of any size: no square is too large for it
    total = math.hypot(*[one for one, _ in pairs])
    return apart / total if total else apart


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def measure(run: Run, items: Sequence[Any], sizes: Sequence[int], report: Report) -> None:
    """Write down the typical seconds of a batch of each size, of inputs that are alike, until one fails."""
    for size in sizes:
        try:
            report.times[size] = _seconds(run, [items[at % len(items)] for at in range(size)])
        except Exception as error:
            report.companies.append(Company(f"{size} that are alike", failure=_said(error)))
            return


def _seconds(run: Run, batch: Sequence[Any]) -> float:
    run(batch)
    taken: list[float] = []
    while len(taken) < _RUNS and sum(taken) < _SECONDS_A_SIZE:
        start = time.perf_counter()
        run(batch)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def _given(files: Sequence[Path], takes_texts: bool) -> list[Any]:
    """The inputs in files: JSON lines, or one tensor or image each."""
    inputs: list[Any] = []
    for file in files:
        try:
            body = file.read_bytes()
        except OSError as error:
            raise ConfigError(f"{file} cannot be read", error.strerror or str(error)) from None
        if file.suffix.lower() in _SUFFIXES:
            inputs.append(payload.head(_SUFFIXES[file.suffix.lower()], {}) + body)
        else:
            lines = [line for line in body.splitlines() if line.strip()]
            inputs += [_text(line, file) if takes_texts else b'{"data":' + line + b"}" for line in lines]
    if not inputs:
        raise ConfigError("the files hold no input", "expected one JSON value a line")
    return inputs


def _text(line: bytes, file: Path) -> Any:
    try:
        return msgspec.json.decode(line)
    except msgspec.DecodeError as error:
        raise ConfigError(f"{file} is not JSON lines: {line[:40]!r}", str(error)) from None


def _made(info: dict[str, Any], takes_texts: bool) -> list[Any]:
    """Texts of very different lengths, or random tensors of the model's shape."""
    dice = random.Random(0)
    if takes_texts:
        words = [f"{first}{second}" for first, second in pairwise("batchqueuereplicaupstream")]
        return [" ".join(dice.choices(words, k=count)) for count in _WORDS]
    shape = info.get("input_shape")
    if shape is None:
        raise ConfigError(
            "what the model takes is not known", "give it inputs: --input FILE, one JSON value a line"
        )
    return [_tensor(shape, info.get("input_dtype") or "float32", dice) for _ in range(_INPUTS)]


def _tensor(shape: Sequence[int | None], dtype: str, dice: random.Random) -> bytes:
    sizes = [dice.choice(_FREE_SIZES) if size is None else size for size in shape]
    is_whole = not dtype.startswith("float")
    values = [dice.randrange(2) if is_whole else dice.gauss(0, 1) for _ in range(math.prod(sizes))]
    return payload.head(payload.NPY, {}) + _npy(values, sizes, dtype)


def _npy(values: Sequence[float], sizes: Sequence[int], dtype: str) -> bytes:
    import numpy as np

    file = io.BytesIO()
    np.save(file, np.array(values, dtype=dtype).reshape(sizes))
    return file.getvalue()


def _alike(inputs: Sequence[Any]) -> Sequence[Any]:
    """The inputs of middling length alone: times are to tell of sizes, not of padding."""
    middle = statistics.median_low(len(item) for item in inputs)
    return [item for item in inputs if len(item) == middle]
