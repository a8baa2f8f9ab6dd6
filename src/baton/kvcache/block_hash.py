"""Names of KV blocks by content: equal hash, equal KV.

A block's hash chains its parent's, so it names the whole prefix up to and including the block:
hash_i = blake2b(hash_{i-1} | token ids of block i). The first parent is derived from the salt, so
that tenants with different salts share nothing. The router computes the same hashes.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

BlockHash = bytes
_DIGEST_BYTES = 16


def root_hash(salt: str = "") -> BlockHash:
    """Parent of every first block."""
    return hashlib.blake2b(b"baton-kv-1|" + salt.encode(), digest_size=_DIGEST_BYTES).digest()


def extend_hashes(
    hashes: list[BlockHash],
    token_ids: Sequence[int],
    block_size: int,
    salt: str = "",
) -> None:
    """Append to `hashes` until every full block of `token_ids` has one."""
    num_full = len(token_ids) // block_size
    parent = hashes[-1] if hashes else root_hash(salt)
    for index in range(len(hashes), num_full):
        block = np.asarray(token_ids[index * block_size : (index + 1) * block_size], dtype="<u4")
        parent = hashlib.blake2b(parent + block.tobytes(), digest_size=_DIGEST_BYTES).digest()
        hashes.append(parent)


def prompt_digest(token_ids: Sequence[int]) -> bytes:
    """Digest of a whole prompt, so that two legs can tell that they hold the same one."""
    tokens = np.asarray(token_ids, dtype="<u4").tobytes()
    return hashlib.blake2b(tokens, digest_size=_DIGEST_BYTES).digest()
