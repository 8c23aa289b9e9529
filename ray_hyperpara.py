"""Search for hyperparameters: `python ray_hyperpara.py [--resume] PARAMETERS.json`, the same as `discern optimize`."""

import sys

from discern.__main__ import main

if __name__ == "__main__":
    sys.argv.insert(1, "optimize")
    main()
