"""`python -m baton.launch_server`: one worker, with SGLang's flags."""

import sys

from baton.launch.server import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
