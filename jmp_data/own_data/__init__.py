"""A user's own data: any of the usual files, described by one YAML, read like a published data set."""

from jmp_data.own_data.build_files import build_files
from jmp_data.own_data.force_sign import ForceSign, check_force_sign
from jmp_data.own_data.manifest import OwnManifest, load_own_manifest
from jmp_data.own_data.propose import Proposal, propose_manifest
from jmp_data.own_data.source import OwnData

__all__ = [
    "ForceSign",
    "OwnData",
    "OwnManifest",
    "Proposal",
    "build_files",
    "check_force_sign",
    "load_own_manifest",
    "propose_manifest",
]
