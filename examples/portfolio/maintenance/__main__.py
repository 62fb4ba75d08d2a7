"""`python -m maintenance`, from the folder above."""

from __future__ import annotations

import sys

from maintenance import main

if __name__ == "__main__":
    sys.exit(main())
