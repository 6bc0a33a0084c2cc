"""What was set where, and which of it counts; which file is read."""

from __future__ import annotations

import io
import json
import os
from typing import Any, Dict, Iterator, List, Tuple

import pytest
from recorded import Json
from served import PNG
from support import ROOT, node, script

from comfyui_runner import __version__
from comfyui_runner.addresses import Address
from comfyui_runner.documents import EXPORT_REMEDY, Conversion, Document, parse_document
from comfyui_runner.edits import EditError
from comfyui_runner.errors import ExitStatus, RunnerError, UsageError, WorkflowError
from comfyui_runner.extras.checks import describe_inputs, inputs_table
from comfyui_runner.flags import describe_parser_error
from comfyui_runner.layout import width_of
from comfyui_runner.limits import DEFAULT_LIMITS
from comfyui_runner.loading import (
    Loaded,
    find_example,
    find_file,
    load_document,
    offer_files,
    prepare_workflow,
    read_object_info,
    short_edits,
)
from comfyui_runner.nodes import InputRef
from comfyui_runner.settings import Settings, given_secrets, make_settings
from comfyui_runner.terminal import is_yes

HERE = "http://127.0.0.1:8188"


def settings(*arguments: str, **environment: str) -> Settings:
    """The settings for these arguments, with COMFYUI_NAME in the environment for each NAME."""
    return make_settings(
        arguments, {"COMFYUI_" + name: value for name, value in environment.items()}, script.collect_defaults()
    )


def refusal(*arguments: str, **environment: str) -> UsageError:
    with pytest.raises(UsageError) as caught:
        settings(*arguments, **environment)
    return caught.value


# ------------------------------------------------------------------------------------------------
# A flag, else the environment, else the constant
# ------------------------------------------------------------------------------------------------


def test_with_nothing_set_the_constants_count() -> None:
    found = settings()
    guard = found.guard._replace(session_mark="")  # it is drawn
    assert found._replace(guard=guard) == Settings(
        workflow="workflow_api.json", workflow_named=False, mode="single_shot", auto_execute=False,
        servers=(Address(HERE), Address("http://127.0.0.1:8000")), demo=False, yes=False, output=None,
        overwrite=False, timeout=None, printer="human", verbose=False, limits=DEFAULT_LIMITS,
        example_folders=(ROOT, os.path.join(ROOT, "comfyui_runner")),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("constant", "value", "field", "found"),
    [
        ("curr_workflow", "mine.json", "workflow", "mine.json"),
        ("RUN_MODE", "continuous", "mode", "continuous"),
        ("AUTO_EXECUTE_ON_UPLOAD", True, "auto_execute", True),
        ("DEFAULT_SERVERS", ("http://far:1",), "servers", (Address("http://far:1"),)),
    ],
)
def test_a_user_may_edit_the_constants(
    monkeypatch: pytest.MonkeyPatch, constant: str, value: Any, field: str, found: Any
) -> None:
    monkeypatch.setattr(script, constant, value)
    assert getattr(settings(), field) == found


@pytest.mark.parametrize(
    ("field", "flag", "name", "of_environment", "of_flag"),
    [
        ("workflow", ["flag.json"], "WORKFLOW", "environment.json", "flag.json"),
        ("mode", ["--mode", "single_shot"], "RUN_MODE", "continuous", "single_shot"),
        ("output", ["-o", "flag"], "OUTPUT", "environment", "flag"),
        ("timeout", ["--timeout", "7"], "TIMEOUT", "9.5", 7.0),
        ("servers", ["--server", "http://flag:1"], "URL", "http://environment:1", (Address("http://flag:1"),)),
    ],
)
def test_a_flag_overrides_the_environment(
    field: str, flag: List[str], name: str, of_environment: str, of_flag: Any
) -> None:
    values = {"timeout": 9.5, "servers": (Address("http://environment:1"),)}
    assert getattr(settings(**{name: of_environment}), field) == values.get(field, of_environment)
    assert getattr(settings(*flag, **{name: of_environment}), field) == of_flag
    assert getattr(settings(**{name: ""}), field) == getattr(settings(), field)


def test_the_page_at_the_public_url_is_the_services_own() -> None:
    of_proxy = settings("--mode", "continuous", "--public-url", "https://GPU.example/runner/")
    assert of_proxy.public_url == "https://gpu.example/runner"
    assert "gpu.example" in of_proxy.guard.hosts and "https://gpu.example" in of_proxy.guard.origins
    alone = settings("--mode", "continuous", "--allow-host", "a.example", "--allow-origin", "https://b.example")
    assert (alone.public_url, set(alone.guard.hosts)) == ("", {"a.example"})
    assert alone.guard.origins == {"https://b.example"}
    assert "has no effect on a single run" in refusal("--public-url", "https://gpu.example").message


def test_a_workflow_is_named_by_flag_or_environment() -> None:
    assert settings("a.json").workflow_named and settings(WORKFLOW="a.json").workflow_named
    assert not settings().workflow_named


@pytest.mark.parametrize("word", ["1", "true", "YES", " On "])
def test_an_upload_may_start_a_run(word: str) -> None:
    assert settings(AUTO_EXECUTE_ON_UPLOAD=word).auto_execute is True
    assert settings("--mode", "continuous", "--auto-execute").auto_execute is True
    assert settings("--auto-execute", RUN_MODE="continuous", AUTO_EXECUTE_ON_UPLOAD="0").auto_execute is True


@pytest.mark.parametrize("word", ["0", "False", "no", "off"])
def test_a_word_for_no_is_not_taken_for_yes(monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    monkeypatch.setattr(script, "AUTO_EXECUTE_ON_UPLOAD", True)
    assert settings().auto_execute is True
    assert settings(AUTO_EXECUTE_ON_UPLOAD=word).auto_execute is False


def test_flags_that_have_no_variable() -> None:
    made = settings("--demo", "--yes", "--overwrite", "--verbose")
    assert (made.demo, made.yes, made.overwrite, made.verbose) == (True, True, True, True)
    assert [settings(*flag).printer for flag in ([], ["-q"], ["--json"])] == ["human", "quiet", "json"]


def test_headers_come_from_both_and_the_flag_counts() -> None:
    made = settings("--header", "X-A: flag", "--header", "X-C: 3", HEADERS="X-A: environment\n\nX-B: 2\n")
    for server in made.servers:
        assert sorted(server.headers) == [("X-A", "flag"), ("X-B", "2"), ("X-C", "3")]


def test_a_header_is_overridden_however_it_is_spelled() -> None:
    made = settings("--header", "authorization: Bearer flag", HEADERS="Authorization: Bearer environment")
    assert [value for _, value in made.servers[0].headers] == ["Bearer flag"]


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["--mode", "loop"], {}, "--mode must be single_shot or continuous."),
        ([], {"RUN_MODE": "loop"}, "COMFYUI_RUN_MODE must be single_shot or continuous."),
        (["--repeat", "0"], {}, "--repeat must be a whole number from 1 to 65535."),
        (["--port", "65536"], {}, "--port must be a whole number from 0 to 65535."),
        (["--retries", "\u0663"], {}, "--retries must be a whole number from 0 to 65535."),
        ([], {"RUNNER_PORT": "x"}, "COMFYUI_RUNNER_PORT must be a whole number from 0 to 65535."),
        (["--seed", "1.5"], {}, "--seed must be a whole number (0 or more), random or keep."),
        (["--attach", ""], {}, "--attach is empty."),
        (["--batch", ""], {}, "--batch is empty."),
        (["--json=x"], {}, "--json does not take a value."),
        (["--setup"], {}, "--setup is for the script, which needs an environment; this program has its packages."),
        (["--open"], {}, "--open opens what -o saves, but nothing is saved."),
        (["--batch", "a.csv", "--each", "1.a=1"], {}, "--batch and --each cannot be combined."),
        (["--check", "--inputs"], {}, "--inputs and --check cannot be combined."),
        (["--resume", "--attach", "p"], {}, "--attach and --resume cannot be combined."),
        (["--repeat", "2", "--mode", "continuous"], {}, "--repeat and --mode continuous cannot be combined."),
        (["--save-run", "x", "--check"], {}, "--save-run is for a single run."),
        (["--save-run", "x"], {"RUN_MODE": "continuous"}, "--save-run is for a single run."),
        (
            ["--attach", "p", "--seed", "1"],
            {},
            "--attach follows a prompt that was submitted before: its values cannot be changed.",
        ),
        (
            ["--object-info", "x"],
            {},
            "--object-info is for --inputs, --check and --export-api: a run asks its server.",
        ),
        (["-", "--batch", "-"], {}, "Standard input cannot be both the workflow and the rows."),
        ([], {"AUTO_EXECUTE_ON_UPLOAD": "maybe"}, "COMFYUI_AUTO_EXECUTE_ON_UPLOAD must be true or false."),
        (["--timeout", "soon"], {}, "--timeout must be a number of seconds above 0."),
        (["--timeout", "0"], {}, "--timeout must be a number of seconds above 0."),
        (["--timeout=-1"], {}, "--timeout must be a number of seconds above 0."),
        (["--timeout", "nan"], {}, "--timeout must be a number of seconds above 0."),
        (["--timeout", "inf"], {}, "--timeout must be a number of seconds above 0."),
        (["--timeout", "1e8"], {}, "--timeout must be a number of seconds above 0."),
        ([], {"TIMEOUT": "soon"}, "COMFYUI_TIMEOUT must be a number of seconds above 0."),
        (
            ["--server", "a", "--server", "b"],
            {},
            "--server can be given more than once only with --batch, --each and --repeat, whose rows are spread over "
            "the servers.",
        ),
        (["--repeat", "2", "--server", "a", "--server", "http://a"], {}, "--server http://a appears twice."),
        (["--demo", "--server", "h"], {}, "--demo starts its own server, so it cannot be combined with --server."),
        (
            ["--mode", "continuous", "--demo", "--state", "x"],
            {},
            "--demo forgets its runs when it ends, so it cannot be combined with --state FILE.",
        ),
        (["--timeout"], {}, "--timeout needs a value."),
        (["-q", "--json"], {}, "--json cannot be combined with -q/--quiet."),
        (["--nonsense"], {}, "Unknown option: --nonsense."),
        (["--nonsense=1", "--more"], {}, "Unknown option: --nonsense, --more."),
        (["--outp", "x"], {}, "Unknown option: --outp."),
        (["--sed", "5"], {}, "Unknown option: --sed."),
        (["-x5"], {}, "Unknown option: -x."),
    ],
)
def test_a_setting_that_cannot_be_followed(arguments: List[str], environment: Dict[str, str], message: str) -> None:
    assert refusal(*arguments, **environment).message == message


@pytest.mark.parametrize(
    ("option", "remedy"),
    [
        ("--sed", "Did you mean --seed or --set?"),
        ("--ouput=x", "Did you mean --output?"),
        ("-O", "Did you mean -o?"),
        ("--Setup", "Did you mean --setup?"),
        ("--nonsense", "See --help."),
    ],
)
def test_an_option_that_there_is_not_comes_with_what_may_have_been_meant(option: str, remedy: str) -> None:
    assert refusal(option).remedy == remedy


@pytest.mark.parametrize(
    "arguments",
    [
        ["--pasword=hunter2"],
        ["--json=hunter2"],
        ["--quiet=hunter2"],
        ["--server", "ftp://user:hunter2@host"],
        ["--server", "http://user:hunter2"],
        ["--server", "http://user:hunter2@host:99999"],
        ["--server", "http://user:hunter2@[::1"],
        ["--server", "http://host/?token=hunter2"],
        ["--server", "http://host/#hunter2"],
        ["--server", "http://user:hunter2@ho st"],
        ["--header", "hunter2"],
        ["--header", "X Y: hunter2"],
        ["--header", "X: hunter2\x00"],
        ["--header", "X: hunter2\u2603"],
        ["--headr", "X: hunter2", "w.json"],
        ["--timeout", "hunter2"],
        ["--mode", "hunter2"],
        ["--server", "http://user:hunter2\udcff@host"],
    ],
)
def test_no_secret_stands_in_a_message(arguments: List[str]) -> None:
    with pytest.raises(RunnerError) as caught:
        settings(*arguments)
    assert "hunter2" not in caught.value.message + caught.value.remedy
    assert caught.value.exit_status is ExitStatus.USAGE


def test_what_is_given_as_a_secret_is_known_to_be_one() -> None:
    arguments = ["--mode", "continuous", "--token", "t0ken", "--server", "http://u:pa55@h", "--header", "X-Key: k3y"]
    assert {"pa55", "u:pa55", "k3y", "t0ken"} <= set(given_secrets(settings(*arguments), {}))
    assert given_secrets(settings(), {"https_proxy": "http://me:pr0xy@proxy:3128"})[1:3] == ["me:pr0xy", "pr0xy"]
    assert set(given_secrets(settings(), {})) == {""}


def test_the_key_of_an_account_comes_from_the_environment_alone_and_is_a_secret() -> None:
    def settings_with(key: str) -> Settings:
        return make_settings(["--allow-spend"], {"COMFY_API_KEY": key}, script.collect_defaults())

    assert settings().api_key == settings_with(" ").api_key == ""
    with_key = settings_with(" comfyui-1234 \n")
    assert with_key.api_key == "comfyui-1234" and with_key.allow_spend
    assert "comfyui-1234" in given_secrets(with_key, {})
    assert "--attach" in refusal("--allow-spend", "--attach", "p").message


@pytest.mark.parametrize(
    ("arguments", "words", "may_be_several"),
    [
        ([], (), False),
        (["a.json"], ("a.json",), False),
        (["a.json", "b.json", "--check", "c.png"], ("a.json", "b.json", "c.png"), True),
        (["--check", "pics/*.png"], ("pics/*.png",), True),
    ],
)
def test_several_workflows_may_be_named(arguments: List[str], words: Tuple[str, ...], may_be_several: bool) -> None:
    found = settings(*arguments)
    assert (found.workflows, found.may_be_several) == (words, may_be_several)
    assert found.workflow == (words[0] if words else "workflow_api.json")


def test_a_batch_may_use_several_servers_and_all_get_the_headers() -> None:
    servers = ["--server", "http://u:pa55@a", "--server", "b:8189", "--header", "X-Key: k3y"]
    found = settings("--each", "seed=1..4", *servers)
    assert [address.url for address in found.servers] == ["http://a", "http://b:8189"] and found.spreads_rows
    assert all(("X-Key", "k3y") in address.headers for address in found.servers)
    assert "pa55" in given_secrets(found, {})
    one = settings("--each", "seed=1..4", "--server", "a", URL="http://b")
    assert [address.url for address in one.servers] == ["http://a"] and not one.spreads_rows


def test_an_empty_server_is_not_taken_for_none() -> None:
    """--server "$URL" where URL is not set must not run on whatever is on this machine."""
    refusal("--server", "")


def test_a_mode_in_the_script_that_is_none_is_refused_only_where_it_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "RUN_MODE", "loop")
    assert refusal().message == "RUN_MODE must be single_shot or continuous."
    assert settings("--mode", "single_shot").mode == "single_shot"


@pytest.mark.parametrize(
    ("arguments", "fields"),
    [
        (["--mode", "continuous", "--port", "0", "--max-queue", "0"], {"port": 0, "max_queue": 0}),
        (["--repeat", "2", "--retries", "3", "--in-flight", "4"], {"retries": 3, "in_flight": 4}),
        ([], {"retries": 0, "in_flight": 2, "max_queue": 16, "state": None, "keep_runs": 2000}),
        (["--mode", "continuous", "--state", "x.db", "--keep-runs", "1"], {"state": "x.db", "keep_runs": 1}),
        (["--mode", "continuous", "--demo", "--state", "none"], {"state": "none", "demo": True}),
        (["--repeat", "2"], {"repeat": 2, "task": "batch", "seed": "random"}),
        (["--repeat", "2", "--seed", "KEEP"], {"repeat": 2, "seed": "keep"}),
        (["--batch", "r", "--resume"], {"resume": True, "task": "batch", "seed": "keep"}),
        (["--batch", "rows.csv"], {"batch": "rows.csv", "task": "batch"}),
        (["--attach", "p", "--save-run", "r.json"], {"attach": "p", "task": "attach", "save_run": "r.json"}),
        (["--check", "--object-info", "i.json"], {"task": "check", "object_info": "i.json"}),
        (["--inputs"], {"task": "inputs"}),
        (["--export-api", "-"], {"task": "export", "export_api": "-", "printer": "quiet"}),
        (["--export-api", "a.json", "--json"], {"task": "export", "printer": "json"}),
    ],
)
def test_flags_that_are_followed(arguments: List[str], fields: Json) -> None:
    made = settings(*arguments)
    assert {name: getattr(made, name) for name in fields} == fields


def test_a_message_of_argparse_that_is_not_known_repeats_nothing() -> None:
    assert describe_parser_error("a later version says: hunter2") == "The command line cannot be read."


@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_help_and_version_leave_at_once(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        settings(flag)
    assert left.value.code == 0
    assert ("examples:" if flag == "--help" else __version__) in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------
# The workflow's file
# ------------------------------------------------------------------------------------------------

PROMPT = b'{"1": {"class_type": "TextOut", "inputs": {"text": "hello"}}}'


@pytest.fixture
def folder(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An empty folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path


def message_of(*arguments: str) -> Tuple[str, str]:
    with pytest.raises(WorkflowError) as caught:
        load_document(settings(*arguments), io.StringIO())
    return caught.value.message, caught.value.remedy


def loaded(*arguments: str) -> Tuple[Document, str]:
    return load_document(settings(*arguments), io.StringIO())


def test_the_workflow_is_read_from_the_file_that_was_named(folder: Any) -> None:
    (folder / "mine.json").write_bytes(PROMPT)
    assert loaded("mine.json") == (Document({"1": node("TextOut", text="hello")}), "mine.json")


def test_the_workflow_that_comes_along_is_found_from_any_folder(folder: Any) -> None:
    document, path = loaded()
    assert document.prompt and len(document.prompt) == 7
    assert path == os.path.join(os.path.dirname(os.path.abspath(script.__file__)), "workflow_api.json")


def test_the_example_comes_from_the_first_folder_that_has_it(folder: Any) -> None:
    (folder / "b").mkdir()
    (folder / "b" / "w.json").write_bytes(PROMPT)
    assert find_example("w.json", ["a", "b"]) == os.path.join("b", "w.json")
    assert find_example("other.json", ["a", "b"]) is None


def test_a_workflow_in_the_current_folder_comes_first(folder: Any) -> None:
    (folder / "workflow_api.json").write_bytes(PROMPT)
    assert loaded() == (Document({"1": node("TextOut", text="hello")}), "workflow_api.json")


def test_a_workflow_that_was_named_is_not_looked_for_elsewhere(folder: Any) -> None:
    message, _ = message_of("workflow_api.json")
    assert message == "The workflow workflow_api.json does not exist."


def test_a_workflow_that_is_not_there_comes_with_those_that_are(folder: Any) -> None:
    assert message_of("typo.json") == (
        "The workflow typo.json does not exist.",
        "There are no workflows in %s." % folder,
    )
    for name in ("b.json", "a.JSON", "c.txt", "d.png", "e.WebP"):
        (folder / name).write_bytes(b"")
    assert message_of("typo.json") == (
        "The workflow typo.json does not exist.",
        "Workflows there: a.JSON, b.json, d.png and 1 more.",
    )
    (folder / "sub").mkdir()
    (folder / "sub" / "d.json").write_bytes(b"")
    path = os.path.join("sub", "typo.json")
    assert message_of(path) == ("The workflow %s does not exist." % path, "Workflows there: d.json.")


def test_a_pattern_that_no_shell_expanded_means_the_one_file_that_fits(folder: Any) -> None:
    (folder / "flow_7.json").write_bytes(PROMPT)
    assert loaded("flow*.json") == (Document({"1": node("TextOut", text="hello")}), "flow_7.json")
    (folder / "flow_[1].json").write_bytes(PROMPT)
    assert loaded("flow_[1].json")[1] == "flow_[1].json"  # the name of a file comes first
    assert message_of("flow*.json") == (
        "Several files match flow*.json, and only one can be used.",
        "Name one of them: flow_7.json, flow_[1].json.",
    )
    assert message_of("none*.json")[0] == "The workflow none*.json does not exist."


def test_a_folder_is_named_as_one_with_the_workflows_in_it(folder: Any) -> None:
    (folder / "flows").mkdir()
    (folder / "flows" / "a.json").write_bytes(PROMPT)
    assert message_of("flows") == ("flows is a folder, not a workflow.", "Workflows there: a.json.")


def test_of_many_files_the_nearest_three_are_listed(folder: Any) -> None:
    for number in range(23):
        (folder / ("%02d.json" % number)).write_bytes(b"")
    assert message_of("photo.png")[1] == "Workflows there: 00.json, 01.json, 02.json and 20 more."
    assert message_of("7.json")[1].startswith("Did you mean 07.json")
    (folder / "Flow.json").write_bytes(b"")
    assert message_of("flwo.json")[1] == "Did you mean Flow.json?"
    (folder / "cat.png").write_bytes(b"")
    assert offer_files(str(folder / "cta.png")) == "Did you mean cat.png?"
    assert offer_files(str(folder / "none" / "cta.png")) == "Check its path."


def test_a_flag_in_another_case_is_taken_with_a_notice() -> None:
    found = settings("--Seed", "5", "--IN-flight=3", "--repeat", "2", "--", "--Demo")
    assert (found.seed, found.in_flight, found.demo, found.workflow) == ("5", 3, False, "--Demo")
    assert found.notices == ("--seed is used for --Seed.", "--in-flight is used for --IN-flight.")
    assert settings("--seed", "5").notices == ()


@pytest.fixture
def cased(folder: Any) -> Any:
    """A folder with files in which names may differ in case alone."""
    (folder / "A").write_bytes(b"")
    if (folder / "a").exists():
        pytest.skip("the names of files have no case here")
    return folder


def test_a_file_in_another_case_is_taken_where_it_is_the_only_one(cased: Any) -> None:
    (cased / "Flow.json").write_bytes(PROMPT)
    assert find_file("flow.JSON", WorkflowError) == "Flow.json"
    assert find_file(str(cased / "FLOW.json"), WorkflowError) == str(cased / "Flow.json")
    assert find_file("flows.json", WorkflowError) == "flows.json"
    assert find_file("a\0/b", WorkflowError) == "a\0/b"  # a cell of a batch may have such a path
    assert find_file(os.path.join("none", "flow.json"), WorkflowError) == os.path.join("none", "flow.json")
    assert loaded("flow.json")[1] == "Flow.json"
    (cased / "FLOW.json").write_bytes(PROMPT)
    assert find_file("flow.json", WorkflowError) == "flow.json"  # which of the two is meant?
    assert message_of("flow.json")[1] == "Did you mean FLOW.json or Flow.json?"


def test_what_was_taken_for_a_name_in_another_case_is_said(cased: Any) -> None:
    (cased / "flow.json").write_text(json.dumps({"1": node("LoadImage", image="a.png")}), encoding="utf-8")
    (cased / "cat.png").write_bytes(PNG)
    spec = [["a.png"], {"image_upload": True}]
    info = {"LoadImage": {"input": {"required": {"image": spec}}, "output": ["IMAGE"]}}
    for arguments in (["--image", "CAT.png"], ["--set", "loadimage.image=@CAT.png"]):
        call = settings("FLOW.json", *arguments)
        document, path = load_document(call, io.StringIO())
        workflow = prepare_workflow(document, path, call, lambda classes: info)
        assert workflow.uploads == ((InputRef("1", "image"), "cat.png"),)
        assert workflow.notices[0] == "flow.json is used for FLOW.json."
        assert workflow.notices[-1] == "cat.png is used for CAT.png."
        assert workflow.warnings == ()


def test_a_workflow_in_a_folder_that_is_not_there(folder: Any) -> None:
    path = os.path.join("absent", "w.json")
    assert message_of(path) == (
        "The workflow %s does not exist." % path,
        "There are no workflows in %s." % (folder / "absent"),
    )


def test_a_file_that_cannot_be_read(folder: Any) -> None:
    assert message_of("a\0b")[0] == "a\0b cannot be read: embedded null byte."


def test_a_file_that_is_no_prompt_is_named_in_the_message(folder: Any) -> None:
    (folder / "w.json").write_bytes(b"[]")
    assert message_of("w.json") == (
        "w.json is not a workflow: it contains a list, not an object of nodes.",
        EXPORT_REMEDY,
    )


def test_a_workflow_in_ui_format_is_kept_to_be_converted(folder: Any) -> None:
    (folder / "w.json").write_bytes(b'{"nodes": []}')
    assert loaded("w.json") == (Document(workflow={"nodes": []}), "w.json")


def test_a_minus_reads_standard_input_bytes_or_text() -> None:
    document = Document({"1": node("TextOut", text="hello")})
    for stdin in (io.StringIO(PROMPT.decode()), io.TextIOWrapper(io.BytesIO(PROMPT))):
        assert load_document(settings("-"), stdin) == (document, "-")
    assert message_of("-")[0] == "Standard input is empty."


@pytest.mark.parametrize("url", ["http://example.com/w.json", "HTTPS://example.com/w.png"])
def test_a_url_is_refused_with_the_remedy(url: str) -> None:
    message, remedy = message_of(url)
    assert message == "%s is a URL. The runner does not download workflows." % url
    assert remedy.startswith("Download it first: curl")


# ------------------------------------------------------------------------------------------------
# Values, checks and batches on the command line
# ------------------------------------------------------------------------------------------------

SEEDED = b"""{
  "1": {"class_type": "Sampler", "inputs": {"seed": 1, "steps": 4}},
  "2": {"class_type": "LoadImage", "inputs": {"image": "a.png"}, "_meta": {"title": "A=B"}}
}"""
INFO: Json = {
    "Sampler": {"input": {"required": {"seed": ["INT", {"min": 0, "max": 99}], "steps": ["INT"]}}, "output_node": True},
    "LoadImage": {"input": {"required": {"image": [["a.png"], {"image_upload": True}]}}, "output_node": True},
    "TextOut": {"input": {"required": {"text": ["STRING"]}}},
}


def prepared(*arguments: str, data: bytes = SEEDED) -> Loaded:
    """The workflow with the values of these arguments in it."""
    document = parse_document(data, "w.json")
    return prepare_workflow(document, "w.json", settings(*arguments), lambda classes: INFO)


def not_prepared(*arguments: str, data: bytes = SEEDED) -> RunnerError:
    with pytest.raises(RunnerError) as caught:
        prepared(*arguments, data=data)
    return caught.value


def test_where_nothing_is_to_be_changed_nobody_is_asked() -> None:
    def ask(classes: Any) -> Json:
        raise AssertionError("asked")

    document = parse_document(SEEDED, "w.json")
    found = prepare_workflow(document, "w.json", settings(), ask)
    assert found == Loaded(json.loads(SEEDED), "w.json", conversion=Conversion(json.loads(SEEDED)))
    assert found.extra(found.prompt) == {}


def test_the_workflow_of_a_document_goes_along_with_its_prompt() -> None:
    workflow: Any = {"nodes": []}
    found = prepare_workflow(Document({"1": node("A")}, workflow), "w", settings(), lambda classes: {})
    assert found.extra(found.prompt) == {"extra_data": {"extra_pnginfo": {"workflow": workflow}}}
    assert found.extra({"1": node("A", steps=2)}) == {}  # it would show other values than ran


def test_values_and_seeds_are_set_and_drawn() -> None:
    assert prepared("--set", "Sampler.steps=9").prompt["1"]["inputs"] == {"seed": 1, "steps": 9}
    assert prepared("--seed", "7").prompt["1"]["inputs"]["seed"] == 7
    assert prepared("--seed", "7", "--set", "1.seed=3").prompt["1"]["inputs"]["seed"] == 3
    assert prepared("--seed", "random", "--set", "1.seed=3").drawn == ()
    [(_, shown)] = prepared("--seed", "random").summary().sampling
    assert "seed random" in shown  # not the one of the file, which will not run
    assert prepared("--set", "1.seed=random").drawn == prepared("--seed", "random").drawn == (InputRef("1", "seed"),)
    assert prepared("--repeat", "2").drawn == (InputRef("1", "seed"),)
    assert prepared("--repeat", "2", "--seed", "7").drawn == ()
    assert prepared("--set", "1.seed=random", "--seed", "random").drawn == (InputRef("1", "seed"),)


def test_a_seed_that_the_node_does_not_take_is_refused() -> None:
    error = not_prepared("--seed", "100")
    assert error.message == "--seed: seed = 100 is too big." and error.remedy == "Allowed: 0 to 99."
    assert prepared("--seed", "7", "--set", "1.steps=3").prompt["1"]["inputs"] == {"seed": 7, "steps": 3}


def test_other_faults_are_not_reported_as_the_seeds() -> None:
    bad = SEEDED.replace(b'"steps": 4', b'"steps": "x"')
    assert prepared("--seed", "7", data=bad).prompt["1"]["inputs"]["seed"] == 7


@pytest.mark.parametrize("arguments", [["--seed", "random"], ["--seed", "5"], ["--repeat", "2"]])
def test_a_workflow_without_a_seed_warns(arguments: List[str]) -> None:
    assert prepared(*arguments, data=PROMPT).warnings == ("The workflow has no seed to change.",)


@pytest.mark.parametrize("arguments", [["--seed", "random"], ["--seed", "5"], ["--seed", "keep"], ["--repeat", "2"]])
def test_a_workflow_with_a_seed_warns_of_nothing(arguments: List[str]) -> None:
    assert prepared(*arguments).warnings == ()


def test_files_to_upload_are_matched_to_their_loaders(folder: Any) -> None:
    for name in ("fox.png", "a=b.png"):
        (folder / name).write_bytes(b"\xff\xd8\xff")
    ref = InputRef("2", "image")
    assert prepared("--image", "fox.png").uploads == ((ref, "fox.png"),)
    assert prepared("--image", "2=fox.png").uploads == ((ref, "fox.png"),)
    assert prepared("--image", "a=b.png").uploads == ((ref, "a=b.png"),)
    assert prepared("--set", "2.image=@fox.png").uploads == ((ref, "fox.png"),)
    assert not_prepared("--image", "none.png").message == "There is no file none.png to upload."
    for named, kind in (("Fox=fox.png", "no_such_node"), ("1=fox.png", "no_loader")):
        error = not_prepared("--image", named)
        assert isinstance(error, EditError) and error.type == kind


def test_a_file_for_all_loaders_is_loaded_by_each_of_them(folder: Any) -> None:
    (folder / "fox.png").write_bytes(b"\xff\xd8\xff")
    document = json.loads(SEEDED)
    document["3"] = document["2"]
    loaded = prepared("--image", "all=fox.png", data=json.dumps(document).encode())
    assert loaded.uploads == ((InputRef("2", "image"), "fox.png"), (InputRef("3", "image"), "fox.png"))


@pytest.mark.parametrize(
    "arguments",
    [
        ("--image", "a.png", "--image", "b.png"),
        ("--image", "a.png", "--image", "2=b.png"),
        ("--set", "2.image=@a.png", "--image", "b.png"),
        ("--set", "2.image=@a.png", "--set", "2.image=@b.png"),
    ],
)
def test_two_files_for_one_loader_are_one_too_many(arguments: Tuple[str, ...], folder: Any) -> None:
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(b"\xff\xd8\xff")
    error = not_prepared(*arguments)
    assert "(LoadImage, node 2) loads one file, but you named two: " in error.message
    assert "a.png" in error.message and "b.png" in error.message and "--image NODE=FILE" in error.remedy


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"some text", "it is text"),
        (b"<!doctype html>", "it is a web page"),
        (b"%PDF-1.7", "it is a PDF document"),
        (b"\0\0\2\0", "its format is not known"),
    ],
)
@pytest.mark.parametrize("flag", ["--image", "--set"])
def test_what_is_not_a_picture_is_not_uploaded_as_one(flag: str, content: bytes, reason: str, folder: Any) -> None:
    (folder / "a.png").write_bytes(content)
    error = not_prepared(flag, "a.png" if flag == "--image" else "2.image=@a.png")
    assert error.message == f"a.png is not a picture: {reason}."
    assert "Name a picture." in error.remedy


def test_a_text_is_read_from_a_file(folder: Any) -> None:
    (folder / "t.txt").write_bytes("\ufeffa fox".encode())
    assert prepared("--set", "1.text=@t.txt", data=PROMPT).prompt["1"]["inputs"]["text"] == "a fox"
    (folder / "t.txt").write_bytes("a 狐".encode("utf-16"))  # as by > in Windows PowerShell
    assert prepared("--set", "1.text=@t.txt", data=PROMPT).prompt["1"]["inputs"]["text"] == "a 狐"
    assert prepared("--set", "1.text=@@home", data=PROMPT).prompt["1"]["inputs"]["text"] == "@home"
    error = not_prepared("--set", "1.text=@none.txt", data=PROMPT)
    assert "@none.txt cannot be read: " in error.message and error.remedy == "Check its path. For a plain @, write @@."
    (folder / "t.txt").write_bytes(b"a\r\nb\rc\n")
    assert prepared("--set", "1.text=@t.txt", data=PROMPT).prompt["1"]["inputs"]["text"] == "a\nb\nc\n"


@pytest.mark.parametrize(
    ("data", "reason", "remedy"),
    [
        ("a fox".encode("utf-16-le"), "it is in UTF-16, not in UTF-8", "iconv -f UTF-16"),
        ("狐狸".encode("gbk"), "it is in GBK, not in UTF-8", "iconv -f GBK"),
        (b"caf\xe9", "it is in Windows-1252, not in UTF-8", "iconv -f CP1252"),
        (b"\xff\xd8\xff\xe0", "it is a JPEG picture, not text in UTF-8", ""),
        (b"\x01\xff", "it is not text in UTF-8", ""),
    ],
)
def test_a_text_that_is_not_in_utf_8_says_in_what_it_is(data: bytes, reason: str, remedy: str, folder: Any) -> None:
    (folder / "t.txt").write_bytes(data)
    error = not_prepared("--set", "1.text=@t.txt", data=PROMPT)
    assert error.message == f"@t.txt cannot be read: {reason}."
    assert remedy in error.remedy and bool(remedy) is bool(error.remedy)


def reason_not_read(path: str) -> str:
    """Why a text cannot be read from ``path``."""
    message = not_prepared("--set", f"1.text=@{path}", data=PROMPT).message
    return message.partition(" cannot be read: ")[2]


def test_a_text_has_a_limit_and_comes_from_a_file_that_ends(folder: Any) -> None:
    (folder / "place").mkdir()
    assert reason_not_read("place") == "it is a folder."
    with open("large.txt", "wb") as file:
        file.truncate(2**26 + 1)
    assert reason_not_read("large.txt") == "it is larger than 64 MiB."


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such files")
def test_what_may_never_end_is_neither_read_nor_uploaded(folder: Any) -> None:
    os.mkfifo("pipe")
    assert reason_not_read("pipe") == "it is a pipe, not a file."
    assert reason_not_read(os.devnull) == "it is a device or a socket, not a file."
    for flags in (["--image"], ["--image", "2="], ["--set", "2.image=@"]):
        *others, last = flags
        edit = [*flags, "pipe"] if last == "--image" else [*others, last + "pipe"]
        assert not_prepared(*edit).message == "pipe cannot be uploaded: it is a pipe, not a file."


def test_definitions_come_from_a_file(folder: Any) -> None:
    (folder / "i.json").write_bytes(json.dumps(INFO).encode())
    assert read_object_info("i.json") == INFO


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[" * 100000])
def test_definitions_that_are_not_json_are_refused(folder: Any, data: bytes) -> None:
    (folder / "i.json").write_bytes(data)
    with pytest.raises(UsageError) as caught:
        read_object_info("i.json")
    assert caught.value.message == "--object-info i.json is not JSON."
    assert caught.value.remedy == "Save it with: curl -o FILE http://127.0.0.1:8188/object_info"


def test_definitions_must_be_an_object_in_a_file_that_exists(folder: Any) -> None:
    (folder / "i.json").write_bytes(b"[]")
    with pytest.raises(UsageError, match="is not an answer of ComfyUI's /object_info: it contains a list"):
        read_object_info("i.json")
    with pytest.raises(UsageError, match=r"none.json cannot be read: (No such file|.*cannot find)"):
        read_object_info("none.json")


def test_what_can_be_set_is_a_table() -> None:
    rows = describe_inputs(json.loads(SEEDED), INFO)
    assert [line for _, line in inputs_table(rows)] == [
        "Sampler",
        "  1.seed   INT    1         0 to 99",
        "  1.steps  INT    4",
        "",
        "A=B (LoadImage)",
        '  2.image  COMBO  "a.png"   one of 1: a.png',
    ]
    many = {**rows[0], "options": ["a", "b", "c", "d", "e"]}
    few = {**rows[0], "options": ["a", "b", "c", "d"]}
    half = {**rows[0], "max": None}
    _, *shown = [line for _, line in inputs_table([many, few, half])]
    assert [line.partition("1         ")[2] for line in shown] == [
        "one of 5: a, b, c, d, …", "one of 4: a, b, c, d", "0 or more",
    ]  # fmt: skip
    assert inputs_table([]) == []


def test_the_table_has_the_width_of_the_terminal() -> None:
    row: Json = {
        "node_id": "1",
        "input": "name",
        "title": "A" * 99,
        "class_type": "",
        "type": "COMBO",
        "value": "狐" * 60,
    }
    rows: List[Json] = [
        {**row, "options": ["x" * 20] * 9},
        {**row, "node_id": "2", "value": 3, "options": None, "min": 0, "max": 2**64},
    ]
    for columns in (80, 50, 40):
        table = [line for _, line in inputs_table(rows, columns)]
        assert max(map(width_of, table)) == columns
        assert "…" in table[0] and "…" in table[1] and table[2].lstrip().startswith("one of 9: xxx")
        assert "0 to 18446744073709551616" in "".join(table)
    assert table[2].startswith("    one of 9")  # where it has more room than below the value


@pytest.mark.parametrize(
    ("low", "high", "allowed"),
    [(1, None, "  1 or more"), (None, 9, "  9 or less"), (0, 0, "  0 to 0"), (None, None, "5")],
)
def test_the_table_of_inputs_shows_each_end_that_there_is(low: Any, high: Any, allowed: str) -> None:
    row = {"node_id": "1", "input": "n", "title": "A", "class_type": "A", "type": "INT", "value": 5}
    heading, (_, line) = inputs_table([{**row, "options": None, "min": low, "max": high}])
    assert heading == ("bold", "A") and line.endswith(allowed)


@pytest.mark.parametrize(
    ("flag", "task"),
    [([], "run"), (["--inputs"], "inputs"), (["--check"], "check"), (["--export-api", "x"], "export"),
     (["--attach", "p"], "attach"), (["--batch", "b.csv"], "batch"), (["--repeat", "3"], "batch"),
     (["--repeat", "2", "--resume"], "batch")],
)  # fmt: skip
def test_a_flag_is_a_task(flag: List[str], task: str) -> None:
    assert settings(*flag).task == task


def test_a_repetition_alone_has_no_rows() -> None:
    assert not settings("--repeat", "3").has_rows
    assert settings("--batch", "b.csv").has_rows and settings("--each", "5.steps=1..3").has_rows


def test_flags_for_values_and_batches() -> None:
    made = settings(
        "--set", "a.b=1", "--set", "c.d=2", "--image", "x", "--seed", "RANDOM", "--batch", "b.csv", "--in-flight", "3",
        "--manifest", "m", "--resume", "--name", "{row}", "--repeat", "4",
    )  # fmt: skip
    assert (made.sets, made.images, made.seed, made.batch) == (("a.b=1", "c.d=2"), ("x",), "random", "b.csv")
    assert (made.in_flight, made.manifest, made.resume, made.name, made.repeat) == (3, "m", True, "{row}", 4)
    assert settings("--save-run", "r.json").save_run == "r.json"
    assert settings("--check", "--object-info", "o").object_info == "o"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seed", "x"], "--seed must be a whole number (0 or more), random or keep."),
        (["--seed=-1"], "--seed must be a whole number (0 or more), random or keep."),
        (["--in-flight", "0"], "--in-flight must be a whole number from 1 to 65535."),
        (["--repeat", "x"], "--repeat must be a whole number from 1 to 65535."),
        (["--inputs", "--check", "--attach", "p"], "--inputs and --check cannot be combined."),
        (["--inputs", "--mode", "continuous"], "--inputs and --mode continuous cannot be combined."),
        (["--save-run", "r", "--batch", "b"], "--save-run is for a single run."),
        (["--object-info", "o"], "--object-info is for --inputs, --check and --export-api: a run asks its server."),
        (["--resume"], "--resume continues a batch, but you did not name one."),
        (["--port", "1"], "--port has no effect on a single run. It works with: --mode continuous."),
        (["--port", "0"], "--port has no effect on a single run. It works with: --mode continuous."),
        (["--manifest", "m"], "--manifest has no effect on a single run. It works with: --batch, --each and --repeat."),
        (
            ["--in-flight", "2"],
            "--in-flight has no effect on a single run. It works with: --batch, --each and --repeat.",
        ),
        (
            ["--repeat", "2", "--host", "h"],
            "--host has no effect on --batch, --each and --repeat. It works with: --mode continuous.",
        ),
        (
            ["--check", "-o", "out"],
            "--output has no effect on --check. "
            "It works with: a single run, --mode continuous, --batch, --each and --repeat, --attach.",
        ),
        (
            ["--mode", "continuous", "--retries", "1"],
            "--retries has no effect on --mode continuous. It works with: a single run, --batch, --each and --repeat.",
        ),
    ],
)
def test_flags_that_do_not_go_together(arguments: List[str], message: str) -> None:
    assert refusal(*arguments).message == message


@pytest.mark.parametrize("program", [[], ["--mode", "continuous"], ["--repeat", "2"], ["--attach", "p"], ["--check"]])
def test_yes_is_allowed_everywhere_and_so_are_variables_of_other_programs(program: List[str]) -> None:
    made = settings(*program, "--yes", OUTPUT="out", RUNNER_PORT="9000", RUNNER_TOKEN="x", TIMEOUT="5")
    assert made.yes


# ------------------------------------------------------------------------------------------------
# Answers of a person
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "meant"),
    [
        ("y", True), ("YES\n", True), (" yes ", True), ("n", False), ("No", False), ("", False), ("\n", False),
        ("yep", None), ("j", None), ("yes please", None), ("1", None),
    ],
)  # fmt: skip
def test_yes_is_yes_and_silence_is_no(answer: str, meant: Any) -> None:
    assert is_yes(answer) is meant


@pytest.mark.parametrize("size", ["512x", "big"])
def test_a_wrong_size_is_named_as_it_was_typed(size: str) -> None:
    prompt = {"1": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}}}
    with pytest.raises(EditError) as caught:
        short_edits(prompt, [("size", size)])
    assert caught.value.message == f"--size {size} is not a size: write it as 768x512."
    assert [edit.value for edit in short_edits(prompt, [("size", "512x256")])] == [512, 256]
