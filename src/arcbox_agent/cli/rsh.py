"""rsh: what rsync, git, sftp and sshfs take for ssh."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, NamedTuple

import click

from arcbox_agent.cli.invocation import Invocation, pass_invocation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from arcbox_agent.cli.signals import Signals
    from arcbox_agent.client import Client
    from arcbox_agent.client.keywords import StartOptions

#: ssh's options without and with a value.  Those that say how ssh connects mean nothing here.
_FLAGS = "1246AaCfGgKkMNnqsTtVvXxYy"
_VALUES = "BbcDEeFIiJLlmOoPpQRSWw"

#: Where the programs behind ssh's subsystems lie.
_SUBSYSTEMS = {
    "sftp": (
        "/usr/lib/openssh/sftp-server",
        "/usr/libexec/openssh/sftp-server",
        "/usr/libexec/sftp-server",
        "/usr/lib/ssh/sftp-server",
        "/usr/lib/sftp-server",
    )
}


class Words(NamedTuple):
    """What ssh's command line says, as far as it matters here."""

    host: str
    user: str
    command: tuple[str, ...]
    flags: str


def parse(words: Sequence[str]) -> Words:
    """Read the words behind `ssh`.  Options may stand behind the host too.  Raises click.UsageError."""
    rest = list(words)
    flags = ""
    user = host = ""
    while rest:
        word = rest[0]
        if word == "--":
            del rest[0]
            if host:
                break
            if not rest:
                break
            host = rest.pop(0)
            continue
        if not word.startswith("-") or word == "-":
            if host:
                break
            host = rest.pop(0)
            continue
        del rest[0]
        letters = word[1:]
        while letters:
            letter, letters = letters[0], letters[1:]
            if letter in _FLAGS:
                flags += letter
            elif letter in _VALUES:
                if not letters and not rest:
                    raise click.UsageError(f"-{letter} needs a value")
                value = letters or rest.pop(0)
                if letter == "l":
                    user = value
                break
            else:
                raise click.UsageError(f"-{letter} is no option of ssh")
    name, at, last = host.rpartition("@")
    return Words(last, name if at else user, tuple(rest), flags)


class _SshWords(click.Command):
    """Leaves all words to `parse` but our own in front of them: click would find its -h in `-obatchmode yes`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own = 0
        while own < len(args) and args[own] in ("--guest", "-h", "--help"):
            own += 1
        return super().parse_args(ctx, [*args[:own], "--", *args[own:]])


@click.command("rsh", cls=_SshWords)
@click.option("--guest", is_flag=True, help="The guest itself, whatever the HOST is called.")
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[SSH OPTIONS] [USER@]HOST [COMMAND...]")
@pass_invocation
def rsh_command(invocation: Invocation, guest: bool, words: tuple[str, ...]) -> int:
    """Take the place of ssh, for rsync and the like.

    HOST is a container, or - for the guest.

    \b
    rsync -e 'arcboxctl rsh' -a site/ web:/srv/
    GIT_SSH_COMMAND='arcboxctl rsh' git clone web:/srv/site.git
    sshfs -o ssh_command='arcboxctl rsh' web:/srv mnt

    COMMAND is run by the shell there, and has our standard input.  Without a COMMAND, or with -t, at a
    terminal it gets one too.  Options of ssh that say how to connect are accepted, and mean nothing.
    """
    said = parse(words)
    if "V" in said.flags:
        print("arcboxctl rsh, in place of OpenSSH", file=sys.stderr)
        return 0
    if "G" in said.flags:
        # git asks so whether this takes OpenSSH's options.
        click.echo(f"host {said.host}")
        return 0
    if not said.host:
        raise click.UsageError("no HOST is given: a container, or - for the guest")

    async def work(client: Client, _: Signals) -> int:
        from arcbox_agent.cli.session import attended
        from arcbox_agent.cli.terminal import is_terminal

        options: StartOptions = {
            "container": "" if guest or said.host == "-" else said.host,
            "user": said.user,
            "tty": is_terminal() and "T" not in said.flags and (not said.command or "t" in said.flags),
            "stdin": "n" not in said.flags,
        }
        return await attended(client, remote_command(said), options)

    return invocation.call(work)


def remote_command(said: Words) -> list[str]:
    """The command that ssh's server would run."""
    if "s" in said.flags:
        name = " ".join(said.command)
        places = _SUBSYSTEMS.get(name)
        if places is None:
            raise click.UsageError(f"no subsystem is called {name!r}; there is sftp")
        search = "; ".join(f"[ -x {place} ] && exec {place}" for place in places)
        message = shlex.quote(f"arcboxctl: there is no {name}-server: install openssh-sftp-server")
        return ["/bin/sh", "-c", f"{search}; echo {message} >&2; exit 127"]
    if not said.command:
        return ["/bin/sh", "-c", 'exec "${SHELL:-/bin/sh}" -l']
    return ["/bin/sh", "-c", " ".join(said.command)]
