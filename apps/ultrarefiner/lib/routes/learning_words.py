"""What learns when, in words for the status page."""

from __future__ import annotations

from typing import Any

from ultrarefiner_monai.config.learning import LearningConfig

Row = tuple[str, str]


def learning_rows(state: dict[str, Any], config: LearningConfig) -> list[Row]:
    """Rows of the card "what it learns next"; state: of the learner, {} without one."""
    rows = [("Quick model", "on" if config.quick else "off (learning.quick)")]
    when = (
        f"at {config.hour}"
        if config.hour
        else f"after {config.labels} new labels and {config.quiet_minutes} quiet minutes"
    )
    rows.append(("Training by itself", when if config.slow else "off (learning.slow): the button Train begins one"))
    return rows


def report_words(report: dict[str, Any]) -> str:
    """What the gate said of a model; "" without a report."""
    return "; ".join(map(str, report.get("reasons", [])))
