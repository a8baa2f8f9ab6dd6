"""The one block tag that chat templates use and Jinja lacks: {% generation %}.

It marks what the model itself wrote, for computing training losses; rendering ignores it.
Elsewhere: rendering (chat_template.py).
"""

from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser


class GenerationTag(Extension):
    """Renders the body of {% generation %} ... {% endgeneration %} as it stands."""

    tags = {"generation"}  # noqa: RUF012 (Jinja declares it so)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)
