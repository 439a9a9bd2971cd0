"""Which packages are installed; all else is in pyproject.toml.

The folder `app` is installed as the package `paceline`: a package called `app` would take the place of other people's.
Inside it, imports are relative, so that it works under both names.
"""

from setuptools import find_packages, setup

setup(
    packages=["paceline", *(f"paceline.{name}" for name in find_packages("app")), "paceline_bench"],
    package_dir={"paceline": "app"},
)
