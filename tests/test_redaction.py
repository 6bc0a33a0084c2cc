"""What is secret, and that it is hidden however it is spelled."""

from __future__ import annotations

import base64
import html
import json
import time
import urllib.parse
from typing import Any, Callable, Dict, List, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import few

from comfyui_runner.redaction import (
    MOST_LEARNED,
    SHORTEST_COOKIE,
    SHORTEST_SECRET,
    STARS,
    Secrets,
    secrets_in_extra_data,
    secrets_in_headers,
    secrets_in_proxies,
)
from comfyui_runner.text import clean, one_line


def in_base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


# -- what is secret --------------------------------------------------------------------------------

PAIR = in_base64("me:p@ss:word")


@pytest.mark.parametrize(
    "name, value, secrets",
    [
        ("X-Key", "k3y!", ["k3y!", ""]),
        ("Authorization", "Bearer abc.def", ["Bearer abc.def", "abc.def"]),
        ("X-Auth", "Bearer abc.def", ["Bearer abc.def", "abc.def"]),
        ("authorization", 'Digest a="1", b="2"', ['Digest a="1", b="2"', 'a="1", b="2"']),
        ("X-Motto", "made with love", ["made with love"]),  # "love" is a word of many prompts
        ("Authorization", "Basic " + PAIR, ["Basic " + PAIR, PAIR, "me:p@ss:word", "p@ss:word"]),
        ("Authorization", "basic dG9rZW46", ["basic dG9rZW46", "dG9rZW46", "token:", "token"]),  # no password
        ("Authorization", "Basic not!base64", ["Basic not!base64", "not!base64"]),
        ("Cookie", "sid=abc; theme=dark", ["sid=abc; theme=dark", "abc", "dark"]),
        ("Host", "gpu.example", []),
        ("User-Agent", "Mozilla/5.0", []),
    ],
)
def test_what_of_a_header_is_secret(name: str, value: str, secrets: List[str]) -> None:
    assert secrets_in_headers([(name, value)]) == secrets


@pytest.mark.parametrize(
    "variables, secrets",
    [
        ({"HTTPS_PROXY": "http://me:p%40ss@proxy:3128"}, [in_base64("me:p@ss"), "me:p@ss", "p@ss"]),
        ({"all_proxy": "me:pass@proxy"}, [in_base64("me:pass"), "me:pass", "pass"]),
        ({"http_proxy": "http://proxy:3128", "no_proxy": "*", "MAIL": "me@host"}, []),
    ],
)
def test_what_of_a_proxys_address_is_secret(variables: Dict[str, str], secrets: List[str]) -> None:
    assert secrets_in_proxies(variables) == secrets


@pytest.mark.parametrize(
    "extra_data, secrets",
    [
        ({"api_key_comfy_org": "k", "auth_token_comfy_org": "t"}, ["k", "t"]),
        ({"apiKey": "a", "OPENAI_API_KEY": "b", "password": "c", "clientSecret": "d"}, ["a", "b", "c", "d"]),
        ({"preview_method": "auto", "max_tokens": "5", "tokenizer": "t5xxl", "keyframes": "9"}, []),
        ({"api_key": 5, "token": None}, []),
        ({"extra_pnginfo": {"workflow": {"api_key": "of a node"}}}, []),
        ({}, []),
        (None, []),
        ("text", []),
    ],
)
def test_what_of_extra_data_is_secret(extra_data: Any, secrets: List[str]) -> None:
    assert secrets_in_extra_data(extra_data) == secrets


# -- spellings -------------------------------------------------------------------------------------

SECRETS = [
    "hunter22",
    "Bearer abc.def",
    'quo"te\\slash',
    "p@ss:w0rd/%+&=?",
    "it's <b>&amp;</b>",
    "a  b\\\\c",
    '\\"\\"\'',
    "пароль-1",
    "日本語の鍵",
    "naïve-key",
    "smile 😀 key",
    in_base64("user:päss>?"),
    "-----",
    "!§$%&/()=?",
]


UNRESERVED = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-._~"


def encode_each(text: str, encode: Callable[[str], str]) -> str:
    """``text`` with ``encode()`` of every character that is not unreserved."""
    return "".join(each if each in UNRESERVED else encode(each) for each in text)


def quote_latin_1(character: str) -> str:
    if ord(character) < 256:
        return urllib.parse.quote(character.encode("latin-1"), safe="")
    return urllib.parse.quote(character, safe="")


SPELLINGS: Dict[str, Callable[[str], str]] = {
    "plain": str,
    "JSON": lambda text: json.dumps(text)[1:-1],
    "JSON in Unicode": lambda text: json.dumps(text, ensure_ascii=False)[1:-1],
    "JSON of JavaScript": lambda text: json.dumps(text)[1:-1].replace("/", "\\/").replace("<", "\\u003C"),
    "URL": lambda text: urllib.parse.quote(text, safe=""),
    "path of a URL": urllib.parse.quote,
    "form": urllib.parse.quote_plus,
    "URL in lower case": lambda text: encode_each(text, lambda each: urllib.parse.quote(each, safe="").lower()),
    "URL in Latin-1": lambda text: encode_each(text, quote_latin_1),
    "HTML": html.escape,
    "HTML in numbers": lambda text: encode_each(text, lambda each: f"&#{ord(each)};"),
    "HTML in hexadecimal": lambda text: encode_each(text, lambda each: f"&#x{ord(each):X};"),
    "repr": lambda text: repr(text)[1:-1],
    "ascii": lambda text: ascii(text)[1:-1],
    "repr of bytes": lambda text: repr(text.encode())[2:-1],
    "folded": lambda text: " ".join(text.split()),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_secret_is_hidden_in_every_spelling(spelling: str) -> None:
    for secret in SECRETS:
        spelled = SPELLINGS[spelling](secret)
        hidden = Secrets([secret]).hide(f"before [{spelled}] after")
        assert hidden == f"before [{STARS}] after"


#: These encode what others escape with: their own signs, and the backslash.
OUTER = ["JSON", "JSON in Unicode", "URL", "form", "HTML", "repr", "folded"]


@pytest.mark.parametrize("second", OUTER)
@pytest.mark.parametrize("first", SPELLINGS)
def test_a_secret_is_hidden_in_one_spelling_inside_another(first: str, second: str) -> None:
    for secret in SECRETS:
        spelled = SPELLINGS[second](SPELLINGS[first](secret))
        assert Secrets([secret]).hide(f"[{spelled}]") == f"[{STARS}]"


@few
@given(st.text(min_size=8), st.sampled_from(sorted(SPELLINGS)), st.sampled_from(OUTER))
def test_any_secret_is_hidden(secret: str, first: str, second: str) -> None:
    secret = clean(secret).strip() + "-12345678"
    spelled = SPELLINGS[second](SPELLINGS[first](secret))
    assert Secrets([secret]).hide(f"[{spelled}]") == f"[{STARS}]"


@pytest.mark.parametrize("broken", ["na\ufffdve-key", "na?ve-key", "na\udcefve-key", "nave-key", "na%EFve-key"])
def test_a_character_that_did_not_survive_does_not_show_the_rest(broken: str) -> None:
    """Headers are sent in Latin-1, and often read as UTF-8."""
    assert Secrets(["naïve-key"]).hide(f"[{broken}]") == f"[{STARS}]"


def test_the_longest_is_hidden_first() -> None:
    secrets = Secrets(["pass-word", "u:pass-word", "dTpwYXNz"])
    assert secrets.hide("Basic dTpwYXNz, u:pass-word and pass-word") == "Basic ***, *** and ***"


# -- short ones ------------------------------------------------------------------------------------


def test_one_of_a_few_characters_does_not_hide_every_number() -> None:
    headers = [("X-On", "1"), ("Authorization", "Bearer abc"), ("Authorization", "Basic " + in_base64("me:pw"))]
    secrets = Secrets(secrets_in_headers(headers))
    assert secrets.hide("Row 1 of 11, abc, pw") == "Row 1 of 11, abc, pw"
    assert secrets.hide(f"Bearer abc, me:pw, {in_base64('me:pw')}") == "***, ***, ***"


@pytest.mark.parametrize(
    "text, shown",
    [
        ("test", "***"),
        ("X-Key=test;", "X-Key=***;"),
        ("http://me:test@host", "http://me:***@host"),
        ("a\\ntest", "a\\n***"),
        ("a%20test%20b", "a%20***%20b"),
        ("\\u00e9test", "\\u00e9***"),
        ("latest", "latest"),
        ("tested 1test", "tested 1test"),
    ],
)
def test_a_short_one_is_hidden_where_it_is_a_word(text: str, shown: str) -> None:
    assert Secrets(["test"]).hide(text) == shown


def test_a_short_one_does_not_break_a_prompt_id() -> None:
    prompt_id = "4f18ed14-7706-4bd7-b146-c9cd0fa8f952"
    secrets = Secrets(prompt_id.split("-")[1:4])
    assert secrets.hide(f"{prompt_id} is 7706") == f"{prompt_id} is ***"


def test_signs_at_the_ends_of_a_short_one_need_no_word_around_them() -> None:
    assert Secrets(["!ab!"]).hide("x!ab!y") == "x***y"


# -- texts that were cut off -----------------------------------------------------------------------


def test_the_beginning_of_a_secret_that_is_cut_off_is_hidden() -> None:
    token = "eyJhbGciOiJIUzI1NiJ9." + "eyJzdWIiOiIxMjM0NTY3ODkwIn0" * 20
    secrets = Secrets(["eyJhbGci", token])
    cut = one_line(f"refused: Authorization: Bearer {token}", 300)
    assert cut.endswith("…")
    assert secrets.hide(f"{cut}. And {cut}") == "refused: Authorization: Bearer ***…. And " + (
        "refused: Authorization: Bearer ***…"
    )
    assert secrets.hide("of eyJh eyJh… and eyJ…") == "of eyJh ***… and eyJ…"
    assert secrets.hide("other words… more") == "other words… more"


def test_many_cuts_are_looked_at_quickly() -> None:
    secrets = Secrets(["a" * 4000])
    began = time.monotonic()
    secrets.hide("aaaa b…" * 100_000)
    assert time.monotonic() - began < 10


# -- JSON ------------------------------------------------------------------------------------------


def test_secrets_are_hidden_in_the_texts_and_keys_of_json_and_nowhere_else() -> None:
    secrets = Secrets(["12345678", 'a"b\\c-long', '": "'])
    value = {"seed": 12345678, "list": ["x 12345678", None, 1.5, True], 'a"b\\c-long': 'a"b\\c-long'}
    hidden = {"seed": 12345678, "list": ["x ***", None, 1.5, True], "***": "***"}
    assert secrets.hide_in(value) == hidden
    assert json.loads(secrets.hide_in_json(json.dumps(value))) == hidden


def test_json_without_secrets_is_not_touched() -> None:
    text = '{"a":  [1, "b"]}'
    assert Secrets().hide_in_json(text) is text
    assert Secrets(["hunter22"]).hide_in_json(text) is text
    value = {"a": [1]}
    assert Secrets().hide_in(value) is value


def test_a_secret_that_is_cut_off_is_found_in_json() -> None:
    secrets = Secrets(["hunter22-and-more"])
    for ensure_ascii in (True, False):
        text = json.dumps({"a": "is hunter2…"}, ensure_ascii=ensure_ascii)
        assert json.loads(secrets.hide_in_json(text)) == {"a": "is ***…"}
        assert Secrets(["passphrase"]).hide_in_json(text) is text
        assert json.loads(Secrets(['"x-y"-z']).hide_in_json(text)) == {"a": "is hunter2…"}


def test_json_that_is_too_deep_is_cut() -> None:
    text = "[" * 400 + '"hunter22"' + "]" * 400
    assert "hunter22" not in Secrets(["hunter22"]).hide_in_json(text)


# -- what turns up later ---------------------------------------------------------------------------


def test_what_turns_up_is_hidden_too_and_the_oldest_of_many_is_forgotten() -> None:
    secrets = Secrets(["given-key"])
    secrets.learn([])
    secrets.learn(["first-key", "abc"])
    assert secrets.hide("given-key first-key abc") == "*** *** abc"
    names = [f"cookie-{number}" for number in range(MOST_LEARNED)]
    for name in names[:-1]:
        secrets.learn([name])
    secrets.learn(["first-key"])  # it is used again
    secrets.learn(names[-1:])
    assert secrets.hide("given-key first-key cookie-0 cookie-1") == "*** *** cookie-0 ***"


def test_the_limits_are_in_order() -> None:
    assert 1 < SHORTEST_SECRET < SHORTEST_COOKIE


# -- cost ------------------------------------------------------------------------------------------

HOSTILE: List[Tuple[str, str]] = [
    ("\\" * 12 + '"\\"\\"x', "\\" * 200_000),
    ("é" * 12, "é" * 11 + "%25" * 60_000),
    ("&&&&&&&&&&", "&amp;" * 40_000 + "x"),
    ("          !", " " * 200_000),
    ("/////////////", "%252525" * 30_000),
]


@pytest.mark.parametrize("secret, text", HOSTILE)
def test_a_hostile_text_costs_little(secret: str, text: str) -> None:
    began = time.monotonic()
    Secrets([secret]).hide(text)
    assert time.monotonic() - began < 10


def test_a_long_secret_is_no_trouble() -> None:
    secret = "".join(chr(33 + number % 90) for number in range(2000))
    assert Secrets([secret]).hide(json.dumps(secret)) == '"***"'
