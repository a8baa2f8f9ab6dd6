"""KV blocks: their layout in memory, who owns them, and which prefixes they hold."""
