"""A manifest as YAML with comments: what each entry means, and on what evidence it was filled in."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from jmp_data.own_data.propose import Proposal
from jmp_data.own_data.statements import Statement

_WIDTH = 118
_HEAD = """\
Written by `jmp-data init-manifest`. Check every line, above all units and signs: nothing in most files says
what they are. Then: jmp-data build {name}
"""


def manifest_text(proposal: Proposal, file_name: str) -> str:
    """The YAML file of a proposal.

    Args:
        proposal: the manifest and the evidence.
        file_name: of the YAML file, for its own head.
    """
    manifest = proposal.manifest.model_dump(mode="json", exclude_none=True)
    said = _by_entry((*proposal.choices.statements, *proposal.division.statements))
    lines = [f"# {line}" for line in _HEAD.format(name=file_name).splitlines()] + [""]
    lines += _entry("name", manifest["name"], "output goes to OUT/NAME/SPLIT")
    if manifest["files"]:
        lines += _entry("files", manifest["files"], f"{proposal.inspection.count} structures in all")
    lines += _entry("format", manifest["format"])
    if "table" in manifest:
        lines += _entry("table", manifest["table"])
    lines += ["", *_evidence(said, "files", "units"), "units:  # of the files; on disk everything becomes eV and Å"]
    units = {name: unit for name, unit in manifest["units"].items() if unit != "auto"}
    lines += _indented(units)
    lines += ["", *_evidence(said, "keys"), "keys:  # where the labels are; none where there are none"]
    lines += _indented(manifest["keys"])
    lines += ["", *_evidence(said, "force_sign"), *_entry("force_sign", manifest["force_sign"], "force or gradient")]
    if manifest["keys"]["stress"] != "none":
        lines += [*_evidence(said, "stress_sign"), *_entry("stress_sign", manifest["stress_sign"])]
    kinds = "total, adsorption, formation, atomization or none"
    lines += [*_evidence(said, "energy_kind"), *_entry("energy_kind", manifest["energy_kind"], kinds)]
    lines += [*_evidence(said, "required"), *_entry("required", manifest["required"], "without these: set aside")]
    lines += ["", *_targets(proposal, said)]
    lines += ["", *_evidence(said, "pbc"), *_entry("pbc", manifest["pbc"], "given, true or false")]
    rules = "given, all 2, constraint or layers; 0 bulk, 1 surface, 2 adsorbate"
    lines += [*_evidence(said, "tags"), *_entry("tags", manifest["tags"], rules)]
    lines += ["", *_evidence(said, "splits"), "splits:  # by: structure, composition, file, order, key or given"]
    lines += _indented(_split_entries(manifest["splits"]))
    lines += ["", *_entry("licence", manifest["licence"])]
    lines += [*_entry("citation", manifest["citation"]), *_entry("level_of_theory", manifest["level_of_theory"])]
    return "\n".join(lines) + "\n"


def _by_entry(statements: Sequence[Statement]) -> dict[str, list[Statement]]:
    found: dict[str, list[Statement]] = {}
    for statement in statements:
        found.setdefault(statement.about.split(".")[0], []).append(statement)
    return found


def _evidence(said: Mapping[str, Sequence[Statement]], *entries: str) -> list[str]:
    return [line for entry in entries for statement in said.get(entry, ()) for line in _comment(str(statement))]


def _comment(text: str) -> list[str]:
    return textwrap.wrap(
        " ".join(text.split()), _WIDTH, initial_indent="# ", subsequent_indent="#   ", break_on_hyphens=False
    )


def _plain(value: Any) -> str:
    """A value on one line."""
    return (
        yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6, sort_keys=False)
        .removesuffix("...\n")
        .strip()
    )


def _entry(name: str, value: Any, comment: str = "") -> list[str]:
    if isinstance(value, list) and len(value) > 2:
        head = f"{name}:  # {comment}" if comment else f"{name}:"
        return [head, *(f"  - {_plain(item)}" for item in value)]
    return [f"{name}: {_plain(value)}" + (f"  # {comment}" if comment else "")]


def _indented(entries: Mapping[str, Any]) -> list[str]:
    return [f"  {name}: {_plain(value)}" for name, value in entries.items()]


def _targets(proposal: Proposal, said: Mapping[str, Sequence[Statement]]) -> list[str]:
    targets = {
        name: entry.model_dump(mode="json", exclude_defaults=True) for name, entry in proposal.manifest.targets.items()
    }
    evidence = _evidence(said, "targets")
    if targets:
        return [*evidence, "targets:", *_indented(targets)]
    if not proposal.further:
        return [*evidence, "targets: {}"]
    further = [f"#   {line.strip()}" for line in _indented(proposal.further)]
    return [*evidence, "targets: {}  # or, of what there is:", *further]


def _split_entries(splits: Mapping[str, Any]) -> dict[str, Any]:
    """Only what the rule uses."""
    if splits["by"] == "given":
        return {"by": "given", "files": splits["files"]}
    used = {"by": splits["by"], "fractions": splits["fractions"]}
    if splits["by"] != "order":
        used["seed"] = splits["seed"]
    return {**used, "key": splits["key"]} if splits["by"] == "key" else used
