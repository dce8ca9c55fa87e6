"""Runs a consumer class of Moksha or fedmsg, as it is, as a child of the hub.

::

    python -m weir_consumer.moksha module:Class [--config PATH ...] [--on-error retry]

Promised:

1. The class gets what Moksha's hub with ZeroMQ would hand to it: the same objects, by the same
   way through `validate`, `pre_consume`, `consume` and `post_consume` of its own base class.
2. Its hub is an object of Moksha's own class for that, with the configuration in ``hub.config``;
   what it sends by `send_message` is what would be sent, on the publish socket of weir.
3. Neither a reactor nor a thread nor a socket of Moksha's is started.
4. What Moksha loses, weir counts: an exception in `consume` is a retry, what `validate` refuses is
   dropped with its reason, and what is no UTF-8 is a dead letter. A message that matches several of
   the class's topics comes once.

Left to others: to fetch what was missed while the consumer was down (the hub's journal), and
producers, which have no messages to wait for.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import logging.config
import os
import sys
from collections import defaultdict
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from . import hub as weir
from .handler import Consumer
from .message import Message
from .protocol import Refused, main, say, take_streams
from .verdict import DeadLetter, Drop, Halt, Retry, Verdict

ON_ERROR = {"retry": Retry, "drop": Drop, "dead_letter": DeadLetter}


class Bus:
    """What stands in for Moksha's extension for ZeroMQ: who has subscribed, and the way out."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        from moksha.common.lib.converters import asbool

        self._strict = bool(asbool(config.get("zmq_strict", False)))
        self._subscriptions: List[Tuple[str, Callable[[Any], Any]]] = []

    @property
    def prefixes(self) -> List[str]:
        """What was subscribed to."""
        return [prefix for prefix, _ in self._subscriptions]

    def callbacks(self, topic: str) -> List[Callable[[Any], Any]]:
        """Who wants a message of this topic, each once."""
        found: List[Callable[[Any], Any]] = []
        for prefix, callback in self._subscriptions:
            matches = topic == prefix if self._strict else topic.startswith(prefix)
            if matches and callback not in found:
                found.append(callback)
        return found

    def subscribe(self, topic: str, callback: Callable[[Any], Any]) -> None:
        """Called by the hub. A `*` means nothing to ZeroMQ, and Moksha removes it."""
        self._subscriptions.append((topic.replace("*", ""), callback))

    def unsubscribe(self, callback: Callable[[Any], Any]) -> None:
        """Called by the hub."""
        self._subscriptions = [one for one in self._subscriptions if one[1] != callback]

    def send_message(self, topic: Any, message: Any, **headers: Any) -> None:
        """Called by the hub, with the topic as bytes and the message as it is to be sent."""
        weir.publish(topic.decode("utf-8") if isinstance(topic, bytes) else topic, message)


class Attempt:
    """What the methods of the class did with a message. Moksha itself only logs that."""

    def __init__(self) -> None:
        self.consumed = False
        self.failure: Optional[Exception] = None
        self.invalid: Optional[Exception] = None


class Bridge(Consumer):
    """An instance of such a class."""

    def __init__(self, target: str, paths: Sequence[str], on_error: str, settings: Any) -> None:
        self._verdict = ON_ERROR[on_error]
        # First, as modules may ask for their configuration when they are imported.
        given = read(paths) if paths else None
        made = load(target)
        config = default(made) if given is None else given
        config.update(settings)
        set_up_logging(config)
        # Moksha's own way to be called and not queued for: the instance starts no threads then.
        config = {**config, "moksha.blocking_mode": True}

        self._bus = Bus(config)
        hub = hub_of(config, self._bus)
        self._instance = made(hub)
        if not getattr(self._instance, "_initialized", False):
            key = getattr(made, "config_key", None)
            raise Halt(
                f"{target} is disabled by its configuration: {key!r} is not set there"
                if key
                else f"{target} has not initialized itself (does it call its super().__init__?)"
            )
        if not self._bus.prefixes:
            raise Refused(f"{target} subscribes to nothing: its `topic` is empty")
        hub.consumers.append(self._instance)
        self._attempt = Attempt()
        self._watch()
        say(f"{target} subscribes to {self._bus.prefixes}; the section's `topics` have to cover it")
        if config.get("status_directory") and config.get("datagrepper_url"):
            say("nothing is fetched from datagrepper: the hub's journal has what was missed")
        self._reactor_said = False
        self._look_at_reactor()

    def consume(self, message: Message) -> None:
        from moksha.hub.zeromq.zeromq import ZMQMessage

        text = message.text
        callbacks = self._bus.callbacks(message.topic)
        if not callbacks:
            raise Drop(f"not of a topic that the class subscribes to: {self._bus.prefixes}")
        for callback in callbacks:
            self._attempt = attempt = Attempt()
            raised: Optional[Exception] = None
            handled: Any = None
            try:
                handled = callback(ZMQMessage(message.topic, text))
            except Exception as error:
                raised = error  # where Moksha would lose the message
            failure = attempt.failure
            if failure is None and not attempt.consumed:
                if attempt.invalid is not None:
                    raise self._refused(attempt.invalid) from attempt.invalid
                if handled is False:
                    raise self._verdict("the class says that it was not handled")
            failure = failure or raised
            if failure is not None:
                raise self._failed(failure) from failure
        self._look_at_reactor()

    def close(self) -> None:
        self._instance.hub.close()

    def _failed(self, failure: Exception) -> Verdict:
        """A class may know of weir, too."""
        return failure if isinstance(failure, Verdict) else self._verdict(in_short(failure))

    def _refused(self, invalid: Exception) -> Verdict:
        """What `validate` raised. That it could not reach something says nothing of the message."""
        if isinstance(invalid, OSError):
            return Retry(f"it could not be validated: {in_short(invalid)}")
        return Drop(f"invalid: {in_short(invalid)}")

    def _watch(self) -> None:
        """Sees what `_do_work` of the base class catches."""
        consume, validate = self._instance.consume, self._instance.validate

        def watched_consume(message: Any) -> Any:
            try:
                returned = consume(message)
            except Exception as error:
                self._attempt.failure = error
                raise
            self._attempt.consumed = True
            return returned

        def watched_validate(message: Any) -> Any:
            try:
                return validate(message)
            except Exception as error:
                self._attempt.invalid = error
                raise

        self._instance.consume = watched_consume
        self._instance.validate = watched_validate

    def _look_at_reactor(self) -> None:
        """Says it once when somebody waits for a reactor that nobody runs."""
        reactor = sys.modules.get("twisted.internet.reactor")
        if not self._reactor_said and reactor is not None and reactor.getDelayedCalls():
            self._reactor_said = True
            say("the class has scheduled calls with Twisted's reactor, which does not run here")


def load(target: str) -> Any:
    """The class of that name, `module:Class`."""
    module_name, colon, name = target.partition(":")
    if not (module_name and colon and name):
        raise Refused(f"{target!r} does not name a class: write module:Class")
    try:
        made: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name + ".").startswith(error.name + "."):
            raise Refused(
                f"{module_name} needs a module that {sys.executable} does not have: {error}"
            ) from error
        raise Refused(
            f"{sys.executable} has no module {error.name!r}, and neither has {os.getcwd()}: name "
            "another Python in `command`, or set `directory` or PYTHONPATH"
        ) from None
    try:
        for part in name.split("."):
            made = getattr(made, part)
    except AttributeError:
        raise Refused(f"the module {module_name} has no {name!r}") from None
    try:
        from moksha.hub.api.consumer import Consumer as MokshaConsumer
    except ImportError as error:
        raise Refused(f"{sys.executable} can't import moksha.hub: {error}") from error
    if not (isinstance(made, type) and issubclass(made, MokshaConsumer)):
        raise Refused(f"{target} is no consumer: it does not derive from Moksha's class Consumer")
    return made


def hub_of(config: Dict[str, Any], bus: Bus) -> Any:
    """Moksha's hub, made without its constructor, which connects and starts everything."""
    import moksha.hub
    from moksha.hub.hub import CentralMokshaHub

    hub = CentralMokshaHub.__new__(CentralMokshaHub)
    hub.config = config
    hub.topics = defaultdict(list)
    hub.extensions = [bus]
    hub.consumers, hub.producers = [], []
    # fedmsg.publish goes there when `zmq_enabled` is false.
    moksha.hub._hub = hub
    return hub


def read(paths: Sequence[str]) -> Dict[str, Any]:
    """The configuration in these: one .ini of Moksha's, or files and directories of fedmsg's."""
    for path in paths:
        if not os.path.exists(path):
            raise Refused(f"--config {path}: there is no such file or directory")
    try:
        if any(path.endswith(".ini") for path in paths):
            from moksha.common.lib.helpers import appconfig

            if len(paths) > 1:
                raise Refused("--config takes one .ini, and nothing beside it")
            return dict(appconfig("config:" + os.path.abspath(paths[0])))

        config_of = fedmsg_config()
        files: List[str] = []
        for path in paths:
            inside = sorted(os.listdir(path)) if os.path.isdir(path) else None
            if inside is None:
                files.append(path)
            else:
                files += [os.path.join(path, name) for name in inside if name.endswith(".py")]
        if not files:
            raise Refused(f"--config {' '.join(paths)}: there is no .py file in it")
        config: Dict[str, Any] = config_of.load_config(filenames=files, invalidate_cache=True)
        config_of.conf.load_config(settings=dict(config))
        return config
    except Refused:
        raise
    except Exception as error:
        raise Refused(f"--config {' '.join(paths)}: {in_short(error)}") from error


def fedmsg_config() -> Any:
    """fedmsg's module for that. It refuses a configuration without endpoints; weir has those."""
    import fedmsg.config

    fedmsg.config.defaults.setdefault("endpoints", {})
    return fedmsg.config


def default(made: Any) -> Dict[str, Any]:
    """The configuration where `fedmsg-hub` or `moksha-hub` would look for it."""
    if any(base.__module__.split(".")[0] == "fedmsg" for base in made.__mro__):
        try:
            config: Dict[str, Any] = fedmsg_config().load_config()
        except Exception as error:
            raise Refused(f"fedmsg's configuration: {in_short(error)}") from error
        return config

    from moksha.common.lib.helpers import appconfig, get_moksha_config_path

    path = get_moksha_config_path()
    return dict(appconfig("config:" + path)) if path else {}


def set_up_logging(config: Mapping[str, Any]) -> None:
    """As `fedmsg-hub` and `moksha-hub` do it; what goes to stdout there is the hub's log here."""
    if isinstance(config.get("logging"), dict):
        # The class is imported already, and its logger is to go on.
        logging.config.dictConfig({**config["logging"], "disable_existing_loggers": False})
    else:
        form = "[%(name)12s] %(levelname)s %(message)s"
        logging.basicConfig(level=logging.INFO, format=form)


def in_short(error: BaseException) -> str:
    """One line for a reason."""
    return f"{type(error).__name__}: {error}"


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(
        prog="python -m weir_consumer.moksha",
        description="Runs a consumer class of Moksha or fedmsg as a child of the hub weir.",
    )
    parser.add_argument("target", metavar="module:Class", help="the class")
    parser.add_argument(
        "--config",
        nargs="+",
        default=[],
        metavar="PATH",
        help="an .ini of Moksha's, or .py files of fedmsg's and directories of such; "
        "without it, those that fedmsg-hub or moksha-hub would read",
    )
    parser.add_argument(
        "--on-error",
        choices=sorted(ON_ERROR),
        default="retry",
        help="what becomes of a message when `consume` raises (default: %(default)s)",
    )
    return parser.parse_args()


if __name__ == "__main__":
    options = arguments()
    streams = take_streams()  # before the class is imported: what that prints is no protocol
    sys.exit(
        main(
            lambda settings: Bridge(options.target, options.config, options.on_error, settings),
            streams,
        )
    )
