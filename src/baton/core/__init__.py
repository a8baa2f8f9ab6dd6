"""Words that every part of Baton shares: requests, sampling parameters, errors, clocks."""
