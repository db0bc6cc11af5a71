"""What pyproject.toml cannot say: which packages there are, and that the ready configs are data of ``jobs``."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["jobs*", "maskfleet*", "pipeline*"]), "jobs.configs"],
    package_dir={"jobs.configs": "configs"},
)
