"""The router: takes clients' requests, picks workers, joins the two legs of a request.

Decisions are pure (policies, workers, requests, logprobs, sse); health, legs, pair, single and
app are thin shells around aiohttp. Elsewhere: argv (launch/router.py), tokenization (api/).
"""
