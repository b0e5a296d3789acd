# SPDX-License-Identifier: GPL-2.0-only
"""The data plane of an instance: its programs, its tables and the interfaces that run it.

Everything lives in bpffs, so traffic goes on when no process of ours runs:

    /sys/fs/bpf/mptm/<instance>/maps/<table>
                                progs/<program>
                                links/<interface>  at XDP
                                tcx/<interface>    at TC, where the kernel has tcx links (6.6); else it is a filter
                                qdiscs/<index> <interface>  a symbolic link: we added the qdisc that the filter is on
                                build              a symbolic link whose target names the build and its programs

Dots in the names of instances and interfaces stand as colons there. What
`bpftool prog loadall mptm.o .../progs type xdp pinmaps .../maps` makes is adopted; so are programs of ours that
`bpftool net attach` put on an interface.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mptm.errors import ForeignProgram, KernelError, MptmError, NotFound
from mptm.instance import check_instance_name
from mptm.kernel import bpffs, hashtable, libbpf, netlink, segmenter, tc
from mptm.kernel.btf import Types
from mptm.kernel.maps import ARRAY_OF_MAPS, DEVMAP, DEVMAP_HASH, Map, types_of
from mptm.kernel.objects import DATA_PLANE, DATA_PLANE_TC, object_path
from mptm.tables import Attachment

PROGRAM_OF_ROLE = {"access": "mptm_encap_xdp", "uplink": "mptm_decap_xdp"}
"""The program that a port of a role runs at XDP."""

TC_PROGRAM_OF_ROLE = {"access": "mptm_encap_tc", "uplink": "mptm_decap_tc"}
"""The program that a port of a role runs at TC."""

_SEGMENT_PROGRAM = "mptm_segment_tc"
_SEGMENTER = "segmenter"
"""The table that leads to the pair of `mptm.kernel.segmenter`, and the pin of the link there."""

_LINKS_OF_HOOK = {"xdp": "links", "tc": "tcx"}
NO_TCX = frozenset((errno.EINVAL, errno.EOPNOTSUPP, libbpf.ENOTSUPP))
"""What kernels without tcx links answer."""

_ROOT = bpffs.MOUNT_POINT / "mptm"
_BUILD = "build"
_QDISCS = "qdiscs"
_NEW = " new"  # no interface, table or program can have a name that ends so
_KERNEL_NAME_LEN = 15
_READ_ONLY_FOR_PROGRAMS = 1 << 7  # BPF_F_RDONLY_PROG, which the kernel adds to device maps by itself
_MODE_FLAGS = {"native": libbpf.XDP_FLAGS_DRV_MODE, "generic": libbpf.XDP_FLAGS_SKB_MODE}
_NOT_IN_THIS_MODE = frozenset(
    (errno.EOPNOTSUPP, libbpf.ENOTSUPP, errno.EINVAL, errno.ERANGE, errno.ENOMEM, errno.ENOSPC, errno.E2BIG)
)
"""What drivers answer where they can't run this program natively: no support, MTU, queues."""


@dataclass(frozen=True)
class Attached:
    """An interface that runs a program of this instance.

    `name` is the interface's when it was attached, `ifindex` 0 when it is gone. `mode` is at XDP native, generic,
    offload, or adopted: attached by somebody else and without a link of ours; at TC tcx, clsact, or adopted; empty when
    the interface is gone. `hook` is xdp or tc; a port that is just being moved has both.
    """

    ifindex: int
    name: str
    mode: str
    program: str
    hook: str = "xdp"


class DataPlane:
    """The loaded data plane of one instance. Made by `open`; a context manager that lets go of its descriptors.

    `maps` are the tables by name. With `upgrade_needed`, programs of another build than the object's are pinned;
    opened for loading, `maps` and the program descriptors are then the new build's: fill `fresh_maps`, which were
    made empty because their layout changed, and call `switch_links`. After a first load all maps are fresh.
    """

    def __init__(
        self, instance: str, maps: dict[str, Map], programs: dict[str, int], build: str | None
    ) -> None:
        self.instance = instance
        self.maps = maps
        self.upgrade_needed = False
        self.fresh_maps: frozenset[str] = frozenset()
        self._segments_at: segmenter.Pair | None = None
        self._root = instance_directory(instance)
        self._build = build
        self._program_infos = {name: libbpf.program_info(fd) for name, fd in programs.items()}
        self._programs = programs

    @classmethod
    def open(cls, instance: str, *, load: bool) -> DataPlane | None:
        """The data plane of an instance as it is pinned, or None when it isn't loaded.

        With `load` it is loaded where needed, and never None: an object that isn't the pinned one is loaded beside
        it (`upgrade_needed`), with the tables shared whose layout is the same.
        Raises KernelError, NotSupported, and MptmError when the object isn't there.
        """
        if load:
            bpffs.ensure_mounted()
        pinned = cls._open_pinned(instance)
        if not load:
            if pinned is not None and pinned._build is not None:
                with suppress(MptmError):  # what is loaded works without the object
                    pinned.upgrade_needed = pinned._build != _present_build(pinned._has_tc)
            return pinned
        has_tc = pinned is not None and pinned._has_tc
        build = _present_build(has_tc)
        if pinned is not None and pinned._build == build:
            return pinned
        loaded = cls._load(instance, build)
        if has_tc:
            loaded._load_tc()
        if pinned is None:
            loaded._pin()
            return loaded
        if not loaded.fresh_maps and loaded._tags() == pinned._tags():
            loaded.close()
            pinned._build = build
            pinned._record_build()
            return pinned
        loaded.upgrade_needed = True
        pinned.close()
        return loaded

    @classmethod
    def _open_pinned(cls, instance: str) -> DataPlane | None:
        root = instance_directory(instance)
        if not set(PROGRAM_OF_ROLE.values()) <= set(_pins(root / "progs")):
            return None
        programs: dict[str, int] = {}
        descriptors: dict[str, int] = {}
        maps: dict[str, Map] = {}
        try:
            for name in _pins(root / "progs"):
                programs[name] = libbpf.open_pin(root / "progs" / name)
            for name in _pins(root / "maps"):
                descriptors[name] = libbpf.open_pin(root / "maps" / name)
            maps = hashtable.open_maps(descriptors)
            data_plane = cls(instance, maps, programs, None)
        except BaseException:
            _close(maps.values(), programs.values())
            raise
        data_plane._build = data_plane._recorded_build()
        return data_plane

    @classmethod
    def _load(cls, instance: str, build: str) -> DataPlane:
        root, path = instance_directory(instance), object_path(DATA_PLANE)
        with libbpf.Object(path) as loading:
            types = loading.types
            reused: set[str] = set()
            declared_maps = loading.maps()
            with ExitStack() as opened:
                pinned = {
                    each.name: opened.enter_context(_opened(root / "maps" / each.name))
                    for each in declared_maps
                    if (root / "maps" / each.name).exists()
                }
                fitting = compatible_maps(declared_maps, types, pinned)
                for declared in declared_maps:
                    if declared.name in fitting:
                        loading.reuse_map(declared, pinned[declared.name])
                        reused.add(declared.name)
            loading.load()
            programs = loading.program_fds()
            maps = hashtable.open_maps(loading.map_fds())
        data_plane = cls(instance, maps, programs, build)
        data_plane.fresh_maps = frozenset(maps) - reused
        return data_plane

    @property
    def _has_tc(self) -> bool:
        return set(TC_PROGRAM_OF_ROLE.values()) <= self._programs.keys()

    def _load_tc(self) -> None:
        """Load the programs for TC, on the tables that there are. Only a node with ports at TC needs them."""
        with libbpf.Object(object_path(DATA_PLANE_TC)) as loading:
            for declared in loading.maps():
                loading.reuse_map(declared, self.maps[declared.name].fd)
            loading.load()
            programs = loading.program_fds()
        self._programs |= programs
        self._program_infos |= {name: libbpf.program_info(fd) for name, fd in programs.items()}

    def require_tc(self) -> None:
        """Have the programs for TC, too. Raises KernelError, NotSupported, MptmError."""
        if self._has_tc:
            return
        self._load_tc()
        self._build = _present_build(has_tc=True)
        self._pin()

    def __enter__(self) -> DataPlane:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_programs"):
            self.close()

    def close(self) -> None:
        """Let go of all descriptors; the data plane goes on."""
        _close(self.maps.values(), self._programs.values())
        self._programs = {}

    def program_fd(self, name: str) -> int:
        """Descriptor of a program; it stays the data plane's. Raises NotFound."""
        if name not in self._programs:
            raise NotFound(
                f"the data plane has no program {name}", f"it has {', '.join(sorted(self._programs))}"
            )
        return self._programs[name]

    def program_id(self, name: str) -> int:
        """The kernel's id of a program. Raises NotFound."""
        self.program_fd(name)
        return self._program_infos[name].id

    def attach(self, attachment: Attachment) -> str:
        """Let an interface run the program of its role; returns the mode: native, generic or adopted, tcx or clsact.

        Mode `auto` is native, and generic where the driver can't. What is attached rightly already stays; a link
        whose interface is gone is replaced; a program of ours without a link is adopted as it is. A port that is at
        the other hook yet leaves it once it is at this one.
        Raises ForeignProgram when the interface runs somebody else's program, NotFound when it doesn't exist,
        NotSupported and KernelError when the kernel refuses.
        """
        mode = self._attach_tc(attachment) if attachment.hook == "tc" else self._attach_xdp(attachment)
        if attachment.hook == "tc":
            self._detach_xdp(attachment.name)
        else:
            self._detach_tc(attachment.name)
        return mode

    def _attach_tc(self, attachment: Attachment) -> str:
        self.require_tc()
        _require_interface(attachment)
        self._ensure_segmenter()
        program = TC_PROGRAM_OF_ROLE[attachment.role]
        with self._link_of(attachment) as fd:
            if fd is not None:
                if libbpf.link_info(fd).program_id != self.program_id(program):
                    _update_link(fd, self.program_fd(program), attachment.name)
                return "tcx"
        self._refuse_another_instances(attachment)
        pin = self._link_pin(attachment.name, "tc")
        return self._take_over_at_tc(attachment, program, pin) or self._create_at_tc(
            attachment.ifindex, attachment.name, program, pin
        )

    def _take_over_at_tc(self, attachment: Attachment, program: str, pin: Path) -> str | None:
        """Have a program of ours, by whatever way it is there, be the one of a port; the mode, None: there is none."""
        strays = self._strays(attachment.ifindex)
        for program_id in strays[1:]:
            self._detach_stray(attachment.ifindex, program_id)
        if not strays:
            return None
        fd = libbpf.find_tcx_link(attachment.ifindex, strays[0])
        if fd is None:
            if strays[0] != self.program_id(program):
                libbpf.replace_tcx(attachment.ifindex, strays[0], self.program_fd(program))
            return "adopted"
        try:
            if strays[0] != self.program_id(program):
                _update_link(fd, self.program_fd(program), attachment.name)
            _make_directories(pin.parent)
            libbpf.pin(fd, pin)
        finally:
            os.close(fd)
        return "tcx"

    def _strays(self, ifindex: int) -> list[int]:
        """Ids of programs of ours at the tcx of an interface that no pinned link of ours has there, in order."""
        programs = [each for each in libbpf.tcx_programs(ifindex) if self._is_ours(each)]
        for name in _pins(self._root / _LINKS_OF_HOOK["tc"]) if programs else ():
            with _opened(self._root / _LINKS_OF_HOOK["tc"] / name) as fd:
                info = libbpf.link_info(fd)
            if info.ifindex == ifindex and info.program_id in programs:
                programs.remove(info.program_id)
        return programs

    def _detach_stray(self, ifindex: int, program_id: int) -> None:
        fd = libbpf.find_tcx_link(ifindex, program_id)
        if fd is None:
            libbpf.replace_tcx(ifindex, program_id, None)
            return
        try:
            libbpf.library().bpf_link_detach(fd)
        finally:
            os.close(fd)

    def _create_at_tc(self, ifindex: int, name: str, program: str, pin: Path) -> str:
        """Attach a program at TC by a link that is pinned, or where the kernel has none by a filter; the mode."""
        program_fd = self.program_fd(program)
        if not any(self._is_ours(each.program_id) for each in tc.filters(ifindex)):
            fd = libbpf.create_tcx_link(program_fd, ifindex)
            if fd >= 0:
                _pin_link(fd, pin)
                return "tcx"
            if -fd not in NO_TCX:
                raise libbpf.failure(f"{program} can't be attached to {name} at TC", fd)
        if program == _SEGMENT_PROGRAM:  # its interface goes with it
            tc.set_filter(ifindex, program_fd, program)
        else:
            tc.set_filter(ifindex, program_fd, program, lambda: self._note_qdisc(ifindex, name))
        return "clsact"

    def _note_qdisc(self, ifindex: int, name: str) -> None:
        """Note, so that whoever detaches knows it, that it was us who added a qdisc."""
        note = self._root / _QDISCS / f"{ifindex} {bpffs.escape(name)}"
        _make_directories(note.parent)
        try:
            note.unlink(missing_ok=True)
            note.symlink_to(_network_namespace())
        except OSError as error:
            raise KernelError(f"{note} can't be made", error.errno or 0) from None

    def _remove_qdisc(self, ifindex: int, name: str) -> None:
        """Take the qdisc off an interface, if it was us who added it; forget those of interfaces that are gone."""
        for pin in _pins(self._root / _QDISCS):
            note = self._root / _QDISCS / pin
            number, _, escaped = pin.partition(" ")
            if os.readlink(note) != _network_namespace():
                continue
            noted = int(number), bpffs.unescape(escaped)
            if noted == (ifindex, name):
                if tc.remove_qdisc(ifindex):
                    note.unlink()
            elif not _is_there(*noted):
                note.unlink()

    def _refuse_another_instances(self, attachment: Attachment) -> None:
        """Raise ForeignProgram where another instance has a program at either hook: each would take from the other."""
        state = _xdp_state(attachment.ifindex, attachment.name)
        programs = [state.program_id] if state is not None else []
        programs += libbpf.tcx_programs(attachment.ifindex)
        programs += [each.program_id for each in tc.filters(attachment.ifindex)]
        for program_id in programs:
            if not self._is_ours(program_id) and (owner := _owner(program_id)) is not None:
                raise ForeignProgram(
                    f"{attachment.name} is a port of the instance {owner} already",
                    f"mptm --instance {owner} port del {attachment.name}",
                )

    def _ensure_segmenter(self) -> None:
        """Have what makes segments of GSO packets, with the program at its end; looked into once."""
        if (
            self._segments_at is not None
            and self._segments_at == segmenter.find(self.instance)
            and self._leads_to(self._segments_at)
        ):
            return
        pin = self._root / _SEGMENTER
        if segmenter.find(self.instance) is None and pin.exists():
            _detach_link(pin)
        pair = segmenter.ensure(self.instance)
        if not self._runs_segment_program(pair, pin):
            self._create_at_tc(pair.exit, segmenter.names(self.instance)[1], _SEGMENT_PROGRAM, pin)
        self._lead_to(pair)
        self._segments_at = pair

    def _lead_to(self, pair: segmenter.Pair) -> None:
        table = self.maps[_SEGMENTER]
        table.update({table.key.pack(0): table.value.pack(pair.entry)})

    def _leads_to(self, pair: segmenter.Pair) -> bool:
        """Whether the table does; the kernel takes an interface that goes out of it."""
        table = self.maps[_SEGMENTER]
        return table.get(table.key.pack(0)) == table.value.pack(pair.entry)

    def _runs_segment_program(self, pair: segmenter.Pair, pin: Path) -> bool:
        if not pin.exists():
            return bool(tc.filters(pair.exit))
        with _opened(pin) as fd:
            if libbpf.link_info(fd).program_id in libbpf.tcx_programs(pair.exit):
                return True
        _detach_link(pin)
        return False

    def _switch_segmenter(self) -> None:
        if (pair := segmenter.find(self.instance)) is None or not self._has_tc:
            return
        pin = self._root / _SEGMENTER
        if pin.exists():
            with _opened(pin) as fd:
                _update_link(fd, self.program_fd(_SEGMENT_PROGRAM), "the segmenter")
        else:
            tc.set_filter(pair.exit, self.program_fd(_SEGMENT_PROGRAM), _SEGMENT_PROGRAM)

    def _remove_segmenter(self) -> None:
        self._segments_at = None
        pin = self._root / _SEGMENTER
        if pin.exists():
            _detach_link(pin)
        segmenter.remove(self.instance)
        if (table := self.maps.get(_SEGMENTER)) is not None:
            table.delete([table.key.pack(0)])

    def _filters(self) -> list[tc.Filter]:
        """Of the ports, not of the segmenter."""
        pair = segmenter.find(self.instance)
        return [
            each
            for each in tc.filters()
            if self._is_ours(each.program_id) and (pair is None or each.ifindex != pair.exit)
        ]

    def _attach_xdp(self, attachment: Attachment) -> str:
        program = PROGRAM_OF_ROLE[attachment.role]
        with self._link_of(attachment) as fd:
            state = _xdp_state(attachment.ifindex, attachment.name)
            if fd is not None and state is not None:
                if attachment.mode in ("auto", state.mode):
                    if libbpf.link_info(fd).program_id != self.program_id(program):
                        _update_link(fd, self.program_fd(program), attachment.name)
                    return state.mode
                self._detach_xdp(attachment.name)
                state = None
        if state is not None:
            return self._adopt(state, program)
        return self._create_link(attachment, program)

    def detach(self, name: str | Attached) -> None:
        """Take our program off an interface. One that is gone, or has none of ours, is no error."""
        name = name.name if isinstance(name, Attached) else name
        self._detach_xdp(name)
        self._detach_tc(name)

    def _detach_tc(self, name: str) -> None:
        pin = self._link_pin(name, "tc")
        if pin.exists():
            _detach_link(pin)
        if self._has_tc:
            with suppress(OSError):
                for program_id in self._strays(socket.if_nametoindex(name)):
                    self._detach_stray(socket.if_nametoindex(name), program_id)
                for each in tc.filters(socket.if_nametoindex(name)):
                    if self._is_ours(each.program_id):
                        tc.remove_filter(each.ifindex)
                self._remove_qdisc(socket.if_nametoindex(name), name)
            if not _pins(pin.parent) and not self._attachments_at_tc():
                self._remove_segmenter()

    def _detach_xdp(self, name: str) -> None:
        pin = self._link_pin(name, "xdp")
        if pin.exists():
            _detach_link(pin)
            return
        try:
            state = _xdp_state(socket.if_nametoindex(name), name)
        except (OSError, NotFound):
            return
        if state is not None and self._is_ours(state.program_id):
            libbpf.replace_xdp(state.ifindex, state.program_id, None, _MODE_FLAGS.get(state.mode, 0))

    def attachments(self) -> list[Attached]:
        """The interfaces that run a program of this instance, those included that are gone (ifindex 0)."""
        states = {state.ifindex: state for state in netlink.xdp_states()}
        found, linked = [], set()
        for name in _pins(self._root / "links"):
            with _opened(self._root / "links" / name) as fd:
                info = libbpf.link_info(fd)
            state = states.get(info.ifindex)
            alive = state is not None and state.program_id == info.program_id
            found.append(
                Attached(
                    info.ifindex if alive else 0,
                    bpffs.unescape(name),
                    state.mode if state is not None and alive else "",
                    self._program_name(info.program_id),
                )
            )
            if alive:
                linked.add(info.ifindex)
        found += [
            Attached(state.ifindex, state.name, "adopted", self._program_name(state.program_id))
            for ifindex, state in states.items()
            if ifindex not in linked and self._is_ours(state.program_id)
        ]
        return found + self._attachments_at_tc()

    def _attachments_at_tc(self) -> list[Attached]:
        if not self._has_tc:
            return []
        found = []
        for name in _pins(self._root / _LINKS_OF_HOOK["tc"]):
            with _opened(self._root / _LINKS_OF_HOOK["tc"] / name) as fd:
                info = libbpf.link_info(fd)
            alive = info.program_id in libbpf.tcx_programs(info.ifindex) if info.ifindex else False
            found.append(
                Attached(
                    info.ifindex if alive else 0,
                    bpffs.unescape(name),
                    "tcx" if alive else "",
                    self._program_name(info.program_id),
                    "tc",
                )
            )
        pair = segmenter.find(self.instance)
        found += [
            Attached(ifindex, name, "adopted", self._program_name(program_id), "tc")
            for ifindex, name in socket.if_nameindex()
            if pair is None or ifindex != pair.exit
            for program_id in self._strays(ifindex)
        ]
        return found + [
            Attached(each.ifindex, each.name, "clsact", self._program_name(each.program_id), "tc")
            for each in self._filters()
        ]

    def programs_before(self, ifindex: int) -> list[str]:
        """Names of others' programs that see what comes in at TC before ours does. Raises KernelError."""
        found = []
        for program_id in libbpf.tcx_programs(ifindex):
            if self._is_ours(program_id):
                break
            info = libbpf.program_info_by_id(program_id)
            found.append(f"{(info.name if info else '') or 'a program'} (id {program_id})")
        return found

    def segmenter_problem(self) -> str:
        """Why no segments can be made of GSO packets at TC, in words; empty: they can. Raises KernelError."""
        pair = segmenter.find(self.instance)
        names = " and ".join(segmenter.names(self.instance))
        if pair is None or not self._leads_to(pair):
            return f"{names}, which make segments of GSO packets, are gone"
        if not segmenter.is_up(self.instance):
            return f"{names}, which make segments of GSO packets, are down"
        pin = self._root / _SEGMENTER
        if not pin.exists():
            has_program = any(self._is_ours(each.program_id) for each in tc.filters(pair.exit))
        else:
            with _opened(pin) as fd:
                has_program = libbpf.link_info(fd).program_id in libbpf.tcx_programs(pair.exit)
        return "" if has_program else f"{names}, which make segments of GSO packets, have lost their program"

    def switch_links(self) -> None:
        """Let every attached interface run the loaded programs from now on, without a packet lost in between.

        Then the loaded programs and tables take the place of the pinned ones. What a kill in the middle leaves
        behind, the next `open` finds as an upgrade that is still needed. Raises KernelError.
        """
        if self._has_tc and (pair := segmenter.find(self.instance)) is not None:
            self._lead_to(pair)  # a table that was made afresh is empty
        for attached in self.attachments():
            program = self._full_name(attached.program)
            if attached.ifindex == 0 or program is None:
                continue
            if attached.mode == "adopted" and attached.hook == "tc":
                self._take_over_at_tc(
                    Attachment(attached.ifindex, attached.name, "", "auto", "tc"),
                    program,
                    self._link_pin(attached.name, "tc"),
                )
            elif attached.mode == "adopted":
                if (state := _xdp_state(attached.ifindex, attached.name)) is not None:
                    self._adopt(state, program)
            elif attached.mode == "clsact":
                tc.set_filter(attached.ifindex, self.program_fd(program), program)
            else:
                with _opened(self._link_pin(attached.name, attached.hook)) as fd:
                    _update_link(fd, self.program_fd(program), attached.name)
        self._switch_segmenter()
        self._pin()
        self.upgrade_needed = False
        self.fresh_maps = frozenset()

    def remove(self) -> None:
        """Detach from all interfaces and delete every pin of the instance; the tables are gone with it."""
        for attached in self.attachments():
            self.detach(attached)
        self.close()
        remove_instance(self.instance)

    def _link_pin(self, interface: str, hook: str) -> Path:
        return self._root / _LINKS_OF_HOOK[hook] / bpffs.escape(interface)

    @contextmanager
    def _link_of(self, attachment: Attachment) -> Iterator[int | None]:
        """Descriptor of the pinned link of an interface, under its present name; None without one."""
        pin = self._link_pin(attachment.name, attachment.hook)
        if not pin.exists() or not self._is_link_of(attachment, pin):
            if pin.exists():
                _detach_link(pin)  # the interface is gone, or was replaced by another of the same name
            for name in _pins(pin.parent):
                if self._is_link_of(attachment, pin.with_name(name)):
                    pin.with_name(name).rename(pin)  # the interface was renamed
                    break
            else:
                yield None
                return
        with _opened(pin) as fd:
            yield fd

    @staticmethod
    def _is_link_of(attachment: Attachment, pin: Path) -> bool:
        """Whether a pinned link is that of the interface here: in another namespace the same index is another."""
        with _opened(pin) as fd:
            info = libbpf.link_info(fd)
        if info.ifindex != attachment.ifindex:
            return False
        if attachment.hook == "tc":
            return info.program_id in libbpf.tcx_programs(attachment.ifindex)
        state = _xdp_state(attachment.ifindex, attachment.name)
        return state is not None and state.program_id == info.program_id

    def _adopt(self, state: netlink.XdpState, program: str) -> str:
        if not self._is_ours(state.program_id):
            raise _foreign(state)
        if state.program_id != self.program_id(program):
            libbpf.replace_xdp(
                state.ifindex, state.program_id, self.program_fd(program), _MODE_FLAGS.get(state.mode, 0)
            )
        return "adopted"

    def _create_link(self, attachment: Attachment, program: str) -> str:
        self._refuse_another_instances(attachment)
        modes = ("native", "generic") if attachment.mode == "auto" else (attachment.mode,)
        for mode in modes:
            fd = libbpf.create_xdp_link(self.program_fd(program), attachment.ifindex, _MODE_FLAGS[mode])
            if fd >= 0:
                _pin_link(fd, self._link_pin(attachment.name, "xdp"))
                return mode
            if -fd not in _NOT_IN_THIS_MODE:
                break
        message = f"{program} can't be attached to {attachment.name} in {mode} mode"
        if -fd in (errno.EBUSY, errno.EEXIST) and (state := _xdp_state(attachment.ifindex, attachment.name)):
            raise _foreign(state)
        error = libbpf.failure(message, fd)
        if mode == "native" and -fd in _NOT_IN_THIS_MODE:
            error.hint = "the driver or its present settings (MTU, queues) can't do it: use --mode generic"
        raise error

    def _is_ours(self, program_id: int) -> bool:
        """Whether a program is a pinned or loaded one of this instance, or works on its tables."""
        if any(info.id == program_id for info in self._program_infos.values()):
            return True
        info = libbpf.program_info_by_id(program_id)
        return info is not None and not self._map_ids().isdisjoint(info.map_ids)

    def _map_ids(self) -> set[int]:
        """Ids of the tables, the pinned ones included that an upgrade is about to replace."""
        found = {each.info.id for each in self.maps.values()}
        for name in _pins(self._root / "maps") if self.upgrade_needed else ():
            with _opened(self._root / "maps" / name) as fd:
                found.add(libbpf.map_info(fd).id)
        return found

    def _program_name(self, program_id: int) -> str:
        for name, known in self._program_infos.items():
            if known.id == program_id:
                return name
        info = libbpf.program_info_by_id(program_id)
        return "" if info is None else self._full_name(info.name) or info.name

    def _full_name(self, name: str) -> str | None:
        """The program of the present build with this name, which the kernel may have cut short."""
        return next(
            (full for full in self._programs if full[:_KERNEL_NAME_LEN] == name[:_KERNEL_NAME_LEN]), None
        )

    def _tags(self) -> dict[str, bytes]:
        return {name: info.tag for name, info in self._program_infos.items()}

    def _pin(self) -> None:
        """Put the maps and programs in place, programs last: with them pinned, the maps are complete."""
        for name, each in self.maps.items():
            _replace_pin(each.fd, self._root / "maps" / name)
        for name, fd in self._programs.items():
            _replace_pin(fd, self._root / "progs" / name)
        self._record_build()
        for directory, wanted in (("maps", self.maps.keys()), ("progs", self._programs.keys())):
            for name in set(_pins(self._root / directory)) - wanted:
                (self._root / directory / name).unlink()

    def _record_build(self) -> None:
        """Note which build the pinned programs are of; bpffs has no files, but symbolic links."""
        new = self._root / (_BUILD + _NEW)
        new.unlink(missing_ok=True)
        new.symlink_to(f"{self._build}:{self._program_ids()}")
        new.rename(self._root / _BUILD)

    def _recorded_build(self) -> str | None:
        """The build of the pinned programs; None when it wasn't us who loaded them."""
        try:
            build, _, ids = os.readlink(self._root / _BUILD).partition(":")
        except OSError:
            return None
        return build if ids == self._program_ids() else None

    def _program_ids(self) -> str:
        return ",".join(str(info.id) for _, info in sorted(self._program_infos.items()))


def instance_directory(instance: str) -> Path:
    """Where the pins of an instance are. Raises InvalidIntent for a name that no instance can have."""
    check_instance_name(instance)
    return _ROOT / bpffs.escape(instance)


def remove_instance(instance: str) -> None:
    """Detach the links of an instance and delete all its pins, complete or not. Raises KernelError."""
    root = instance_directory(instance)
    for directory in _LINKS_OF_HOOK.values():
        for name in _pins(root / directory):
            _detach_link(root / directory / name)
    if (root / _SEGMENTER).exists():
        _detach_link(root / _SEGMENTER)
    segmenter.remove(instance)
    try:
        if root.exists():
            shutil.rmtree(root)
    except OSError as error:
        raise KernelError(f"{root} can't be removed", error.errno or 0) from None


def _network_namespace() -> str:
    """Tells that of this thread from others."""
    found = os.stat("/proc/thread-self/ns/net")
    return f"{found.st_dev}:{found.st_ino}"


def _is_there(ifindex: int, name: str) -> bool:
    try:
        return socket.if_indextoname(ifindex) == name
    except OSError:
        return False


def _pins(directory: Path) -> list[str]:
    """Names of what is pinned in a directory, in order, without what an interrupted change left behind."""
    try:
        return sorted(name for name in os.listdir(directory) if not name.endswith(_NEW))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise KernelError(
            f"{directory} can't be read", error.errno or 0, "run it as root" if os.geteuid() else None
        ) from None


@contextmanager
def _opened(pin: Path) -> Iterator[int]:
    fd = libbpf.open_pin(pin)
    try:
        yield fd
    finally:
        os.close(fd)


def _replace_pin(fd: int, path: Path) -> None:
    """Pin at a path, in place of what may be pinned there, with no moment without either."""
    _make_directories(path.parent)
    try:
        new = path.with_name(path.name + _NEW)
        new.unlink(missing_ok=True)
        libbpf.pin(fd, new)
        new.rename(path)
    except OSError as error:
        raise KernelError(f"{path} can't be pinned", error.errno or 0) from None


def _make_directories(directory: Path) -> None:
    """A directory of an instance's, for root only like those above it."""
    try:
        for each in (_ROOT, directory.parent, directory):
            each.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise KernelError(
            f"{directory} can't be made", error.errno or 0, "run it as root" if os.geteuid() else None
        ) from None


def _pin_link(fd: int, pin: Path) -> None:
    """Pin a new link; its descriptor is closed."""
    try:
        _make_directories(pin.parent)
        libbpf.pin(fd, pin)
    finally:
        os.close(fd)


def _detach_link(pin: Path) -> None:
    """Detach at once: without it the kernel does so some time after the last reference is gone."""
    with _opened(pin) as fd:
        libbpf.library().bpf_link_detach(fd)
    pin.unlink(missing_ok=True)


def _update_link(fd: int, program_fd: int, interface: str) -> None:
    libbpf.check(
        libbpf.library().bpf_link_update(fd, program_fd, None),
        f"the program of {interface} can't be exchanged",
    )


def _xdp_state(ifindex: int, name: str) -> netlink.XdpState | None:
    try:
        return netlink.xdp_state(ifindex)
    except KernelError as error:
        if error.errno == errno.ENODEV:
            raise NotFound(f"there is no interface {name} (index {ifindex})") from None
        raise


def _require_interface(attachment: Attachment) -> None:
    """Raises NotFound where the interface doesn't exist."""
    _xdp_state(attachment.ifindex, attachment.name)


def _foreign(state: netlink.XdpState) -> ForeignProgram:
    info = libbpf.program_info_by_id(state.program_id)
    name = (info.name if info else "") or "without a name"
    owner = _owner(state.program_id)
    return ForeignProgram(
        f"{state.name} already has an XDP program: {name} (id {state.program_id})"
        + (f" of the instance {owner}" if owner else ""),
        f"mptm --instance {owner} port del {state.name}"
        if owner
        else f"--hook tc has room beside it; or detach it first: ip link set dev {state.name} xdp off, or stop what "
        "attached it",
    )


def _owner(program_id: int) -> str | None:
    """The instance among whose pins a program is."""
    for instance in _pins(_ROOT):
        for name in _pins(_ROOT / instance / "progs"):
            with _opened(_ROOT / instance / "progs" / name) as fd:
                if libbpf.program_info(fd).id == program_id:
                    return bpffs.unescape(instance)
    return None


def compatible_maps(
    declared: Iterable[libbpf.ObjectMap], types: Types, existing: Mapping[str, int]
) -> set[str]:
    """Names of the declared maps that an existing one of the same name can serve as.

    That is one of the same kind, the same size and the same layout of its entries. Maps that make up one table are
    taken all or none.
    """
    declared = list(declared)
    found = {
        each.name for each in declared if each.name in existing and _fits(each, types, existing[each.name])
    }
    parts = hashtable.PARTS & {each.name for each in declared}
    if not parts <= found or (parts and not _has_layouts_of(types, existing[hashtable.HEADS])):
        found -= hashtable.PARTS
    return found


def _fits(declared: libbpf.ObjectMap, types: Types, fd: int) -> bool:
    info = libbpf.map_info(fd)
    flags = info.flags & ~_READ_ONLY_FOR_PROGRAMS if info.type in (DEVMAP, DEVMAP_HASH) else info.flags
    if (info.type, info.key_size, info.value_size, info.max_entries, flags) != (
        declared.type,
        declared.key_size,
        declared.value_size,
        declared.max_entries,
        declared.flags,
    ):
        return False
    if not info.btf_id or info.type == ARRAY_OF_MAPS:
        return True
    return all(
        types_of(info.btf_id).layout(ours) == types.layout(theirs)
        for ours, theirs in (
            (info.btf_key_type_id, declared.btf_key_type_id),
            (info.btf_value_type_id, declared.btf_value_type_id),
        )
    )


def _present_build(has_tc: bool) -> str:
    """Names the build of the objects that there are, without those for TC where none of their programs is loaded."""
    build = _digest(object_path(DATA_PLANE))
    return f"{build}+{_digest(object_path(DATA_PLANE_TC))}" if has_tc else build


def _has_layouts_of(types: Types, heads_fd: int) -> bool:
    """Whether segments of tables are laid out in the same way: the kernel tells nothing of them by their directory."""
    info = libbpf.map_info(heads_fd)
    try:
        return hashtable.segment_layouts(types_of(info.btf_id)) == hashtable.segment_layouts(types)
    except NotFound:
        return False


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise MptmError(f"{path} can't be read: {error.strerror}") from None


def _close(maps: Iterable[Map], descriptors: Iterable[int]) -> None:
    for each in maps:
        each.close()
    for fd in descriptors:
        os.close(fd)
