"""The command line's edge."""

from importlib.metadata import version

import mimkit
from mimkit.cli.main import main


def test_the_version_is_that_of_the_package(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"mimkit {version('mimkit')}\n"
    assert mimkit.__version__ == version("mimkit")
