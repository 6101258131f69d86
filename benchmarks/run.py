"""`eblvm bench SUITE`: all cells of a suite, each in a process of its own, none lost.

The folder of a suite holds `suite.json`, `results.jsonl` with a line per finished or failed cell,
`cells/<table>/<label>/seed_<n>/` with the cell's run, samples and log, and the reports.
"""

import errno
import fcntl
import json
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache
from multiprocessing import forkserver, get_context
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.live import Live
from rich.table import Table as RichTable

from eblvm.benchmarks.cell import commit, config_hash, for_one_device, machine, run_apart
from eblvm.benchmarks.suite import Budget, Cell, Suite
from eblvm.cli import UserError

__all__ = ["last_line", "read_results", "run_suite"]

POLL = 0.5
"""Seconds between two looks at a cell."""


MINUTE = 60.0
"""Seconds between two reports of running cells, where there is no terminal."""


class Worker:
    """A cell's process, and how far it is.

    Arguments:
        cell: What runs.
        folder: Its folder.
        threads: For torch.
        group: The run group of Weights & Biases; None does not log there.
        gpu: The only one that it sees; None shows it all.
        lock: A file descriptor that it keeps open: the folder is locked as long as it lives.
    """

    def __init__(
        self,
        cell: Cell,
        folder: Path,
        threads: int,
        group: str | None,
        gpu: str | None = None,
        lock: int | None = None,
    ) -> None:
        self.cell, self.folder, self.gpu = cell, folder, gpu
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("result.json", "environment.json"):
            (folder / name).unlink(missing_ok=True)
        (folder / "log.txt").touch()
        spec = folder / "spec.json"
        content = {"cell": asdict(cell), "folder": str(folder), "wandb": group is not None}
        spec.write_text(json.dumps(content), encoding="utf-8")
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        if group is not None:
            environment |= {"WANDB_RUN_GROUP": group, "WANDB_NAME": cell.id}
        if gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = gpu
        self.continued = any(folder.glob("run/**/last.ckpt"))
        self.earlier = self._spent() if self.continued else 0.0
        where = nursery()
        if where.get_start_method() == "forkserver":
            with variables(OMP_NUM_THREADS=str(threads)):  # its libraries read it when imported
                forkserver.ensure_running()
        self.process = where.Process(
            target=run_apart,
            args=(str(spec), environment, threads, None if lock is None else Shared(lock)),
        )
        self.process.start()
        self.start = time.perf_counter()
        self._curve: Path | None = None
        self._budget: Budget | None = None
        self._first: tuple[float, float] | None = None

    @property
    def elapsed(self) -> float:
        """Seconds since the process began."""
        return time.perf_counter() - self.start

    @property
    def wall(self) -> float:
        """Seconds that the run has taken, those before an interruption, too."""
        return self.earlier + self.elapsed

    def _spent(self) -> float:
        try:
            return float((self.folder / "wall_s").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return 0.0

    @property
    def running(self) -> bool:
        """Whether the process lives; also if the one that forked it was killed, and tells 255."""
        if self.process.exitcode == 255:
            return self.send(0)
        return self.process.exitcode is None

    def send(self, number: int) -> bool:
        """Send a signal; whether there was a process to get it."""
        assert self.process.pid is not None
        try:
            os.kill(self.process.pid, number)
        except (ProcessLookupError, PermissionError):
            return False
        return True

    def stop(self) -> None:
        """Have the process end."""
        while self.running:
            self.send(signal.SIGTERM)  # again, for it may not have listened yet
            for _ in range(50):
                if self.running:
                    time.sleep(0.02)

    def book(self) -> None:
        """Write down the time, for a process that goes on after an interruption."""
        part = self.folder / "wall_s.part"
        part.write_text(f"{self.wall:.1f}\n", encoding="utf-8")
        part.replace(self.folder / "wall_s")

    def row(self) -> dict[str, str]:
        """The last figures of each column of `metrics.csv`."""
        if self._curve is None:
            self._curve = next(iter(self.folder.glob("run/**/metrics.csv")), None)
        if self._curve is None:
            return {}
        try:
            with open(self._curve, encoding="utf-8") as file:
                names = file.readline().rstrip("\n").split(",")
                rows = [line.rstrip("\n").split(",") for line in deque(file, 50)]
        except OSError:
            return {}
        found: dict[str, str] = {}
        for row in rows:
            found |= {n: value for n, value in zip(names, row, strict=False) if value}
        return found

    @property
    def budget(self) -> Budget:
        """The cell's; what that leaves open is the run's own."""
        if self._budget is None:
            path = next(iter(self.folder.glob("run/**/config.yaml")), None)
            if path is None:
                return self.cell.budget
            own = run_budget(path)
            found = {**asdict(own), **{k: v for k, v in asdict(self.cell.budget).items() if v}}
            self._budget = Budget(**found)
        return self._budget

    def remaining(self, row: dict[str, str]) -> float | None:
        """Seconds of training left by the budget; None where it is not known.

        Steps and epochs are reckoned by their pace since the first look, for a process that goes
        on has not taken those before.
        """
        budget, shares, left = self.budget, [], []
        if budget.minutes:
            left.append(60 * budget.minutes - self.wall)
        if budget.steps and "step" in row:
            shares.append((int(row["step"]) + 1) / budget.steps)
        if budget.epochs and "epoch" in row:
            shares.append(int(row["epoch"]) / budget.epochs)  # the one that runs is not done
        if shares:
            share = max(shares)
            if self._first is None:
                self._first = (self.elapsed, share) if self.continued else (0.0, 0.0)
            since, done = self.elapsed - self._first[0], share - self._first[1]
            if done > 0:
                left.append(since * (1 - share) / done)
        return max(0.0, min(left)) if left else None

    def result(self) -> dict[str, Any]:
        """The record of the finished process."""
        status = self.process.exitcode or 0
        path = self.folder / "result.json"
        if path.is_file():  # the last thing that a cell writes
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return {**found, "wall_s": round(self.wall, 1)}
        lines = (self.folder / "log.txt").read_text(encoding="utf-8", errors="replace").split("\n")
        said = [line for line in lines if line.strip()][-5:]
        if not said:
            said.append(
                "ended before it began. Who calls `run_suite` in a script does so below "
                "`if __name__ == '__main__':`, for each cell imports the script."
            )
        if status < 0:
            said.append(f"ended by {signal.Signals(-status).name}; was there memory enough?")
        config = next(iter(self.folder.glob("run/**/config.yaml")), None)
        return {
            **asdict(self.cell),
            "id": self.cell.id,
            "status": "failed",
            "error": "\n".join(said),
            "exit_status": status,
            "wall_s": round(self.wall, 1),
            "config_sha256": config_hash(config) if config else None,
            "environment": self._environment(),
        }

    def _environment(self) -> dict[str, Any]:
        """As the process wrote it down; what can be told without torch, if it did not."""
        path = self.folder / "environment.json"
        if path.is_file():
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return found
        return {"machine": machine(), "commit": commit()}


@cache
def nursery() -> ForkServerContext | SpawnContext:
    """Where cells' processes come from.

    Imports take ten seconds, a small cell not much more. One process does them and is forked for
    each cell; beside CUDA, and on systems where forking is not safe, each cell does its own. There
    is one such process for all suites of this one, with the libraries' threads of the first.
    """
    import torch

    if sys.platform != "linux" or torch.cuda.is_available():
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload(["eblvm.benchmarks.nursery"])
    return context


@contextmanager
def variables(**values: str) -> Iterator[None]:
    """Environment variables, as long as this lasts."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class Shared:
    """A file descriptor that another process gets, too, with its arguments.

    Arguments:
        number: The descriptor; in the other process it has another one.
    """

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> tuple[Any, ...]:
        return received, (DupFd(self.number),)


def received(descriptor: Any) -> Shared:
    """A `Shared` in the process that gets it."""
    return Shared(descriptor.detach())


def run_budget(path: Path) -> Budget:
    """The steps and epochs of a run's `config.yaml`, where they are bounded."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return Budget()
    trainer = (content or {}).get("trainer") or {}
    steps, epochs = trainer.get("max_steps"), trainer.get("max_epochs")
    bounds = {"steps": steps, "epochs": epochs}
    return Budget(**{k: v for k, v in bounds.items() if isinstance(v, int) and v > 0})


def last_line(record: dict[str, Any]) -> str:
    """Why a cell failed, in a line."""
    lines = (record.get("error") or "").strip().splitlines()
    return lines[-1] if lines else "no reason"


def run_suite(
    suite: Suite,
    out: Path,
    jobs: int = 1,
    resume: bool = False,
    wandb: bool = False,
) -> list[dict[str, Any]]:
    """Run what is not done yet; all records, the newest of each cell.

    Arguments:
        suite: The cells.
        out: The suite's folder.
        jobs: Cells at a time.
        resume: Whether to go on with what lies in `out`; failed cells are tried again.
        wandb: Whether to log to Weights & Biases, the suite as one run group.

    A script calls this below `if __name__ == "__main__":`, for each cell's process imports it.

    Raises:
        UserError: If `out` holds results and `resume` is false, or those of another suite, or if
            another process is running a suite there.
    """
    out.mkdir(parents=True, exist_ok=True)
    with alone(out) as lock:
        return run_alone(suite, out, jobs, resume, wandb, lock)


def run_alone(
    suite: Suite, out: Path, jobs: int, resume: bool, wandb: bool, lock: int | None = None
) -> list[dict[str, Any]]:
    """`run_suite`, where no other process writes to the folder."""
    results = out / "results.jsonl"
    described = out / "suite.json"
    if results.exists() and not resume:
        raise UserError(f"{out} holds results. Add --resume to go on, or choose another --out.")
    if described.exists() and cells_of(described) != suite.cells:
        raise UserError(
            f"{out} was begun with another suite, budget, number of seeds or choice of tables. "
            "Give the same ones, or choose another --out."
        )
    describe(suite, described)
    done = {r["id"] for r in read_results(results) if r["status"] == "done"}
    waiting = deque(cell for cell in suite.cells if cell.id not in done)
    total, threads = len(suite.cells), max(1, (os.cpu_count() or 1) // jobs)
    group = f"{suite.name} {int(described.stat().st_mtime)}" if wandb else None
    cards = gpus() if jobs > 1 else []
    running: list[Worker] = []
    board = Board(total, len(done))
    with board.shown(), stopping(running):
        while waiting or running:
            while waiting and len(running) < jobs:
                cell = waiting.popleft()
                taken = [worker.gpu for worker in running]
                gpu = min(cards, key=taken.count) if cards and shareable(cell) else None
                folder = out / "cells" / cell.id
                running.append(Worker(cell, folder, threads, group, gpu, lock))
                board.began(cell)
            time.sleep(POLL)
            for worker in running:
                worker.book()
            for worker in [w for w in running if not w.running]:
                record = worker.result()
                keep(results, record)
                running.remove(worker)
                board.ended(record)
            board.update(running)
    return read_results(results)


def shareable(cell: Cell) -> bool:
    """Whether a cell wants one device; one whose recipe cannot be read will say so itself."""
    try:
        return for_one_device(cell)
    except (UserError, OSError, AttributeError, yaml.YAMLError):
        return False


def gpus() -> list[str]:
    """The devices that cells may be shared out over; none where there is one or no GPU."""
    import torch

    if (count := torch.cuda.device_count()) < 2:
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return named.split(",")[:count] if named else [str(i) for i in range(count)]


@contextmanager
def alone(out: Path) -> Iterator[int]:
    """Keep the folder for this process and its cells, to which the lock's file descriptor goes.

    The lock ends with the last of them, however they end.

    Raises:
        UserError: If another process has it.
    """
    with open(out / "lock", "a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise UserError(
                    f"another process is running a suite in {out}, or a cell of one that was "
                    "killed. Wait for it or stop it, or choose another --out."
                ) from error
            # a file system without locks: as it was before there were any
        yield file.fileno()


def cells_of(described: Path) -> list[Cell]:
    """The cells of a suite that was begun; its words and columns may have changed since."""
    return Suite.from_json(described.read_text(encoding="utf-8")).cells


def describe(suite: Suite, path: Path) -> None:
    """Write the suite down. The file keeps its age, by which the run group of W&B is named."""
    known = path.stat() if path.exists() else None
    path.write_text(suite.to_json(), encoding="utf-8")
    if known is not None:
        os.utime(path, ns=(known.st_atime_ns, known.st_mtime_ns))


def keep(path: Path, record: dict[str, Any]) -> None:
    """Append a line, so that it is on the disk before anything else happens."""
    line = json.dumps(record) + "\n"  # in ASCII: no character is ever cut in two
    with open(path, "a+b") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # a line that was cut off stays a line of its own
                line = "\n" + line
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def read_results(path: Path) -> list[dict[str, Any]]:
    """The newest record of each cell, done before failed; lines that were cut off are left out."""
    found: dict[str, dict[str, Any]] = {}
    if not path.is_file():
        return []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if record["status"] == "done" or found.get(record["id"], record)["status"] != "done":
            found[record["id"]] = record
    return list(found.values())


@contextmanager
def stopping(running: Sequence[Worker]) -> Iterator[None]:
    """However this ends, no process is left behind."""

    def stop(signum: int, frame: Any) -> None:
        raise KeyboardInterrupt

    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, stop) if main else None
    try:
        yield
    finally:
        for worker in running:  # all at once: none waits for another's last step
            if worker.running:
                worker.send(signal.SIGTERM)
        for worker in running:
            worker.stop()
        if main:
            signal.signal(signal.SIGTERM, before)


class Board:
    """What runs now, as a live table; without a terminal a line per event, and per cell a minute.

    Arguments:
        total: Cells of the suite.
        done: Those that are done already.
    """

    def __init__(self, total: int, done: int) -> None:
        self.total, self.done, self.failed = total, done, 0
        self.console = Console()
        self.live: Live | None = None
        self.told = time.perf_counter()

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show the table as long as this lasts."""
        if not self.console.is_terminal:
            yield
            return
        with Live(console=self.console, refresh_per_second=2, transient=True) as self.live:
            yield

    def began(self, cell: Cell) -> None:
        """A cell's process has started."""
        if self.live is None:
            print(f"{cell.id}: started ({cell.budget})", flush=True)

    def ended(self, record: dict[str, Any]) -> None:
        """A cell's process has ended."""
        if record["status"] == "done":
            self.done += 1
            said = f"done in {record['wall_s']:.0f} s"
        else:
            self.failed += 1
            said = f"failed: {last_line(record)}"
        line = f"{record['id']}: {said} ({self.done} of {self.total} done)"
        if self.live is None:
            print(line, flush=True)
        else:
            self.console.print(line, markup=False)

    def update(self, running: Sequence[Worker]) -> None:
        """Show how far the processes are; without a terminal once a minute."""
        if self.live is None and time.perf_counter() - self.told < MINUTE:
            return
        self.told = time.perf_counter()
        table = RichTable("cell", "step", "loss", "elapsed", "left", box=None, header_style="bold")
        for worker in running:
            row = worker.row()
            left, loss = worker.remaining(row), row.get("train/loss")
            step, loss = row.get("step", "–"), f"{float(loss):.4g}" if loss else "–"
            remaining = "–" if left is None else clock(left)
            if self.live is None:
                said = f"step {step}, loss {loss}, {clock(worker.elapsed)} elapsed"
                print(f"{worker.cell.id}: {said}, {remaining} left", flush=True)
            table.add_row(worker.cell.id, step, loss, clock(worker.elapsed), remaining)
        table.caption = f"{self.done} of {self.total} done, {self.failed} failed"
        if self.live is not None:
            self.live.update(table)


def clock(seconds: float) -> str:
    """`1:02:03`, hours only where there are any."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
