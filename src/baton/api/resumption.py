"""What a request's `resume` field says of each sample. All pure.

Invariant: whoever is told `Seen` need not look at it again: its tokens are the model's, and its
logprobs are as many as its tokens.
Elsewhere: what follows for sampling (admission.py), replaying it (sample_stream.py).
"""

from baton.api.schemas_openai import Resume, ResumedSample, SeenLogprob, SeenLogprobs
from baton.api.spec import GenerationSpec, Seen
from baton.core.errors import RequestError
from baton.messages.engine import TokenLogprob


def seen_of_samples(spec: GenerationSpec, num_samples: int, vocab_size: int) -> dict[int, Seen]:
    """By the sample's index, of those that have begun."""
    if spec.resume is None:
        return {}
    given = _given(spec.resume)
    if not spec.stream or (spec.resume.samples is None and num_samples != 1 and given[0].token_ids):
        raise RequestError(
            f"resume.token_ids go on with a stream of one sample; this request has {num_samples} "
            f"and stream is {str(spec.stream).lower()}; give resume.samples, or leave it out",
            param="resume",
        )
    prompt_of = [index for index, prompt in enumerate(spec.prompts) for _ in range(prompt.n)]
    seen: dict[int, Seen] = {}
    indexes: set[int] = set()
    for position, sample in enumerate(given):
        field = "resume" if spec.resume.samples is None else f"resume.samples[{position}]"
        if not 0 <= sample.index < num_samples or sample.index in indexes:
            raise RequestError(
                f"{field}.index is {sample.index}; it must be one of the {num_samples} samples, "
                "each at most once",
                param=f"{field}.index",
            )
        indexes.add(sample.index)
        _check_tokens(sample.token_ids, vocab_size, field)
        if sample.token_ids or sample.is_done:
            sampling = spec.prompts[prompt_of[sample.index]].sampling
            is_repeated = spec.repeats_logprobs and sampling.num_top_logprobs is not None
            seen[sample.index] = _seen(sample, field) if is_repeated else _without_logprobs(sample)
    return seen


def _given(resume: Resume) -> list[ResumedSample]:
    if (resume.token_ids is None) == (resume.samples is None):
        raise RequestError(
            "resume needs either token_ids, of one sample, or samples", param="resume"
        )
    if resume.samples is not None:
        return resume.samples
    return [ResumedSample(token_ids=resume.token_ids or [])]


def _check_tokens(token_ids: list[int], vocab_size: int, field: str) -> None:
    wrong = [token_id for token_id in token_ids if not 0 <= token_id < vocab_size]
    if wrong:
        raise RequestError(
            f"{field}.token_ids has token id {wrong[0]}; ids go from 0 to {vocab_size - 1}",
            param=f"{field}.token_ids",
        )


def _without_logprobs(sample: ResumedSample) -> Seen:
    return Seen(token_ids=sample.token_ids, is_done=sample.is_done)


def _seen(sample: ResumedSample, field: str) -> Seen:
    given = sample.logprobs or SeenLogprobs()
    output = _joined(given.output_token_logprobs, given.output_top_logprobs, field, "output")
    if len(output) != len(sample.token_ids):
        raise RequestError(
            f"{field}.logprobs.output_token_logprobs has {len(output)} entries for "
            f"{len(sample.token_ids)} tokens; each event of the stream repeats them, so give those "
            "of all tokens",
            param=f"{field}.logprobs",
        )
    return Seen(
        token_ids=sample.token_ids,
        is_done=sample.is_done,
        prompt_logprobs=_joined(
            given.input_token_logprobs, given.input_top_logprobs, field, "input"
        ),
        logprobs=output,
    )


def _joined(
    chosen: list[SeenLogprob], top: list[list[SeenLogprob] | None], field: str, which: str
) -> list[TokenLogprob]:
    if top and len(top) != len(chosen):
        raise RequestError(
            f"{field}.logprobs.{which}_top_logprobs has {len(top)} entries for {len(chosen)} "
            "tokens; give one for each",
            param=f"{field}.logprobs",
        )
    return [
        TokenLogprob(
            token_id,
            logprob,
            [(id_, value) for value, id_, _ in (top[place] or []) if value is not None]
            if top
            else [],
        )
        for place, (logprob, token_id, _) in enumerate(chosen)
    ]
