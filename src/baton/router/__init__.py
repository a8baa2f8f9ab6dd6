"""The router: takes clients' requests, picks workers, joins the two legs of a request.

Decisions are pure (policies, workers, requests, logprobs, sse); health, legs, pair, dispatch and
app are thin shells around HTTP (http/). Elsewhere: argv (launch/router.py), tokenization (api/).
"""
