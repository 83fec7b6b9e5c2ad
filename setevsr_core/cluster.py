"""Segments on many machines: the calls of `Restorer`, computed by workers of a Ray cluster.

Noise depends on seed, frame and step alone and the plan of the segments on the frames, so it does not matter who
computes a segment: the result has the bits of one such machine, and the same journal. The cluster only computes; frames
are read, blended and written here. A worker that dies is started again by Ray and its segment repeated.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from .checkpoints.presets import preset_config, preset_folder
from .errors import ClusterError, SettingsError, require
from .progress import Progress, SegmentProgress
from .settings import RestoreSettings, resolve_settings
from .streaming import FROM_START, Resume, Segments, restored_blocks
from .video.segments import Span

log = logging.getLogger(__name__)

LOCAL = "local"
RETRIES = 3  # of one segment whose worker died
POLL = 0.2  # seconds between looks at the cancel button
START_LIMIT = 600.0  # seconds until the workers must be ready; several GB of networks may come over a slow wire


class ClusterRestorer:
    """`stream` and `fingerprint` of a `Restorer`, on a cluster; a context manager that lets go of it.

    address: of a running cluster ("host:6379", "ray://host:10001", "auto"), or "local" for one on this machine. preset:
    name or folder; its files are sent, so the workers need none. device: per worker, None for the best. dtype: as for
    `SegmentWorker`. workers: how many; None for one per GPU, or without any one per machine. check_cancel() is called
    while the workers start, and stops that by raising.
    Errors: MissingPackageError without Ray, ClusterError when no cluster answers or its workers do not start in time.
    """

    def __init__(
        self,
        address: str,
        preset: str | Path,
        *,
        device: str | None = None,
        dtype: str | None = None,
        workers: int | None = None,
        check_cancel: Callable[[], None] | None = None,
    ) -> None:
        if workers is not None and workers < 1:
            raise SettingsError(f"workers is {workers}; it must be at least 1")
        folder = preset_folder(preset)
        self.defaults = preset_config(folder).get("defaults", {})
        self._pool = require("ray.util", "ray", "spreading a video over a cluster").ActorPool
        self._ray = require("ray", "ray", "spreading a video over a cluster")
        self._own = not self._ray.is_initialized()
        try:
            if self._own:
                _connect(self._ray, address)
            # A worker that is started again reads the files once more, so they are held here.
            self._files = self._ray.put(_files_of(folder))
            self._workers = _start_workers(self._ray, self._files, device, dtype, workers, check_cancel)
        except BaseException:
            self._let_go([])
            raise

    def __enter__(self) -> ClusterRestorer:
        return self

    def __exit__(self, *error: Any) -> None:
        self._let_go(self._workers)

    def settings(self, **chosen: Any) -> RestoreSettings:
        """As `Restorer.settings`."""
        return resolve_settings(chosen, self.defaults)

    def fingerprint(self, *, text: Tensor | None = None, **chosen: Any) -> str:
        """As `Restorer.fingerprint` of any worker."""
        self.settings(**chosen)
        return _get(self._ray, self._workers[0].call.remote("fingerprint", {**chosen, "text": text}))

    def stream(
        self,
        frames: Iterable[Tensor],
        *,
        num_frames: int | None = None,
        resume: Resume = FROM_START,
        on_carry: Callable[[Resume], None] | None = None,
        text: Tensor | None = None,
        progress: Progress | None = None,
        check_cancel: Callable[[], None] | None = None,
        **settings: Any,
    ) -> Iterator[Tensor]:
        """As `Restorer.stream`; holds about as many segments as there are workers."""
        chosen = self.settings(**settings)
        bar = SegmentProgress(progress, num_frames, chosen.steps, has_semantics=True)
        bar.begin(resume.first_frame)
        compute = partial(self._compute, chosen, text, bar, check_cancel)
        return bar.finishing(restored_blocks(frames, chosen, compute, resume, on_carry))

    def _compute(
        self,
        settings: RestoreSettings,
        text: Tensor | None,
        bar: SegmentProgress,
        check_cancel: Callable[[], None] | None,
        segments: Segments,
    ) -> Iterator[tuple[Span, Callable[[], Tensor]]]:
        """`streaming.Compute`: every worker has a segment in work while the oldest is waited for."""
        pool = self._pool(self._workers)
        constant = (uuid.uuid4().hex, asdict(settings), text)
        waiting: deque[Span] = deque()

        def next_of(span: Span) -> tuple[Span, Callable[[], Tensor]]:
            return span, partial(self._wait, pool, span, bar, check_cancel)

        for span, segment in segments:
            job = (*constant, (span.start, span.stop), segment)
            pool.submit(lambda worker, job: worker.call.remote("restore", *job), job)
            waiting.append(span)
            if len(waiting) > len(self._workers):
                yield next_of(waiting.popleft())
        while waiting:
            yield next_of(waiting.popleft())

    def _wait(
        self, pool: Any, span: Span, bar: SegmentProgress, check_cancel: Callable[[], None] | None
    ) -> Tensor:
        """The next segment's pictures."""
        bar.begin(span.stop)
        while True:
            if check_cancel is not None:
                check_cancel()
            try:
                pictures = _translated(self._ray, partial(pool.get_next, timeout=POLL))
            except TimeoutError:
                continue
            bar.update("decode", 1.0, "restored on the cluster")
            return pictures

    def _let_go(self, workers: Iterable[Any]) -> None:
        for worker in workers:
            with contextlib.suppress(Exception):  # it may be gone already
                self._ray.kill(worker)
        if self._own:
            self._ray.shutdown()


def _files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".json", ".safetensors")}


def _connect(ray: Any, address: str) -> None:
    # The code travels along, under its plain name: here it may be part of a node pack that is called otherwise.
    environment = {"py_modules": [str(Path(__file__).parent)], "excludes": ["presets", "**/__pycache__"]}
    options: dict[str, Any] = {"runtime_env": environment, "log_to_driver": False, "logging_level": logging.ERROR}
    if address == LOCAL:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster of our own reports to nobody
        options["include_dashboard"] = False
    try:
        ray.init(address=address, **options)
    except Exception as error:
        if address == LOCAL:
            raise ClusterError(f"no Ray cluster could be started on this machine ({error}); try again when it has less "
                               "to do, or go without one") from error
        raise ClusterError(f"no Ray cluster answers at '{address}' ({error}); start one with 'ray start --head', "
                           "or give 'local'") from error


def _start_workers(
    ray: Any, files: Any, device: str | None, dtype: str | None, count: int | None,
    check_cancel: Callable[[], None] | None,
) -> list[Any]:  # fmt: skip
    """Actors with the networks of `files` (a reference) loaded; Ray starts one that died again.

    They reserve no CPUs, only limit their threads: a reservation that fits no machine would wait for ever.
    Errors: ClusterError if they do not start in time, or would not all give the same bits.
    """
    resources = ray.cluster_resources()
    gpus = 0 if device == "cpu" else int(resources.get("GPU", 0))
    cpus = int(resources.get("CPU", 1))
    count = count or gpus or len([node for node in ray.nodes() if node["Alive"]])
    threads = 0 if gpus else max(1, cpus // count)
    actor = ray.remote(
        num_cpus=0, num_gpus=_gpu_share(count, gpus), max_restarts=-1, max_task_retries=RETRIES,
        scheduling_strategy="SPREAD",
    )(_actor_class())  # fmt: skip
    workers = [actor.remote(files, device, dtype, threads) for _ in range(count)]
    answers = [worker.call.remote("fingerprint", {}) for worker in workers]
    _wait_for(ray, answers, check_cancel)
    if len(set(_get(ray, answers))) > 1:
        raise ClusterError("the workers of the cluster compute differently (some on a GPU, some not, or in another "
                           "number type): give --device and --dtype, so that all give the same pictures")
    log.info("SeTe-VSR: %d workers are ready on the cluster", count)
    return workers


def _gpu_share(workers: int, gpus: int) -> float:
    """What each worker reserves of a GPU, so that a whole number of them fits one and there is room for all."""
    return 1 / math.ceil(workers / gpus) if gpus else 0


def _wait_for(ray: Any, answers: list[Any], check_cancel: Callable[[], None] | None) -> None:
    """Returns when all answers are there. Errors: ClusterError if that takes too long."""
    limit = time.monotonic() + START_LIMIT
    ready: list[Any] = []
    while len(ready) < len(answers):
        if check_cancel is not None:
            check_cancel()
        if time.monotonic() > limit:
            raise ClusterError(f"{len(ready)} of {len(answers)} workers of the cluster were ready after "
                               f"{START_LIMIT / 60:g} minutes (others may hold its GPUs); ask for fewer with "
                               f"--workers {max(1, len(ready))}")
        ready, _ = ray.wait(answers, num_returns=len(answers), timeout=POLL)


def _actor_class() -> type:
    """A class that Ray sends by value, because the far end knows this package under another name than ComfyUI does."""

    class Worker:
        def __init__(self, *arguments: Any) -> None:
            self._arguments, self._worker = arguments, None

        def call(self, name: str, *arguments: Any) -> Any:
            if self._worker is None:  # not made above: Ray would tell an error there as the death of the worker
                from setevsr_core.cluster_worker import SegmentWorker

                self._worker, self._arguments = SegmentWorker(*self._arguments), ()
            return getattr(self._worker, name)(*arguments)

    return Worker


def _get(ray: Any, reference: Any) -> Any:
    """The value of a reference, or of a list of them."""
    return _translated(ray, partial(ray.get, reference))


def _translated(ray: Any, call: Callable[[], Any]) -> Any:
    """`call()`, with Ray's errors as one sentence."""
    try:
        return call()
    except ray.exceptions.GetTimeoutError:
        raise
    except ray.exceptions.RayTaskError as error:
        raise ClusterError(f"a worker of the cluster failed: {error.cause}") from error
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[0]
        raise ClusterError(f"the cluster lost a worker {RETRIES + 1} times ({reason}); the finished part is kept: run "
                           "the same again") from error
