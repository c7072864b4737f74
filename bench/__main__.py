"""`python -m bench`."""

import sys

from bench.main import main, parse_arguments

if __name__ == "__main__":
    given = parse_arguments()
    sys.exit(main(given.names, quick=given.quick, as_json=given.json))
