"""Every struct that crosses a process boundary, in closed unions, and their codec."""
