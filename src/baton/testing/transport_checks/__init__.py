"""The checks of the transports, by idea; transport_conformance.py lists them."""
