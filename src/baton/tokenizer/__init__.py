"""Text to token ids and back: tokenizers, chat templates, streaming text, stop strings.

Elsewhere: end tokens and context length (checkpoint/), matching of stop tokens (engine/).
"""

from baton.tokenizer.detokenize import IncrementalDetokenizer
from baton.tokenizer.load import load_tokenizer
from baton.tokenizer.stop_strings import StopStringMatcher
from baton.tokenizer.tokenizer import Tokenizer

__all__ = ["IncrementalDetokenizer", "StopStringMatcher", "Tokenizer", "load_tokenizer"]
