"""`regraft serve`: a run's model behind HTTP, and a page to try it on.

limits.py     what a request may cost
model.py      request → sample → answer, by the path that `regraft predict` takes
batching.py   a queue and one worker thread: concurrent requests share a forward pass
explain.py    what in the input an answer rests on
guard.py      who may ask: token, Host and Origin, size and time of a body
figures.py    Prometheus metrics
app.py        the routes and their OpenAPI schema
server.py     socket, token, uvicorn, the end
page/         three static files
"""
