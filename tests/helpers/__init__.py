"""What several test modules share: small parts, settings, sources, servers, runs and processes."""

from pathlib import Path

import pytest

# A failed assertion in here is to tell what it compared, as one in a test does.
pytest.register_assert_rewrite(*(f"helpers.{path.stem}" for path in Path(__file__).parent.glob("[!_]*.py")))
