"""python -m hauski_ingest, where it is installed as a package."""

import sys

from hauski_ingest import main

sys.exit(main())
