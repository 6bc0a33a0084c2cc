"""What is secret in a call, and how it is hidden in what leaves the program.

ComfyUI, or a proxy before it, may send back what it was sent: an error that quotes the headers or
the body of a request. What goes to ComfyUI is never changed. What goes to people, to files that
record runs and to clients of the service passes through Secrets, at one place for each way out.
"""

from __future__ import annotations

import base64
import functools
import json
import re
import threading
import urllib.parse
from typing import Any, Dict, Iterable, List, Mapping, Tuple

from comfyui_runner.text import as_dict, plain_json

#: What is shown in place of a secret.
STARS = "***"

#: A shorter secret is not hidden by itself, because a "1" would hide half of all numbers. What
#: contains it is: the whole value of its header, the pair of user and password, and its base64.
SHORTEST_SECRET = 4

#: A shorter secret is hidden only where it is a word of its own: "test", but not in "latest".
SHORTEST_INSIDE_WORDS = 8

#: A shorter cookie of the server is a choice or the name of a server, not a credential: the id of a
#: session has 64 random bits (OWASP, Session Management), 16 characters in hexadecimal.
SHORTEST_COOKIE = 16

#: How many of the secrets that turn up during a call are kept. The newest are: some servers send
#: another cookie with every answer.
MOST_LEARNED = 100

#: What one_line() puts where it cuts a text off. The beginning of a secret may precede it.
CUT = "…"

# -- what is secret --------------------------------------------------------------------------------

#: Headers without credentials. Many messages contain their values, such as the name of a host.
PUBLIC_HEADERS = ("accept", "accept-language", "host", "origin", "user-agent")

#: Headers whose value is a scheme and credentials. The credentials may contain spaces (RFC 9110,
#: section 11.4).
AUTHORIZATION_HEADERS = ("authorization", "proxy-authorization")

#: The names in extra_data whose values are secret: ComfyUI's api_key_comfy_org and
#: auth_token_comfy_org (execution.py, SENSITIVE_EXTRA_DATA_KEYS), and what others call theirs.
_names_a_secret = re.compile(
    r"(?i)key(?![a-z])|token(?![a-z])|secret|passw|passphrase|credential|authorization"
).search


def secrets_in_headers(headers: Iterable[Tuple[str, str]]) -> List[str]:
    """What is secret in headers that are sent: their values, and what those are made of."""
    secrets: List[str] = []
    for name, value in headers:
        secrets += _secrets_in_header(name, value)
    return secrets


def _secrets_in_header(name: str, value: str) -> List[str]:
    name = name.lower()
    if name in PUBLIC_HEADERS:
        return []
    if name == "cookie":
        return [value, *_values_of_cookies(value)]

    scheme, _, credentials = value.partition(" ")
    credentials = credentials.strip()
    if scheme.lower() == "basic":
        return [value, credentials, *_secrets_in_basic(credentials)]
    # A header of another name may have a scheme too: "X-Auth: Bearer TOKEN".
    has_scheme = name in AUTHORIZATION_HEADERS or " " not in credentials
    if has_scheme:
        return [value, credentials]
    return [value]


def _values_of_cookies(header: str) -> List[str]:
    """The value of each cookie: they are sent with the server's own cookies, in any order."""
    values = []
    for cookie in header.split(";"):
        _, _, value = cookie.partition("=")
        values.append(value.strip())
    return values


def _secrets_in_basic(credentials: str) -> List[str]:
    """``user:password`` and the password; where that is empty, the user is a token."""
    try:
        pair = base64.b64decode(credentials, validate=True).decode(errors="replace")
    except ValueError:
        return []
    user, _, password = pair.partition(":")
    return [pair, password or user]


def secrets_in_proxies(variables: Mapping[str, str]) -> List[str]:
    """What is secret in HTTP_PROXY and the like: the proxy is sent its user and password."""
    secrets = []
    for name, url in variables.items():
        before_host, at, _ = url.rpartition("@")
        is_proxy = name.lower().endswith("_proxy")
        if not is_proxy or not at:
            continue
        _, _, quoted_pair = before_host.rpartition("//")
        pair = urllib.parse.unquote(quoted_pair)
        credentials = base64.b64encode(pair.encode(errors="replace")).decode()
        secrets += [credentials, *_secrets_in_basic(credentials)]
    return secrets


def secrets_in_extra_data(extra_data: object) -> List[str]:
    """What is secret in the extra_data of a POST /prompt: the keys of API nodes."""
    secrets = []
    for name, value in as_dict(extra_data).items():
        if isinstance(value, str) and _names_a_secret(name):
            secrets.append(value)
    return secrets


# -- how a secret may be spelled -------------------------------------------------------------------

#: The parts of a secret: characters that no encoding changes (RFC 3986, "unreserved"); blanks,
#: which messages fold; backslashes, which JSON doubles; single other characters.
_PARTS = re.compile(r"[0-9A-Za-z._~-]+|[ \t-\r]+|\\+|.", re.S)

_is_unchanged = re.compile(r"[0-9A-Za-z._~-]+").fullmatch

# What escapes begin and end with. It is escaped itself where one encoding is inside another: a "%"
# inside a URL inside a URL is "%25", then "%2525".
_PERCENT = "%(?:25){0,3}"
_BACKSLASH = rf"(?:\\|{_PERCENT}5c)"
_AMPERSAND = rf"(?:&|{_PERCENT}26|\\{{1,8}}u0026)(?:amp(?:;|{_PERCENT}3b)){{0,3}}"
_HASH = f"(?:#|{_PERCENT}23)"
_SEMICOLON = f"(?:;|{_PERCENT}3b)"

#: A quote has a backslash before it in JSON, three in JSON inside JSON, and then seven.
_MAYBE_ESCAPED = _BACKSLASH + "{0,7}"
_ESCAPED = _BACKSLASH + "{1,8}"

# A space, a tab or the end of a line: as it is, "+" or "%20" in a URL, "\n" or "\u0020" in JSON or
# Python, "&#32;" in HTML.
_BLANK_IN_URL = rf"{_PERCENT}(?:20|2b|0[9ad])"
_BLANK_IN_JSON = rf"{_ESCAPED}(?:[nrt]|[ux](?:00)?(?:20|0[9ad]))"
_BLANK_IN_HTML = rf"{_AMPERSAND}{_HASH}(?:32|x20){_SEMICOLON}"
_BLANK = rf"(?:[\s+]|{_BLANK_IN_URL}|{_BLANK_IN_JSON}|{_BLANK_IN_HTML})"

_HTML_NAMES: Mapping[str, str] = {"&": "amp", "<": "lt", ">": "gt", '"': "quot", "'": "apos"}

#: Where a word begins; an escape before it (\n, %20, \u00e9) ends with a letter or a digit, too.
#: The groups of four in a prompt_id are not words: clients need it whole.
_WORD_BEGINS = (
    r"(?:(?<![0-9A-Za-z])|(?<=\\[bfnrt])|(?<=%[0-9A-Fa-f]{2})|(?<=\\u[0-9A-Fa-f]{4}))"
    r"(?<![0-9a-f]{4}-)"
)
_WORD_ENDS = r"(?![0-9A-Za-z])"


class SpelledSecret:
    """A secret, and the ways in which it may come back.

    ``anchor`` is a part of the secret that every spelling contains, and ``beginning`` is the same
    for its first characters. A text without them need not be searched.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        parts: List[str] = _PARTS.findall(text)
        self.anchor = max(filter(_is_unchanged, parts), key=len, default="")
        self.beginning = ""
        if _is_unchanged(parts[0]):
            self.beginning = parts[0][:SHORTEST_SECRET]

    def may_be_in(self, text: str, is_cut: bool) -> bool:
        """Whether ``text`` may contain it or, if ``is_cut``, its beginning before a CUT."""
        return self.anchor in text or (is_cut and self.beginning in text)

    @functools.cached_property
    def pattern(self) -> "re.Pattern[str]":
        """It as it is, in JSON, URLs, HTML and Python, also with one of them inside another."""
        may_lose_characters = len(self.anchor) >= SHORTEST_SECRET
        parts: List[str] = _PARTS.findall(self.text)
        pattern = "".join(_spell_part(part, may_lose_characters) for part in parts)
        must_be_a_word = len(self.text) < SHORTEST_INSIDE_WORDS
        if must_be_a_word and self.text[0].isalnum():
            pattern = _WORD_BEGINS + pattern
        if must_be_a_word and self.text[-1].isalnum():
            pattern += _WORD_ENDS
        return re.compile(pattern)


def _spell_part(part: str, may_be_lost: bool) -> str:
    """A pattern of the spellings of one of the _PARTS.

    A character outside ASCII may be lost: where bytes are decoded as another encoding, it is
    replaced, and terminals are not shown halves of characters.
    """
    if _is_unchanged(part):
        return re.escape(part)

    is_blank = part.isspace() and part.isascii()
    if is_blank:
        return f"(?i:{_BLANK}{{1,8}})"

    if part[0] == "\\":
        count = len(part)
        longest = 8 * count  # each doubled three times: JSON inside JSON inside JSON
        escapes = "|".join(_spell("\\"))
        return rf"(?i:{_BACKSLASH}{{{count},{longest}}}|(?:{escapes}){{{count}}})"

    spellings = "|".join(_spell(part))
    if part.isascii() or not may_be_lost:
        return f"(?i:{spellings})"
    replacement = r"[\ufffd?\s\udc80-\udcff]{1,4}"
    return f"(?i:{spellings}|{replacement})?"


def _spell(character: str) -> List[str]:
    """Patterns of ``character`` as it is, and as JSON, URLs, HTML and Python's repr() escape it."""
    code = ord(character)
    encodings = {character.encode(errors="surrogatepass")}
    if code < 256:
        encodings.add(bytes([code]))  # Latin-1, in which headers are sent

    # HTML: "&eacute;", "&#233;" or "&#xe9;".
    name = _HTML_NAMES.get(character, "[a-z]{2,8}")
    number = f"{_HASH}(?:0{{0,5}}{code}|x0{{0,5}}{code:x})"
    html = f"{_AMPERSAND}(?:{name}|{number}){_SEMICOLON}"

    # JSON: "\u00e9", two of them for a character beyond U+FFFF. Python: "\U000000e9".
    utf_16 = character.encode("utf-16-be", "surrogatepass").hex()
    json_escape = _in_units(f"{_ESCAPED}u", utf_16, 4)
    python_escape = f"{_ESCAPED}u{code:08x}"

    plain = [re.escape(character), html]
    escaped = [json_escape, python_escape]
    for encoded in encodings:
        digits = encoded.hex()
        plain.append(_in_units(_PERCENT, digits, 2))  # URLs: "%c3%a9"
        escaped.append(_in_units(f"{_ESCAPED}x", digits, 2))  # Python: "\xc3\xa9"

    any_plain = "|".join(plain)
    return [f"{_MAYBE_ESCAPED}(?:{any_plain})", *escaped]


def _in_units(mark: str, digits: str, size: int) -> str:
    """``digits`` with ``mark`` before each ``size`` of them: "%", "c3a9", 2 makes "%c3%a9"."""
    return re.sub(f".{{{size}}}", lambda unit: mark + unit[0], digits)


def _hide_where_cut_off(text: str, secret: str) -> str:
    """``text`` without beginnings of ``secret`` that end at a CUT. Looks at its plain spelling."""
    *parts, rest = text.split(CUT)
    hidden = [_hide_beginning_at_end(part, secret) for part in parts]
    return CUT.join([*hidden, rest])


def _hide_beginning_at_end(text: str, secret: str) -> str:
    """``text`` with STARS in place of a beginning of ``secret`` that is its end."""
    beginning = secret[:SHORTEST_SECRET]
    first = max(len(text) - len(secret), 0)  # what begins earlier would not be cut off
    start = text.find(beginning, first)
    while start >= 0:
        if secret.startswith(text[start:]):
            return text[:start] + STARS
        start = text.find(beginning, start + 1)
    return text


# -- hiding ----------------------------------------------------------------------------------------


class Secrets:
    """The secrets of a call: those that were ``given``, and those that turn up.

    Its methods may be called in any thread.
    """

    def __init__(self, given: Iterable[str] = ()) -> None:
        self._given = [SpelledSecret(secret) for secret in _long_enough(given)]
        self._learned: Dict[str, SpelledSecret] = {}
        self._lock = threading.Lock()
        self._known: Tuple[SpelledSecret, ...] = ()
        self._sort()

    def learn(self, secrets: Iterable[str]) -> None:
        """Hides ``secrets`` from now on, the newest MOST_LEARNED of them."""
        to_hide = _long_enough(secrets)
        if not to_hide:
            return
        with self._lock:
            for secret in to_hide:
                # One that is known already becomes the newest again.
                spelled = self._learned.pop(secret, None) or SpelledSecret(secret)
                self._learned[secret] = spelled
            oldest_first = list(self._learned)
            for secret in oldest_first[:-MOST_LEARNED]:
                del self._learned[secret]
            self._sort()

    def _sort(self) -> None:
        """The longest first, as a shorter one may be a part of it."""
        known = [*self._given, *self._learned.values()]
        known.sort(key=lambda secret: len(secret.text), reverse=True)
        self._known = tuple(known)

    def hide(self, text: str) -> str:
        """``text`` with STARS in place of every secret."""
        for secret in self._known:
            if secret.anchor in text:
                text = secret.pattern.sub(STARS, text)
            if CUT in text:
                text = _hide_where_cut_off(text, secret.text)
        return text

    def hide_in(self, value: Any) -> Any:
        """``value``, plain JSON, with the secrets hidden in its texts and its keys."""
        if not self._known:
            return value
        if isinstance(value, str):
            return self.hide(value)
        if isinstance(value, dict):
            return {self.hide(key): self.hide_in(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.hide_in(item) for item in value]
        return value

    def hide_in_json(self, text: str) -> str:
        """``text``, which is JSON, with the secrets hidden in its texts and its keys.

        It is decoded only if there may be one in it. They are not hidden in place: a secret of
        digits would be found in numbers too.
        """
        if not self._may_be_in(text):
            return text
        newline = text[len(text.rstrip()) :]
        value = plain_json(json.loads(text))
        return json.dumps(self.hide_in(value)) + newline

    def _may_be_in(self, text: str) -> bool:
        is_cut = CUT in text or "\\u2026" in text
        return any(secret.may_be_in(text, is_cut) for secret in self._known)


def _long_enough(secrets: Iterable[str]) -> List[str]:
    """Those of ``secrets`` that are hidden, each once."""
    return [secret for secret in dict.fromkeys(secrets) if len(secret) >= SHORTEST_SECRET]
