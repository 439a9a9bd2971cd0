"""httpx's functions for single requests, with the tests' patience and one set of TLS settings for all calls."""

from functools import partial

import httpx

from tests.patience import PATIENCE

_TLS = httpx.create_ssl_context()  # making one takes tens of milliseconds, and no test uses TLS

request = partial(httpx.request, timeout=PATIENCE, verify=_TLS)
get = partial(httpx.get, timeout=PATIENCE, verify=_TLS)
post = partial(httpx.post, timeout=PATIENCE, verify=_TLS)
delete = partial(httpx.delete, timeout=PATIENCE, verify=_TLS)
stream = partial(httpx.stream, timeout=PATIENCE, verify=_TLS)
