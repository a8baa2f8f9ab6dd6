"""Settings for every test process, made before torch is loaded."""

import os

# Threads of tests share the machine with the servers that other tests start: waiting must not spin.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
