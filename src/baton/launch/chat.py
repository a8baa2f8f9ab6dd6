"""`baton chat`: a conversation in the terminal with any server that speaks OpenAI's chat API.

Invariant: stdout gets the answers alone, so that `echo QUESTION | baton chat` can be piped on; a
question whose answer was cut short stays in the conversation together with what was answered.
Elsewhere: the HTTP and SSE of it (chat_stream.py).
"""

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field

from baton.launch.chat_stream import ChatClient, ChatError, Message, Piece
from baton.launch.flags import API_KEY_VARIABLE, add_flags, from_args

_EXAMPLES = """\
examples:
  baton chat                                      the server on this machine
  baton chat --url http://example.org:8000 --temperature 0
  baton chat --system "Answer in one word."
  echo "Why is the sky blue?" | baton chat        one answer for each line of input

while it runs: Ctrl-C stops an answer, /reset forgets the conversation, Ctrl-D leaves
"""

_PROMPT = "> "
_RESET = "/reset"


@dataclass(frozen=True)
class ChatConfig:
    url: str = field(
        default="http://127.0.0.1:8000", metadata={"help": "where the server is", "metavar": "URL"}
    )
    system: str | None = field(
        default=None, metadata={"help": "instruction before the conversation"}
    )
    model: str | None = field(
        default=None, metadata={"help": "model to ask for (default: the first that is served)"}
    )
    temperature: float | None = field(
        default=None, metadata={"help": "0 for the likeliest words (default: the server's)"}
    )
    max_tokens: int | None = field(
        default=None, metadata={"help": "longest answer in tokens", "minimum": 1}
    )
    api_key: str | None = field(
        default=None, metadata={"help": "key of the server", "env": API_KEY_VARIABLE}
    )


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="baton chat",
        description="Talk to a running server.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_flags(parser, ChatConfig)
    config = from_args(ChatConfig, parser.parse_args(argv), environ=os.environ)
    client = ChatClient(config.url, api_key=config.api_key)
    try:
        model = config.model or client.first_model()
        if sys.stdin.isatty():
            print(f"{model} at {config.url} (/reset, Ctrl-D leaves)", file=sys.stderr)
        return Conversation(config, client, model).run()
    except BrokenPipeError:
        # `baton chat | head` has seen enough; nothing more can be written, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ChatError as error:
        print(f"baton chat: error: {error}", file=sys.stderr)
        return 1


class Conversation:
    """Questions from stdin, answers to stdout, and what was said so far."""

    def __init__(self, config: ChatConfig, client: ChatClient, model: str):
        self._config = config
        self._client = client
        self._model = model
        self._is_interactive = sys.stdin.isatty()
        self._messages: list[Message] = []
        self._reset()

    def run(self) -> int:
        if self._is_interactive:
            import readline  # noqa: F401 - gives input() its line editing and history
        while True:
            try:
                question = self._read_question()
            except EOFError:
                if self._is_interactive:
                    print()
                return 0
            except KeyboardInterrupt:
                print()
                continue
            if question == _RESET:
                self._reset()
            elif question:
                self._ask(question)

    def _read_question(self) -> str:
        if self._is_interactive:
            return input(_PROMPT).strip()
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.strip()

    def _reset(self) -> None:
        system = self._config.system
        self._messages = [] if system is None else [{"role": "system", "content": system}]

    def _ask(self, question: str) -> None:
        """One answer. While interactive an error ends the answer only, not the conversation."""
        self._messages.append({"role": "user", "content": question})
        answer = ""
        try:
            with closing(self._client.stream(self._body())) as pieces:
                for piece in pieces:
                    answer += self._show(piece)
        except KeyboardInterrupt:
            if not self._is_interactive:
                raise
            print(" [stopped]", end="", file=sys.stderr)
        except ChatError as error:
            if not self._is_interactive:
                raise
            print(f"error: {error}", file=sys.stderr)
        print(flush=True)
        if answer:
            self._messages.append({"role": "assistant", "content": answer})
        else:
            self._messages.pop()

    def _show(self, piece: Piece) -> str:
        print(piece.text, end="", flush=True)
        if piece.finish_reason == "length":
            print(" [longest answer reached]", end="", file=sys.stderr)
        return piece.text

    def _body(self) -> dict[str, object]:
        options = {
            "temperature": self._config.temperature,
            "max_completion_tokens": self._config.max_tokens,
        }
        given = {name: value for name, value in options.items() if value is not None}
        return {"model": self._model, "messages": self._messages, "stream": True, **given}
