"""Scripts to read from top to bottom, and the data they train on."""

import os
from pathlib import Path

# A second run of a script finds its programs compiled, and the small ones too, of which there are
# many. JAX reads these when it is imported; an empty JAX_COMPILATION_CACHE_DIR turns it off.
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxvae"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
