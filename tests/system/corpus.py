"""Requests that two readers could cut differently, built around a hidden second one.

A variant is `(name, build, hidden)`: `build(first, second)` gives the bytes, from the heads and marks of
an outer and an inner request; `hidden` says that by RFC 9112 nobody may take the inner one for a request.
"""

def variants():
    found = list(codings()) + list(lengths()) + list(chunks()) + list(line_ends()) + list(request_lines()) + list(others())
    names = [name for name, _, _ in found]
    assert len(names) == len(set(names)), sorted(n for n in names if names.count(n) > 1)
    return found


class Request:
    """One marked event, on its way to `domain`."""

    def __init__(self, ident, token, domain="marked"):
        self.ident, self.token = ident, token
        self.target = f"/v1/ingest?domain={domain}"
        self.body = b'{"mark":"%s"}' % ident.encode()

    def fields(self):
        return (f"Host: leitstand.test\r\nX-Auth: {self.token}\r\nX-Request-ID: {self.ident}\r\n"
                f"Content-Type: application/json\r\n").encode()

    def head(self, more=b"", line=None):
        return (line or b"POST " + self.target.encode() + b" HTTP/1.1") + b"\r\n" + self.fields() + more + b"\r\n"

    def whole(self):
        return self.head(b"Content-Length: %d\r\n" % len(self.body)) + self.body


def size(data): return b"%x\r\n%s\r\n" % (len(data), data)


def codings():
    """A transfer coding written so that some see it and some do not, beside a length and without one."""
    known = {   # Transfer-Encoding by name: refused, or chunked for everybody
        "plain": b"Transfer-Encoding: chunked", "upper": b"TRANSFER-ENCODING: CHUNKED", "mixed": b"tRaNsFeR-eNcOdInG: cHuNkEd",
        "no space": b"Transfer-Encoding:chunked", "two spaces": b"Transfer-Encoding:  chunked", "tab": b"Transfer-Encoding:\tchunked",
        "trailing space": b"Transfer-Encoding: chunked ", "trailing tab": b"Transfer-Encoding: chunked\t",
        "space before colon": b"Transfer-Encoding : chunked", "tab before colon": b"Transfer-Encoding\t: chunked",
        "twice in a list": b"Transfer-Encoding: chunked, chunked", "identity first": b"Transfer-Encoding: identity, chunked",
        "identity last": b"Transfer-Encoding: chunked, identity", "gzip first": b"Transfer-Encoding: gzip, chunked",
        "gzip last": b"Transfer-Encoding: chunked, gzip", "identity": b"Transfer-Encoding: identity", "unknown": b"Transfer-Encoding: cow",
        "cow first": b"Transfer-Encoding: cow, chunked", "parameter": b"Transfer-Encoding: chunked;q=1", "quoted": b'Transfer-Encoding: "chunked"',
        "single quoted": b"Transfer-Encoding: 'chunked'", "comma after": b"Transfer-Encoding: chunked,", "comma before": b"Transfer-Encoding: ,chunked",
        "prefixed": b"Transfer-Encoding: xchunked", "suffixed": b"Transfer-Encoding: chunkedx", "two words": b"Transfer-Encoding: x chunked",
        "vertical tab before": b"Transfer-Encoding: \x0bchunked", "vertical tab after": b"Transfer-Encoding: chunked\x0b",
        "form feed": b"Transfer-Encoding: \x0cchunked", "null before": b"Transfer-Encoding: \0chunked", "null after": b"Transfer-Encoding: chunked\0",
        "null within": b"Transfer-Encoding: chun\0ked", "no break space": b"Transfer-Encoding: \xa0chunked", "high byte": b"Transfer-Encoding: chunked\xff",
        "empty": b"Transfer-Encoding:", "lines": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "lines, cow second": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: cow", "lines, cow first": b"Transfer-Encoding: cow\r\nTransfer-Encoding: chunked",
        "lines, identity second": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        "lines, empty first": b"Transfer-Encoding:\r\nTransfer-Encoding: chunked",
        "folded": b"Transfer-Encoding:\r\n chunked", "folded with tab": b"Transfer-Encoding:\r\n\tchunked", "folded after": b"Transfer-Encoding: chunked\r\n x",
        "in a fold of another": b"X-A: b\r\n Transfer-Encoding: chunked", "after a bare line feed": b"X-A: b\nTransfer-Encoding: chunked",
        "after a bare return": b"X-A: b\rTransfer-Encoding: chunked", "leading space": b" Transfer-Encoding: chunked",
        "leading tab": b"\tTransfer-Encoding: chunked", "bare line feed after": b"Transfer-Encoding: chunked\nX-A: b",
        "null in the name": b"Transfer\0-Encoding: chunked", "null after the name": b"Transfer-Encoding\0: chunked",
        "return before the colon": b"Transfer-Encoding\r: chunked", "connection lists it": b"Connection: Transfer-Encoding\r\nTransfer-Encoding: chunked",
    }
    other = {   # another field name: the length rules, for everybody
        "underscore": b"Transfer_Encoding: chunked", "no dash": b"TransferEncoding: chunked", "x-": b"X-Transfer-Encoding: chunked",
        "te": b"TE: chunked", "plural": b"Transfer-Encodings: chunked", "trailing dash": b"Transfer-Encoding-: chunked",
    }
    for name, field in [*known.items(), *other.items()]:
        strict = name in known
        yield (f"coding, length rules: {name}", lambda a, b, f=field: with_both(a, f, b"0\r\n\r\n" + b.whole()), True)
        yield (f"coding, chunks rule: {name}", lambda a, b, f=field: cut_by_length(a, f, b), strict)
    for name in ("plain", "identity first", "lines", "trailing space", "tab", "space before colon", "null after", "folded", "comma after", "parameter"):
        field = known[name]
        yield (f"coding alone: {name}", lambda a, b, f=field: a.head(f + b"\r\n") + size(a.body) + b"0\r\n\r\n" + b.whole(), False)


def with_both(a, field, body):
    return a.head(b"Content-Length: %d\r\n%s\r\n" % (len(body), field)) + body


def cut_by_length(a, field, b):
    inner = b.whole()
    line = b"%x\r\n" % len(inner)
    return a.head(b"Content-Length: %d\r\n%s\r\n" % (len(line), field)) + line + inner + b"\r\n0\r\n\r\n"


def lengths():
    """A length in doubtful spelling; behind it the other request, as body or as request."""
    spellings = {
        "plus": b"+%d", "minus": b"-%d", "hex": b"0x%x", "leading zero": b"0%d", "many zeros": b"00000000000000000000000%d", "float": b"%d.0",
        "exponent": b"%de0", "underscore": b"1_%d", "list": b"%d,%d", "list with space": b"%d, %d", "list, other second": b"%d, 0",
        "list, other first": b"0, %d", "comma after": b"%d,", "comma before": b",%d", "semicolon": b"%d;a=b", "trailing space": b"%d ",
        "trailing tab": b"%d\t", "vertical tab": b"\x0b%d", "form feed after": b"%d\x0c", "null after": b"%d\0", "null before": b"\0%d",
        "no break space": b"\xa0%d", "word": b"five", "empty": b"", "two numbers": b"%d 0", "arabic digits": "٣".encode(), "quoted": b'"%d"',
        "letter after": b"%da", "folded": b"\r\n %d", "folded tab": b"\r\n\t%d", "folded after": b"%d\r\n 0",
    }
    plain = ("leading zero", "many zeros", "list", "list with space", "trailing space", "trailing tab", "folded", "folded tab")
    for name, spelling in spellings.items():
        def build(a, b, spelling=spelling):
            n = len(a.body)
            count = spelling.count(b"%")
            return a.head(b"Content-Length: " + (spelling % ((n,) * count) if count else spelling) + b"\r\n") + a.body + b.whole()
        # Where the number may be read, the second request may be one.
        yield (f"length: {name}", build, name not in plain)
    for wrap in (1 << 32, 1 << 63, 1 << 64, 10 ** 30):
        yield (f"length: {wrap} too much", lambda a, b, w=wrap: a.head(b"Content-Length: %d\r\n" % (w + len(a.body))) + a.body + b.whole(), True)
    pairs = {"two, short first": (0, 1), "two, long first": (1, 0), "two, same": (0, 0)}
    for name, order in pairs.items():
        def build(a, b, order=order):
            n = [len(a.body), len(a.body) + len(b.whole())]
            return a.head(b"".join(b"Content-Length: %d\r\n" % n[i] for i in order)) + a.body + b.whole()
        yield (f"length: {name}", build, True)
    for name, field in {"space before colon": b"Content-Length : 0", "tab before colon": b"Content-Length\t: 0", "leading space": b" Content-Length: 0",
                        "null in the name": b"Content\0-Length: 0", "after a bare line feed": b"X-A: b\nContent-Length: 0",
                        "after a bare return": b"X-A: b\rContent-Length: 0", "in a fold": b"X-A: b\r\n Content-Length: 0",
                        "connection lists it": b"Connection: Content-Length\r\nX-A: b"}.items():
        def build(a, b, field=field):
            inner = b.whole()
            return a.head(field + b"\r\nContent-Length: %d\r\n" % len(inner)) + inner
        yield (f"two lengths: {name}", build, True)


def chunks():
    """Chunked bodies whose sizes, ends and trailers can be read in two ways."""
    spell = {
        "extension": b"%x;a=b", "extension without value": b"%x;a", "quoted extension": b'%x;a="b;c"', "empty extension": b"%x;",
        "space before the extension": b"%x ;a", "long extension": b"%x;a=" + b"b" * 4000, "space after": b"%x ", "tab after": b"%x\t",
        "space before": b" %x", "leading zeros": b"000%x", "upper": b"%X", "unclosed quote": b'%x;a="b', "null in the extension": b"%x;\0",
    }
    bad = {
        "plus": b"+%x", "minus": b"-%x", "0x": b"0x%x", "two numbers": b"%x 0", "comma": b"%x,0", "underscore": b"%x_0", "null": b"%x\0",
        "vertical tab": b"%x\x0b", "overflow": b"1000000000000000%x", "overflow 32": b"10000%07x", "letter": b"%xg", "empty": b"", "word": b"five",
        "line feed in the extension": b"%x;a\n", "return in the extension": b"%x;a\rb",
        "high byte": b"%x\xff", "quoted line end": b'%x;a="\r\n"',
    }
    def one(a, b, line, end=b"\r\n", last=b"0\r\n\r\n"):
        return a.head(b"Transfer-Encoding: chunked\r\n") + line + end + a.body + b"\r\n" + last + b.whole()
    for name, line in [*spell.items(), *bad.items()]:
        yield (f"chunk: {name}", lambda a, b, l=line: one(a, b, l % len(a.body) if b"%" in l else l), name in bad)
    ends = {"line feed": b"\n", "return": b"\r", "two returns": b"\r\r\n", "nothing": b"", "null": b"\0\r\n", "return and more": b"\rX\n"}
    for name, end in ends.items():
        yield (f"chunk size ends with {name}", lambda a, b, e=end: one(a, b, b"%x" % len(a.body), e), True)
        yield (f"chunk content ends with {name}", lambda a, b, e=end: a.head(b"Transfer-Encoding: chunked\r\n") + b"%x\r\n" % len(a.body) + a.body + e + b"0\r\n\r\n" + b.whole(), True)
    lasts = {"00": (b"00\r\n\r\n", False), "extension": (b"0;a=b\r\n\r\n", False), "many zeros": (b"0" * 40 + b"\r\n\r\n", None), "minus": (b"-0\r\n\r\n", True), "plus": (b"+0\r\n\r\n", True),
             "line feeds": (b"0\n\n", True), "one line feed": (b"0\r\n\n", None), "no empty line": (b"0\r\n", True), "space": (b" 0\r\n\r\n", None),
             "trailer": (b"0\r\nX-A: b\r\n\r\n", False), "trailer with a length": (b"0\r\nContent-Length: 0\r\n\r\n", False),
             "trailer with a coding": (b"0\r\nTransfer-Encoding: chunked\r\n\r\n", False), "trailer with a host": (b"0\r\nHost: other\r\n\r\n", False),
             "trailer with bare line feed": (b"0\r\nX-A: b\n\r\n", None), "folded trailer": (b"0\r\nX-A: b\r\n c\r\n\r\n", None),
             "trailer without colon": (b"0\r\nX\r\n\r\n", None), "null trailer": (b"0\r\nX\0: b\r\n\r\n", None)}
    for name, (last, hidden) in lasts.items():
        yield (f"last chunk: {name}", lambda a, b, l=last: one(a, b, b"%x" % len(a.body), last=l), bool(hidden))
    yield ("chunk longer than its size", lambda a, b: a.head(b"Transfer-Encoding: chunked\r\n") + b"%x\r\n" % (len(a.body) - 3) + a.body + b"\r\n0\r\n\r\n" + b.whole(), True)
    yield ("chunk shorter than its size", lambda a, b: a.head(b"Transfer-Encoding: chunked\r\n") + b"%x\r\n" % (len(a.body) + 3) + a.body + b"\r\n0\r\n\r\n" + b.whole(), True)
    yield ("request within a chunk", lambda a, b: a.head(b"Transfer-Encoding: chunked\r\n") + size(b.whole()) + b"0\r\n\r\n", True)


def line_ends():
    """Heads with other line ends, folds and empty lines."""
    def plain(a): return b"Content-Length: %d\r\n" % len(a.body)
    yield ("bare line feeds", lambda a, b: a.head(plain(a)).replace(b"\r\n", b"\n") + a.body + b.whole(), False)
    yield ("bare returns", lambda a, b: a.head(plain(a)).replace(b"\r\n", b"\r") + a.body + b.whole(), True)
    yield ("line feed ends the head", lambda a, b: a.head(plain(a))[:-2] + b"\n" + a.body + b.whole(), False)
    yield ("return ends the head", lambda a, b: a.head(plain(a))[:-2] + b"\r" + a.body + b.whole(), True)
    yield ("two returns end the head", lambda a, b: a.head(plain(a))[:-2] + b"\r\r\n" + a.body + b.whole(), True)
    yield ("return within a value", lambda a, b: a.head(b"X-A: b\rc\r\n" + plain(a)) + a.body + b.whole(), True)
    yield ("null within a value", lambda a, b: a.head(b"X-A: b\0c\r\n" + plain(a)) + a.body + b.whole(), True)
    yield ("fold", lambda a, b: a.head(b"X-A: b\r\n c\r\n" + plain(a)) + a.body + b.whole(), True)
    yield ("fold at the first line", lambda a, b: a.head(plain(a)).replace(b"HTTP/1.1\r\n", b"HTTP/1.1\r\n X-A: b\r\n", 1) + a.body + b.whole(), True)
    yield ("line without colon", lambda a, b: a.head(b"X-A\r\n" + plain(a)) + a.body + b.whole(), True)
    yield ("empty name", lambda a, b: a.head(b": b\r\n" + plain(a)) + a.body + b.whole(), True)
    yield ("space in a name", lambda a, b: a.head(b"X A: b\r\n" + plain(a)) + a.body + b.whole(), True)
    yield ("empty lines first", lambda a, b: b"\r\n\r\n" + a.whole() + b.whole(), False)
    yield ("line feeds first", lambda a, b: b"\n\n" + a.whole() + b.whole(), False)
    yield ("space first", lambda a, b: b" " + a.whole() + b.whole(), True)
    yield ("null first", lambda a, b: b"\0" + a.whole() + b.whole(), True)
    yield ("head within a value", lambda a, b: a.head(b"X-A: " + b.whole().replace(b"\r\n", b"\n") + b"\r\n" + plain(a)) + a.body, True)


def request_lines():
    def line(text): return lambda a, b: a.head(b"Content-Length: %d\r\n" % len(a.body), line=text.replace(b"/T", a.target.encode())) + a.body + b.whole()
    good = {"absolute form": b"POST http://leitstand.test/T HTTP/1.1", "absolute form, other host": b"POST http://other.test/T HTTP/1.1",
            "http 1.0": b"POST /T HTTP/1.0"}
    bad = {"lower version": b"POST /T http/1.1", "http 1.2": b"POST /T HTTP/1.2", "http 2.0": b"POST /T HTTP/2.0", "http 0.9": b"POST /T",
           "two spaces": b"POST  /T HTTP/1.1", "tab": b"POST\t/T\tHTTP/1.1", "space after": b"POST /T HTTP/1.1 ", "three words": b"POST /T x HTTP/1.1",
           "null in the target": b"POST /T\0 HTTP/1.1", "line feed in the target": b"POST /T\n HTTP/1.1", "return in the target": b"POST /T\rX HTTP/1.1",
           "high byte": b"POST /T\xff HTTP/1.1", "lower method": b"post /T HTTP/1.1", "empty method": b" /T HTTP/1.1", "version glued": b"POST /THTTP/1.1",
           "authority form": b"POST leitstand.test:80 HTTP/1.1", "asterisk": b"POST * HTTP/1.1", "fragment": b"POST /T#x HTTP/1.1"}
    for name, text in good.items(): yield (f"request line: {name}", line(text), False)
    # Refused or not, each is one request by its own length; what follows may be the next.
    for name, text in bad.items(): yield (f"request line: {name}", line(text), name in ("http 0.9", "line feed in the target"))
    yield ("http 1.0 with chunks", lambda a, b: a.head(b"Transfer-Encoding: chunked\r\n", line=b"POST " + a.target.encode() + b" HTTP/1.0") + size(a.body) + b"0\r\n\r\n" + b.whole(), True)


def others():
    def get(a): return b"GET /health/live HTTP/1.1"
    yield ("pipelined", lambda a, b: a.whole() + b.whole(), False)
    yield ("pipelined with empty lines", lambda a, b: a.whole() + b"\r\n\r\n" + b.whole(), False)
    yield ("body of GET", lambda a, b: a.head(b"Content-Length: %d\r\n" % len(b.whole()), line=get(a)) + b.whole(), True)
    yield ("chunked body of GET", lambda a, b: a.head(b"Transfer-Encoding: chunked\r\n", line=get(a)) + size(b.whole()) + b"0\r\n\r\n", True)
    yield ("body of HEAD", lambda a, b: a.head(b"Content-Length: %d\r\n" % len(b.whole()), line=b"HEAD /health/live HTTP/1.1") + b.whole(), True)
    yield ("body of OPTIONS", lambda a, b: a.head(b"Content-Length: %d\r\n" % len(b.whole()), line=b"OPTIONS /v1/ingest HTTP/1.1") + b.whole(), True)
    yield ("body of a refused token", lambda a, b: a.head(b"Content-Length: %d\r\n" % len(b.whole())).replace(b"X-Auth: ", b"X-Auth: not-") + b.whole(), True)
    yield ("body of an unknown path", lambda a, b: a.head(b"Content-Length: %d\r\n" % len(b.whole()), line=b"POST /nowhere HTTP/1.1") + b.whole(), True)
    yield ("body that is too large", lambda a, b: a.head(b"Content-Length: %d\r\n" % (2 << 20)) + b.whole(), True)
    yield ("body that goes on", lambda a, b: a.whole() + b'{"mark":"x"}' + b.whole(), True)
    yield ("expect with a body at once", lambda a, b: a.head(b"Expect: 100-continue\r\nContent-Length: %d\r\n" % len(a.body)) + a.body + b.whole(), False)
    yield ("expect, refused", lambda a, b: a.head(b"Expect: 100-continue\r\nContent-Length: %d\r\n" % len(b.whole())).replace(b"X-Auth: ", b"X-Auth: not-") + b.whole(), True)
    yield ("upgrade to h2c", lambda a, b: a.head(b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\nContent-Length: %d\r\n" % len(a.body)) + a.body + b.whole(), False)
    yield ("upgrade to websocket", lambda a, b: a.head(b"Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: %d\r\n" % len(b.whole())) + b.whole(), True)
    yield ("connect", lambda a, b: a.head(line=b"CONNECT leitstand.test:80 HTTP/1.1") + b.whole(), False)
    yield ("two hosts", lambda a, b: a.head(b"Host: other\r\nContent-Length: %d\r\n" % len(a.body)) + a.body + b.whole(), True)
    yield ("connection drops the token", lambda a, b: a.head(b"Connection: X-Auth\r\nContent-Length: %d\r\n" % len(b.whole())) + b.whole(), True)
    yield ("close, then another", lambda a, b: a.head(b"Connection: close\r\nContent-Length: %d\r\n" % len(a.body)) + a.body + b.whole(), True)
    yield ("neither length nor coding", lambda a, b: a.head() + b.whole(), False)
    yield ("head of many fields", lambda a, b: a.head(b"X-A: b\r\n" * 150 + b"Content-Length: %d\r\n" % len(a.body)) + a.body + b.whole(), True)
