"""The HTTP side of a worker: OpenAI's and SGLang's routes over one engine."""
