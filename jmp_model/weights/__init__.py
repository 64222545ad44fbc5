"""Weights from and to the released JMP checkpoints."""
