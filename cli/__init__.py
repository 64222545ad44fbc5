"""The two programs, `jmp-data` and `jmp`: parsing, progress and printing; all work is done in the packages."""
