"""Annotate every image of a manifest: ``python -m jobs.annotate --config my.yaml``.

Run the same command again after any crash: it goes on where it stopped. Exit codes: 0 done, 1 failed, 2 bad
configuration or input, 3 done, with more failed images or drift than allowed, 4 ended early because
almost all images failed, 130 and 143 stopped by SIGINT and SIGTERM with everything written that was ready.
What Ray says is in maskfleet-ray-*.log, among the logs of its session.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs.arguments import add_config, job_parser
from jobs.ending import OK, end, run, say, set_up_log
from pipeline.compare.limits import Limit, LimitError, not_judged

if TYPE_CHECKING:
    from pipeline.annotate.config import AnnotateConfig
    from pipeline.annotations.run_json import RunJson
    from pipeline.storage.uris import Uri

TOO_MANY_FAILURES, STOPPED_BY_FAILURES = 3, 4
BEYOND_LIMITS = TOO_MANY_FAILURES

logger = logging.getLogger("jobs.annotate")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, run, and say in the last line how it ended."""
    parser = job_parser("annotate", __doc__)
    add_config(parser, "model.batch_size=16")
    parser.add_argument("--dry-run", action="store_true", help="check all, print the plan, leave the output as it is")
    parser.add_argument("--retry-failed", action="store_true", help="queue images again that failed in earlier runs")
    args = parser.parse_args(argv)
    set_up_log()
    advice = "what was written is kept, and the same command goes on from there"
    return run(logger, lambda: _annotate(args), advice)


def _annotate(args: argparse.Namespace) -> int:
    # Here and not above: the model's packages and Ray take ten seconds to import. The help, a config that is wrong and
    # files that are missing are told before that.
    from pipeline.annotate.config import AnnotateConfig
    from pipeline.annotations.reader import open_source
    from pipeline.config.loading import load_config
    from pipeline.model.files.resolve import find_model
    from pipeline.storage.listing import check_there

    config = load_config(AnnotateConfig, args.config, args.set)
    limits = _limits(config, args.config)
    find_model(config.model.checkpoint)
    if (place := config.manifest.place) is not None:
        check_there({"manifest.uri": place})
    if config.drift and config.drift.against != "previous":
        open_source(config.drift.against)  # now, and not when the run is over
    from pipeline.annotate.dry_run import dry_run
    from pipeline.annotate.run import annotate, failed_lines, summary
    from pipeline.annotations.ledger import OutputStore
    from pipeline.annotations.run_json import RunState

    if args.dry_run:
        say(dry_run(config))
        return end(logger, OK, "a dry run: nothing was started")
    store = OutputStore(config.output.uri, keep_replaced=config.output.keeps_replaced)
    report = annotate(config, args.retry_failed, store)
    if report.state is RunState.STOPPED_BY_FAILURES:
        say("\n".join(failed_lines(store)))
        return end(
            logger,
            STOPPED_BY_FAILURES,
            f"{report.this_run.error}, as output.stop forbids: mend the cause, and --retry-failed does them again; "
            f"what was written is kept: {config.output.uri}",
        )
    say(summary(report, store))
    if report.state is RunState.TOO_MANY_FAILURES:
        allowed = config.output.max_failed_fraction
        return end(
            logger,
            TOO_MANY_FAILURES,
            f"{report.failed_fraction:.2%} of the images failed, more than the {allowed:.2%} of "
            "output.max_failed_fraction; all results were kept",
        )
    if broken := _drift(config, report, limits):
        return end(
            logger, BEYOND_LIMITS, f"beyond the limits of drift.fail_if: {', '.join(broken)}; all results were kept"
        )
    return end(logger, OK, f"{report.state}: {config.output.uri}")


def _limits(config: AnnotateConfig, path: str) -> list[Limit]:
    try:
        return [Limit.parse(text) for text in config.drift.fail_if] if config.drift else []
    except LimitError as error:
        raise LimitError(f"{path}, drift.fail_if: {error}") from None


def _drift(config: AnnotateConfig, report: RunJson, limits: Sequence[Limit]) -> list[str]:
    """Compare what the run made, where that is asked for; which limits it broke."""
    from pipeline.annotations.ledger import COMPARISON_PAGE_NAME
    from pipeline.annotations.reader import open_source
    from pipeline.compare.report import text, write
    from pipeline.compare.run import Side, compare, sides_of_run

    uri = config.output.uri
    if config.drift is None:
        return []
    run_id = report.run_id if report.this_run.rounds else _left_over(uri)
    if run_id is None:
        return []
    if config.drift.against == "previous":
        before, after = sides_of_run(uri, run_id)
        if before.source.provenance["run_ids"] == [run_id]:
            logger.info("drift: all rows are of one run, there is nothing to compare with")
            return []
    else:
        before, after = Side(open_source(config.drift.against)), Side(open_source(uri), run_id)
    found = compare(before, after)
    write(found, uri, limits)
    say(f"drift: {text(found)}")
    if lack := not_judged(limits, found.figures, found.not_judged, found.few_images):
        logger.warning("drift: %s", lack)
    logger.info("what changed: %s", uri / COMPARISON_PAGE_NAME)
    return [limit.text for limit in limits if limit.is_broken(found.figures)]


def _left_over(uri: Uri) -> str | None:
    """The run that made the latest rows, where it ended before it was compared: killed, or by a table out of reach."""
    from pipeline.annotations.reader import open_source
    from pipeline.annotations.run_json import RunJson
    from pipeline.compare.earlier import read_earlier

    earlier, report = read_earlier(uri), RunJson.read(uri)
    compared = earlier["after"].get("run") if earlier else None
    if report is not None and report.run_id == compared:
        return None  # as nearly always; else the footers of all files tell
    latest: str = open_source(uri).provenance["run_ids"][-1]
    if compared is not None and latest <= compared:  # they begin with the time
        return None
    logger.info("drift: run %s, which made the latest rows, is not compared yet", latest)
    return latest


if __name__ == "__main__":
    sys.exit(main())
