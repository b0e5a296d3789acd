#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# Sets this checkout up: `setup.sh packages` installs the Debian/Ubuntu packages that are missing (nothing
# is touched when none is), `setup.sh peers` those that tests talk to or boot other kernels with, `setup.sh venv` makes .venv with the project
# in it, `setup.sh bench` adds what the benchmark draws with.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '\033[1m==> %s\033[0m\n' "$*"; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

distribution_packages() {
	local id=unknown
	[ -r /etc/os-release ] && id=$(. /etc/os-release && echo "${ID:-unknown} ${ID_LIKE:-}")
	echo clang llvm libbpf-dev linux-libc-dev \
		iproute2 ethtool iputils-ping tcpdump tshark iperf3 xdp-tools \
		python3 python3-venv python3-dev procps ca-certificates
	# The library behind libbpf-dev is named after its soname in each distribution (libbpf1 today): it comes along.
	case "$id" in
	*ubuntu*) echo linux-tools-common linux-tools-generic ;;
	*) echo bpftool ;;
	esac
}

peer_packages=(openvswitch-switch qemu-system-x86 busybox-static kmod cpio)

missing_packages() {
	local package
	for package in "$@"; do
		[ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || echo "$package"
	done
}

missing_tools() {
	local tool
	for tool in clang ip ethtool ping tcpdump tshark iperf3 bpftool xdpdump nsenter; do
		command -v "$tool" >/dev/null || echo "$tool"
	done
}

setup_packages() {
	if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
		local tools; tools=$(missing_tools | xargs)
		[ -z "$tools" ] || fail "not Debian or Ubuntu: install these tools (and libbpf's headers) first: $tools"
		return
	fi
	# shellcheck disable=SC2046 # a list of package names
	install_packages $(distribution_packages)
}

# Tests start what they need themselves, with files of its own: no service of these packages has to run.
setup_peers() {
	if ! command -v apt-get >/dev/null; then
		command -v ovs-vswitchd >/dev/null && command -v qemu-system-x86_64 >/dev/null || fail "install Open vSwitch and qemu first"
		return
	fi
	local policy=/usr/sbin/policy-rc.d
	if [ -n "$(missing_packages "${peer_packages[@]}")" ] && [ "$(id -u)" = 0 ] && [ ! -e $policy ]; then
		trap 'rm -f /usr/sbin/policy-rc.d' EXIT
		printf '#!/bin/sh\nexit 101\n' >$policy
		chmod +x $policy
	fi
	install_packages "${peer_packages[@]}"
}

install_packages() {
	local packages; packages=$(missing_packages "$@" | xargs)
	[ -n "$packages" ] || return 0
	[ "$(id -u)" = 0 ] || fail "packages are missing, and only root can install them: sudo apt-get install $packages"
	say "installing packages that are missing: $packages"
	export DEBIAN_FRONTEND=noninteractive
	# tshark's question, who besides root may capture, has its answer before it is asked.
	echo 'wireshark-common wireshark-common/install-setuid boolean false' | debconf-set-selections
	apt-get update -qq
	# shellcheck disable=SC2086 # a list of package names
	apt-get install -y -qq --no-install-recommends -o Dpkg::Use-Pty=0 $packages >"$log" 2>&1 ||
		{ tail -n 30 "$log" >&2; fail "apt-get couldn't install the packages (its last lines are above)"; }
}

find_python() {
	local candidate
	for candidate in python3 python3.14 python3.13 python3.12 python3.11; do
		if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
			command -v "$candidate"
			return
		fi
	done
	fail "no Python 3.11 or newer"
}

# Ubuntu's bpftool is a wrapper that only serves its own kernels; the real one of any version does.
link_bpftool() {
	bpftool version >/dev/null 2>&1 && return
	local newest; newest=$(find /usr/lib/linux-tools* -name bpftool -type f -perm -u+x 2>/dev/null | sort -V | tail -n 1)
	[ -n "$newest" ] || fail "no bpftool that runs on kernel $(uname -r)"
	ln -sf "$newest" .venv/bin/bpftool
}

setup_venv() {
	local python; python=$(find_python)
	if ! .venv/bin/python -c 'import sys' 2>/dev/null; then
		say "making a virtual environment in .venv ($("$python" --version))"
		rm -rf .venv
		"$python" -m venv .venv
	fi
	say "installing the project and its test tools into .venv"
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	link_bpftool
	touch .venv/.installed
}

setup_bench() {
	say "installing what the benchmark draws with into .venv"
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	touch .venv/.bench-installed
}

mkdir -p build
log=build/setup.log
case "${1:-}" in
packages) setup_packages ;;
peers) setup_peers ;;
venv) setup_venv ;;
bench) setup_bench ;;
*) fail "usage: setup.sh packages|peers|venv|bench" ;;
esac
