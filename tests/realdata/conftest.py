"""Where the real images are: DEFECTSEG_REALDATA, or `shared/data` beside the clone."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def realdata() -> Path:
    path = Path(os.environ.get("DEFECTSEG_REALDATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
    for name in ("severstal", "severstal-labels", "neu900"):
        if not (path / name).is_dir():
            pytest.skip(f"no real data at {path / name}")
    return path
