"""`baton bench serve`: load over public HTTP against any OpenAI- or SGLang-compatible server.

    config      what the flags say
    sessions    what is sent: sessions of turns (random_prompts, shared_prefix, sharegpt, traces)
    arrival     when it is sent
    client      sending it (http_response, sse, http_client, backends, exchange, load)
    metrics     what the latencies, limits and rates are (search: how many sessions fit in them)
    report      what is said about it (table, live, plots, html)
    compare     several servers, in turn (peer_server, compare_table)

Elsewhere: what runs in this process, without HTTP (baton/bench).
"""
