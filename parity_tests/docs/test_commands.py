"""Every command that README.md, CONTRIBUTING.md or docs/*.md shows is run, or says why it is not.

`pages.py` has the words for it. A page that is added is taken as the others are.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from parity_tests.docs.options import mention_problem, problem
from parity_tests.docs.pages import COMMAND, PAGES, ROOT, Block, blocks, of_page, spans
from parity_tests.docs.shell import Shell, Wrong, check_shown

NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]


@pytest.fixture
def shell(tmp_path, monkeypatch, capfd) -> Shell:
    return Shell(tmp_path, monkeypatch, capfd)


def runs(name: str, full: bool) -> bool:
    """Whether a page has anything to run; in the full run, anything that the other leaves out."""
    said = [b.said for b in of_page(ROOT / name) if b.is_shell and "not run" not in b.said]
    return any(("full run" in words) == full for words in said)


@pytest.mark.parametrize("name", [name for name in NAMES if runs(name, full=False)])
def test_commands_run_as_shown(shell, name):
    shell.page(of_page(ROOT / name), full=False)
    assert shell.ran


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", [name for name in NAMES if runs(name, full=True)])
def test_long_commands_run_as_shown(shell, name):
    shell.page(of_page(ROOT / name), full=True)
    assert shell.ran


@pytest.mark.parametrize("name", NAMES)
def test_commands_and_options_exist(name):
    wrong = []
    for block in of_page(ROOT / name):
        for command in block.commands() if block.is_shell else ():
            if found := problem(command.line, ROOT):
                wrong.append(f"{name}:{command.at}: {command.line}: {found}")
    for at, span in spans((ROOT / name).read_text()):
        if found := mention_problem(span):
            wrong.append(f"{name}:{at}: `{span}`: {found}")
    assert wrong == []


@pytest.mark.parametrize("name", NAMES)
def test_no_command_hides_in_a_block_of_another_language(name):
    hidden = [
        f"{block.place}: {line}"
        for block in of_page(ROOT / name)
        if not block.is_shell and block.language in ("text", "")
        for line in block.lines
        if COMMAND.match(line)
    ]
    assert hidden == []


def test_reasons_are_given():
    for name in NAMES:
        for block in of_page(ROOT / name):
            for word in ("not run", "full run"):
                assert block.said.get(word, "a reason") != "", f"{block.place}: no reason"


# That it can fail


def page(text: str) -> list[Block]:
    return list(blocks(text, "PAGE.md"))


@pytest.mark.parametrize(
    ("wrong", "says", "right"),
    [
        ("harness compare --model M --candidat engine", "--candidat", "--candidate"),
        ("harness golden verfy", "verfy", "verify"),
        ("engine bench --model M --tokens many", "--tokens", "--dtype"),
        ("MLX_ENABLE_TF32=1 engine discover --fromat npz  # all", "--fromat", "--format"),
        ("python3 ci/environment.py harness doctor --jsn", "--jsn", "--json"),
        ("python benchmarks/streaming.py out.svg --foldr D", "--foldr", "--folder"),
        ("python benchmarks/steaming.py out.svg", "steaming", "streaming"),
        ("mlx_lm.convert --hf-path M --q-bit-s 4", "--q-bit-s", "--q-bits"),
    ],
)
def test_what_does_not_exist_is_found(wrong, says, right):
    assert says in problem(wrong, ROOT)
    assert problem(wrong.replace(says, right), ROOT) == ""


def test_what_is_needed_and_missing_is_found():
    assert "--model" in problem("harness compare --candidate engine", ROOT)


@pytest.mark.parametrize(
    ("span", "says"),
    [
        ("harness compare --candidate X [--candidat Y]", "no option --candidat"),
        ("harness golden verfy", "harness golden has no command verfy"),
        ("engine serv --port 0", "engine has no command serv"),
    ],
)
def test_what_does_not_exist_is_found_in_running_text(span, says):
    assert mention_problem(span) == says
    assert mention_problem("harness compare --model X --original Y") == ""
    assert mention_problem("harness/report/") == "" == mention_problem("harness COMMAND --x")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("```sh\nharness compare --model golden/models/tiny-lama\n```\n", "exit status 2, not 0"),
        ("```sh\npython -c 'raise SystemExit(3)'\n```\n", "exit status 3, not 0"),
        ("<!-- exit status 2 -->\n```sh\nharness golden list\n```\n", "exit status 0, not 2"),
        ("```console\n$ engine gpu-info\ndevice  hamster\n```\n", "shown and not printed"),
        ("    harness golden verify --modl x\n", "exit status 2, not 0"),
        (
            "```sh\npython -c 'print(5)'\n```\n<!-- output -->\n```\nfive\n```\n",
            "shown and not printed:\nfive",
        ),
    ],
)
def test_a_block_that_is_not_as_shown_is_found(shell, text, says):
    with pytest.raises(Wrong, match=r"^PAGE\.md:\d") as wrong:
        shell.page(page(text), full=False)
    assert says in str(wrong.value)


def test_what_is_not_run_is_not_run(shell):
    text = "<!-- {}: it would -->\n```sh\npython -c 'raise SystemExit(3)'\n```\n"
    shell.page(page(text.format("not run") + text.format("full run")), full=False)
    assert shell.ran == []
    with pytest.raises(Wrong):
        shell.page(page(text.format("full run")), full=True)


def test_files_are_written_and_edited_as_the_page_says(shell):
    text = """
<!-- write port.py -->
```python
print("one")
print("two")
```

<!-- edit port.py -->
```diff
 print("one")
-print("two")
+print("three")
```

```console
$ python port.py
one
three
```
"""
    shell.page(page(text), full=False)
    with pytest.raises(Wrong, match=r"is in port\.py 0 times"):
        shell.page(page(text)[1:], full=False)


def test_words_stand_for_values_and_what_readers_are_not_shown_runs_first(shell):
    text = """
<!-- with FILE=notes.txt -->
<!-- before: echo one > notes.txt
echo two >> notes.txt -->
```console
$ cat FILE \\
    FILE
one
two
one
two
$ python -c "
print('three')"
three
```
"""
    shell.page(page(text), full=False)
    before = ["echo one > notes.txt", "echo two >> notes.txt"]
    shown = ["cat notes.txt notes.txt", "python -c \"\nprint('three')\""]
    assert shell.ran == before + shown


def test_output_that_varies_is_not_compared_and_its_command_is_still_run(shell):
    text = "<!-- output varies: luck -->\n```console\n$ python -c 'print({})'\nfive\n```\n"
    shell.page(page(text.format("5")), full=False)
    with pytest.raises(Wrong, match="exit status 1, not 0"):
        shell.page(page(text.format("1 / 0")), full=False)


def test_a_comment_above_nothing_is_refused():
    with pytest.raises(ValueError, match=r"PAGE\.md:2: <!-- not run --> above no block"):
        page("<!-- not run: a GPU -->\nSome text.\n")


def test_shown_lines_follow_each_other_unless_dots_stand_between():
    printed = "a 1.5\nb\nblock 0 ██████··│··  1.5 3 2e-7 1e-7  window 2\n"
    check_shown(["a 7", "b"], printed, "x")
    check_shown(["a 7", "...", "block 3 ██···│···  1 3 2 1  beyond"], printed, "x")
    for wrong in (["a 7", "block"], ["b", "...", "a 1.5"], ["d"], ["block 0 ███··│·· 1 3 2"]):
        with pytest.raises(Wrong):
            check_shown(wrong, printed, "x")


def test_pages_outside_a_checkout_are_found_without_a_list():
    assert {"README.md", "CONTRIBUTING.md", "docs/CLI.md"} <= set(NAMES)
    assert set(NAMES) == {"README.md", "CONTRIBUTING.md"} | {
        f"docs/{p.name}" for p in Path(ROOT / "docs").iterdir() if p.suffix == ".md"
    }
