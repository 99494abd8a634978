"""What a shim's child becomes before it becomes the command: it gives up everything that is not its workspace's.

Run as ``python -I -S -E enter.py FILE``; only the standard library. FILE (written by `enclose`, root's) says which
namespace, files and user id. It joins the network, builds a root of its own out of the host's system folders, empty
ones, what the command needs and the mounts, then drops user id, groups and capabilities and executes. The process
stays the same one, so the shim's signals and exit codes are the command's. A failure is a line on stderr and code 126.

Paths that a tenant can write to are walked one component at a time and never through a symbolic link.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import stat
import sys
from typing import Any, NoReturn

FAILED = 126
SIGN = "lepton: cannot "
OWN = "lepton_ai"
"""The name in /proc/mounts of what is in memory here."""
MARK = "LEPTON_AI_SHIM_MARK"
MAX_ENTRIES = 256
CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWNET = 0x20000, 0x8000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_MOVE = 1, 2, 4, 8, 32, 4096, 8192
MS_REC, MS_UNBINDABLE, MS_PRIVATE = 16384, 1 << 17, 1 << 18
MNT_DETACH = 2
MOUNT_SETATTR, AT_RECURSIVE, AT_EMPTY_PATH, ATTR_RDONLY = 442, 0x8000, 0x1000, 1
PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 24, 38, 47, 4
DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW if sys.platform == "linux" else 0


class Refused(Exception):
    """What could not be done, in words that follow "cannot"."""


def main(argv: list[str]) -> NoReturn:
    """Read FILE, become its command."""
    try:
        if argv[1:] == ["--check"]:
            _check()
        with open(argv[1], encoding="utf-8") as file:
            order: dict[str, Any] = json.load(file)
        _libc()
        if order.get("namespace"):
            _join(order["namespace"])
        _unshare(CLONE_NEWNS | (CLONE_NEWIPC if order["isolate"] else 0))
        _mount(None, "/", None, MS_REC | MS_PRIVATE)
        Root(order).build()
        if order.get("uid") is not None:
            _drop(int(order["uid"]), order.get("processes"))
        _run(order)
    except Refused as error:
        said = str(error)
    except OSError as error:
        said = f"start: {error.strerror}: {error.filename}" if error.filename else f"start: {error.strerror}"
    except (ValueError, KeyError, TypeError, IndexError) as error:
        said = f"start: {type(error).__name__} {error}"
    sys.stderr.write(f"{SIGN}{said}\n")
    sys.stderr.flush()
    os._exit(FAILED)


def _check() -> NoReturn:
    """Whether this process may do what is done here; nothing of it is left."""
    _unshare(CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWNET)
    _mount(None, "/", None, MS_REC | MS_PRIVATE)
    _mount(OWN, "/mnt", "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755,size=1m")
    _mount("proc", "/mnt", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, "hidepid=2")
    os.setgroups([])
    os.setresuid(0x7000_0000, 0x7000_0000, 0x7000_0000)
    os._exit(0)


class Root:
    """A root folder of the replica's own, built at order["root"] and then turned into."""

    def __init__(self, order: dict[str, Any]) -> None:
        self.order, self.isolate = order, bool(order["isolate"])
        self.top = str(order["root"])

    def build(self) -> None:
        # Taken hold of first: what is built may hide where they lie.
        binds = [(_open(source), target, writable) for source, target, writable in self.order["binds"]]
        volumes = [(walk(volume), volume["target"], not volume["read_only"]) for volume in self.order["mounts"]]
        old = _open("/")
        _mount(OWN, self.top, "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755,size=16m")
        _mount(None, self.top, None, MS_UNBINDABLE)  # else binding the whole host would bind it into itself
        self._system(old)
        _mount(None, self.top, None, MS_PRIVATE)
        for path, line in self.order["accounts"]:
            self._account(path, line)
        # What lies higher first; an empty folder before what is shown in it.
        steps: list[tuple[str, int, int, Any]] = [(path, 0, -1, options) for path, options in self.order["empty"]]
        steps += [(target, 1, fd, writable) for fd, target, writable in binds]
        steps += [(target, 2, fd, writable) for fd, target, writable in volumes]
        for path, kind, fd, how in sorted(steps, key=lambda step: (step[0].rstrip("/").count("/"), step[1])):
            if kind == 0:
                self._empty(path, how)
            else:
                self._show(fd, path, how)
        for path, target in self.order.get("links", ()):
            folder = self._folder(os.path.dirname(path))
            with contextlib.suppress(FileExistsError):
                os.symlink(target, os.path.basename(path), dir_fd=folder)
            os.close(folder)
        self._enter()

    def _system(self, old: int) -> None:
        names = self.order["system"] or sorted(os.listdir(f"/proc/self/fd/{old}"))
        for name in names:
            try:
                info = os.stat(name, dir_fd=old, follow_symlinks=False)
            except FileNotFoundError:
                continue
            if stat.S_ISLNK(info.st_mode):
                os.symlink(os.readlink(name, dir_fd=old), f"{self.top}/{name}")
            elif stat.S_ISDIR(info.st_mode):
                os.mkdir(f"{self.top}/{name}", 0o755)
                _mount(f"/{name}", f"{self.top}/{name}", None, MS_BIND | MS_REC)
        if self.isolate:
            # Mounted anew, they show this network and this user's processes, not the host's.
            for name, options in (("proc", "hidepid=2"), ("sysfs", "")):
                place, flags = f"{self.top}/{name[:4].rstrip('f')}", MS_NOSUID | MS_NODEV | MS_NOEXEC
                os.mkdir(place, 0o555)
                _mount(name, place, name, flags, options)

    def _account(self, path: str, line: str) -> None:
        """The host's list of users or groups, with the replica's own in it: programs ask who they are."""
        try:
            with open(path, encoding="utf-8", errors="surrogateescape") as file:
                text = file.read()
        except OSError:
            return
        own = f"{self.top}/account"
        with open(own, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(f"{text.rstrip()}\n{line}\n")
        _mount(own, self.top + path, None, MS_BIND)
        os.unlink(own)

    def _empty(self, path: str, options: str) -> None:
        """An empty folder in memory, whatever is there on the host."""
        fd = self._folder(path)
        _mount(OWN, f"/proc/self/fd/{fd}", "tmpfs", MS_NOSUID | MS_NODEV, options)
        os.close(fd)

    def _show(self, source: int, path: str, writable: bool) -> None:
        place = self._folder if stat.S_ISDIR(os.fstat(source).st_mode) else self._file
        fd = place(path)
        _mount(f"/proc/self/fd/{source}", f"/proc/self/fd/{fd}", None, MS_BIND | MS_REC)
        os.close(fd)
        fd = place(path)  # what is mounted there now
        flags = MS_NOSUID | MS_NODEV | (0 if writable else MS_RDONLY)
        _mount(None, f"/proc/self/fd/{fd}", None, MS_REMOUNT | MS_BIND | flags)
        if not writable:
            _read_only_below(fd)
        os.close(fd)
        os.close(source)

    def _folder(self, path: str) -> int:
        """The folder `path` of the new root, made if need be: nothing is ever made on the host's own disks."""
        fd = os.open(self.top, DIRECTORY)
        done = ""
        for name in path.strip("/").split("/"):
            try:
                below = os.open(name, DIRECTORY, dir_fd=fd)
            except FileNotFoundError:
                if not _in_memory(fd):
                    os.close(fd)
                    self._unfold(done)
                    fd = self._folder(done) if done else os.open(self.top, DIRECTORY)
                os.mkdir(name, 0o755, dir_fd=fd)
                below = os.open(name, DIRECTORY, dir_fd=fd)
            except NotADirectoryError:
                raise Refused(f"mount at {path}: {done}/{name} is no folder") from None
            os.close(fd)
            fd, done = below, f"{done}/{name}"
        return fd

    def _file(self, path: str) -> int:
        folder = self._folder(os.path.dirname(path))
        try:
            name = os.path.basename(path)
            try:
                return os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=folder)
            except FileNotFoundError:
                os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=folder))
                return os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=folder)
        finally:
            os.close(folder)

    def _unfold(self, path: str) -> None:
        """Replace a folder of the host by one in memory that shows the same, so that something can be added."""
        fd = self._folder(path)
        names = os.listdir(f"/proc/self/fd/{fd}")
        if len(names) > MAX_ENTRIES:
            raise Refused(f"mount below {path}: it holds more than {MAX_ENTRIES} names; choose another place")
        _mount(OWN, f"/proc/self/fd/{fd}", "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755,size=1m")
        above = self._folder(path)
        for name in names:
            info = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if stat.S_ISLNK(info.st_mode):
                os.symlink(os.readlink(name, dir_fd=fd), name, dir_fd=above)
                continue
            if stat.S_ISDIR(info.st_mode):
                os.mkdir(name, 0o755, dir_fd=above)
            else:
                os.close(os.open(name, os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=above))
            source, target = _at(fd, name), _at(above, name)
            _mount(f"/proc/self/fd/{source}", f"/proc/self/fd/{target}", None, MS_BIND | MS_REC)
            os.close(source)
            os.close(target)
        os.close(above)
        os.close(fd)

    def _enter(self) -> None:
        """Turn into it and let go of the old one for good."""
        os.chdir(self.top)
        libc = _libc()
        if libc.pivot_root(b".", b".") == 0:
            if libc.umount2(b".", MNT_DETACH) != 0:
                _fail("leave the host's files")
        else:  # the host runs from its boot image, which cannot be left
            _mount(self.top, "/", None, MS_MOVE)
            os.chroot(".")
        os.chdir("/")
        if self.isolate:
            _mount(None, "/", None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)


def walk(volume: dict[str, Any]) -> int:
    """Takes hold of a mount's folder, without following a link below the volume's own root, which must be there.

    `owner` is given what is made here. Raises Refused.
    """
    owner = volume["owner"]
    try:
        fd = os.open(volume["root"], os.O_PATH | os.O_DIRECTORY)
    except OSError as error:
        raise Refused(f"mount volume {volume['volume']}: {error.strerror}: {volume['root']}") from None
    for name in volume["path"].strip("/").split("/"):
        if not name:
            continue
        try:
            try:
                below = os.open(name, DIRECTORY, dir_fd=fd)
            except FileNotFoundError:
                if volume["read_only"]:
                    raise
                os.mkdir(name, 0o700, dir_fd=fd)
                below = os.open(name, DIRECTORY, dir_fd=fd)
                os.chmod(f"/proc/self/fd/{below}", volume.get("mode", 0o700))
                if owner is not None:
                    os.chown(f"/proc/self/fd/{below}", owner, owner)
        except OSError as error:
            # A symbolic link is answered as "not a directory": it is never followed.
            raise Refused(f"mount {volume['path']} of volume {volume['volume']}: {name}: {error.strerror}") from None
        os.close(fd)
        fd = below
    return fd


def bind(fd: int, path: str) -> None:
    """Show the folder of `fd` at `path` as well, which is empty. Raises Refused."""
    _mount(f"/proc/self/fd/{fd}", path, None, MS_BIND | MS_REC)


def unbind(path: str) -> None:
    """Undo `bind`; what uses the folder goes on. Does nothing where nothing is bound."""
    _libc().umount2(os.fsencode(path), MNT_DETACH)


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_PATH)
    except OSError as error:
        raise Refused(f"show {path}: {error.strerror}") from None


def _at(folder: int, name: str) -> int:
    return os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=folder)


def _in_memory(fd: int) -> bool:
    """Whether a folder is on a file system that this program mounted; a tenant's or the host's is not written to."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        own = {line.split()[2] for line in file if f" - tmpfs {OWN} " in line}
    device = os.fstat(fd).st_dev
    return f"{os.major(device)}:{os.minor(device)}" in own


def _drop(uid: int, processes: int | None) -> None:
    """Become a user without any right but its own, for good."""
    libc = _libc()
    # In a network of its own every number is free to it.
    with contextlib.suppress(OSError), open("/proc/sys/net/ipv4/ip_unprivileged_port_start", "w") as file:
        file.write("0")
    for fd in (1, 2):
        os.fchown(fd, uid, uid)  # /dev/stdout can be opened by its owner only
    if processes:
        resource.setrlimit(resource.RLIMIT_NPROC, (processes, processes))
    libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    number = 0
    while libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0) == 0:
        number += 1
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        _fail("give up new privileges")


def _run(order: dict[str, Any]) -> NoReturn:
    env = dict(order["env"])
    if MARK in os.environ:
        env[MARK] = os.environ[MARK]
    try:
        os.chdir(order["cwd"])
    except OSError as error:
        raise Refused(f"enter {order['cwd']}: {error.strerror}") from None
    os.umask(0o022)
    argv = order["argv"]
    try:
        os.execvpe(argv[0], argv, env)
    except OSError as error:
        raise Refused(f"run {argv[0]!r}: {error.strerror}") from None


def _join(path: str) -> None:
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise Refused(f"join the network {path}: {error.strerror}") from None
    if _libc().setns(fd, CLONE_NEWNET) != 0:
        _fail(f"join the network {path}")
    os.close(fd)


def _unshare(flags: int) -> None:
    if _libc().unshare(flags) != 0:
        _fail("have files of its own")


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str = "") -> None:
    values = [None if value is None else os.fsencode(value) for value in (source, target, kind)]
    if _libc().mount(*values, ctypes.c_ulong(flags), os.fsencode(options) or None) != 0:
        shown = os.readlink(target) if target.startswith("/proc/self/fd/") else target
        _fail(f"mount {source or 'again'} at {shown}")


def _read_only_below(fd: int) -> None:
    """Also what is mounted below (Linux 5.12; before that only the top is read-only)."""

    class Attributes(ctypes.Structure):
        _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns")]

    wanted = Attributes(ATTR_RDONLY, 0, 0, 0)
    size = ctypes.c_size_t(ctypes.sizeof(wanted))
    _libc().syscall(MOUNT_SETATTR, fd, b"", AT_EMPTY_PATH | AT_RECURSIVE, ctypes.byref(wanted), size)


_loaded: Any = None


def _libc() -> Any:
    global _loaded
    if _loaded is None:
        _loaded = ctypes.CDLL(None, use_errno=True)
    return _loaded


def _fail(what: str) -> NoReturn:
    raise Refused(f"{what}: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    main(sys.argv)
