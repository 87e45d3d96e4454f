"""`python -m gpupack` is `gpupack`."""

import sys

from gpupack.cli import main

sys.exit(main())
