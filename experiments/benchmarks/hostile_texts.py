"""What nobody sends in good faith: names, JSON, and HTTP."""

VOTE = {"prompt": "?", "first": "a", "second": "b", "choice": "first"}
HEAD = "POST /v1/score HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
FIELDS = (
    "user", "prompt", "responses", "votes", "id", "first", "second", "choice", "strength", "input", "messages", "query",
    "documents", "queries", "labels", "pairs", "candidates", "pool", "count", "time", "unknown", "uncertainty", "model",
)  # fmt: skip
NAMES = (
    "..%2f..%2fetc%2fpasswd", "%2e%2e", "'%3B DROP TABLE votes;--", "%00", "%ff", "%F0%9F%90%88", "a%2Fvotes", "%20",
    "*", "x" * 300, "%25", "ada%3Fx=1", "{user}", "%c0%ae", "%u0041", "1%20OR%201=1", "%27%20UNION%20SELECT%20*--", "~",
    "%0d%0aSet-Cookie:%20a=b", "%EF%BB%BF", "%E2%80%AE", "$%7Bjndi:ldap:%2F%2Fx%7D", "{{7*7}}", "%3Cscript%3E", ";",
)  # fmt: skip
ODD = (
    "", "null", "NaN", "[NaN]", "Infinity", "-Infinity", "1e400", "-0", "1" * 5000, "[" * 100_000, '{"a":' * 50_000,
    "[" * 150 + "]" * 150, '"\\ud800"', '"\\u0000"', '{"a":1,"a":2}', "{'a': 1}", "{}x", "[1,]", "\ufeff{}", "tru", '"',
    "0x10", "1_000", "//", "{\"__proto__\": {}}", "true", '[[[[[[]]]]]]', "1.7976931348623157e308", "9" * 400 + ".5",
)  # fmt: skip
BROKEN = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"\x00" * 100, b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n",
    b"GET / HTTP/1.1\r\n\r\n", b"\r\n" * 50 + b"X\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"GET /\xff HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    b"GET http://example.org/ HTTP/1.1\r\nHost: example.org\r\n\r\n", b"G" * 70_000,
    HEAD.encode() + b"Content-Length: -1\r\n\r\n", HEAD.encode() + b"Content-Length: 1e3\r\n\r\n",
    HEAD.encode() + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    HEAD.encode() + b"Content-Length: 99999999999999999999\r\n\r\n{}",
    HEAD.encode() + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\nzz\r\n",
    HEAD.encode() + b"Transfer-Encoding: gzip\r\n\r\n{}", HEAD.encode() + b"X: " + b"a" * 70_000 + b"\r\n\r\n",
)  # fmt: skip
# What a slow client sends, piece by piece; the last piece again and again.
SLOW = (
    (b"",), (HEAD.encode(), b"X: a\r\n"), (HEAD.encode() + b"Content-Length: 9999\r\n\r\n", b"{"),
    (HEAD.encode() + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n{\r\n"), (b"G",), (HEAD.encode(), b""),
)  # fmt: skip
# Headers that claim to be somebody else.
CLAIMS = (
    {}, {"x-forwarded-user": "victim"}, {"x-original-url": "/v1/users/victim/votes"}, {"cookie": "user=victim"},
)  # fmt: skip


def bad_keys(key: str) -> tuple[str, ...]:
    """Authorization headers: a key that is good for its own user alone, mostly, and what is no key."""
    near = (f"Bearer {key}x", f"Bearer {key[:-1]}", f"Bearer {key.swapcase()}", f"bearer  {key} x", f"Basic {key}")
    return (f"Bearer {key}",) * 4 + near + ("", "Bearer", "Bearer " + "x" * 20_000, "Bearer ' OR '1'='1")
