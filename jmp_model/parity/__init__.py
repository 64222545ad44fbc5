"""Agreement with stored numbers of the original JMP code: graphs, bases, intermediates, outputs, gradients."""

from jmp_model.parity.fixtures import ParityConfig, load_parity_config, load_pretraining_model, read_inputs
from jmp_model.parity.run import ParityReport, run_parity, run_parity_report

__all__ = [
    "ParityConfig",
    "ParityReport",
    "load_parity_config",
    "load_pretraining_model",
    "read_inputs",
    "run_parity",
    "run_parity_report",
]
