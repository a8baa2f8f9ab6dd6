"""OpenVINO GenAI as an OpenAI-compatible server, enough of one to put load on it.

    PEERS_DIR/openvino/bin/python benchmarks/peers/serve_openvino.py --port 8001 --chunk 128

The package has a pipeline with continuous batching but no server. One thread drives the pipeline; a
thread for each request writes what its steps made. Only POST /v1/completions, greedy, streamed or
whole, with token ids or text as prompt; `usage` in every event. Runs in OpenVINO's own environment,
on the standard library.
"""

import argparse
import json
import os
import queue
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from typing import Any, Final

import numpy as np
import openvino  # type: ignore[import-not-found]
import openvino_genai  # type: ignore[import-not-found]
from workload import gguf_model

_CACHE_GIB: Final = 2
_MAX_SEQUENCES: Final = 64
_IDLE_S: Final = 0.5

Tokens = list[int]


class Engine:
    """The pipeline, and the thread that steps it while there is work."""

    def __init__(self, quantization: str, chunk_tokens: int):
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size = _CACHE_GIB
        scheduler.max_num_batched_tokens = chunk_tokens
        scheduler.max_num_seqs = _MAX_SEQUENCES
        scheduler.dynamic_split_fuse = True
        scheduler.enable_prefix_caching = True
        path = str(gguf_model(quantization))
        properties = {"INFERENCE_NUM_THREADS": len(os.sched_getaffinity(0))}
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(
            path, scheduler, "CPU", properties
        )
        self.tokenizer = self._pipeline.get_tokenizer()
        self._ids = count()
        self._new: queue.SimpleQueue[tuple[Tokens, int, bool, queue.SimpleQueue[Tokens | None]]]
        self._new = queue.SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    def generate(
        self, prompt: Tokens, num_new: int, ignore_eos: bool
    ) -> "queue.SimpleQueue[Tokens | None]":
        """New tokens of every step, and None at the end."""
        made: queue.SimpleQueue[Tokens | None] = queue.SimpleQueue()
        self._new.put((prompt, num_new, ignore_eos, made))
        return made

    def _run(self) -> None:
        running: list[tuple[Any, queue.SimpleQueue[Tokens | None]]] = []
        while True:
            self._admit(running)
            if not running:
                continue
            self._pipeline.step()
            for handle, made in list(running):
                while handle.can_read():
                    for output in handle.read().values():
                        made.put(list(output.generated_ids))
                if handle.get_status() != openvino_genai.GenerationStatus.RUNNING:
                    made.put(None)
                    running.remove((handle, made))

    def _admit(self, running: list[tuple[Any, "queue.SimpleQueue[Tokens | None]"]]) -> None:
        """Everything that waits; blocks for a moment when nothing runs."""
        while True:
            try:
                prompt, num_new, ignore_eos, made = self._new.get(
                    block=not running, timeout=_IDLE_S
                )
            except queue.Empty:
                return
            config = openvino_genai.GenerationConfig()
            config.max_new_tokens = num_new
            config.ignore_eos = ignore_eos
            config.do_sample = False
            config.apply_chat_template = False
            ids = openvino.Tensor(np.array([prompt], dtype=np.int64))
            running.append((self._pipeline.add_request(next(self._ids), ids, config), made))


class Handler(BaseHTTPRequestHandler):
    """HTTP/1.0: a body ends with its connection."""

    engine: Engine

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            self._whole({"data": [{"id": "peer", "object": "model"}]})
        elif self.path == "/health":
            self._whole({})
        elif self.path == "/version":
            self._whole({"version": openvino_genai.__version__})
        else:
            self.send_error(404)

    def do_POST(self) -> None:
        if self.path != "/v1/completions":
            self.send_error(404)
            return
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        prompt = self._token_ids(body["prompt"])
        made = self.engine.generate(
            prompt, int(body["max_tokens"]), bool(body.get("ignore_eos", False))
        )
        if body.get("stream"):
            self._stream(prompt, made)
        else:
            tokens = [token for new in iter(made.get, None) for token in new]
            self._whole(self._answer(tokens, len(prompt), len(tokens)))

    def _stream(self, prompt: Tokens, made: "queue.SimpleQueue[Tokens | None]") -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        num_new = 0
        try:
            for tokens in iter(made.get, None):
                num_new += len(tokens)
                answer = json.dumps(self._answer(tokens, len(prompt), num_new))
                self.wfile.write(f"data: {answer}\n\n".encode())
            self.wfile.write(b"data: [DONE]\n\n")
        except ConnectionError:
            pass  # the client left; the pipeline finishes what it has begun

    def _answer(self, tokens: Tokens, num_prompt: int, num_new: int) -> dict[str, Any]:
        usage = {"prompt_tokens": num_prompt, "completion_tokens": num_new}
        text = self.engine.tokenizer.decode(tokens)
        return {"choices": [{"index": 0, "text": text}], "usage": usage}

    def _token_ids(self, prompt: str | Tokens) -> Tokens:
        if isinstance(prompt, list):
            return prompt
        encoded = self.engine.tokenizer.encode(prompt)
        return [int(each) for each in encoded.input_ids.data[0]]

    def _whole(self, answer: dict[str, Any]) -> None:
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing: a line for each request would take the engine's time."""


class Server(ThreadingHTTPServer):
    request_queue_size = 128  # of connections that wait: the default of 5 loses some under load


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--chunk", type=int, default=128, help="most tokens in a step")
    parser.add_argument("--format", default="Q8_0")
    flags = parser.parse_args()
    Handler.engine = Engine(flags.format, flags.chunk)
    Server(("127.0.0.1", flags.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
