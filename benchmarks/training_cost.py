"""What a training stage costs before anything is trained: memory, operations, and hours at a stated rate.

    python -m benchmarks.training_cost [--size sd21] [--stages stage1 stage2 ...] [--rate 100]

Nothing is computed: one step with the stage's defaults is played through on tensors without data, so it runs on any
machine. Hours are operations times steps over `--rate`, in TFLOP/s that the training really reaches on one device (a
third to a half of what a data sheet promises for bf16 is usual); time for data and the optimiser is not in it. Stages
whose default is `--checkpointing` are counted with what it saves in memory and computes twice.
"""

from __future__ import annotations

import argparse

import torch

from setevsr_core.training.building import build_weightless
from setevsr_core.training.estimate import estimate_memory, step_flops
from setevsr_core.training.options import merged_options, train_settings
from setevsr_core.training.train_command import STAGES

from .measuring import begin


def row(stage_name: str, size: str, rate: float) -> str:
    """A line of the table, for the stage's defaults."""
    options = merged_options(stage_name, size, {"device": "cpu"})
    settings, device = train_settings(options), torch.device("cpu")
    stage = build_weightless(options, device)
    memory, flops = estimate_memory(stage, settings, device), step_flops(stage, settings, device)
    gigabytes = [part / 2**30 for part in (memory.weights, memory.learning, memory.activations, memory.total)]
    learning = sum(p.numel() for p in stage.parameters()) / 1e6
    hours = flops * settings.steps / (rate * 1e12) / 3600
    return (f"| {stage_name} | {settings.batch * settings.accumulate} x {settings.frames} x {settings.crop} px "
            f"| {'yes' if settings.checkpointing else 'no'} | {learning:.1f} "
            f"| {' | '.join(f'{value:.1f}' for value in gigabytes)} | {flops / 1e12:.1f} "
            f"| {settings.steps} | {hours:.1f} |")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["nano", "sd21"], default="sd21")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), metavar="STAGE")
    parser.add_argument("--rate", type=float, default=100.0, help="TFLOP/s that training reaches (default: 100)")
    args = parser.parse_args(argv)
    begin(f"defaults of {args.size}, GiB, hours at {args.rate:g} TFLOP/s")
    print("| stage | batch | checkpointing | million weights learn | weights | gradients, Adam, averages "
          "| activations | all | TFLOP/step | steps | hours |\n|---|---|---|---|---|---|---|---|---|---|---|")
    for name in args.stages:
        print(row(name, args.size, args.rate), flush=True)


if __name__ == "__main__":
    main()
