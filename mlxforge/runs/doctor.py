"""What this machine and this installation are fit for, and for each problem the line that mends it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec

from mlxforge.core.blas import load_blas
from mlxforge.core.files import cache_dir, disk_size, embedded
from mlxforge.core.units import size

Status = Literal["good", "absent", "warning", "problem"]
PACKAGES = ("mlxforge", "mlx", "mlx-lm", "transformers", "tokenizers", "huggingface-hub", "numpy")
BACKENDS = {"darwin": "mlx-metal", "linux": "mlx-cpu"}  # what computes; it has to be of mlx's own version
OLDEST_MACOS = (13, 5)
SLOW = 20.0  # GFLOP/s: the reference BLAS has 6, OpenBLAS a hundred a core
SIZES = {True: 4096, False: 1024}  # of the measured product, on Metal and on a CPU
ROOM = 10 << 30
TIGHT = 1 << 30
SERVERS = {
    "Ollama": ("OLLAMA_HOST", "127.0.0.1:11434", "/api/version", "get it from ollama.com, then: ollama serve"),
    "LM Studio": ("LMSTUDIO_HOST", "127.0.0.1:1234", "/v1/models", "get it from lmstudio.ai, then: lms server start"),
}
NARROW = 60  # columns
WAIT = 0.5  # seconds for a server on this machine


class Check(msgspec.Struct, frozen=True):
    """One finding. ``fix`` is the line that mends it; ``facts`` are its figures for machines.

    ``absent``: not there, and needed only by who wants it. ``problem``: training cannot work.
    """

    group: str
    name: str
    shown: str
    status: Status = "good"
    fix: str = ""
    facts: dict[str, Any] = {}


def examine() -> Iterator[Check]:
    """All findings, each as soon as it is known. Asks servers on this machine alone, and writes nothing that stays."""
    for look in LOOKS:
        yield from look()


def healthy(checks: list[Check]) -> bool:
    """Whether training can work."""
    return all(check.status != "problem" for check in checks)


# --- machine ----------------------------------------------------------------------------------------------------------------


def machine() -> Iterator[Check]:
    """System, chip and memory."""
    name = f"macOS {platform.mac_ver()[0]}" if sys.platform == "darwin" else f"{platform.system()} {platform.release()}"
    facts = {"system": platform.system(), "release": platform.release(), "machine": platform.machine()}
    yield system(name, facts, sys.platform, platform.mac_ver()[0], translated())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Check("machine", "chip", f"{chip()}, {cores} cores", facts={"chip": chip(), "cores": cores})
    total, free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), free_memory()
    tight = free is not None and free < 2 * TIGHT
    yield Check(
        "machine",
        "memory",
        f"{size(total)}" + (f", {size(free)} free" if free is not None else ""),
        "warning" if tight else "good",
        "close other programs: below 2 GB even small models swap" if tight else "",
        {"total": total, "free": free},
    )


def system(name: str, facts: dict[str, Any], kind: str, macos: str, rosetta: bool) -> Check:
    """The system by its name: MLX runs on macOS 13.5 and later with a Python for Apple silicon, and on Linux."""
    version = tuple(int(part) for part in macos.split(".")[:2] if part.isdigit())
    problem, fix = "", ""
    if kind not in BACKENDS:
        problem, fix = "MLX does not run here", "use macOS on Apple silicon, or Linux"
    elif kind == "darwin" and rosetta:
        problem, fix = "this Python is for Intel, translated by Rosetta", "install a Python for arm64: brew install python"
    elif kind == "darwin" and facts["machine"] != "arm64":
        problem, fix = "no Apple silicon", "use a Mac with an M chip, or Linux"
    elif kind == "darwin" and version < OLDEST_MACOS:
        problem, fix = "too old for MLX", "update to macOS 13.5 or later: softwareupdate --list"
    shown = f"{name}, {facts['machine']}" + (f": {problem}" if problem else "")
    return Check("machine", "system", shown, "problem" if problem else "good", fix, facts)


def translated() -> bool:
    """Whether Rosetta translates this process."""
    return sys.platform == "darwin" and _said("sysctl", "-n", "sysctl.proc_translated") == "1"


def chip() -> str:
    """The processor's name."""
    if sys.platform == "darwin":
        return _said("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor()
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def free_memory() -> int | None:
    """Bytes that programs can have without pushing others out; None where the system does not tell."""
    if sys.platform == "darwin":
        return free_of_vm_stat(_said("vm_stat"))
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return int(found[1]) * 1024 if found else None


def free_of_vm_stat(text: str) -> int | None:
    """What macOS' ``vm_stat`` says is free, inactive, speculative or purgeable."""
    page = re.search(r"page size of (\d+) bytes", text)
    counts = dict(re.findall(r"^Pages (free|inactive|speculative|purgeable):\s+(\d+)\.$", text, re.MULTILINE))
    return int(page[1]) * sum(map(int, counts.values())) if page and counts else None


# --- MLX --------------------------------------------------------------------------------------------------------------------


def arithmetic() -> Iterator[Check]:
    """Where MLX computes and how fast, and whether one update of the shipped model works."""
    slow = load_blas()
    try:
        import mlx.core as mx
    except ImportError as error:
        fix = (
            "pip install --force-reinstall mlxforge" if sys.platform == "darwin" else "pip install --force-reinstall 'mlx[cpu]'"
        )
        yield Check("MLX", "mlx", f"cannot be imported: {_short(error)}", "problem", fix)
        return
    metal = bool(mx.metal.is_available())
    info = mx.device_info()
    limit = info.get("max_recommended_working_set_size") if metal else None
    shown = f"Metal, working set of {size(limit)} recommended" if limit else "Metal" if metal else "CPU"
    missing = sys.platform == "darwin" and not metal
    yield Check(
        "MLX",
        "device",
        shown + (": no Metal" if missing else ""),
        "warning" if missing else "good",
        "run outside virtual machines and sandboxes that hide the GPU" if missing else "",
        {"metal": metal, "working_set": limit, "device": str(info.get("device_name", ""))},
    )
    yield speed(slow, gigaflops(SIZES[metal]), SIZES[metal], metal)
    yield training()


def speed(slow: str, found: float, side: int, metal: bool) -> Check:
    """The measured speed of float32 products; ``slow`` says why OpenBLAS is not in use, '' where it is or is not needed."""
    problem = bool(slow) or (found < SLOW and not metal)
    fix = slow.partition(": ")[2] if slow else "stop what else computes here, and look again"
    shown = f"{found:,.0f} GFLOP/s in float32" + (", without OpenBLAS" if slow else "")
    facts = {"gflops": round(found, 1), "side": side, "openblas": not slow and not metal}
    return Check("MLX", "matrix product", shown, "warning" if problem else "good", fix if problem else "", facts)


def gigaflops(side: int, times: int = 3) -> float:
    """The best of some float32 products of two square matrices."""
    import mlx.core as mx

    left, right = (mx.random.normal((side, side), key=mx.random.key(seed)) for seed in range(2))
    mx.eval(left, right, left[:256, :256] @ right[:256, :256])
    best = float("inf")
    for _ in range(times):
        started = time.perf_counter()
        mx.eval(left @ right)
        best = min(best, time.perf_counter() - started)
    return 2 * side**3 / best / 1e9


def training() -> Check:
    """One update of the shipped model's weights, held against a fall of the loss."""
    try:
        seconds = one_update()
    except Exception as error:  # whatever it is, training does not work
        return Check(
            "MLX", "training", f"fails: {_short(error)}", "problem", "pip install --upgrade --force-reinstall mlxforge"
        )
    return Check("MLX", "training", f"an update of the shipped model in {seconds:.2f} s", facts={"seconds": round(seconds, 3)})


def one_update() -> float:
    """Seconds of an update of the shipped model; ArithmeticError where the loss does not fall."""
    import mlx.core as mx
    import mlx.nn as nn

    from mlxforge.models.load import load

    model = load("tiny", "float32").model
    ids = mx.arange(2, 66)[None]

    def loss(model: Any) -> mx.array:
        return nn.losses.cross_entropy(model(ids[:, :-1]), ids[:, 1:], reduction="mean")

    started = time.perf_counter()
    before, gradient = nn.value_and_grad(model, loss)(model)
    from mlx.utils import tree_map

    model.update(tree_map(lambda weight, slope: weight - 0.01 * slope, model.trainable_parameters(), gradient))
    after = loss(model)
    mx.eval(before, after)
    if not float(after.item()) < float(before.item()):
        raise ArithmeticError(f"the loss went from {before.item():.3f} to {after.item():.3f}")
    return time.perf_counter() - started


# --- packages ---------------------------------------------------------------------------------------------------------------


def packages() -> Iterator[Check]:
    """Python, the packages that everything rests on, and whether they fit each other."""
    yield Check(
        "packages", "python", f"{platform.python_version()}, {sys.executable}", facts={"python": platform.python_version()}
    )
    found = {name: version(name) for name in (*PACKAGES, *filter(None, [BACKENDS.get(sys.platform)]))}
    shown = ", ".join(f"{name} {one}" for name, one in found.items() if one)
    yield Check("packages", "versions", shown, facts=dict(found))
    wrong = mismatches(found)
    for what, fix in wrong:
        yield Check("packages", "combination", what, "problem", fix)
    if not wrong:
        yield Check("packages", "combination", "versions fit each other")
    shipped = embedded("data", "tiny").is_dir()
    fix = "" if shipped else "pip install --force-reinstall mlxforge"
    yield Check("packages", "shipped model", "there" if shipped else "missing", "good" if shipped else "problem", fix)


def version(package: str) -> str | None:
    """The installed version of a package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def mismatches(found: dict[str, str | None]) -> list[tuple[str, str]]:
    """What does not fit, with its fix: MLX's two halves, and what mlxforge and mlx-lm ask for."""
    wrong = []
    for backend in BACKENDS.values():
        if found.get(backend) and found[backend] != found.get("mlx"):
            both = f"{backend} {found[backend]} beside mlx {found.get('mlx')}: they have to be of one version"
            wrong.append((both, f"pip install --force-reinstall mlx=={found.get('mlx')} {backend}=={found.get('mlx')}"))
    for owner in ("mlxforge", "mlx-lm"):
        for need in needs(owner):
            if not need["fits"]:
                has = f"{need['name']} {need['version']}" if need["version"] else f"no {need['name']}"
                wrong.append((f"{has}, and {owner} asks for {need['text']}", f"pip install '{need['text']}'"))
    return wrong


def needs(package: str, extra: str = "") -> list[dict[str, Any]]:
    """What a package asks for here, or one of its extras adds: name, text, installed version, and whether that fits."""
    from packaging.requirements import Requirement

    try:
        texts = importlib.metadata.requires(package) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    found = []
    for need in map(Requirement, texts):
        plain = need.marker is None or need.marker.evaluate({"extra": ""})
        if not (not plain and need.marker and need.marker.evaluate({"extra": extra}) if extra else plain):
            continue
        has = version(need.name)
        fits = has is not None and need.specifier.contains(has, prereleases=True)
        found.append({"name": need.name, "text": f"{need.name}{need.specifier}", "version": has, "fits": fits})
    return found


def extras() -> Iterator[Check]:
    """The optional parts of mlxforge."""
    try:
        names = importlib.metadata.metadata("mlxforge").get_all("Provides-Extra") or []
    except importlib.metadata.PackageNotFoundError:
        names = []
    for extra in (name for name in names if name != "dev"):
        wanted = needs("mlxforge", extra)
        lacking = [need["text"] for need in wanted if not need["fits"]]
        shown = ", ".join(f"{need['name']} {need['version']}" for need in wanted if need["fits"])
        shown += f"{', ' if shown else ''}without {', '.join(lacking)}" if lacking else ""
        fix = f"pip install 'mlxforge[{extra}]'" if lacking else ""
        yield Check("extras", extra, shown, "absent" if lacking else "good", fix, {"missing": lacking})


# --- disk and hub -----------------------------------------------------------------------------------------------------------


def disk() -> Iterator[Check]:
    """Where things are written: this folder, the caches."""
    from huggingface_hub import constants

    yield place("this folder", Path.cwd(), room=True)
    yield place("token cache", cache_dir(), room=False)
    yield place("hub cache", Path(constants.HF_HUB_CACHE), room=True)


def place(name: str, path: Path, *, room: bool) -> Check:
    """A folder that is written to: whether it can be, what lies there, and what is free on its disk."""
    home = next(one for one in (path, *path.absolute().parents) if one.is_dir())
    free, writable = shutil.disk_usage(home).free, os.access(home, os.W_OK | os.X_OK)
    used = disk_size(path) if name != "this folder" and path.is_dir() else 0
    shown = f"{path}, " + (f"holds {size(used)}, " if used else "") + f"{size(free)} free"
    facts = {"path": str(path), "used": used, "free": free, "writable": writable}
    if not writable:
        return Check("disk", name, f"{shown}, cannot be written", "problem", f"chmod u+wx {home}", facts)
    if free < TIGHT:
        return Check("disk", name, shown, "problem", "free space: mlxforge runs clean shows what runs can do without", facts)
    low = room and free < ROOM
    fix = "free some: a model of 4 billion weights takes 8 GB" if low else ""
    return Check("disk", name, shown, "warning" if low else "good", fix, facts)


def hub() -> Iterator[Check]:
    """The Hugging Face hub: login, and whether it may be asked. The token itself is never shown."""
    from huggingface_hub import constants, get_token

    token, offline = bool(get_token()), bool(constants.HF_HUB_OFFLINE)
    source = "from $HF_TOKEN" if os.environ.get("HF_TOKEN") else f"from {constants.HF_TOKEN_PATH}"
    shown = f"token there, {source}" if token else "no token: public models only"
    yield Check("hub", "login", shown, "good" if token else "absent", "" if token else "hf auth login", {"token": token})
    shown = "off by $HF_HUB_OFFLINE: only what is in the cache" if offline else "on"
    yield Check(
        "hub",
        "network",
        shown,
        "absent" if offline else "good",
        "unset HF_HUB_OFFLINE" if offline else "",
        {"offline": offline},
    )


# --- neighbours -------------------------------------------------------------------------------------------------------------


def neighbours() -> Iterator[Check]:
    """Programs that run what is exported."""
    for name, (variable, home, path, fix) in SERVERS.items():
        url = server_url(os.environ.get(variable) or home)
        said = ask(url + path)
        shown = f"answers at {url}" if said is not None else f"does not answer at {url}"
        number = said.get("version") if isinstance(said, dict) else None
        shown += f", version {number}" if number else ""
        yield Check("neighbours", name, shown, "good" if said is not None else "absent", "" if said is not None else fix)
    quantize = shutil.which("llama-quantize")
    own = version("xllamacpp")
    shown = ", ".join(filter(None, [f"xllamacpp {own}" if own else "", quantize or ""])) or "not there"
    fix = "" if own or quantize else "pip install 'mlxforge[gguf]'"
    yield Check("neighbours", "llama.cpp", shown, "good" if own or quantize else "absent", fix, {"xllamacpp": own})


def server_url(host: str) -> str:
    """``127.0.0.1:11434`` or a URL, as a URL that can be asked: 0.0.0.0 is where a server listens, not where it is."""
    url = (host if "://" in host else f"http://{host}").rstrip("/")
    return url.replace("//0.0.0.0", "//127.0.0.1")


def ask(url: str) -> Any:
    """The JSON that a server gives; None where it gives none."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=WAIT) as reply:
            return json.loads(reply.read(1 << 20))
    except (OSError, ValueError):
        return None


def terminal(draws: bool, encoding: str, width: int, tty: bool) -> Check:
    """The terminal, as the caller sees it."""
    facts = {"terminal": tty, "dashboard": draws, "encoding": encoding, "width": width}
    if not tty:
        return Check("terminal", "terminal", "output goes to a pipe or a file: lines, no dashboard", facts=facts)
    if not draws:
        fix = "export LC_ALL=en_US.UTF-8 TERM=xterm-256color"
        return Check("terminal", "terminal", f"lines instead of the dashboard ({encoding})", "warning", fix, facts)
    narrow = width < NARROW
    fix = f"widen the window to {NARROW} columns" if narrow else ""
    return Check("terminal", "terminal", f"{width} columns, {encoding}", "warning" if narrow else "good", fix, facts)


def _said(*words: str) -> str:
    """What a small program of the system says; nothing where it is not there."""
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=5, check=False).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _short(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:160]


LOOKS: tuple[Callable[[], Iterator[Check]], ...] = (machine, arithmetic, packages, extras, disk, hub, neighbours)
