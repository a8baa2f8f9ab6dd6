"""The names of policies, as they stand on the command line."""

import enum


class PolicyName(enum.StrEnum):
    RANDOM = "random"
    ROUND_ROBIN = "round_robin"
    LEAST_LOADED = "least_loaded"
    POWER_OF_TWO = "power_of_two"
    CACHE_AWARE = "cache_aware"
    CONSISTENT_HASH = "consistent_hash"
    SLO_AWARE = "slo_aware"
