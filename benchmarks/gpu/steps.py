"""What there is to measure, in the order of its worth: what comes first is known if the machine goes early."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """Something to measure, in a process of its own.

    Attributes:
        name: in the file and on the command line.
        module: below `benchmarks.gpu`; its function of the step's name (blanks are underscores) measures.
        limit_s: its process is ended after so long, start and imports included.
        about: for people.
        needs_gpu: whether it means nothing on a CPU.
    """

    name: str
    module: str
    limit_s: float
    about: str
    needs_gpu: bool = False

    @property
    def path(self) -> str:
        """Its module, as Python imports it."""
        return f"benchmarks.gpu.{self.module}"

    @property
    def function(self) -> str:
        """Its function there."""
        return self.name.replace(" ", "_")


STEPS = (
    Step("machine", "machine", 30, "versions; what a copy, a product, a launch and a wait cost"),
    Step("golden", "correctness", 45, "the golden cases against the reference, float32 and bf16"),
    Step("exactness", "correctness", 45, "the forward against the one with every candidate; operators against others"),
    Step("throughput", "throughput", 120, "images per second by setting and batch, time by part, over plain float32"),
    Step("stream", "throughput", 60, "pictures of many sizes end to end"),
    Step("trace", "trace", 45, "kernels, the device's idle share, no wait of the host in the forward", needs_gpu=True),
    Step("operators", "operators", 40, "RoIAlign, NMS, resize, window attention, the heads' convolutions"),
    Step("compile", "compiled", 120, "torch.compile: its time, its gain, its cache in a second process"),
    Step("memory", "hazards", 45, "peaks by batch; a batch that does not fit", needs_gpu=True),
    Step("lost device", "hazards", 30, "a poisoned context is known as a lost device", needs_gpu=True),
    Step("decode", "machine", 20, "JPEG decoding on threads, and on the device where torchvision can"),
    Step(
        "overflow", "hazards", 30, "the largest activation by part of trained weights, beside float16's largest number"
    ),
)
