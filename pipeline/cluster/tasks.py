"""Tasks of any kind on Ray Data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import ray
from ray import cloudpickle
from ray.data import DataContext

from pipeline.cluster.connect import wait_for_threads
from pipeline.cluster.quiet import quiet
from pipeline.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class RayTasks:
    """A `pipeline.evaluate.measure.TaskRunner`: every item is a task on one CPU of the cluster.

    Attributes:
        report: takes a line for people for each task that is done.
    """

    report: Callable[[str], None]

    def __call__(self, work: Callable[[Item], Result], items: Sequence[Item], verb: str) -> Iterator[Result]:
        """As `TaskRunner` says."""
        quiet(DataContext.get_current())

        # As bytes, which Ray Data leaves as they are: it would make columns of what is in them.
        def run(row: dict[str, bytes]) -> dict[str, bytes]:
            try:
                result: Any = work(cloudpickle.loads(row["packed"]))
            except UserError as error:
                result = _Failed(error)
            return {"packed": cloudpickle.dumps(result)}

        rows = [{"packed": cloudpickle.dumps(item)} for item in items]
        dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map(run, num_cpus=1)
        results = iter(dataset.iter_rows())
        try:
            for done, row in enumerate(results, start=1):
                result = cloudpickle.loads(row["packed"])
                if isinstance(result, _Failed):
                    raise result.error
                self.report(f"{done} of {len(items)} parts {verb}")
                yield result
        finally:
            del results  # ends the work that is not done: what it would still write is about to be removed
            wait_for_threads()


@dataclass(frozen=True)
class _Failed:
    """What a task could not use: an error that Ray would wrap."""

    error: UserError
