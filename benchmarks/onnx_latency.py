"""Latency of an exported ONNX model at batch 1 against PyTorch eager, on the same input and threads.

    python benchmarks/onnx_latency.py RUN ONNX_FOLDER [THREADS]

Rounds are interleaved: each times both, one after the other, so that what else the machine does meets both.
Printed: the median of the rounds' ratios (PyTorch ÷ ONNX; above 1, ONNX is faster) with their range.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import torch

import regraft
from regraft.publish.export import generated

ROUNDS, CALLS = 9, 20


def seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    for _ in range(CALLS):
        call()
    return (time.perf_counter() - begin) / CALLS


def main(run: Path, folder: Path, threads: int) -> None:
    torch.set_num_threads(threads)
    predictor = regraft.load(run)
    with tempfile.TemporaryDirectory() as scratch:
        example = generated(predictor, False, Path(scratch))[0]
        inputs = predictor.preprocessor.collate([predictor.preprocessor.one(example.inputs)])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(folder / "model.onnx", options)
    given = inputs if isinstance(inputs, dict) else {"inputs": inputs}
    arrays = {k: v.numpy() for k, v in given.items()}

    def eager() -> object:
        with torch.inference_mode():
            return predictor.model(inputs)

    def onnx() -> object:
        return session.run(None, arrays)

    seconds(eager), seconds(onnx)  # the first calls also allocate
    rounds = [(seconds(eager), seconds(onnx)) for _ in range(ROUNDS)]
    ratios = sorted(a / b for a, b in rounds)
    ms = [1e3 * statistics.median(column) for column in zip(*rounds, strict=True)]
    print(
        f"{run}: PyTorch ÷ ONNX {statistics.median(ratios):.2f} [{ratios[0]:.2f}, {ratios[-1]:.2f}] "
        f"({ROUNDS} rounds of {CALLS} calls, {threads} threads; medians {ms[0]:.1f} and {ms[1]:.1f} ms)"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 1)
