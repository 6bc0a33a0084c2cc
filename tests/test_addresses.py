"""Where the server is: URLs and headers as people type them, and what of them is secret."""

from __future__ import annotations

from typing import Dict

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import few

from comfyui_runner.addresses import choose_ca_bundle, parse_address, read_public_url, split_origin
from comfyui_runner.errors import UsageError
from comfyui_runner.redaction import STARS, Secrets, secrets_in_headers

HERE = "http://127.0.0.1:8188"


@pytest.mark.parametrize(
    ("text", "url", "websocket"),
    [
        ("127.0.0.1:8188", HERE, "ws://127.0.0.1:8188"),
        ("http://127.0.0.1:8188/", HERE, "ws://127.0.0.1:8188"),
        (" http://127.0.0.1:8188\n", HERE, "ws://127.0.0.1:8188"),
        (" 127.0.0.1:8188 ", HERE, "ws://127.0.0.1:8188"),
        ("localhost", "http://localhost", "ws://localhost"),
        ("HTTPS://Comfy.Example/base/path//", "https://comfy.example/base/path", "wss://comfy.example/base/path"),
        ("http://[::1]:8188", "http://[::1]:8188", "ws://[::1]:8188"),
        ("https://user:pass@host:1/x", "https://host:1/x", "wss://host:1/x"),
        ("http://0.0.0.0:8188", HERE, "ws://127.0.0.1:8188"),
        ("0.0.0.0", "http://127.0.0.1", "ws://127.0.0.1"),
        ("http://[::]:8188/x", "http://[::1]:8188/x", "ws://[::1]:8188/x"),
        ("http://[0::0]:8188", "http://[::1]:8188", "ws://[::1]:8188"),
    ],
)
def test_an_address(text: str, url: str, websocket: str) -> None:
    address = parse_address(text)
    assert (address.url, address.websocket) == (url, websocket)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("localhost", "localhost", 80),
        ("https://comfy.example/x", "comfy.example", 443),
        ("http://[::1]:8188", "::1", 8188),
    ],
)
def test_what_is_connected_to(text: str, host: str, port: int) -> None:
    address = parse_address(text)
    assert (address.host, address.port) == (host, port)


def test_an_address_to_listen_at_is_replaced_with_a_notice() -> None:
    assert parse_address("http://0.0.0.0:8188").notice == (
        "0.0.0.0 means every address of ComfyUI's machine, not one to connect to: using 127.0.0.1."
    )
    assert "using ::1" in parse_address("http://[::]:8188").notice
    for text in ("127.0.0.1", "localhost", "http://[::1]"):
        assert parse_address(text).notice == ""


@pytest.mark.parametrize(
    ("text", "local"),
    [
        ("localhost:8188", True),
        ("127.0.0.1", True),
        ("127.1.2.3:1", True),
        ("http://[::1]:8188", True),
        ("192.168.0.7", False),
        ("https://localhost.example", False),
        ("http://[fe80::1]", False),
    ],
)
def test_whether_a_server_is_on_this_machine(text: str, local: bool) -> None:
    assert parse_address(text).local is local


@pytest.mark.parametrize(
    ("variables", "bundle"),
    [
        ({}, ""),
        ({"REQUESTS_CA_BUNDLE": ""}, ""),
        ({"SSL_CERT_FILE": "/own.pem"}, "/own.pem"),
        ({"CURL_CA_BUNDLE": "/curl.pem", "SSL_CERT_FILE": "/own.pem"}, "/curl.pem"),
        ({"REQUESTS_CA_BUNDLE": "/r.pem", "CURL_CA_BUNDLE": "/c.pem", "SSL_CERT_FILE": "/own.pem"}, "/r.pem"),
        ({"REQUESTS_CA_BUNDLE": "", "SSL_CERT_FILE": "/own.pem"}, "/own.pem"),
    ],
)
def test_the_environment_names_the_authorities_that_are_trusted(variables: Dict[str, str], bundle: str) -> None:
    assert choose_ca_bundle(variables) == bundle


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "The server's URL must be http:// or https:// with a host."),
        ("http://", "The server's URL must be http:// or https:// with a host."),
        ("ftp://host", "The server's URL must be http:// or https:// with a host."),
        ("ws://host", "The server's URL must be http:// or https:// with a host."),
        ("http://a b", "The server's URL must be http:// or https:// with a host."),
        ("http://host/a\nb", "The server's URL must be http:// or https:// with a host."),
        ("http://host:port", "The host or port in the server's URL is not valid."),
        ("host:99999", "The host or port in the server's URL is not valid."),
        ("http://[::1", "The host or port in the server's URL is not valid."),
        ("http://host/?a=b", "The server's URL must not have a ? or a #."),
        ("http://host#a", "The server's URL must not have a ? or a #."),
    ],
)
def test_what_is_no_address(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_address(text)
    assert caught.value.message == message and caught.value.remedy


@pytest.mark.parametrize(
    ("text", "url", "origin", "host"),
    [
        ("https://gpu.example", "https://gpu.example", "https://gpu.example", "gpu.example"),
        ("https://GPU.example/Runner/", "https://gpu.example/Runner", "https://gpu.example", "gpu.example"),
        ("http://10.0.0.5:8080/a/b", "http://10.0.0.5:8080/a/b", "http://10.0.0.5:8080", "10.0.0.5"),
        ("http://[::1]:80", "http://[::1]:80", "http://[::1]:80", "::1"),
    ],
)
def test_where_clients_reach_the_service(text: str, url: str, origin: str, host: str) -> None:
    assert read_public_url(text) == url
    assert split_origin(url) == (origin, host)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "--public-url must be an http:// or https:// URL with a host."),
        ("gpu.example", "--public-url must be an http:// or https:// URL with a host."),
        ("ftp://gpu.example", "--public-url must be an http:// or https:// URL with a host."),
        ("https:///runner", "--public-url must be an http:// or https:// URL with a host."),
        ("https://gpu.example/a b", "--public-url must be an http:// or https:// URL with a host."),
        ("https://gpu.example/\r\nX: y", "--public-url must be an http:// or https:// URL with a host."),
        ('https://gpu.example/"', "--public-url must be an http:// or https:// URL with a host."),
        ("https://me:pa55@gpu.example", "--public-url must not have a user, a password, a ? or a #."),
        ("https://@gpu.example", "--public-url must not have a user, a password, a ? or a #."),
        ("https://gpu.example/?token=a", "--public-url must not have a user, a password, a ? or a #."),
        ("https://gpu.example#", "--public-url must not have a user, a password, a ? or a #."),
        ("https://gpu.example:port", "The host or port of --public-url is not valid."),
        ("https://gpu.example:99999", "The host or port of --public-url is not valid."),
        ("https://[::1", "The host or port of --public-url is not valid."),
        ("https://\udcff", "The host or port of --public-url is not valid."),
    ],
)
def test_what_is_not_an_address_of_the_service(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_public_url(text)
    assert (caught.value.message, caught.value.remedy) == (message, "Example: https://gpu.example/runner")


def test_user_and_password_are_sent_as_basic_authorization_and_hidden() -> None:
    address = parse_address("http://me:p%40ss%3Aword@host:8188")
    assert address.url == "http://host:8188"
    assert address.headers == (("Authorization", "Basic bWU6cEBzczp3b3Jk"),)
    for spelled in ("bWU6cEBzczp3b3Jk", "me:p@ss:word", "p%40ss%3Aword", "p@ss:word"):
        assert Secrets(secrets_in_headers(address.headers)).hide(spelled).endswith(STARS)


def test_a_user_without_password_and_a_password_without_user() -> None:
    assert parse_address("http://me@host").headers == (("Authorization", "Basic bWU6"),)
    assert parse_address("http://:word@host").headers == (("Authorization", "Basic OndvcmQ="),)


def test_the_values_of_headers_are_sent_as_they_are() -> None:
    address = parse_address("host", ["Authorization: Bearer abc.def", "X-Key:  k3y!  ", "X-Empty:", "X-On: 1"])
    assert address.headers == (("Authorization", "Bearer abc.def"), ("X-Key", "k3y!"), ("X-Empty", ""), ("X-On", "1"))


def test_a_header_overrides_user_and_password() -> None:
    address = parse_address("http://me:word@host", ["Authorization: Bearer token"])
    assert address.headers == (("Authorization", "Bearer token"),)


@pytest.mark.parametrize("line", ["no colon", ": no name", "", "two words: x", "naïve: x", "a\nb: x"])
def test_what_is_no_header(line: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_address("host", [line])
    assert caught.value.message == 'A header must look like "Name: value".'


@pytest.mark.parametrize("value", ["a\r\nX-Injected: b", "a\x00b", "a\x7fb", "\u2603"])
def test_a_value_that_no_header_may_have(value: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_address("host", ["X-Key: a" + value])
    assert caught.value.message == "The value of the header X-Key contains characters that are not allowed in headers."


def test_a_value_in_latin_1_is_a_value() -> None:
    assert parse_address("host", ["X-Key: é"]).headers == (("X-Key", "é"),)


SECRET = st.text("abcdefgh23456789%40:@/?#[] \n\t\u00e9\u2603\udcff", min_size=8).map(lambda text: text + "hunter2")


@few
@given(st.sampled_from(["http://me:%s@host", "%s", "http://host/%s", "https://%s@", "http://host:%s"]), SECRET)
def test_whatever_is_typed_no_message_repeats_it(pattern: str, secret: str) -> None:
    try:
        address = parse_address(pattern % secret, ["X-Key: " + secret.replace("\n", "")])
    except UsageError as error:
        assert "hunter2" not in error.message + error.remedy
    else:
        if pattern.startswith("http://me:"):
            secrets = Secrets(secrets_in_headers(address.headers))
            assert "hunter2" not in secrets.hide(repr((address.url, address.headers)))
