"""Nodes that cost credits: which of a prompt's, and in what words."""

from __future__ import annotations

from typing import Any, Dict

from support import node

from comfyui_runner.partner_nodes import (
    NO_SPENDING,
    Spending,
    find_partner_nodes,
    has_credentials,
    key_for_nodes,
    spending_in_words,
)
from comfyui_runner.problems import LOGIN_HINT, explain_failure

PROMPT = {
    "1": node("Veo", "Film"),
    "2": node("SaveVideo", video=["1", 0]),
    "3": node("Ideogram"),
    "4": node("Unknown"),
}
INFO: Dict[str, Any] = {
    "Veo": {"api_node": True},
    "SaveVideo": {"output_node": True},
    "Ideogram": {"api_node": "true"},
    "Odd": [],
}


def test_partner_nodes_are_those_whose_definition_says_so() -> None:
    assert find_partner_nodes(PROMPT, INFO) == ["1"]
    assert find_partner_nodes(PROMPT, {}) == []
    assert find_partner_nodes({"1": node("Odd")}, INFO) == []


def test_a_node_that_does_not_run_costs_nothing() -> None:
    ring = {"1": node("Veo", again=["2", 0]), "2": node("Veo", again=["1", 0]), "3": node("SaveVideo")}
    assert find_partner_nodes(ring, INFO) == []
    assert find_partner_nodes({key: ring[key] for key in "12"}, INFO) == ["1", "2"]


def test_the_nodes_are_named_and_many_are_counted() -> None:
    assert spending_in_words(PROMPT, ["1", "3"]) == (
        'A run costs credits of your Comfy account: "Film" (Veo, node 1), "Ideogram" (node 3).'
    )
    many = {str(number): node("Veo") for number in range(9)}
    assert spending_in_words(many, list(many)).endswith('"Veo" (node 5) and 3 more.')


def test_the_question_says_what_a_yes_costs() -> None:
    assert NO_SPENDING.before("Run it? ") == "Run it? "
    assert Spending("It costs.", {}).before("Run it? ") == "It costs.\nRun it? "


def test_credentials_that_a_client_brings_along() -> None:
    assert not has_credentials({}) and not has_credentials({"extra_data": {"api_key_comfy_org": ""}})
    assert has_credentials({"extra_data": key_for_nodes("key")})
    assert has_credentials({"extra_data": {"auth_token_comfy_org": "token"}})
    assert not has_credentials({"extra_data": [1]})


def test_a_node_that_wants_a_login_is_explained() -> None:
    message = "Unauthorized: Please login first to use this node.\n"
    problem = explain_failure({"node_id": "1", "exception_message": message}, PROMPT)
    assert problem.hints == (LOGIN_HINT,) and "COMFY_API_KEY" in LOGIN_HINT
    assert explain_failure({"node_id": "1", "exception_message": "Unauthorized"}, PROMPT).hints == ()
