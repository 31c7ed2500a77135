# SPDX-License-Identifier: Apache-2.0
# What .ci/kernels, .ci/owners and .ci/system share, which source it: kernels of Debian, and
# QEMU in software (TCG) to boot them. Packages come from the mirror that apt is
# configured with, and are checked by apt as always.

# name  architecture  suite  package (the newest that matches); what takes longest first, as some run at a time
kernels='
amd64-newest  amd64  trixie-backports    linux-image-[7-9]\.[0-9+.a-z]*-cloud-amd64
amd64-6.12    amd64  bookworm-backports  linux-image-6\.12\.[0-9+.a-z]*-cloud-amd64
amd64-6.1     amd64  bookworm            linux-image-6\.1\.[0-9.-]*-cloud-amd64
s390x-6.1     s390x  bookworm            linux-image-6\.1\.[0-9.-]*-s390x
arm64-6.1     arm64  bookworm            linux-image-6\.1\.[0-9.-]*-cloud-arm64
amd64-5.10    amd64  bullseye            linux-image-5\.10\.[0-9.-]*-cloud-amd64
'
# modules that the machines load where the kernel has them as such, dependencies first
disk_modules='virtio virtio_ring virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk'
test_modules='inet_diag tcp_diag tun netfs fscache sunrpc grace lockd nfs_acl nfs nfsv3 ib_core ccwgroup pnet smc'
modules="$disk_modules $test_modules"

cache=${STATED_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/stated/kernels}

limit=${STATED_VM_TIMEOUT:-1200} # seconds a machine may take; most need 250, vminit gives each test binary 780
# what a kernel says that we may have broken: never once more. Lockups are not
# among it: a machine in software on a busy host has them.
trouble='Kernel panic|kernel BUG at|BUG: (unable to handle|KASAN|scheduling while atomic|sleeping function|spinlock)|Oops'

die() { echo "$(basename "$0"): $*" >&2; exit 1; }

# Runs a function while no other machine that is being made runs one of that name.
locked() { # NAME FUNCTION ARGUMENT...
	local lock_fd
	mkdir -p "$cache"
	exec {lock_fd}>"$cache/$1.lock"
	flock "$lock_fd"
	"${@:2}"
	exec {lock_fd}>&-
}

install_tools() { # COMMAND:PACKAGE...
	local need=() tool
	for tool; do
		command -v "${tool%:*}" >/dev/null || need+=("${tool#*:}")
	done
	[ ${#need[@]} = 0 ] && return
	locked packages install_packages "${need[@]}"
}

install_packages() { # PACKAGE...
	export DEBIAN_FRONTEND=noninteractive
	apt-get update -q && apt-get install -yq --no-install-recommends "$@" || die "cannot install $*"
}

# The Debian mirror of this host, from apt's own configuration.
mirror() {
	local uri
	uri=$(apt-get indextargets --format '$(REPO_URI) $(ORIGIN) $(COMPONENT)' | awk '$2 == "Debian" && $3 == "main" && $1 !~ /security/ {print $1; exit}')
	[ -n "$uri" ] || die "apt has no Debian mirror configured: is this Debian?"
	echo "$uri"
}

# A private apt for one architecture and suite, so that the host's is untouched.
private_apt() { # get|cache args...
	"apt-$1" -q -o Dir::Etc::sourcelist="$root/sources.list" -o Dir::Etc::sourceparts=/dev/null \
		-o Dir::State="$root/state" -o Dir::Cache="$root/cache" -o Dir::State::status="$root/status" \
		-o APT::Architecture="$arch" -o APT::Architectures="$arch" -o APT::Sandbox::User=root "${@:2}"
}

# Leaves vmlinuz and modules in $dir, and sets $arch.
fetch() { # NAME
	local row suite pattern
	row=$(awk -v n="$1" '$1 == n' <<<"$kernels")
	[ -n "$row" ] || die "unknown kernel $1: one of $(awk 'NF {printf "%s ", $1}' <<<"$kernels")"
	read -r _ arch suite pattern <<<"$row"
	dir=$cache/$1
	locked "$1" fetch_anew
}

fetch_anew() {
	local uri names package kind deb m f
	[ "$(cat "$dir/complete" 2>/dev/null)" != "$modules" ] || return 0
	root=$cache/apt-$suite-$arch
	rm -rf "$dir"
	mkdir -p "$root"/{state/lists/partial,cache/archives/partial} "$dir"/{x,modules}
	touch "$root/status"
	uri=$(mirror) || exit
	echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $uri $suite main" >"$root/sources.list"
	private_apt get -o APT::Update::Error-Mode=any update >&2 || die "apt has no lists for $suite on $arch"
	names=$(private_apt cache pkgnames linux-)
	package=$(grep -xE "$pattern" <<<"$names" | grep -v -- -unsigned | sort -V | tail -n 1) || true
	[ -n "$package" ] || die "no package like $pattern in $suite for $arch"
	for kind in image binary modules; do # newer packages have vmlinuz and modules in a second and a third one
		f=${package/linux-image-/linux-$kind-}
		grep -qxF "$f" <<<"$names" || continue
		(cd "$dir" && private_apt get download "$f" >&2) || die "cannot download $f"
	done
	for deb in "$dir"/*.deb; do
		dpkg-deb -x "$deb" "$dir/x" || die "cannot unpack $deb"
	done
	f=$(find "$dir/x" -name 'vmlinuz*' -type f | head -n 1)
	[ -n "$f" ] || die "$package has no vmlinuz"
	cp "$f" "$dir/vmlinuz"
	for m in $modules; do
		f=$(find "$dir/x" -name "$m.ko*" -type f | head -n 1)
		case $f in
		*.xz) xz -dc "$f" >"$dir/modules/$m.ko" ;;
		*.zst) zstd -qdc "$f" >"$dir/modules/$m.ko" ;;
		?*) cp "$f" "$dir/modules/$m.ko" ;;
		esac
	done
	rm -rf "$dir"/{x,*.deb}
	echo "$modules" >"$dir/complete"
}

# Copies those of the modules that there are, numbered in the order of their
# dependencies.
copy_modules() { # TO MODULE...
	local to=$1 n=10 m
	shift
	for m; do
		[ ! -e "$dir/modules/$m.ko" ] || cp "$dir/modules/$m.ko" "$to/$n-$m.ko"
		n=$((n + 1))
	done
}

# Puts the command that boots $dir/vmlinuz with an initramfs into $qemu.
# QEMU 7.2: thread=single, as with a thread for each CPU one meets code that another
# has just patched (static keys) as it was before, or half done: amd64 panics at the
# int3, arm64 does not call a tracepoint that is on. On amd64 cx16=off, as cmpxchg16b
# is emulated wrongly enough to break 6.12's slab allocator.
# One CPU for 5.10: with two it now and then stands still in
# syscall_exit_to_user_mode, with nothing of ours on the stack.
machine() { # NAME INITRD KERNEL-ARGUMENTS QEMU-ARGUMENTS...
	local cpus=2 console
	[ "$1" != amd64-5.10 ] || cpus=1
	case $arch in
	amd64) console=console=ttyS0 qemu=(qemu-system-x86_64 -accel 'tcg,thread=single' -cpu 'max,cx16=off,la57=off') ;;
	arm64) console=console=ttyAMA0 qemu=(qemu-system-aarch64 -accel 'tcg,thread=single' -M virt -cpu cortex-a57) ;;
	s390x) console='' qemu=(qemu-system-s390x -accel 'tcg,thread=single' -M s390-ccw-virtio) ;;
	esac
	qemu+=(-kernel "$dir/vmlinuz" -initrd "$2" -append "$console panic=-1 quiet $3" -smp $cpus -m 1024
		-display none -serial stdio -monitor none -no-reboot -nic none "${@:4}")
}

# Boots what machine prepared, and leaves what its console said in $work/log and
# $cache/NAME.log. One that stands still, as QEMU may, is booted once more.
boot() { # NAME
	local try start=$SECONDS
	for try in 1 2; do
		timeout "$limit" "${qemu[@]}" </dev/null >"$work/console" 2>&1 || true
		tr -d '\r' <"$work/console" >"$work/log"
		grep -aqE "stated-vm: exit|$trouble" "$work/log" && break
		cp "$work/log" "$cache/$1.hung.log"
		if [ $try = 1 ]; then echo "      $1: the machine gave no result in $((SECONDS - start))s, once more"; fi
	done
	cp "$work/log" "$cache/$1.log"
}

# Whether all tests passed in the machine that was booted, and one at least, and
# its kernel complained of nothing.
passed() {
	grep -aq 'stated-vm: exit 0' "$work/log" && grep -aqE '^ *--- PASS' "$work/log" && ! grep -aqE "$trouble" "$work/log"
}

# Leaves a Debian bookworm with packages in the file $rootfs, made once. Needs root,
# for the owners of its files.
make_rootfs() { # NAME PACKAGE,PACKAGE...
	rootfs=$cache/$1.tar
	locked "$1" make_rootfs_anew "$2"
}

make_rootfs_anew() { # PACKAGE,PACKAGE...
	local uri what="$1, without documentation and translations"
	[ "$(cat "$rootfs.complete" 2>/dev/null)" != "$what" ] || return 0
	rm -f "$rootfs"{,.complete}
	uri=$(mirror) || exit
	mmdebstrap -q --variant=minbase --include="$1" --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
		bookworm "$rootfs" "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $uri bookworm main" >&2
	echo "$what" >"$rootfs.complete"
}

# Makes the initramfs that a machine boots its disk with, whose first process is INIT.
# BUSYBOX is a static one.
disk_initrd() { # TO BUSYBOX INIT MODULE...
	local tree=$1.tree
	rm -rf "$tree" && mkdir -p "$tree"/{dev,root,modules}
	cp "$2" "$tree/busybox"
	mknod "$tree/dev/console" c 5 1
	copy_modules "$tree/modules" "${@:4}"
	sed "s|INIT|$3|" >"$tree/init" <<-'END'
		#!/busybox sh
		for module in /modules/*; do /busybox insmod $module; done
		/busybox mount -t devtmpfs devtmpfs /dev
		until [ -e /dev/vda ]; do /busybox sleep 0.1; done
		/busybox mount -t ext4 /dev/vda /root
		exec /busybox switch_root /root INIT
	END
	chmod +x "$tree/init"
	(cd "$tree" && find . | cpio -o -H newc --quiet) >"$1"
	rm -rf "$tree"
}
