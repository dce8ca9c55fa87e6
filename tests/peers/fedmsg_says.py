"""What fedmsg 1.1.7 says of JSON texts and of messages; for tests/peers/fedmsg.rs.

    fedmsg_says.py canonical COUNT SEED      JSON lines {text, canonical}: what json makes of a text
    fedmsg_says.py messages DIR COUNT SEED   makes keys and lists in DIR, and prints JSON lines
                                        {topic, payload, nitpicky, valid, reason}
    fedmsg_says.py rate DIR                  valid messages a second of CPU time, after `messages`

Texts and payloads are bytes, each as the character of its number: they are not always UTF-8. `canonical` and `valid` are what the
real ones say; `reason`, where there is one, is the word that weir is to count it under.
"""

import base64
import datetime
import functools
import json
import logging
import os
import random
import sys
import time

import OpenSSL.crypto
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID, ObjectIdentifier

import fedmsg.consumers
import fedmsg.crypto
import fedmsg.crypto.utils
import fedmsg.crypto.x509_ng
import fedmsg.encoding

# It reads and checks the key for each message, which takes longer than all else.
fedmsg.crypto.x509_ng.serialization.load_pem_private_key = functools.lru_cache(
    serialization.load_pem_private_key)
logging.disable(logging.CRITICAL)

NOW = datetime.datetime(2026, 1, 1)
DAY = datetime.timedelta(days=1)
FAR = datetime.datetime(2100, 1, 1)

# JSON texts


def text(bits):
    return bits.decode("latin-1")


def base64_of(word):
    return base64.b64encode(word.encode()).decode()


def number(rng):
    kind = rng.randrange(14)
    digits = lambda n: "".join(rng.choice("0123456789") for _ in range(rng.randint(1, n)))
    whole = lambda n: digits(n).lstrip("0") or "0"
    sign = rng.choice(["", "-"])
    if kind < 3:
        return sign + str(rng.randrange(10 ** rng.randint(1, 6)))
    if kind == 3:
        return sign + whole(60)
    if kind == 4:
        return repr(rng.uniform(-1e6, 1e6))
    if kind == 5:
        return sign + whole(25) + "." + digits(25)
    if kind == 6:
        exponent = rng.choice(["e", "E"]) + rng.choice(["", "+", "-"]) + digits(3)
        return sign + whole(20) + rng.choice(["", "." + digits(20)]) + exponent
    if kind == 7:
        # Any float there is.
        import struct
        return repr(struct.unpack("d", struct.pack("Q", rng.getrandbits(64)))[0]).replace(
            "nan", "NaN").replace("inf", "Infinity")
    if kind == 8:
        return rng.choice([
            "NaN", "Infinity", "-Infinity", "-0", "0", "-0.0", "0.0", "1e16", "1e15", "1e-5", "1e-4",
            "9999999999999998.0", "99999999999999990.0", "1e999", "-1e999", "1e-999", "-1e-999",
            "5e-324", "2.5e-324", "1.7976931348623157e308", "1.7976931348623159e308",
            "2.2250738585072011e-308", "1e22", "1e23", "123456789012345678", "0.1", "1E5", "1e+5",
            "1e0000000000000000000001", "0e99999999999999999999", "1e99999999999999999999",
            "1700000000", "1700000000.0", "1" * 4300, "-" + "1" * 4300, "0." + "3" * 5000,
            "9007199254740993.0", "1.0e0", "4.35", "0.30000000000000004", "100000000000000000000.0",
        ])
    if kind == 9:
        return sign + str(rng.randrange(1, 10)) + "e" + str(rng.randint(-7, 19))
    if kind == 10:
        return sign + "0." + "0" * rng.randint(0, 6) + digits(4)
    if kind == 11:
        # Halfway between two shorter texts.
        return sign + repr(rng.getrandbits(rng.randint(1, 53)) / 2 ** rng.randrange(12))
    if kind == 12:
        return sign + repr(2.0 ** rng.randint(-1074, 1023))
    return rng.choice(["true", "false", "null"])


POINTS = [
    0x00, 0x08, 0x09, 0x0A, 0x0B, 0x0C, 0x0D, 0x1F, 0x20, 0x22, 0x2F, 0x5C, 0x7E, 0x7F, 0x80, 0xA0,
    0xE9, 0xFF, 0x7FF, 0x800, 0x2028, 0xD7FF, 0xD800, 0xDBFF, 0xDC00, 0xDFFF, 0xE000, 0xFEFF, 0xFFFD,
    0xFFFF, 0x10000, 0x1F600, 0x10FFFF,
]


def string(rng, most=12):
    out = ['"']
    for _ in range(rng.randint(0, most)):
        kind = rng.randrange(8)
        if kind < 4:
            out.append(rng.choice("abcXYZ 019_-./'<>&{}[]:,"))
        elif kind == 4:
            out.append(rng.choice(['\\"', "\\\\", "\\/", "\\b", "\\f", "\\n", "\\r", "\\t"]))
        else:
            point = rng.choice(POINTS) if kind < 7 else rng.randrange(0x110000)
            surrogate = 0xD800 <= point < 0xE000
            if rng.random() < 0.5 or surrogate or point < 0x20 or point in (0x22, 0x5C):
                form = rng.choice(["\\u%04x", "\\u%04X"])
                if point < 0x10000:
                    out.append(form % point)
                else:
                    point -= 0x10000
                    out.append(form % (0xD800 + (point >> 10)))
                    out.append(form % (0xDC00 + (point & 0x3FF)))
            else:
                out.append(chr(point))
    return "".join(out) + '"'


def space(rng):
    return rng.choice(["", "", "", " ", "\n", "\t", "\r\n", "  "])


def value(rng, depth=0):
    kind = rng.randrange(10)
    if depth > 4 or kind < 4:
        return number(rng)
    if kind < 6:
        return string(rng)
    gap = lambda: space(rng)
    many = range(rng.randint(0, 5))
    if kind == 6:
        return "[" + gap() + ",".join(gap() + value(rng, depth + 1) + gap() for _ in many) + "]"
    keys = [string(rng, 4) for _ in many]
    keys += [rng.choice(keys) for _ in range(rng.randint(0, 2)) if keys]
    members = [gap() + k + gap() + ":" + gap() + value(rng, depth + 1) + gap() for k in keys]
    return "{" + gap() + ",".join(members) + "}"


BROKEN = [
    "", " ", "{", "[", '"', '{"a"', '{"a":', '{"a":1', '{"a":1,', '{"a":1,}', "[1,]", "[1", "[,1]", "{,}",
    "{a:1}", "{'a':1}", "{1:1}", "01", "-01", "-", "+1", ".5", "1.", "1.e5", "1e", "1e+", "0x10", "--1",
    "nan", "inf", "-NaN", "+Infinity", "Infinit", "tru", "True", "nul", "undefined", "1 2", "[1]]", '"\t"',
    '"\n"', '"\x00"', '"\x1f"', '"\\x41"', '"\\u12"', '"\\u12g4"', '"\\u 123"', '"\\U0041"', '"\\', '"\\"',
    '"\\u"', "\ufeff1", "\ufeff{}", "1\ufeff", "\u00a01", "1\x0b", "/**/1", "// a\n1", '"a" "b"', "[1 2]",
    '{"a" 1}', '{"a":1 "b":2}', '{"a":1,,"b":2}', "[" * 2000, "1" * 4301, "-" + "1" * 4301, "[" + "9" * 5000 + "]",
    '"\\ud800\\u12"', '"\\ud800\\"', '"\\ud800', b'"\xed\xa0\x80"', b'"\xff"', b"\xff\xfe1\x00", b"\x00", b'"\xc0\xaf"',
    '"\\u+123"', '"\\u-123"', '"\\u0_41"', "1_000", "١",
]


def mutated(rng, bits):
    bits = bytearray(bits)
    for _ in range(rng.randint(1, 3)):
        if not bits:
            break
        at = rng.randrange(len(bits))
        kind = rng.randrange(4)
        if kind == 0:
            bits[at] = rng.choice(b'{}[]",:\\0129eE+-.untfNI \x00\x1f\x7f\xff')
        elif kind == 1:
            del bits[at]
        elif kind == 2:
            bits.insert(at, rng.choice(b'{}[]",:\\0129eE+-.u '))
        else:
            bits[at] ^= 1 << rng.randrange(8)
    return bytes(bits)


def python_says(bits):
    try:
        return fedmsg.encoding.dumps(fedmsg.encoding.loads(bits.decode("utf-8")))
    except (ValueError, RecursionError):
        return None


def canonical(count, seed):
    rng = random.Random(seed)
    texts = [t if isinstance(t, bytes) else t.encode("utf-8") for t in BROKEN]
    for _ in range(count):
        bits = (space(rng) + value(rng) + space(rng)).encode("utf-8")
        texts.append(bits)
        texts.append(mutated(rng, bits))
    for bits in texts:
        print(json.dumps({"text": text(bits), "canonical": python_says(bits)}))


# Certificates


def name(*common_names):
    attributes = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Example")]
    attributes += [x509.NameAttribute(NameOID.COMMON_NAME, name) for name in common_names]
    return x509.Name(attributes)


def rsa_key(bits=2048):
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


def certificate(subject, key, issuer, issuer_key, begin=NOW - DAY, end=FAR, more=(), digest=""):
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer)
    builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(begin).not_valid_after(end)
    for extension, critical in more:
        builder = builder.add_extension(extension, critical)
    made = builder.sign(issuer_key, hashes.SHA256())
    if not digest:
        return made
    # The way that still signs with SHA-1.
    again = OpenSSL.crypto.X509.from_cryptography(made)
    again.sign(OpenSSL.crypto.PKey.from_cryptography_key(issuer_key), digest)
    return again.to_cryptography()


def usage(**true):
    names = ("digital_signature content_commitment key_encipherment data_encipherment key_agreement "
             "key_cert_sign crl_sign encipher_only decipher_only")
    return x509.KeyUsage(**{name: true.get(name, False) for name in names.split()})


def authority(subject):
    key = rsa_key()
    more = [(x509.BasicConstraints(ca=True, path_length=None), True),
            (usage(key_cert_sign=True, crl_sign=True), True)]
    return certificate(subject, key, subject, key, more=more), key


def crl(issuer, key, revoked, begin=NOW - DAY, end=FAR):
    builder = x509.CertificateRevocationListBuilder().issuer_name(issuer)
    builder = builder.last_update(begin).next_update(end)
    for serial in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(NOW)
        builder = builder.add_revoked_certificate(entry.build())
    return builder.sign(key, hashes.SHA256())


def write(path, *objects):
    pem = serialization.Encoding.PEM
    with open(path, "wb") as out:
        for one in objects:
            if hasattr(one, "private_bytes"):
                form = serialization.PrivateFormat.TraditionalOpenSSL
                out.write(one.private_bytes(pem, form, serialization.NoEncryption()))
            else:
                out.write(one.public_bytes(pem))


def make_keys(directory):
    """Makes everything, and answers the signers' names with what weir is to say of each."""
    at = lambda name: os.path.join(directory, name)
    subject = name("Example CA")
    ca, ca_key = authority(subject)
    other, other_key = authority(subject)  # the same name, another key
    middle, middle_key = certificate, rsa_key()
    middle = certificate(name("Middle"), middle_key, subject, ca_key,
                         more=[(x509.BasicConstraints(ca=True, path_length=None), True)])
    signers = {}

    def signer(file, common_names, expected, issuer=subject, issuer_key=ca_key, key=None, **more):
        key = key or rsa_key()
        made = certificate(name(*common_names), key, issuer, issuer_key, **more)
        write(at(file + ".crt"), made)
        write(at(file + ".key"), key)
        signers[file] = expected
        return made

    server = [(usage(digital_signature=True), True), (x509.BasicConstraints(False, None), True),
              (x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.CLIENT_AUTH]), True),
              (x509.SubjectAlternativeName([x509.DNSName("a.example")]), True)]
    strange = x509.UnrecognizedExtension(ObjectIdentifier("1.2.3.4"), b"\x05\x00")
    signer("shell-a", ["shell-a"], None)
    signer("shell-b", ["shell-b"], None, key=rsa_key(1024))
    signer("big", ["shell-c"], None, key=rsa_key(4096))
    signer("critical", ["shell-a"], None, more=server)
    signer("sha1", ["shell-a"], None, digest="sha1")
    signer("sha512", ["shell-a"], None, digest="sha512")
    signer("harmless", ["shell-a"], None, more=[(strange, False)])
    signer("two-names", ["shell-a", "shell-b"], None)
    signer("accents", ["shéll"], None)
    signer("is-ca", ["shell-a"], None, more=[(x509.BasicConstraints(True, None), True)])
    signer("strange", ["shell-a"], "untrusted", more=[(strange, True)])
    signer("nameless", [], "untrusted")
    signer("other", ["shell-a"], "untrusted", issuer_key=other_key)
    signer("elsewhere", ["shell-a"], "untrusted", issuer=name("Another"), issuer_key=other_key)
    signer("below", ["shell-a"], "untrusted", issuer=name("Middle"), issuer_key=middle_key)
    own = rsa_key()
    signer("own", ["shell-a"], "untrusted", issuer=name("shell-a"), issuer_key=own, key=own)
    signer("expired", ["shell-a"], "expired", begin=NOW - 9 * DAY, end=NOW - DAY)
    signer("early", ["shell-a"], "expired", begin=FAR - DAY)
    gone = signer("revoked", ["shell-a"], "revoked")
    write(at("ca.crt"), ca)
    write(at("crl.pem"), crl(subject, ca_key, [gone.serial_number, 7]))
    write(at("two.crt"), ca, other)
    write(at("leaf.crt"), gone)
    write(at("crl-expired.pem"), crl(subject, ca_key, [], NOW - 9 * DAY, NOW - DAY))
    write(at("crl-other.pem"), crl(subject, other_key, []))
    write(at("crl-none.pem"), crl(subject, ca_key, []))
    old_key = rsa_key()
    write(at("ca-expired.crt"), certificate(
        subject, ca_key, subject, ca_key, NOW - 9 * DAY, NOW - DAY,
        more=[(x509.BasicConstraints(ca=True, path_length=None), True)]))
    # An elliptic curve's key signs nothing that is valid.
    curve = ec.generate_private_key(ec.SECP256R1())
    write(at("curve.crt"), certificate(name("shell-a"), curve, subject, ca_key))
    return signers


# Messages

POLICY = {
    "org.example.prod.git.push": ["shell-a", "shéll"],
    "org.example.prod.wiki.edit": ["shell-b"],
    "org.example.prod.closed": [],
}
TOPICS = list(POLICY) + ["org.example.prod.other", "org.example.prod.é", ""]


class Peer:
    """The class from which all consumers of fedmsg are made, as far as it validates."""

    class Arrived:
        def __init__(self, topic, body):
            self.message = {"topic": topic, "body": body}

        def __json__(self):
            return self.message

    def __init__(self, directory):
        self.directory = directory
        self.validate_signatures = True
        self.hub = self
        self.config = {
            "ca_cert_location": os.path.join(directory, "ca.crt"),
            "crl_location": os.path.join(directory, "crl.pem"),
            "crypto_validate_backends": ["x509"],
            "routing_policy": POLICY,
            "routing_nitpicky": False,
        }
        fedmsg.crypto.init(**self.config)

    def takes(self, topic, body):
        message = self.Arrived(topic, body) if isinstance(body, str) else {"topic": topic, "body": body}
        try:
            fedmsg.consumers.FedmsgConsumer.validate(self, message)
            return True
        except Exception:
            # moksha logs it, whatever it is, and the consumer does not get the message.
            return False

    def says(self, topic, payload, nitpicky):
        """As it came, or without what others than the publisher have added to it."""
        self.config["routing_nitpicky"] = nitpicky
        try:
            body = payload.decode("utf-8")
        except UnicodeDecodeError:
            return False
        if self.takes(topic, body):
            return True
        try:
            mended = fedmsg.encoding.loads(body)
            mended = fedmsg.crypto.utils.fix_datagrepper_message(mended)
        except Exception:
            return False
        if not isinstance(mended, dict):
            return False
        for key in ("seq_id", "source_name", "source_version"):
            mended.pop(key, None)
        if mended.get("headers", 0) in ({}, None):
            del mended["headers"]
        return self.takes(topic, mended)


def escaped(word):
    return json.dumps(word)


def signed(rng, directory, certname, topic, more=()):
    """A message as a list of members, of which each is a key and the text of its value."""
    raw = [
        ("topic", escaped(topic)), ("msg", value(rng, 1)), ("i", str(rng.randint(1, 10 ** 6))),
        ("timestamp", rng.choice(["1700000000", "1700000000.0", "1.7e9", "1700000000.25"])),
        ("msg_id", escaped("2026-%x" % rng.getrandbits(60))), ("username", escaped("apache")),
        *more,
    ]
    rng.shuffle(raw)
    body = "{" + ",".join(escaped(k) + ":" + v for k, v in raw) + "}"
    message = fedmsg.crypto.sign(
        fedmsg.encoding.loads(body), ssldir=directory, certname=certname)
    made = dict(raw)
    for key in ("crypto", "signature", "certificate"):
        made[key] = escaped(message[key])
    return made


def put(rng, members):
    members = list(members.items())
    rng.shuffle(members)
    gap = lambda: space(rng)
    return ("{" + ",".join(
        gap() + escaped(k) + gap() + ":" + gap() + v + gap() for k, v in members) + "}").encode("utf-8")


def messages(directory, count, seed):
    rng = random.Random(seed)
    signers = make_keys(directory)
    peer = Peer(directory)
    good = [name for name, expected in signers.items() if expected is None]

    def tell(topic, payload, reason, nitpicky=False):
        """`reason` is what is to be said; None: it is valid; "?" before it: or it is valid."""
        valid = peer.says(topic, payload, nitpicky)
        perhaps = reason is not None and reason.startswith("?")
        assert perhaps or valid == (reason is None), (reason, topic, payload)
        reason = None if valid else reason.lstrip("?") or None
        print(json.dumps({"topic": topic, "payload": text(payload), "nitpicky": nitpicky, "valid": valid,
                          "reason": reason}))

    open_topic = "org.example.prod.other"
    # Every signer, on every topic.
    for certname, expected in signers.items():
        for topic in TOPICS:
            for nitpicky in (False, True):
                made = signed(rng, directory, certname, topic)
                tell(topic, put(rng, made), expected or "?not_allowed", nitpicky)

    one = lambda certname="shell-a", more=(): signed(rng, directory, certname, open_topic, more)
    as_json = lambda made, key: json.loads(made[key])

    def unfold(made):
        for key in ("signature", "certificate"):
            made[key] = escaped(as_json(made, key).replace("\n", ""))

    def change(key, to, reason):
        made = one()
        made[key] = to(made) if callable(to) else to
        tell(open_topic, put(rng, made), reason)

    for _ in range(20):
        made = one()
        unfold(made)
        tell(open_topic, put(rng, made), None)
        change("crypto", '"gpg"', "malformed")
        change("crypto", "null", "malformed")
        change("crypto", '["x509"]', "malformed")
        change("topic", '"org.example.prod.othe"', "malformed")
        change("topic", "7", "malformed")
        change("topic", '"\\ud800"', "malformed")
        change("topic", "null", "malformed")
        change("timestamp", "1700000001", "bad_signature")
        change("i", "0.5", "bad_signature")
        change("added", "null", "bad_signature")
        change("signature", lambda m: escaped("*" + as_json(m, "signature")), None)
        change("signature", lambda m: escaped(as_json(m, "signature") + "QUJD"), None)
        change("signature", lambda m: escaped("QUJD" + as_json(m, "signature")), "bad_signature")
        change("signature", lambda m: escaped(as_json(m, "signature").rstrip("\n=")), "malformed")
        change("signature", '""', "bad_signature")
        change("signature", "null", "malformed")
        change("signature", "17", "malformed")
        change("signature", '"\\u00e9"', "malformed")
        change("signature", lambda m: one()["signature"], "bad_signature")
        change("certificate", lambda m: one("shell-b")["certificate"], "bad_signature")
        change("certificate", '""', "malformed")
        change("certificate", '"QUJD"', "malformed")
        change("certificate", "{}", "malformed")
        change("certificate", lambda m: escaped(base64_of("# text before\n" + open(
            os.path.join(directory, "shell-a.crt")).read())), None)
        curve = base64_of(open(os.path.join(directory, "curve.crt")).read())
        change("certificate", escaped(curve), "bad_signature")
        ca = base64_of(open(os.path.join(directory, "ca.crt")).read())
        change("certificate", escaped(ca), "bad_signature")
        for key, reason in [("signature", "unsigned"), ("certificate", "unsigned"), ("topic", "malformed"),
                            ("msg", "bad_signature"), ("crypto", "bad_signature")]:
            made = one()
            del made[key]
            tell(open_topic, put(rng, made), reason)
        made = one()
        for key in ("crypto", "certificate"):
            del made[key]
        tell(open_topic, put(rng, made), "malformed")
        del made["signature"]
        tell(open_topic, put(rng, made), "unsigned")
        # What others add on the way, and what looks like it.
        change("seq_id", str(rng.randint(1, 10 ** 6)), None)
        change("headers", "{}", None)
        change("headers", "{ \n}", None)
        change("headers", "null", None)
        change("headers", '{"a": 1}', "bad_signature")
        change("headers", "[]", "bad_signature")
        change("headers", "[{}]", "bad_signature")
        change("source_name", '"datanommer"', None)
        change("source_version", '"0.9"', None)
        for headers in (None, "{}", "null"):
            made = one()
            made.update(source_name='"datanommer"', source_version='"0.9"')
            if headers:
                made["headers"] = headers
            # A timestamp that was signed as a float does not come back as one.
            tell(open_topic, put(rng, made), "?bad_signature")
            made["timestamp"] = str(float(made["timestamp"]))
            tell(open_topic, put(rng, made), "?bad_signature")
        # What looks added, and was signed.
        for more in [("headers", "{}"), ("headers", "null"), ("headers", '{"a": {}}'), ("seq_id", "1"),
                     ("source_name", "1"), ("", "{}"), ("crypto", '"x509"')]:
            tell(open_topic, put(rng, one(more=[more])), None)
        # The last of two keys counts.
        payload = put(rng, one())
        tell(open_topic, payload[:-1] + b',"i":0}', "bad_signature")
        tell(open_topic, b'{"i":0,' + payload[1:], None)
        tell(open_topic, b'{"signature":"","certificate":7,"crypto":[],"topic":{},' + payload[1:], None)
        tell(open_topic, b"[" + payload + b"]", "malformed")
        tell(open_topic, payload + b" ", None)
        tell(open_topic, payload + b",", "malformed")
        tell(open_topic, b"\xef\xbb\xbf" + payload, "malformed")
        tell(open_topic, payload[:-1], "malformed")
        tell(open_topic + "x", payload, "malformed")
        tell("", payload, "malformed")
        for depth in (50, 300, 2000):
            nested = "[" * depth + "]" * depth
            change("msg", nested, "malformed" if depth > 1000 else "bad_signature")
        deep = '{"a":' * 200 + "{}" + "}" * 200
        tell(open_topic, put(rng, one(more=[("deep", deep)])), None)
    for bits in (b"", b"7", b"null", b"[]", b"{}", b'"a"', b"\xff", b'{"topic": "org.example.prod.other"}'):
        reason = "unsigned" if bits[:1] == b"{" else "malformed"
        tell(open_topic, bits, reason)
    # Whatever is in them, and whatever happens to them.
    for _ in range(count):
        topic = rng.choice(TOPICS)
        payload = put(rng, signed(rng, directory, rng.choice(good), topic))
        tell(topic, payload, "?not_allowed", rng.random() < 0.2)
        tell(topic, mutated(rng, payload), "?")


def rate(directory):
    """Messages as services send them: what fedmsg validates a second."""
    peer = Peer(directory)
    made = json.loads(open(os.path.join(directory, "rate.json")).read())
    bodies = [(one["topic"], one["payload"].encode("latin-1").decode()) for one in made]
    assert all(peer.takes(*body) for body in bodies)
    begin, count = time.process_time(), 0
    while time.process_time() - begin < 3:
        for topic, body in bodies:
            assert peer.takes(topic, body)
        count += len(bodies)
    print(count / (time.process_time() - begin))


def typical(directory):
    """Signs what `rate` validates."""
    rng = random.Random(1)
    made = []
    for number in range(64):
        message = {
            "topic": "org.example.prod.git.push", "i": number, "timestamp": 1700000000 + number,
            "msg_id": "2026-%032x" % rng.getrandbits(128), "username": "apache",
            "msg": {"commit": {
                "name": "Ünal", "email": "someone@example.org", "branch": "main", "rev": "%040x" % number,
                "summary": "A change — of something", "stats": {
                    "total": {"files": 3, "lines": 17, "insertions": 12, "deletions": 5},
                    "files": {"src/%d.c" % n: {"lines": n, "ratio": n / 7} for n in range(8)}}}},
        }
        message = fedmsg.crypto.sign(message, ssldir=directory, certname="shell-a")
        made.append({"topic": message["topic"], "payload": fedmsg.encoding.dumps(message)})
    with open(os.path.join(directory, "rate.json"), "w") as out:
        json.dump(made, out)


if __name__ == "__main__":
    command, arguments = sys.argv[1], sys.argv[2:]
    if command == "canonical":
        canonical(*map(int, arguments))
    elif command == "messages":
        messages(arguments[0], *map(int, arguments[1:]))
        typical(arguments[0])
    elif command == "rate":
        rate(*arguments)
    else:
        sys.exit(__doc__)
