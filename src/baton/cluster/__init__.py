"""Workers that find their routers, and leave them in order."""
