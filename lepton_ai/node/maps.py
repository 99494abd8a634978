"""The ports of one replica: which number it listens on, and where each is reached at its node's address.

Owns the choice for one order, over the node's `Ports`. Whether anything leads there is the runtime's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from lepton_ai.errors import Conflict
from lepton_ai.node.ports import Ports
from lepton_ai.spec.container import PortMap
from lepton_ai.spec.replica import ReplicaSpec


class Maps:
    """Takes and gives back what one replica needs. The served port, if there is one, is the first.

    Args:
        forwards: host ports are free ones that lead to the replica's own; else they are the same numbers.
        hold: nobody listens on the host ports, so they are kept bound here (default: as `forwards`).
    """

    def __init__(self, ports: Ports, *, forwards: bool, hold: bool | None = None) -> None:
        self._ports, self._forwards = ports, forwards
        self._hold = forwards if hold is None else hold
        self._served = False
        self.maps: tuple[PortMap, ...] = ()

    @property
    def host_port(self) -> int | None:
        """Where the served port is reached; None when nothing is served."""
        return self.maps[0].host_port if self._served else None

    @property
    def port(self) -> int | None:
        """The number the workload listens on."""
        return self.maps[0].number if self._served else None

    @property
    def others(self) -> tuple[PortMap, ...]:
        """The ports besides the served one."""
        return self.maps[self._served :]

    def take(self, spec: ReplicaSpec) -> None:
        """Raises Conflict when a wanted port is taken, Busy when none is free; nothing is kept then."""
        self.free()
        try:
            if spec.needs_port or spec.port is not None:
                host_port = self._take(spec.port, spec.prefer_port)
                self.maps = (PortMap(number=spec.port or host_port, host_port=host_port),)
                self._served = True
            for port in spec.ports:
                if port.exposed:
                    host_port = self._take(port.number)
                    named = PortMap(number=port.number, host_port=host_port, protocol=port.protocol, name=port.name)
                    self.maps = (*self.maps, named)
        except BaseException:
            self.free()
            raise

    def adopt(self, maps: Sequence[PortMap], *, served: bool, running: bool) -> None:
        """Take up what an earlier agent took."""
        self.maps, self._served = tuple(maps), served and bool(maps)
        for number in {one.host_port for one in self.maps} if running else ():
            # Only one agent runs on a folder, so the lock can be another's only by an error that would show anyway.
            with contextlib.suppress(Conflict):
                self._ports.take(number, listening=not self._hold, hold=self._hold)

    def free(self) -> None:
        """Give the ports back; which they were is still known."""
        for one in self.maps:
            self._ports.free(one.host_port)

    def _take(self, number: int | None, preferred: int | None = None) -> int:
        if preferred is not None and (number is None or self._forwards):
            with contextlib.suppress(Conflict):
                return self._ports.take(preferred, hold=self._hold)
        if self._forwards:
            return self._ports.take(hold=self._hold)
        if number is not None and any(one.host_port == number for one in self.maps):
            return number  # one number for both protocols
        return self._ports.take(number)
