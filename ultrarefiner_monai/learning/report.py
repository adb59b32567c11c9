"""A candidate in words: its figures, what the gate found, what it was trained on and where it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ultrarefiner_monai.learning.registry import ADAPTER_FACT, Candidate

_AFTER = {0: "without clicks", 1: "after 1 click"}


def lines_of(candidate: Candidate) -> list[str]:
    """What ``ultrarefiner models show`` prints of a candidate."""
    facts = candidate.facts
    found = [
        f"{candidate.name}, version {candidate.version}, made {candidate.created[:19].replace('T', ' ')} UTC",
        f"file: {candidate.path}",
    ]
    if "start" in facts:
        found.append(f"started from: {facts['start']}")
    if adapter := facts.get(ADAPTER_FACT):
        found.append(f"with an adapter of rank {adapter['rank']} merged (file {adapter['file']})")
    if images := facts.get("images"):
        replayed = f", and {images['replayed']} replayed ones" if images.get("replayed") else ""
        found.append(
            f"images: {images.get('train', 0)} trained on{replayed}; {images.get('select', 0)} validate; "
            f"{images.get('lesions', 0)} of all labels with a lesion"
        )
    if options := facts.get("options"):
        found.append("options: " + ", ".join(f"{k} {v}" for k, v in options.items()))
    return found + gate_lines(facts.get("gate"), str(facts.get("compared_with", "")))


def gate_lines(gate: Mapping[str, Any] | None, champion: str = "") -> list[str]:
    """The gate's report. champion: the name of the model that the candidate was compared with."""
    if not gate:
        return ["the gate: it was not judged"]
    found = [
        f"the gate: {'passed' if gate['passed'] else 'refused'}, compared with {champion or gate.get('champion', '')}"
    ]
    found += [f"  {reason}" for reason in gate.get("reasons", [])]
    if "change" in gate:
        found.append(f"  mean Dice without clicks and with: {gate['change']:+.3f}, at least {gate['low']:+.3f}")
    for row in gate.get("compared", []):
        after = _AFTER.get(row["clicks"], f"after {row['clicks']} clicks")
        found.append(
            f"  {after}: Dice {row['dice'][0]:.3f} -> {row['dice'][1]:.3f} on {row['lesions']} images of {row['groups']} "
            f"patients (change at least {row['low']:+.3f}); failures {row['failures'][0]} -> {row['failures'][1]}; false "
            f"alarms {row['false_alarms'][0]} -> {row['false_alarms'][1]} of {row['normals']}"
        )
    if "power_equal" in gate:
        found.append(
            f"  on so many labels an equal model passes with probability {gate['power_equal']:.2f}, one that is better by "
            f".02 with {gate['power_better']:.2f}"
        )
    return found


def promotion_warnings(candidate: Candidate) -> list[str]:
    """What a person should know who promotes a candidate by hand: the gate's words, by the options of the server that asked it."""
    gate = candidate.facts.get("gate")
    if not gate:
        return ["it was never compared with what is served"]
    warnings = [] if gate["passed"] else ["the gate refused it: " + "; ".join(gate["reasons"])]
    told = [few for few in gate.get("warnings", ()) if few not in gate["reasons"]]
    return warnings + [f"its figures say little: {few} for a promotion by itself" for few in told]
