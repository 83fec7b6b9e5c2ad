"""One honest progress bar over stages of very different cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

Progress = Callable[[float, str, "Tensor | None"], None]

# Relative work per frame, after the floating point operations of the full-size networks (encode 1.1, SAM 2 about 0.6,
# decode 4.1, one denoising step 1.0 tera-operations at 512 x 512); exact times do not matter, a steady bar does.
ENCODE, SEMANTICS, STEP, DECODE = 1.1, 0.6, 1.0, 4.1


class SegmentProgress:
    """Turns "stage x of this segment is so far" into one rising number for the whole video.

    report: called as report(done 0..1, message, preview or None); None switches reporting off. total_frames: None when
    the length of a stream is unknown; `done` then stays 0 and the message counts frames.
    """

    def __init__(self, report: Progress | None, total_frames: int | None, steps: int, has_semantics: bool) -> None:
        self._report = report
        self._total = total_frames
        self._costs = {
            "encode": ENCODE,
            "semantics": SEMANTICS if has_semantics and steps else 0.0,
            "denoise": STEP * steps,
            "decode": DECODE,
        }
        self._before = 0  # frames that earlier segments have brought
        self._stop = 0
        self._done = 0.0

    def begin(self, stop: int) -> None:
        """The segment that ends before frame `stop` starts."""
        self._before, self._stop = self._stop, stop

    def update(self, stage: str, share: float, message: str, preview: Tensor | None = None) -> None:
        """`stage` of the current segment is `share` (0..1) done."""
        if self._report is None:
            return
        names = list(self._costs)
        spent = sum(self._costs[name] for name in names[: names.index(stage)]) + share * self._costs[stage]
        frames = self._before + (self._stop - self._before) * spent / sum(self._costs.values())
        if self._total:
            self._done = max(self._done, min(frames / self._total, 1.0))
        whole = f" of {self._total}" if self._total else ""
        self._report(self._done, f"{message} (frames {self._before + 1}-{self._stop}{whole})", preview)

    def finishing(self, blocks: Iterator[Tensor]) -> Iterator[Tensor]:
        """`blocks` as they are; the bar is full after the last one."""
        yield from blocks
        if self._report is not None:
            self._report(1.0, "done", None)
