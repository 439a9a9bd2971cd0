"""Kernels in Triton, which are compiled when they are first run, and kept in the user's cache folder."""

import os

from app.settings import cache_folder

os.environ.setdefault("TRITON_CACHE_DIR", str(cache_folder() / "triton"))
