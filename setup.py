"""The folder-to-package map: `cli` installs as `jmp_cli`, YAML folders as package data; the rest is pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["jmp_data", "jmp_data.*", "jmp_model", "jmp_model.*"]),
        "jmp_cli",
        "jmp_data._manifests",
        "jmp_model._recipes",
    ],
    package_dir={"jmp_cli": "cli", "jmp_data._manifests": "manifests", "jmp_model._recipes": "recipes"},
    package_data={
        "jmp_data": ["py.typed"],
        "jmp_model": ["py.typed"],
        "jmp_data._manifests": ["**/*.yaml", "**/*.csv"],
        "jmp_model._recipes": ["**/*.yaml"],
    },
)
