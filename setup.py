"""What pyproject.toml cannot say: the packages, the ready configs as data of ``jobs``, and that a build begins anew."""

import shutil

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py


class CleanBuild(build_py):
    """Without the modules of an earlier build, which setuptools leaves beside the sources and would pack again."""

    def run(self) -> None:
        if not self.editable_mode:
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


setup(
    packages=[*find_packages(include=["jobs*", "maskfleet*", "pipeline*"]), "jobs.configs"],
    package_dir={"jobs.configs": "configs"},
    cmdclass={"build_py": CleanBuild},
)
