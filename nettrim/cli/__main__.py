"""``python -m nettrim.cli``."""

import sys

from nettrim.cli import main

sys.exit(main())
