"""Running a container to its end: its output is ours, our signals are its own."""

from __future__ import annotations

import os
import shutil
import signal
import socket as sockets
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit import console
from toolkit.container.create import ATTACHED, OWNER, STANDS
from toolkit.container.images import builder
from toolkit.errors import ToolkitError

if TYPE_CHECKING:
    from docker import APIClient, DockerClient
    from docker.models.images import Image

KILLED = 128 + signal.SIGKILL


def run(client: DockerClient, image: Image, name: str, arguments: Mapping[str, Any]) -> int:
    """Run a container to its end, and remove it; or start it and return, if nobody is to stand for it.

    Ctrl-C and SIGTERM are forwarded as they are, so that training inside saves its checkpoint and decides how
    to end; a terminal that is closed counts as SIGTERM.

    Args:
        image: what is run.
        name: of the container; the next free ``name-2``, ``name-3`` where another has it.
        arguments: of :func:`toolkit.container.create.create_arguments`.

    Returns:
        The exit status of the command inside.

    Raises:
        ToolkitError: the engine refused the container or went away.
    """
    from docker.errors import APIError

    sweep(client)
    tty, stdin = bool(arguments["tty"]), bool(arguments["stdin_open"])
    attached = arguments["labels"][ATTACHED] == "yes"
    made = Made(client.api, name)
    lost = False
    try:
        with forwarding(client.api, made, tty=tty, shell=stdin and tty) as early:
            environment = {
                **arguments["environment"],
                "TOOLKIT_IMAGE": image.id or "",
                "TOOLKIT_IMAGE_DIGESTS": " ".join(image.attrs.get("RepoDigests") or ()),
            }
            host = client.api.create_host_config(**arguments["host_config"])
            made.create(**{**arguments, "environment": environment, "host_config": host})
            if not attached:
                client.api.start(made.name)
                _say_how_to_follow(made.name)
                return 0
            return _follow(client.api, made.name, early, tty=tty, stdin=stdin)
    except APIError as error:
        raise ToolkitError("the engine refused the container", str(error.explanation or error)) from error
    except OSError as error:  # requests' connection errors are OSErrors
        lost = True
        raise ToolkitError(
            "the engine went away",
            str(error),
            fix=f"if the container goes on: docker logs -f {made.name}, docker stop {made.name}",
        ) from error
    finally:
        if attached and not lost:
            made.remove()


class Made:
    """A container that this process makes, to be removed whatever happens."""

    def __init__(self, api: APIClient, name: str) -> None:
        self.api, self.wanted, self.name = api, name, name
        self.ours = False

    def create(self, **arguments: Any) -> None:
        """Make it, under the first free name.

        A container of this user and checkout that has ended gives its name up.
        """
        from docker.errors import APIError

        number = 1
        while True:
            try:
                self.ours = True
                self.api.create_container(name=self.name, **arguments)
                return
            except APIError as error:
                self.ours = False
                if "is already in use" not in str(error.explanation or ""):
                    raise
            if not self._take_over():
                number += 1
                self.name = f"{self.wanted}-{number}"

    def _take_over(self) -> bool:
        with suppress(OSError):  # it went by itself; APIError is one
            found = self.api.inspect_container(self.name)
            ended = found["State"]["Status"] in ("exited", "dead")
            if not ended or (found["Config"]["Labels"] or {}).get(OWNER) != builder():
                return False
            self.api.remove_container(self.name)
        return True

    def remove(self) -> None:
        """Remove it, if it was made."""
        if self.ours:
            with suppress(OSError):  # APIError is one
                self.api.remove_container(self.name, force=True)


def sweep(client: DockerClient) -> None:
    """Remove what a command that was killed left behind: ended containers that it stood for.

    A command that is still there may not have read yet how its container ended.
    """
    labels = [f"{OWNER}={builder()}", f"{ATTACHED}=yes"]
    with suppress(OSError):  # another sweep was faster; APIError is one
        for container in client.containers.list(
            all=True, filters={"label": labels, "status": "exited"}, ignore_removed=True
        ):
            if not _is_alive(container.labels.get(STANDS, "")):
                container.remove()


def _is_alive(number: str) -> bool:
    """Whether a process of this machine has this number; the kernel lists those of other users too."""
    return number.isdecimal() and Path("/proc", number).exists()


def _say_how_to_follow(name: str) -> None:
    console.note(
        f"{name} runs; follow it: `toolkit container logs {name}`; end it: `toolkit container stop {name}`"
    )


def _follow(api: APIClient, name: str, early: Sequence[int], *, tty: bool, stdin: bool) -> int:
    """Start the container and pass its output on; a signal that came before it started ends it."""
    with ExitStack() as stack:
        if stdin and tty:
            both = {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1}
            socket = _socket(api.attach_socket(name, params=both))
            threading.Thread(target=_type, args=(socket,), daemon=True).start()
            output: Iterator[Any] = iter(lambda: socket.recv(4096), b"")
            stack.enter_context(_raw_terminal())
        else:
            output = output_of(api, name, tty=tty)
            if stdin:
                socket = _socket(api.attach_socket(name, params={"stdin": 1, "stream": 1}))
                threading.Thread(target=_type, args=(socket,), daemon=True).start()
        if not early:
            api.start(name)
        if early:
            return 128 + early[0]
        return watch(api, name, [output], tty=tty, patient=not (stdin and tty))


def output_of(api: APIClient, name: str, *, tty: bool) -> Iterator[Any]:
    """What a container prints that has not been started yet."""
    if tty:
        return iter(api.attach(name, stream=True, logs=True))
    return iter(api.attach(name, stream=True, logs=True, demux=True))


def logs_of(api: APIClient, name: str, *, tty: bool) -> list[Iterator[Any]]:
    """What a container that runs already has printed and prints: a stream for each of its outputs.

    docker-py's ``attach`` would lose what comes in one piece with the engine's answer.
    """
    given: dict[str, Any] = {"stream": True, "follow": True}
    outputs = [iter(api.logs(name, stdout=True, stderr=tty, **given))]
    if not tty:
        outputs.append((None, chunk) for chunk in api.logs(name, stdout=False, stderr=True, **given))
    return outputs


def watch(
    api: APIClient, name: str, outputs: Sequence[Iterator[Any]], *, tty: bool, patient: bool = True
) -> int:
    """Pass on what a running container prints until it ends, and return its exit status.

    Args:
        patient: wait for a slow reader of the output.
    """
    pumps = [threading.Thread(target=copy, args=(output,), daemon=True) for output in outputs]
    for pump in pumps:
        pump.start()
    if tty:
        resize(api, name)
    status = int(api.wait(name)["StatusCode"])
    for pump in pumps:
        pump.join(timeout=None if patient else 10)
    if status == KILLED:
        _say_killed(api, name)
    return status


def _say_killed(api: APIClient, name: str) -> None:
    """A killed command cannot say why it ended."""
    state: Mapping[str, Any] = {}
    with suppress(OSError):  # removed already; APIError is one
        state = api.inspect_container(name)["State"]
    if state.get("OOMKilled"):
        why = (
            "it had no memory left: a smaller --batch or fewer --workers need less, or give it more --memory"
        )
    else:
        why = "by docker kill, by docker stop after its time was up, or for want of memory (see dmesg)"
    console.fail(ToolkitError(f"the container {name} was killed", f"status {KILLED}", fix=why))


def _socket(attached: Any) -> Any:
    return getattr(attached, "_sock", attached)


def copy(stream: Iterator[Any]) -> None:
    """Write what comes to our standard output, and the second of a pair to standard error."""
    for chunk in stream:
        out, err = chunk if isinstance(chunk, tuple) else (chunk, None)
        for data, target in ((out, sys.stdout.buffer), (err, sys.stderr.buffer)):
            if data:
                with suppress(OSError):  # the terminal is gone; what nobody reads would stop the container
                    target.write(data)
                    target.flush()


def _type(socket: Any) -> None:
    with suppress(OSError):  # the terminal is gone
        while data := os.read(sys.stdin.fileno(), 4096):
            socket.sendall(data)
        socket.shutdown(sockets.SHUT_WR)


@contextmanager
def _raw_terminal() -> Iterator[None]:
    """Every key goes to the container's terminal, Ctrl-C included, which makes signals of them."""
    import termios
    import tty

    keyboard = sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)
    try:
        tty.setraw(keyboard)
        yield
    finally:
        with suppress(termios.error):  # the terminal is gone
            termios.tcsetattr(keyboard, termios.TCSADRAIN, before)


@contextmanager
def forwarding(api: APIClient, made: Made, *, tty: bool, shell: bool) -> Iterator[list[int]]:
    """Hand SIGINT, SIGTERM and changes of the window's size on to the container.

    A closed terminal stops it like SIGTERM (a shell, which heeds SIGHUP alone, gets that); under nohup not.

    Yields:
        The signals that could not be handed on, because the container does not run yet, or no longer. The
        second of them interrupts this process.
    """
    missed: list[int] = []

    def forward(number: int, _frame: object) -> None:
        given = "SIGTERM" if number == signal.SIGHUP and not shell else signal.Signals(number).name
        try:
            api.kill(made.name, given)
        except OSError:  # APIError is one
            missed.append(number)
            if len(missed) > 1:
                raise KeyboardInterrupt from None

    handlers: dict[int, Any] = {signal.SIGINT: forward, signal.SIGTERM: forward}
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        handlers[signal.SIGHUP] = forward
    if tty:
        handlers[signal.SIGWINCH] = lambda _number, _frame: resize(api, made.name)
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield missed
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def resize(api: APIClient, name: str) -> None:
    """Give the container's terminal the size of ours."""
    size = shutil.get_terminal_size()
    with suppress(OSError):  # APIError is one
        api.resize(name, height=size.lines, width=size.columns)
