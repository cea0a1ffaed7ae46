"""Copy pki/profiles.toml, which lives at the root where auditors look, into the built package."""

from pathlib import Path
from shutil import copyfile

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


class BuildWithProfiles(build_py):
    """Build the packages, then put the certificate profiles beside the code that reads them."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            copyfile(ROOT / "pki" / "profiles.toml", Path(self.build_lib, "secure_dagu", "pki", "profiles.toml"))


setup(cmdclass={"build_py": BuildWithProfiles})
