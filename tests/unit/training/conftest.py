"""What tests of the loop train in."""

from pathlib import Path

import pytest

from mimkit.training.run_folder import Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run that nothing has been written to yet."""
    return Run.create(tmp_path / "run", {})
