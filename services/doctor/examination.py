"""Runs the checks side by side, each in a thread of its own with a deadline.

A thread that hangs (a file system that does not answer, say) is left behind as a daemon and reported: nothing here
waits longer than it was told.
"""

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from services.doctor import broker, computer, models, packages, ports, remotes, storage
from services.doctor.finding import Finding, error, ok
from services.settings import Settings

Check = Callable[[], Iterable[Finding]]
Report = dict[str, list[Finding]]  # findings by group

_MACHINE: Mapping[str, Sequence[Check]] = {
    "python": (packages.check_python, packages.check_packages, packages.check_haproxy),
    "machine": (
        computer.check_cores,
        computer.check_memory,
        computer.check_shared_memory,
        computer.check_open_files,
    ),
}
_SETTINGS: Mapping[str, Sequence[Callable[[Settings], Iterable[Finding]]]] = {
    "python": (packages.check_extras,),
    "machine": (computer.check_training,),
    "ports": (ports.check_api_port, ports.check_metrics_port, lambda _: ports.check_ray_ports()),
    "data": (storage.check_data_dir, storage.check_holders),
    "models": (models.check_text_encoder, models.check_model),
    "kafka": (broker.check_broker,),
    "elsewhere": (
        remotes.check_snapshots,
        remotes.check_registries,
        remotes.check_identity_provider,
        remotes.check_collector,
    ),
}


def examine(settings: Settings, timeout_s: float = 5.0) -> Report:
    """Look at everything these settings need.

    Args:
        timeout_s: longest wait for one answer of the broker; a check as a whole gets four times as much.
    """
    kafka = settings.kafka.model_copy(
        update={"request_timeout_s": min(timeout_s, settings.kafka.request_timeout_s)}
    )
    hurried = settings.model_copy(update={"kafka": kafka})
    checks = {name: list(_MACHINE.get(name, ())) for name in dict.fromkeys([*_MACHINE, *_SETTINGS])}
    for name, found in _SETTINGS.items():
        checks[name] += [partial(check, hurried) for check in found]
    return {"settings": [ok("settings", "hold together")]} | run(checks, 4 * timeout_s)


def examine_machine(wrong: str, timeout_s: float = 5.0) -> Report:
    """Look at what does not depend on the settings, as those are wrong."""
    advice = "mend them; `headrace config --example` shows every setting"
    return {"settings": [error("settings", wrong, advice)]} | run(_MACHINE, 4 * timeout_s)


def run(checks: Mapping[str, Sequence[Check]], deadline_s: float) -> Report:
    """Run checks side by side; what has not ended by the deadline is told as an error."""
    until = time.monotonic() + deadline_s
    started = [(group, _Running(check)) for group, found in checks.items() for check in found]
    report: Report = {group: [] for group in checks}
    for group, running in started:
        report[group] += running.findings(until, deadline_s)
    return report


class _Running:
    """A check in its thread."""

    def __init__(self, check: Check) -> None:
        inner = check.func if isinstance(check, partial) else check
        self._name = getattr(inner, "__name__", "check").removeprefix("check_").replace("_", " ")
        self._check, self._found = check, list[Finding]()
        self._thread = threading.Thread(target=self._run, name=f"doctor {self._name}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            for finding in self._check():
                self._found.append(finding)
        except Exception as failed:  # a check that fails must not hide what the others found
            self._found.append(
                error(
                    self._name,
                    f"the check itself failed: {type(failed).__name__}: {failed}",
                    "look at what it names; please report it if that is in order",
                )
            )

    def findings(self, until: float, deadline_s: float) -> list[Finding]:
        self._thread.join(max(0.0, until - time.monotonic()))
        found = list(self._found)
        if self._thread.is_alive():
            found.append(
                error(
                    self._name,
                    f"no answer within {deadline_s:g} s",
                    "something hangs there; look at that first",
                )
            )
        return found
