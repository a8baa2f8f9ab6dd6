"""`python -m baton.launch_router`: SGLang's name for starting a router (launch/router.py)."""

from baton.launch.router import main

if __name__ == "__main__":
    raise SystemExit(main())
