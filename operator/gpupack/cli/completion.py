"""`gpupack completion SHELL`: a script on standard output that completes commands, options and their choices.

The script holds every command's options as they are in this version; it asks neither gpupack nor a cluster.
"""

from __future__ import annotations

import argparse

import shtab

from gpupack.cli import COMMANDS, parser_with

SHELLS = ("bash", "zsh", "fish")
INSTALLED = """\
bash:  gpupack completion bash > ~/.local/share/bash-completion/completions/gpupack
zsh:   gpupack completion zsh > "${fpath[1]}/_gpupack"
fish:  gpupack completion fish > ~/.config/fish/completions/gpupack.fish
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS, help="yours: echo $SHELL")
    parser.epilog = INSTALLED
    parser.formatter_class = argparse.RawDescriptionHelpFormatter


def run(args: argparse.Namespace) -> int:
    parser, _ = parser_with(*COMMANDS)
    print(shtab.complete(parser, args.shell))
    return 0
