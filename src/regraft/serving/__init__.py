"""`regraft serve`: a run's model behind HTTP, and a page to try it on.

limits.py     what a request may cost
endpoint.py   address, token, names, socket
guard.py      who may ask: token, Host and Origin, size and time of a body; for the local pages too
model.py      request → sample → answer, by the path that `regraft predict` takes
batching.py   a queue and one worker thread: concurrent requests share a forward pass
explain.py    what in the input an answer rests on
schemas.py    requests and answers, for OpenAPI
service.py    the model with its threads: from a request to its answer
figures.py    Prometheus metrics
app.py        routes, page and guard as an ASGI app
server.py     uvicorn with limits, the end
page/         three static files

local_pages.py   the pages of `regraft watch` and `regraft ui`, behind the same guard
"""
