"""httpx's functions for one request each: with the tests' patience, and without new TLS settings for each call."""

from functools import partial

import httpx

from tests.patience import PATIENCE

_TLS = httpx.create_ssl_context()  # it takes tens of milliseconds, and is not used

request = partial(httpx.request, timeout=PATIENCE, verify=_TLS)
get = partial(httpx.get, timeout=PATIENCE, verify=_TLS)
post = partial(httpx.post, timeout=PATIENCE, verify=_TLS)
delete = partial(httpx.delete, timeout=PATIENCE, verify=_TLS)
stream = partial(httpx.stream, timeout=PATIENCE, verify=_TLS)
